"""A tag for every word of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from ..modeling.decoding import is_bio
from ..modeling.heads import IGNORE
from ..modeling.inputs import as_text, first_tokens
from . import labels as lab
from .base import Task
from .constant import entropy
from .labelled import Labelled

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import BatchEncoding, PreTrainedTokenizerBase


@dataclass(kw_only=True)
class TokenClassification(Labelled):
    """Tag words: named entities in BIO, parts of speech, slots.

    Words are joined by single spaces and tokenised as running text, so that training sees what the pipeline will see.
    The first token of a word carries its tag; the others carry none.

    With ``text_column`` and ``spans_column`` the rows hold running text and a list of spans, ``{"start", "end"}`` in
    characters with the name under ``"label"`` or ``"slot"``. Words are then what the tokenizer splits the text into,
    and have BIO tags made of the spans that they begin in.

    Args:
        text_column: column of running text, beside ``spans_column``.
        spans_column: column of the spans.
        tokens_column: column of the words, a list of strings a row.
        tags_column: column of the tags: a list of names, numbers or ClassLabels, one a word; None where a row has none.
        label_names: names of the tags, in the order of their numbers; read from the data where None.
        label_all_tokens: give every token of a word its tag, ``I-`` for the later ones of a word that begins a span.
        unseen_labels: what a tag outside ``label_names`` is in evaluation: ``"count_wrong"`` or ``"error"``.
        dataset: see :class:`Task`.
        max_length: see :class:`Task`.

    Example::

        TokenClassification(label_names=["O", "B-PER", "I-PER"], tokens_column="tokens", tags_column="ner_tags")
    """

    type: ClassVar[str] = "token-classification"
    aligns_words: ClassVar[bool] = True
    tokens_column: str = "tokens"
    tags_column: str = "ner_tags"
    label_all_tokens: bool = False
    text_column: str | None = None
    spans_column: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.text_column is None) != (self.spans_column is None):
            raise self.error(
                "`text_column` and `spans_column` go together. Give both, or tokens_column and tags_column."
            )

    @property
    def target_column(self) -> str:
        """Column of the tags, or of the spans."""
        return self.spans_column or self.tags_column

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`."""
        data = [dataset for dataset in (train, *others) if dataset is not None]
        if self.spans_column is not None:
            return self if self.label_names is not None else replace(self, label_names=self._names_of_spans(data))
        for dataset in data:
            for column, kinds, wants in (
                (self.tokens_column, ("name",), "a list of words a row"),
                (self.tags_column, ("name", "number"), "a list of tags a row"),
            ):
                found, depth = lab.kind(dataset, column)
                if found != "nothing" and (found not in kinds or depth != 1):
                    raise self.error(
                        f"column '{column}' holds {lab.describe(found, depth)}, and {wants} is needed. "
                        "Name another column."
                    )
        return self if self.label_names is not None else self.with_names_of(data)

    def _names_of_spans(self, data: Sequence[Dataset]) -> list[str]:
        kinds: dict[str, None] = {}
        for dataset in data:
            found = {_kind(span) for spans in dataset[self.spans_column] for span in spans or [] if _kind(span)}
            kinds |= dict.fromkeys(sorted(map(str, found)))
        if not kinds:
            raise self.error(
                f"column '{self.spans_column}' holds no span with a 'label'. Check it, or give label_names."
            )
        return ["O", *(f"{mark}-{kind}" for kind in kinds for mark in "BI")]

    def unseen(self, dataset: Dataset) -> list[Any]:
        """See :meth:`Task.unseen`."""
        if self.spans_column is None:
            return super().unseen(dataset)
        return [name for name in self._unseen_names(dataset) if name not in (self.label_names or [])]

    def _unseen_names(self, dataset: Dataset) -> list[str]:
        kinds = sorted(
            {str(_kind(span)) for spans in dataset[self.spans_column] for span in spans or [] if _kind(span)}
        )
        return [f"{mark}-{kind}" for kind in kinds for mark in "BI"]

    def _encode_spans(
        self, rows: dict[str, list[Any]], indices: list[int], encoding: BatchEncoding, unseen: list[Any], split: str
    ) -> list[Any]:
        table = lab.numbering(self.label_names or [], unseen)
        encoded: list[list[int] | None] = []
        for row, (text, spans) in enumerate(zip(rows[self.text_column or ""], rows[self.target_column], strict=True)):
            if spans is None:
                encoded.append(None)
                continue
            where = f"row {indices[row]} of the {split} data"
            covered = self._covered(as_text(text), spans, table, where)
            labels = [IGNORE] * len(encoding["input_ids"][row])
            last, previous = None, None
            for token, (word, (start, end)) in enumerate(
                zip(encoding.word_ids(row), encoding["offset_mapping"][row], strict=True)
            ):
                if word is None or not as_text(text)[start:end].strip():
                    continue
                if word != last:
                    place = start + len(as_text(text)[start:end]) - len(as_text(text)[start:end].lstrip())
                    span = covered.get(place)
                    mark = "I" if span is not None and span == previous else "B"
                    labels[token] = table["O" if span is None else f"{mark}-{span[1]}"]
                    previous = span
                elif self.label_all_tokens:
                    labels[token] = self._inside(labels[token - 1])
                last = word
            encoded.append(labels)
        return encoded

    def _covered(self, text: str, spans: list[Any], table: dict[Any, int], where: str) -> dict[int, tuple[int, str]]:
        """For every character of a span, the span's number and name."""
        covered: dict[int, tuple[int, str]] = {}
        for number, span in enumerate(spans):
            start, end, kind = span.get("start"), span.get("end"), _kind(span)
            if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(text):
                raise self.error(
                    f"{where} has a span from {start!r} to {end!r} in column '{self.spans_column}', and the text has "
                    f"{len(text)} characters. Mend the row."
                )
            if f"B-{kind}" not in table:
                raise self.unknown_label(f"B-{kind}", where)
            if covered.keys() & set(range(start, end)):
                raise self.error(f"{where} has spans that overlap at character {start}. A word has one tag: drop one.")
            covered |= dict.fromkeys(range(start, end), (number, str(kind)))
        return covered

    def encode_labels(
        self, rows: dict[str, list[Any]], indices: list[int], encoding: BatchEncoding, unseen: list[Any], split: str
    ) -> list[Any]:
        """See :meth:`Task.encode_labels`."""
        if self.spans_column is not None:
            return self._encode_spans(rows, indices, encoding, unseen, split)
        table = lab.numbering(self.label_names or [], unseen)
        encoded: list[list[int] | None] = []
        for row, (words, tags) in enumerate(zip(rows[self.tokens_column], rows[self.tags_column], strict=True)):
            if tags is None:
                encoded.append(None)
                continue
            where = f"row {indices[row]} of the {split} data"
            if len(words) != len(tags):
                raise self.error(
                    f"{where} has {len(words)} words in '{self.tokens_column}' and {len(tags)} tags in "
                    f"'{self.tags_column}'. Give one tag a word."
                )
            for tag in tags:
                if tag not in table:
                    raise self.unknown_label(tag, where)
            encoded.append(self._align([table[tag] for tag in tags], words, encoding, row))
        return encoded

    def _align(self, tags: list[int], words: list[str], encoding: BatchEncoding, row: int) -> list[int]:
        """Tags of words to labels of tokens."""
        starts = [0, *accumulate(len(word) + 1 for word in words)][: len(words)]
        labels = [IGNORE] * len(encoding["input_ids"][row])
        firsts = first_tokens(encoding, row, starts)
        for tag, first in zip(tags, firsts, strict=True):
            if first is not None:
                labels[first] = tag
        if self.label_all_tokens:
            sequence = encoding.sequence_ids(row)
            for token in range(1, len(labels)):
                if labels[token] == IGNORE and sequence[token] == 0 and labels[token - 1] != IGNORE:
                    labels[token] = self._inside(labels[token - 1])
        return labels

    def _inside(self, tag: int) -> int:
        names = self.label_names or []
        if tag < len(names) and names[tag].startswith("B-") and "I-" + names[tag][2:] in names:
            return names.index("I-" + names[tag][2:])
        return tag

    def collate(self, labels: list[Any], length: int, padding_side: str) -> torch.Tensor:
        """Labels (N, L), -100 where a token has none."""
        return lab.padded(labels, length, padding_side)

    def constant_loss(
        self,
        labels: Sequence[Any],
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the tags."""
        return entropy(tag for row in labels for tag in row if tag != IGNORE)

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        if self.label_names is None:
            return None
        return ["f1", "precision", "recall", "accuracy"] if is_bio(self.label_names) else ["accuracy"]

    def metrics(self, predictions: np.ndarray, labels: np.ndarray, unseen: list[Any]) -> dict[str, float]:
        """``f1``, ``precision``, ``recall`` of spans and ``accuracy`` of tags for BIO; ``accuracy`` for other tags."""
        from .metrics import Accuracy, SpanF1

        names = self.label_names or []
        best, kept = predictions.argmax(-1), labels != IGNORE
        if not is_bio(names):
            return Accuracy().compute(predictions=best[kept], references=labels[kept])
        known = [*names, *(str(label) for label in unseen)]
        rows = [(best[row][mask], labels[row][mask]) for row, mask in enumerate(kept)]
        return SpanF1().compute(
            predictions=[[names[tag] for tag in predicted] for predicted, _ in rows],
            references=[[known[tag] for tag in true] for _, true in rows],
        )


def _kind(span: dict[str, Any]) -> Any:
    """What a span is called: its ``label``, or ``slot``."""
    return span.get("label") if span.get("label") is not None else span.get("slot")
