"""Embeddings of texts, which are close for similar texts."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from ..modeling.heads import IGNORE
from . import labels as lab
from . import reports
from .base import Task
from .constant import variance
from .measures import NUMBERS, Numbers, measured
from .registration import register_task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder
    from .columns import Cells, Columns, Encoding, Labels, References


@dataclass(kw_only=True)
class SentenceSimilarity(Task):
    """Learn embeddings from pairs of texts, each of which is encoded separately.

    With ``label_column``, the cosine of a pair is trained to match its score. Without it, the texts of a pair are
    trained to be closer than those of other pairs: ``negatives`` consecutive rows form a group, which is drawn as a
    whole and whose second texts are the negatives of each other. Shuffle data that are sorted by topic first. Texts are
    equal if their tokens are equal, and equal texts of a group are not negatives of each other: the negatives of a pair
    are the second texts that are equal neither to its first text nor to a second text that is paired with it in the
    group.

    Args:
        text_column: column of the first text, or a list of columns, whose texts are joined by a space.
        text_pair_column: column of the second text.
        label_column: column of the score, a number; None in a row without a score.
        score_range: scores for cosines of 0 and 1; the minimum and maximum of the training data if None.
        negatives: rows of a group, if there are no scores.
        scale: of the cosines in the loss over a group.
        dataset: see :class:`Task`.
        max_length: see :class:`Task`.
        language: see :class:`Task`.
        metrics: see :class:`Task`; those of numbers compare cosines with scores that ``score_range`` scales to 0 to 1.
        weight_column: see :class:`Task`.
    """

    type: ClassVar[str] = "sentence-similarity"
    several: ClassVar[bool] = True
    joins_texts: ClassVar[bool] = True
    text_column: str | list[str] = "sentence1"
    text_pair_column: str = "sentence2"
    label_column: str | None = None
    score_range: list[float] | None = None
    negatives: int = 16
    scale: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("negatives", 2, none=False)
        if self.score_range is not None:
            self.score_range = [float(value) for value in self.score_range]
            if len(self.score_range) != 2 or not self.score_range[0] < self.score_range[1]:
                raise self.error(f"`score_range` should be two numbers in ascending order. Found {self.score_range!r}.")

    @property
    def target_column(self) -> str:
        """Column of the scores; empty if there are none."""
        return self.label_column or ""

    @property
    def keeps_rows(self) -> bool:
        """Whether there are scores; otherwise rows are combined into groups."""
        return self.label_column is not None

    @property
    def input_key(self) -> tuple[Hashable, ...]:
        """See :class:`Task`."""
        return (*super().input_key, self.type, None if self.label_column else self.negatives)

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`."""
        if self.label_column is None or self.score_range is not None:
            return self
        data = [dataset for dataset in (train, *others) if dataset is not None]
        for dataset in data:
            found, depth = lab.kind(dataset, self.label_column)
            if found not in ("float", "number", "nothing") or depth:
                raise self.error(
                    f"column '{self.label_column}' contains {lab.describe(found, depth)}, but one number per row is "
                    "needed. Set another label_column."
                )
        values = [value for value in lab.values(data[0], self.label_column) if math.isfinite(value)]
        if not values or values[0] == values[-1]:
            raise self.error(f"column '{self.label_column}' has fewer than two different scores. Set score_range.")
        return replace(self, score_range=[values[0], values[-1]])

    def batch_rows(self, rows: Columns, indices: list[int]) -> tuple[Columns, list[int]]:
        """Rows in groups if there are no scores, each as one row of lists."""
        size = 1 if self.label_column else self.negatives
        starts = range(0, len(indices), size)
        return {column: [values[start : start + size] for start in starts] for column, values in rows.items()}, [
            indices[start] for start in starts
        ]

    def encode_inputs(
        self,
        rows: Columns,
        indices: list[int],
        encoder: Encoder,
        split: str,
        *,
        offsets: bool,  # noqa: ARG002
    ) -> tuple[Columns, Encoding, list[bool]]:
        """See :meth:`Task.encode_inputs`: the texts of every group, pair by pair."""
        texts: list[str] = []
        ends = [0]
        column = self.text_columns[0]
        for first, second, index in zip(rows[column], rows[self.text_pair_column], indices, strict=True):
            numbers = [index + place for place in range(len(first))]
            pairs = zip(
                self.texts(first, column, numbers, split),
                self.texts(second, self.text_pair_column, numbers, split),
                strict=True,
            )
            texts += [text for pair in pairs for text in pair]
            ends.append(len(texts))
        encoding = encoder.encode(texts)
        cut = encoder.cut_rows(encoding, texts)
        spans = list(pairwise(ends))
        inputs = {
            name: [values[start:end] for start, end in spans] for name, values in encoder.inputs(encoding).items()
        }
        groups = [encoding["input_ids"][start:end] for start, end in spans]
        return inputs, groups, [any(cut[start:end]) for start, end in spans]

    def placeholder(self, row: Columns) -> object:  # noqa: ARG002
        """See :meth:`Task.placeholder`."""
        return (self.score_range or [0.0])[0]

    def encode_labels(
        self,
        rows: Columns,
        indices: list[int],
        encoding: Sequence[Sequence[Sequence[int]]],
        unseen: Cells,  # noqa: ARG002
        split: str,
    ) -> Labels:
        """See :meth:`Task.encode_labels`: scores from 0 to 1; without scores the numbers of the texts of a group."""
        if self.label_column is None:
            return [_numbered(group) for group in encoding]
        low, high = self.score_range or (0.0, 1.0)
        labels: list[list[float] | None] = []
        for (value,), index in zip(rows[self.label_column], indices, strict=True):
            if value is not None and not math.isfinite(value):
                raise self.row_error(
                    index,
                    split,
                    f"column '{self.label_column}': a score should be a finite number. Found {value!r}. "
                    "Fix or remove the row.",
                )
            labels.append(None if value is None else [(float(value) - low) / (high - low)])
        return labels

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:  # noqa: ARG002
        """Scores (N, P), or numbers of texts (N, P, 2), padded with -100."""
        import torch

        most = max(map(len, labels))
        nothing = [IGNORE, IGNORE] if self.label_column is None else float(IGNORE)
        return torch.tensor([label + [nothing] * (most - len(label)) for label in labels])

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: variance of the scores; without scores, the loss of a guess in the group."""
        if self.label_column is not None:
            return variance(labels)
        return sum(map(_guess, labels)) / sum(map(len, labels))

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return ["accuracy"] if self.label_column is None else ["pearson", "spearmanr"]

    @property
    def possible_metrics(self) -> Collection[str]:
        """See :class:`Task`."""
        return ["accuracy"] if self.label_column is None else NUMBERS

    def details(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        *,
        unseen: Cells,  # noqa: ARG002
        references: References,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> dict[str, Any]:
        """See :class:`Task`: the sizes of the errors of scores, which are from 0 to 1."""
        return {} if self.label_column is None else reports.of_numbers(labels, predictions)

    def measure(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        unseen: Cells,  # noqa: ARG002
    ) -> dict[str, float]:
        """By default ``pearson`` and ``spearmanr`` of cosines and scores; without scores ``accuracy`` of the pair."""
        import numpy as np

        from .metrics import Accuracy

        if self.label_column is not None:
            return measured(self.metrics or self.metric_names or [], NUMBERS, Numbers(labels, predictions), self.tell)
        there = labels[..., 0] != IGNORE
        own = np.broadcast_to(np.arange(labels.shape[1]), there.shape)
        return Accuracy().compute(predictions=predictions[there], references=own[there])


def _numbered(group: Sequence[Sequence[int]]) -> list[list[int]]:
    """For every pair of a group, the numbers of its two texts, which are equal if the tokens are equal."""
    numbers: dict[tuple[int, ...], int] = {}
    texts = [numbers.setdefault(tuple(tokens), len(numbers)) for tokens in group]
    return [list(pair) for pair in zip(texts[0::2], texts[1::2], strict=True)]


def _guess(group: Sequence[Sequence[int]]) -> float:
    """The summed loss of the pairs of a group with equal embeddings: each is a guess among its candidates."""
    right: dict[int, set[int]] = {}
    for first, second in group:
        right.setdefault(first, {first}).add(second)
    return sum(math.log(1 + sum(second not in right[first] for _, second in group)) for first, _ in group)


register_task(SentenceSimilarity)
