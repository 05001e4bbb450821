"""Metrics of rankings: rows in groups, such as the documents of a query, in the order of their scores.

The metrics are means over groups. A row is relevant if its label is above 0. Rows with equal scores have no order of
their own, so that each metric is its mean over all of their orders.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..modeling.fitted import SETS, SINGLE
from .base import Task
from .fitting import Thresholded
from .measures import Missing, measured

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .columns import Cells, Columns, Encoding, Labels, References

_DEFAULTS = ["ndcg@10", "mrr@10"]
_EXAMPLES = [*_DEFAULTS, "recall@10"]
_NAME = re.compile(r"(ndcg|mrr|recall)@(.*)")


@dataclass(frozen=True)
class Groups:
    """Rows to be ranked.

    Args:
        scores: of the rows, (N,).
        relevance: of the rows, (N,), 0 for rows that are not relevant.
        groups: the number of the group of each row, (N,).
    """

    scores: np.ndarray
    relevance: np.ndarray
    groups: np.ndarray

    def split(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Scores and relevance of every group, by falling score.

        Raises:
            Missing: a score is not finite, or a relevance is below 0.
        """
        if not np.isfinite(self.scores).all():
            raise Missing("the outputs of the model are not finite")
        if (self.relevance < 0).any():
            raise Missing("a label is below 0, and the relevance of a row is 0 or more")
        order = np.lexsort((-self.scores, self.groups))
        ends = np.flatnonzero(np.diff(self.groups[order])) + 1
        parts = zip(np.split(self.scores[order], ends), np.split(self.relevance[order], ends), strict=True)
        return [(scores, relevance) for scores, relevance in parts if (relevance > 0).any()]


def ndcg(scores: np.ndarray, relevance: np.ndarray, most: int) -> float:
    r"""Normalized discounted cumulative gain, :math:`\sum_{i \le K} r_i / \log_2(i + 1)` over its highest value.

    Cumulated Gain-Based Evaluation of IR Techniques (ACM Transactions on Information Systems 20, 2002),
    https://doi.org/10.1145/582415.582418; with the labels as gains, as in scikit-learn.

    Args:
        scores: of the rows of a group, falling.
        relevance: of the rows.
        most: the K first rows count.
    """
    discounts = np.where(np.arange(len(scores)) < most, 1 / np.log2(np.arange(len(scores)) + 2), 0.0)
    best = float(np.sort(relevance)[::-1] @ discounts)
    return sum(float(relevance[tied].mean() * discounts[tied].sum()) for tied in _tied(scores)) / best


def reciprocal_rank(scores: np.ndarray, relevance: np.ndarray, most: int) -> float:
    """1 divided by the rank of the first relevant row, 0 if it is not among the K first; see :func:`ndcg`."""
    for tied in _tied(scores):
        relevant, rows = int((relevance[tied] > 0).sum()), tied.stop - tied.start
        if not relevant:
            continue
        mean, chance = 0.0, relevant / rows
        for place in range(rows - relevant + 1):  # of the first relevant row among those with its score
            rank = tied.start + place + 1
            mean += chance / rank if rank <= most else 0.0
            left = rows - place - 1
            chance *= (left - relevant + 1) / max(left, 1)
        return mean
    return 0.0


def recall(scores: np.ndarray, relevance: np.ndarray, most: int) -> float:
    """The share of the relevant rows that are among the K first; see :func:`ndcg`."""
    found = 0.0
    for tied in _tied(scores):
        rows = tied.stop - tied.start
        found += float((relevance[tied] > 0).sum()) * min(max(most - tied.start, 0), rows) / rows
    return found / float((relevance > 0).sum())


def _tied(scores: np.ndarray) -> list[slice]:
    """The places of rows with equal scores, of falling scores."""
    edges = [0, *(np.flatnonzero(np.diff(scores)) + 1).tolist(), len(scores)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "ndcg": ndcg,
    "mrr": reciprocal_rank,
    "recall": recall,
}


def _metric(name: str) -> Callable[[Groups], float]:
    """The metric of a name such as ``ndcg@10``."""
    kind, _, most = name.partition("@")

    def measure(given: Groups) -> float:
        groups = given.split()
        if not groups:
            raise Missing("no group of the split has a relevant row, one with a label above 0")
        return float(np.mean([_METRICS[kind](scores, relevance, int(most)) for scores, relevance in groups]))

    return measure


