"""The span of a text that answers a question."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ..modeling.spans import END, NO_TOKEN, START, answer_text, context_marks, windows
from .base import Task
from .constant import entropy
from .registration import register_task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder
    from .columns import Cells, Columns, Encoding, Labels, References


@dataclass(kw_only=True)
class QuestionAnswering(Task):
    """Find the answer to a question in a context, in the format of SQuAD.

    A context that is longer than the limit is read in windows that overlap. The answers column contains
    ``{"text": [...], "answer_start": [...]}``, with starts in characters of the context; empty lists for a question
    without an answer, None for a row without a label. Training uses the first answer, evaluation uses all of them.

    Args:
        question_column: column of the question.
        context_column: column of the context.
        answers_column: column of the answers.
        doc_stride: tokens by which two windows of a context overlap.
        max_answer_length: maximum number of tokens of an answer.
        unanswerable: whether a question may have no answer; if None, whether a question in the data has none.
        dataset: see :class:`Task`.
        max_length: tokens of a window; see :class:`Task`.
        language: see :class:`Task`.
        weight_column: see :class:`Task`.
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
    def input_key(self) -> tuple[Hashable, ...]:
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
        rows: Columns,
        indices: list[int],
        encoder: Encoder,
        split: str,
        *,
        offsets: bool,  # noqa: ARG002
    ) -> tuple[Columns, Encoding, list[bool]]:
        """See :meth:`Task.encode_inputs`: the windows of every row."""
        questions = self.texts(rows[self.question_column], self.question_column, indices, split)
        contexts = self.texts(rows[self.context_column], self.context_column, indices, split)
        made = [
            windows(encoder.tokenizer, question, context, encoder.limit, self.doc_stride)
            for question, context in zip(questions, contexts, strict=True)
        ]
        inputs: Columns = {}
        for encoding, _ in made:
            for name, values in encoder.inputs(encoding).items():
                inputs.setdefault(name, []).append(values)
        return inputs, ([encoding for encoding, _ in made], contexts), [cut for _, cut in made]

    def placeholder(self, row: Columns) -> object:  # noqa: ARG002
        """See :meth:`Task.placeholder`."""
        return {"text": [], "answer_start": []}

    def encode_labels(
        self,
        rows: Columns,
        indices: list[int],
        encoding: tuple[list[BatchEncoding], list[str]],
        unseen: Cells,  # noqa: ARG002
        split: str,
    ) -> Labels:
        """See :meth:`Task.encode_labels`: the marks of the tokens, and the data for the score of an answer."""
        labels: Labels = []
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

    def _answers(
        self, answers: object, context: str, index: int, split: str
    ) -> tuple[list[str], tuple[int, int] | None]:
        """All answers of a row, and the first and last character of the answer for training."""
        if not isinstance(answers, dict) or not {"text", "answer_start"} <= answers.keys():
            raise self.row_error(
                index,
                split,
                f"column '{self.answers_column}': answers should be "
                f"{{'text': [...], 'answer_start': [...]}}. Found {answers!r}. Fix the row.",
            )
        texts, starts = list(answers["text"]), list(answers["answer_start"])
        if len(texts) != len(starts):
            raise self.row_error(
                index, split, f"{len(texts)} answers have {len(starts)} starts. Use one start per answer."
            )
        if not texts and self.unanswerable is False:
            raise self.row_error(index, split, "the question has no answer. Set unanswerable, or remove the row.")
        for text, start in zip(texts, starts, strict=True):
            if start is None or isinstance(start, str | float):
                raise self.row_error(
                    index, split, f"the start {start!r} of the answer {text!r} is not a whole number. Fix it."
                )
            if not 0 <= start <= len(context) - len(text):
                raise self.row_error(
                    index,
                    split,
                    f"the answer {text!r} at character {start} is outside of the context of "
                    f"{len(context)} characters. Fix the offset.",
                )
            if not text or context[start : start + len(text)] != text:
                raise self.row_error(
                    index,
                    split,
                    f"the answer {text!r} is not at character {start} of the context, which contains "
                    f"{context[start : start + len(text)]!r} there. Fix the answer or its offset.",
                )
        return texts, (starts[0], starts[0] + len(texts[0])) if texts else None

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:
        """Marks (N, G, L), padded with -1."""
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
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the positions where answers begin and end."""
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
        unseen: Cells,  # noqa: ARG002
        references: References,
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

    def measure(self, predictions: np.ndarray, labels: np.ndarray, unseen: Cells) -> dict[str, float]:
        """Not defined, because the texts are needed; see :meth:`score`."""
        raise NotImplementedError


def _first(window: list[int], mark: int) -> int:
    """The first token of a window with a mark."""
    return next(place for place, marks in enumerate(window) if marks > 0 and marks & mark)


def _marks(encoding: BatchEncoding, window: int, span: tuple[int, int] | None) -> list[int]:
    """The marks of the tokens of a window, with the begin and end of the answer if the window contains all of it."""
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
