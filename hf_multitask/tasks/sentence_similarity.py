"""Embeddings of texts, which are close for similar texts."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from ..modeling.heads import IGNORE
from ..modeling.similarity import TRIPLET, pair_loss, prompted
from . import labels as lab
from . import reports
from .base import Task
from .constant import variance
from .measures import NUMBERS, Numbers, measured
from .pair_options import PairOptions
from .ranking import Ranked
from .registration import register_task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder
    from .columns import Cells, Columns, Encoding, Labels, References


@dataclass(kw_only=True)
class SentenceSimilarity(Ranked, PairOptions):
    """Learn embeddings from pairs of texts, each of which is encoded separately.

    With ``label_column``, the cosine of a pair is trained to match its score. Without it, the texts of a pair are
    trained to be closer than those of other pairs: ``negatives`` consecutive rows form a group, which is drawn as a
    whole and whose second texts are the negatives of each other. Shuffle data that are sorted by topic first. Texts are
    equal if their tokens are equal, and equal texts of a group are not negatives of each other: the negatives of a pair
    are the second texts that are equal neither to its first text nor to a second text that is paired with it in the
    group. ``negatives_column`` adds hard negatives, which are negatives of all pairs of the group; with the loss
    ``triplet``, each of them is compared with its own pair only, and there are no groups.

    Args:
        text_column: column of the first text, or a list of columns, whose texts are joined by a space.
        text_pair_column: column of the second text.
        label_column: column of the score, a number; None in a row without a score.
        score_range: scores for cosines of 0 and 1; the minimum and maximum of the training data if None.
        negatives_column: column of hard negatives: a text, a list of texts, or None in a row without any.
        negatives: rows of a group, for the loss ``multiple_negatives``.
        scale: of the cosines in the loss over a group.
        loss: ``"cosine"``, the squared error of the cosine, which is that of pairs with scores; or
            ``"multiple_negatives"``, that of pairs without scores if None, or ``"triplet"``.
        loss_kwargs: ``margin`` of the triplets, 5 by default, and their ``distance``, ``"euclidean"`` or
            ``"cosine"``; ``scale`` of ``multiple_negatives``, which is the argument of that name.
        matryoshka_dims: train the first dimensions of embeddings as embeddings of their own: the loss is the sum of
            the losses for these numbers of dimensions.
        prompt: what every text begins with, in training, evaluation and pipeline.
        group_column: see :class:`hf_multitask.tasks.ranking.Ranked`.
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
    score_range: list[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_range is not None:
            self.score_range = [float(value) for value in self.score_range]
            if len(self.score_range) != 2 or not self.score_range[0] < self.score_range[1]:
                raise self.error(f"`score_range` should be two numbers in ascending order. Found {self.score_range!r}.")
        if self.group_column is not None and self.label_column is None:
            raise self.error(
                "`group_column` ranks pairs with scores, and there is no label_column. Set label_column, or leave out "
                "group_column."
            )

    @property
    def target_column(self) -> str:
        """Column of the scores; empty if there are none."""
        return self.label_column or ""

    @property
    def keeps_rows(self) -> bool:
        """Whether rows are not combined into groups."""
        return not self.groups

    @property
    def input_columns(self) -> tuple[str | None, ...]:
        """See :class:`Task`: also that of hard negatives."""
        return (*super().input_columns, self.negatives_column)

    @property
    def input_key(self) -> tuple[Hashable, ...]:
        """See :class:`Task`."""
        return (*super().input_key, self.type, self.negatives if self.groups else None, self.prompt)

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
        """Rows in groups if the loss is over groups, each as one row of lists."""
        size = self.negatives if self.groups else 1
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
        """See :meth:`Task.encode_inputs`: the texts of every group, pair by pair, each with its hard negatives."""
        texts: list[str] = []
        ends = [0]
        sizes: list[list[int]] = []
        column = self.text_columns[0]
        hard = rows[self.negatives_column] if self.negatives_column else [[None] * len(one) for one in rows[column]]
        for first, second, more, index in zip(rows[column], rows[self.text_pair_column], hard, indices, strict=True):
            numbers = [index + place for place in range(len(first))]
            pairs = zip(
                self.texts(first, column, numbers, split),
                self.texts(second, self.text_pair_column, numbers, split),
                [self._negatives_of(cell, number, split) for cell, number in zip(more, numbers, strict=True)],
                strict=True,
            )
            of_pairs = [[one, other, *negatives] for one, other, negatives in pairs]
            texts += prompted(self.to_dict(), [text for of_pair in of_pairs for text in of_pair])
            ends.append(len(texts))
            sizes.append([len(of_pair) for of_pair in of_pairs])
        encoding = encoder.encode(texts)
        cut = encoder.cut_rows(encoding, texts)
        spans = list(pairwise(ends))
        inputs = {
            name: [values[start:end] for start, end in spans] for name, values in encoder.inputs(encoding).items()
        }
        tokens = iter(encoding["input_ids"])
        groups = [[list(islice(tokens, size)) for size in of_group] for of_group in sizes]
        return inputs, groups, [any(cut[start:end]) for start, end in spans]

    def _negatives_of(self, cell: object, index: int, split: str) -> list[str]:
        """The hard negatives of a row."""
        texts: list[object] = [] if cell is None else cell if isinstance(cell, list) else [cell]
        for text in texts:
            if not isinstance(text, str):
                raise self.row_error(
                    index,
                    split,
                    f"column '{self.negatives_column}': hard negatives should be a text or a list of texts. Found "
                    f"{text!r}. Fix the row.",
                )
        return texts  # type: ignore[return-value]

    def placeholder(self, row: Columns) -> object:  # noqa: ARG002
        """See :meth:`Task.placeholder`."""
        return (self.score_range or [0.0])[0]

    def encode_labels(
        self,
        rows: Columns,
        indices: list[int],
        encoding: Sequence[Sequence[Sequence[Sequence[int]]]],
        unseen: Cells,  # noqa: ARG002
        split: str,
    ) -> Labels:
        """See :meth:`Task.encode_labels`: scores from 0 to 1; without scores the numbers of the texts of a group."""
        if self.label_column is None:
            groups = [_numbered(group) for group in encoding]
            return groups if self.groups else [group if len(group[0]) > 2 else None for group in groups]
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
        """Scores (N, P), or numbers of the texts of pairs (N, P, T), padded with -100."""
        import torch

        most = max(map(len, labels))
        if self.label_column is not None:
            return torch.tensor([label + [float(IGNORE)] * (most - len(label)) for label in labels])
        width = max(len(pair) for label in labels for pair in label)
        full = [[pair + [IGNORE] * (width - len(pair)) for pair in label] for label in labels]
        return torch.tensor([label + [[IGNORE] * width] * (most - len(label)) for label in full])

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: that of equal embeddings, or the variance of the scores.

        Equal embeddings make the second text of a pair a guess among the candidates of its group, and the loss of a
        triplet its margin.
        """
        loss = pair_loss(self.to_dict())
        found = loss.margin
        if self.label_column is not None:
            found = variance(labels)
        elif self.groups:
            found = sum(map(_guess, labels)) / sum(map(len, labels))
        return found * len(loss.dims or (0,))

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return self._with_ranking(["accuracy"] if self.label_column is None else ["pearson", "spearmanr"])

    @property
    def possible_metrics(self) -> Collection[str]:
        """See :class:`Task`."""
        return self._possible_with_ranking(["accuracy"] if self.label_column is None else NUMBERS)

    def ranking_of(self, predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Ranked.ranking_of`: by cosine; the relevance is the score."""
        return predictions[:, 0], labels[:, 0]

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
        """By default ``pearson`` and ``spearmanr`` of cosines and scores; without scores ``accuracy`` of the pair.

        The pair is right if no candidate of its group is nearer to its first text; of triplets, if the negative is not.
        """
        import numpy as np

        from .metrics import Accuracy

        if self.label_column is not None:
            return measured(self.measured_names, NUMBERS, Numbers(labels, predictions), self.tell)
        if self.loss_name == TRIPLET:
            first, second, negatives = labels[..., :1], labels[..., 1:2], labels[..., 2:]
            there = (negatives != IGNORE) & (negatives != first) & (negatives != second)
            return Accuracy().compute(predictions=predictions[there] > 0, references=np.ones(there.sum(), bool))
        there = labels[..., 0] != IGNORE
        own = np.broadcast_to(np.arange(labels.shape[1]), there.shape)
        return Accuracy().compute(predictions=predictions[there], references=own[there])


def _numbered(group: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """For every pair of a group, the numbers of its texts, which are equal if the tokens are equal."""
    numbers: dict[tuple[int, ...], int] = {}
    return [[numbers.setdefault(tuple(tokens), len(numbers)) for tokens in pair] for pair in group]


def _guess(group: Sequence[Sequence[int]]) -> float:
    """The summed loss of the pairs of a group with equal embeddings: each is a guess among its candidates."""
    right: dict[int, set[int]] = {}
    for first, second, *_ in group:
        right.setdefault(first, {first}).add(second)
    candidates = [text for _, *texts in group for text in texts]
    return sum(math.log(1 + sum(text not in right[first] for text in candidates)) for first, *_ in group)


register_task(SentenceSimilarity)