@dataclass(kw_only=True)
class Ranked(Task):
    """A task whose rows may be ranked.

    Args:
        group_column: column of the group of a row, such as a query, in which evaluation ranks rows by their scores:
            for the metrics ``ndcg@K``, ``mrr@K`` and ``recall@K``.
    """

    group_column: str | None = None

    @abstractmethod
    def ranking_of(self, predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores and relevance of rows, (N,) each, of predictions and labels."""

    def check_metrics(self) -> None:
        """See :meth:`Task.check_metrics`; metrics of rankings need groups, and a number of rows.

        Raises:
            ValueError: they do not have them.
        """
        for name in self.metrics or [] if isinstance(self.metrics, list | tuple) else []:
            found = _NAME.fullmatch(name) if isinstance(name, str) else None
            if found is None:
                continue
            if self.group_column is None:
                raise self.error(
                    f"`metrics` has '{name}', which ranks the rows of a group, and there is no group_column. Set "
                    "group_column."
                )
            if not re.fullmatch(r"[1-9][0-9]*", found[2]):
                raise self.error(
                    f"`metrics` has '{name}', whose K should be a whole number, 1 or more. Write {found[1]}@10, for "
                    "example."
                )
        super().check_metrics()

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`: with groups, first those of rankings."""
        return self._with_ranking(super().metric_names)

    @property
    def possible_metrics(self) -> Collection[str] | None:
        """See :class:`Task`: with groups, also those of rankings."""
        names = super().possible_metrics
        return None if names is None else self._possible_with_ranking(names)

    @property
    def measured_names(self) -> list[str]:
        """See :class:`Task`: all but those of rankings."""
        return [name for name in super().measured_names if not _NAME.fullmatch(name)]

    def _with_ranking(self, names: list[str] | None) -> list[str] | None:
        """Default metrics of a type; with groups, those of rankings come first."""
        return names if names is None or self.group_column is None else [*_DEFAULTS, *names]

    def _possible_with_ranking(self, names: Collection[str]) -> Collection[str]:
        """The metrics that a type can have, with groups also those of rankings."""
        if self.group_column is None:
            return names
        return list(
            dict.fromkeys([*names, *_EXAMPLES, *(name for name in self.metrics or [] if _NAME.fullmatch(name))])
        )

    @property
    def all_columns(self) -> list[str]:
        """See :class:`Task`."""
        return [*super().all_columns, *([] if self.group_column is None else [self.group_column])]

    def check_columns(self, dataset: Dataset, split: str) -> None:
        """See :meth:`Task.check_columns`; every row with a label has a group, where rows are evaluated.

        Raises:
            ValueError: a row has none.
        """
        super().check_columns(dataset, split)
        if self.group_column is None or split == "train":
            return
        pairs = zip(dataset[self.group_column], dataset[self.target_column], strict=True)
        for index, (group, label) in enumerate(pairs):
            if label is not None and not isinstance(group, str | int | float):
                raise self.row_error(
                    index,
                    split,
                    f"column '{self.group_column}': the group of a row should be a text or a number. Found {group!r}. "
                    "Fix or remove the row.",
                )

    def more_columns(self, rows: Columns, labels: Labels, encoding: Encoding, *, training: bool) -> Columns:
        """See :meth:`Task.more_columns`: the group of every row for evaluation, as text."""
        found = super().more_columns(rows, labels, encoding, training=training)
        if self.group_column is None or training:
            return found
        cells = [cell[0] if isinstance(cell, list) else cell for cell in rows[self.group_column]]
        return {**found, "gold": [str(cell) for cell in cells]}

    def score(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        *,
        unseen: Cells,
        references: References,
        loss: float,
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, float]:
        """See :meth:`Task.score`: with groups, also the metrics of rankings."""
        values = super().score(
            predictions, labels, unseen=unseen, references=references, loss=loss, tokenizer=tokenizer
        )
        names = self.metrics or self.metric_names or []
        ranking = [name for name in names if _NAME.fullmatch(name)]
        if self.group_column is None or not ranking:
            return values
        groups = np.unique(np.array(list(references)), return_inverse=True)[1]
        given = Groups(*self.ranking_of(predictions, labels), groups)
        alone = len(set(groups.tolist()) - set(groups[given.relevance > 0].tolist()))
        if alone:
            self.tell(
                f"{alone} of {groups.max() + 1} groups of column '{self.group_column}' have no relevant row, one with "
                "a label above 0, and are left out of the metrics of rankings."
            )
        values |= measured(ranking, {name: _metric(name) for name in ranking}, given, self.tell)
        return {name: values[name] for name in [*names, *values] if name in values}


@dataclass(kw_only=True)
class RankedLabels(Ranked, Thresholded):
    """A task on classes or numbers whose rows may be ranked: by the second of two classes, or by the number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_column is None:
            return
        names, problem = len(self.label_names or []), self.problem_type
        scores = {SINGLE: [0, 2], SETS: [], None: [0, 1, 2]}.get(problem, [0, 1])  # 0 while they are not known
        if names not in scores:
            raise self.error(
                "`group_column` ranks rows by one score, that of the second of two classes or a number. Found "
                f"{names} label_names{'' if problem is None else f' of {problem}'}. Remove `group_column`."
            )

    def ranking_of(self, predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Ranked.ranking_of`: a row of classes is relevant if it is of the second one."""
        if self.problem_type != SINGLE:
            return predictions[:, 0], labels[:, 0]
        return predictions[:, 1] - predictions[:, 0], (labels == 1).astype(float)
