"""A tag for every word of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from ..modeling.decoding import is_bio
from ..modeling.heads import IGNORE
from ..modeling.inputs import first_tokens
from . import labels as lab
from .base import Task
from .labelled import Labelled

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import BatchEncoding


@dataclass(kw_only=True)
class TokenClassification(Labelled):
    """Tag words: named entities in BIO, parts of speech, slots.

    Words are joined by single spaces and tokenised as running text, so that training sees what the pipeline will see.
    The first token of a word carries its tag; the others carry none.

    Args:
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

    @property
    def target_column(self) -> str:
        """Column of the tags."""
        return self.tags_column

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`."""
        data = [dataset for dataset in (train, *others) if dataset is not None]
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

    def encode_labels(
        self, rows: dict[str, list[Any]], indices: list[int], encoding: BatchEncoding, unseen: list[Any], split: str
    ) -> list[Any]:
        """See :meth:`Task.encode_labels`."""
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
        import torch

        padded = []
        for row in labels:
            pad = [IGNORE] * (length - len(row))
            padded.append(pad + row if padding_side == "left" else row + pad)
        return torch.tensor(padded)

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
