"""The span of a text that answers a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..modeling.spans import END, NO_TOKEN, START, answer_text, context_marks, windows
from .base import Task
from .constant import entropy
from .registration import register_task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder


@dataclass(kw_only=True)
class QuestionAnswering(Task):
    """Find the answer to a question in a context, in the format of SQuAD.

    A context that is longer than the limit is read in windows that overlap. The answers column holds
    ``{"text": [...], "answer_start": [...]}``, characters counted in the context; empty lists for a question without
    answer, None for a row without label. The first answer trains, all of them count in evaluation.

    Args:
        question_column: column of the question.
        context_column: column of the context.
        answers_column: column of the answers.
        doc_stride: tokens that two windows of a context have in common.
        max_answer_length: tokens of the longest answer that is given.
        unanswerable: whether a question may have no answer; whether one of the data has none where None.
        dataset: see :class:`Task`.
        max_length: tokens of a window; see :class:`Task`.
        language: see :class:`Task`.
    """

    type: ClassVar[str] = "question-answering"
    aligns_words: ClassVar[bool] = True
    several: ClassVar[bool] = True
    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    doc_stride: int = 128
    max_answer_length: int = 30
    unanswerable: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("doc_stride", 0, none=False)
        self.check_number("max_answer_length", 1, none=False)

    @property
    def target_column(self) -> str:
        """Column of the answers."""
        return self.answers_column

    @property
    def columns(self) -> list[str]:
        """See :class:`Task`."""
        return [self.question_column, self.context_column, self.answers_column]

    @property
    def input_key(self) -> tuple[Any, ...]:
        """See :class:`Task`."""
        return (*super().input_key, self.type, self.question_column, self.answers_column, self.doc_stride)

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`."""
        if self.unanswerable is not None:
            return self
        data = [dataset for dataset in (train, *others) if dataset is not None]
        return replace(self, unanswerable=any(self._has_unanswerable(dataset) for dataset in data))

    def _has_unanswerable(self, dataset: Dataset) -> bool:
        for batch in dataset.select_columns([self.answers_column]).iter(1000):
            for answers in batch[self.answers_column]:
                if isinstance(answers, dict) and not answers.get("text"):
                    return True
        return False

    def encode_inputs(
        self,
        rows: dict[str, list[Any]],
        indices: list[int],
        encoder: Encoder,
        split: str,
        *,
        offsets: bool,  # noqa: ARG002
    ) -> tuple[dict[str, list[Any]], Any, list[bool]]:
        """See :meth:`Task.encode_inputs`: of every row its windows."""
        questions = self.texts(rows[self.question_column], self.question_column, indices, split)
        contexts = self.texts(rows[self.context_column], self.context_column, indices, split)
        made = [
            windows(encoder.tokenizer, question, context, encoder.limit, self.doc_stride)
            for question, context in zip(questions, contexts, strict=True)
        ]
        inputs: dict[str, list[Any]] = {}
        for encoding, _ in made:
            for name, values in encoder.inputs(encoding).items():
                inputs.setdefault(name, []).append(values)
        return inputs, ([encoding for encoding, _ in made], contexts), [cut for _, cut in made]

    def encode_labels(
        self,
        rows: dict[str, list[Any]],
        indices: list[int],
        encoding: Any,
        unseen: list[Any],  # noqa: ARG002
        split: str,
    ) -> list[Any]:
        """See :meth:`Task.encode_labels`: the marks of the tokens, and what the score of an answer needs."""
        labels: list[dict[str, Any] | None] = []
        for answers, index, windows_of_row, context in zip(rows[self.answers_column], indices, *encoding, strict=True):
            if answers is None:
                labels.append(None)
                continue
            texts, span = self._answers(answers, context, index, split)
            count = len(windows_of_row["input_ids"])
            labels.append(
                {
                    "marks": [_marks(windows_of_row, window, span) for window in range(count)],
                    "offsets": [[list(pair) for pair in windows_of_row["offset_mapping"][w]] for w in range(count)],
                    "context": context,
                    "answers": texts,
                }
            )
        return labels

    def _answers(self, answers: Any, context: str, index: int, split: str) -> tuple[list[str], tuple[int, int] | None]:
        """All answers of a row, and the first and last character of the one that trains."""
        if not isinstance(answers, dict) or not {"text", "answer_start"} <= answers.keys():
            raise self.row_error(
                index,
                split,
                f"column '{self.answers_column}': answers should be "
                f"{{'text': [...], 'answer_start': [...]}}. Found {answers!r}. Mend the row.",
            )
        texts, starts = list(answers["text"]), list(answers["answer_start"])
        if len(texts) != len(starts):
            raise self.row_error(index, split, f"{len(texts)} answers have {len(starts)} starts. Give one each.")
        if not texts and self.unanswerable is False:
            raise self.row_error(index, split, "the question has no answer. Set unanswerable, or drop the row.")
        for text, start in zip(texts, starts, strict=True):
            if start is None or isinstance(start, str | float):
                raise self.row_error(
                    index, split, f"the start {start!r} of the answer {text!r} is no whole number. Mend it."
                )
            if not 0 <= start <= len(context) - len(text):
                raise self.row_error(
                    index,
                    split,
                    f"the answer {text!r} at character {start} lies beyond the context of "
                    f"{len(context)} characters. Mend the offset.",
                )
            if not text or context[start : start + len(text)] != text:
                raise self.row_error(
                    index,
                    split,
                    f"the answer {text!r} does not stand at character {start} of the context, where "
                    f"{context[start : start + len(text)]!r} is. Mend the answer or its offset.",
                )
        return texts, (starts[0], starts[0] + len(texts[0])) if texts else None

    def collate(self, labels: list[Any], length: int, padding_side: str) -> torch.Tensor:
        """Marks (N, G, L), -1 where there is no token."""
        import torch

        most = max(len(label["marks"]) for label in labels)
        result = torch.full((len(labels), most, length), NO_TOKEN)
        for row, label in enumerate(labels):
            for window, marks in enumerate(label["marks"]):
                start = length - len(marks) if padding_side == "left" else 0
                result[row, window, start : start + len(marks)] = torch.tensor(marks)
        return result

    def constant_loss(
        self,
        labels: Sequence[Any],
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the places where answers begin and end."""
        windows = [window for label in labels for window in label["marks"]]
        places = [[_first(window, mark) for window in windows] for mark in (START, END)]
        return sum(map(entropy, places)) / 2

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return ["f1", "exact_match"]

    def score(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,  # noqa: ARG002
        *,
        unseen: list[Any],  # noqa: ARG002
        references: Sequence[Any],
        loss: float,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, float]:
        """``f1`` and ``exact_match`` of SQuAD, from 0 to 1."""
        from .metrics import Squad

        del tokenizer
        texts = [
            answer_text(label["context"], label["offsets"], best.tolist())[0]
            for best, label in zip(predictions, references, strict=True)
        ]
        return Squad().compute(predictions=texts, references=[label["answers"] or [""] for label in references])

    def metrics(self, predictions: np.ndarray, labels: np.ndarray, unseen: list[Any]) -> dict[str, float]:
        """Not defined: the texts are needed, see :meth:`score`."""
        raise NotImplementedError


def _first(window: list[int], mark: int) -> int:
    """The first token of a window that has a mark."""
    return next(place for place, marks in enumerate(window) if marks > 0 and marks & mark)


def _marks(encoding: Any, window: int, span: tuple[int, int] | None) -> list[int]:
    """What every token of a window is, and, where the answer lies in it whole, where that begins and ends."""
    marks = context_marks(encoding, window)
    inside = [token for token, mark in enumerate(marks) if mark]
    offsets = encoding["offset_mapping"][window]
    first = last = 0
    if span is not None and inside and offsets[inside[0]][0] <= span[0] and span[1] <= offsets[inside[-1]][1]:
        covered = [token for token in inside if offsets[token][0] < span[1] and offsets[token][1] > span[0]]
        first, last = (covered[0], covered[-1]) if covered else (0, 0)
    marks[first] |= START
    marks[last] |= END
    return marks


register_task(QuestionAnswering)
