"""Measuring tasks: all rows in one sweep, the exact loss and the metrics of each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction

from ...data import Encoded, Mixture, MixtureCollator
from ...data.encoding import label_column
from ...data.mixture import Feature
from ...tasks import Task
from .results import check_results

Metric = Callable[[EvalPrediction], Mapping[str, float]]
Preprocess = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits and labels of a batch
# Where the items of a batch stand among a task's rows, how many predictions each has, or nothing where it is one, their
# predictions, summed losses, numbers of items, and labels.
Part = tuple[np.ndarray, ...]
NUMBERS = "row_numbers"
_PAD = -100


class EvaluationRows(Mixture):
    """The rows of all tasks of a split; a feature holds its number as well."""

    def __init__(self, datasets: Sequence[Encoded]) -> None:
        super().__init__(datasets)
        self.unseen: dict[str, list[Any]] = {}
        self.by_task: dict[str, np.ndarray] = {}
        self.encoded = list(datasets)
        for dataset, start in zip(self.encoded, self._offsets.tolist(), strict=True):
            for task in dataset.tasks:
                self.unseen[task] = dataset.unseen[task]
                valid = dataset.column(label_column(task)).is_valid().to_numpy()
                self.by_task[task] = start + np.flatnonzero(valid)

    def order(self) -> np.ndarray:
        """Numbers of the rows that carry a label of any task, the shortest first."""
        rows = np.unique(np.concatenate(list(self.by_task.values())))
        lengths = np.concatenate(list(self.lengths().values()))
        return rows[np.argsort(lengths[rows], kind="stable")]

    def references(self, task: str) -> Sequence[Any]:
        """What a task's answers are compared with, in the order of the dataset."""
        (dataset,) = (dataset for dataset in self.encoded if task in dataset.tasks)
        return dataset.references(task)

    def __getitems__(self, rows: Sequence[int]) -> list[Feature]:
        """See :class:`Mixture`."""
        features = super().__getitems__(rows)
        return [{**feature, NUMBERS: row} for feature, row in zip(features, rows, strict=True)]


class SweepSampler(Sampler[list[int]]):
    """Batches of rows in a given order, each rank's own; every rank has as many batches, and no row comes twice.

    Args:
        order: numbers of the rows.
        batch: rows of a batch of one rank.
        world_size: ranks.
        rank: which of them this is.
    """

    def __init__(self, order: np.ndarray, *, batch: int, world_size: int, rank: int) -> None:
        self.order, self.batch, self.world_size, self.rank = order, batch, world_size, rank

    def __len__(self) -> int:
        """Batches of a rank."""
        return -(-len(self.order) // (self.batch * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        """A rank without a row in the last batch gets filler, a row without its labels."""
        whole = self.batch * self.world_size
        for start in range(0, len(self.order), whole):
            rows = self.order[start : start + whole]
            yield rows[self.rank :: self.world_size].tolist() or [~int(rows[0])]


class SweepCollator:
    """A batch as in training, with the numbers of the rows of each task.

    Args:
        collator: makes a batch of features.
    """

    def __init__(self, collator: MixtureCollator) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Feature]) -> dict[str, Any]:
        """See :class:`MixtureCollator`."""
        tasks = dict.fromkeys(name for feature in features for name in feature["labels"])
        numbers = {
            name: torch.tensor([feature[NUMBERS] for feature in features if name in feature["labels"]])
            for name in tasks
        }
        return {**self.collator(features), NUMBERS: numbers}


def sweep_loader(
    rows: EvaluationRows, collator: MixtureCollator, *, batch: int, world_size: int, rank: int, **kwargs: Any
) -> DataLoader:
    """Loads all rows once; draws nothing from the random state of the training.

    Args:
        rows: what is measured.
        collator: makes a batch of features.
        batch: rows of a batch of one rank.
        world_size: ranks.
        rank: which of them this is.
        kwargs: of ``torch.utils.data.DataLoader``.
    """
    return DataLoader(
        rows,
        batch_sampler=SweepSampler(rows.order(), batch=batch, world_size=world_size, rank=rank),
        collate_fn=SweepCollator(collator),
        generator=torch.Generator().manual_seed(0),
        **kwargs,
    )


@dataclass(frozen=True)
class Scores:
    """Predictions, labels and metrics of one task, and the name and value of its primary metric.

    Predictions and labels are those of :func:`in_order`; of tokens, padded with -100 to the most that a row has.
    """

    predictions: Any
    labels: Any
    metrics: dict[str, float]
    primary: tuple[str, float]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and labels as arrays, a row each."""
        return as_array(self.predictions), as_array(self.labels)


def in_order(parts: Sequence[Part], numbers: np.ndarray) -> list[Any]:
    """Predictions, losses, items and labels of a task in the order of the dataset.

    Where a row has several predictions, as one for each labelled token, they are a list of arrays, a row each. Rows of
    different length are padded with -100 otherwise.

    Args:
        parts: of all batches and ranks.
        numbers: of the task's rows, in the order of the dataset.
    """
    places = np.searchsorted(numbers, np.concatenate([part[0] for part in parts]))
    several = any(part[1].size for part in parts)
    predictions, losses, items, labels = list(zip(*parts, strict=True))[2:]
    dense = [_dense(arrays, places, len(numbers)) for arrays in (losses, items)]
    if not several:
        return [_dense(predictions, places, len(numbers)), *dense, _dense(labels, places, len(numbers))]
    ends = np.cumsum(np.concatenate([part[1] for part in parts]))
    ordered = []
    for arrays in (predictions, labels):
        pieces = np.split(np.concatenate(arrays), ends[:-1])
        ordered.append([pieces[place] for place in np.argsort(places, kind="stable")])
    return [ordered[0], *dense, ordered[1]]


def _dense(arrays: Sequence[np.ndarray], places: np.ndarray, rows: int) -> np.ndarray:
    widest = np.max([array.shape[1:] for array in arrays], axis=0).astype(int)
    whole = np.full((rows, *widest), _PAD, dtype=arrays[0].dtype)
    start = 0
    for array in arrays:
        place: Any = (places[start : start + len(array)], *(slice(size) for size in array.shape[1:]))
        whole[place] = array
        start += len(array)
    return whole


def as_array(rows: Any) -> np.ndarray:
    """Arrays of rows of different length as one, padded with -100; an array as it is."""
    if isinstance(rows, np.ndarray):
        return rows
    whole = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), _PAD, dtype=rows[0].dtype)
    for row, values in enumerate(rows):
        whole[row, : len(values)] = values
    return whole


def score(rows: EvaluationRows, task: Task, parts: Sequence[Part], metric: Metric | None, tokenizer: Any) -> Scores:
    """Metrics of a finished evaluation of one task.

    The loss is the sum of all items' losses over their number, so it does not depend on batches or ranks.

    Args:
        rows: what was evaluated.
        task: which task it was.
        parts: what batches gave for it.
        metric: the user's own metrics in place of the task's.
        tokenizer: the backbone's.
    """
    name = str(task.name)
    predictions, losses, items, labels = in_order(parts, rows.by_task[name])
    loss = float(losses.sum() / max(items.sum(), 1))
    values: Any
    if metric is None:
        values = task.score(
            predictions,
            labels,
            unseen=rows.unseen[name],
            references=rows.references(name),
            loss=loss,
            tokenizer=tokenizer,
        )
    else:
        values = metric(EvalPrediction(predictions=as_array(predictions), label_ids=as_array(labels)))
    values = check_results(task, values, own=metric is not None)
    primary = next(iter(values.items()), ("none", 0.0))
    return Scores(predictions, labels, {"loss": loss, **values}, primary)
