"""The rows that an evaluation measures, in batches that mix the tasks, and each of them once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction

from ...data import Encoded, Mixture, MixtureCollator
from ...data.encoding import label_column
from ...data.mixture import Feature
from ..ranks import check_alike
from ..step.rows import Batch

Metric = Callable[[EvalPrediction], Mapping[str, float]]
Preprocess = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits and labels of a batch
NUMBERS = "row_numbers"


class EvaluationRows(Mixture):
    """The rows of all tasks of a split; a feature holds its number as well."""

    def __init__(self, datasets: Sequence[Encoded]) -> None:
        super().__init__(datasets)
        self.unseen: dict[str, list[object]] = {}
        self.by_task: dict[str, np.ndarray] = {}
        self.unlabeled: set[str] = set()  # tasks whose labels are placeholders
        self.sets: dict[str, EvaluationRows] = {}  # further evaluation sets by name
        self.encoded = list(datasets)
        for dataset, start in zip(self.encoded, self._offsets.tolist(), strict=True):
            for task in dataset.tasks:
                self.unseen[task] = dataset.unseen[task]
                valid = dataset.column(label_column(task)).is_valid().to_numpy()
                self.by_task[task] = start + np.flatnonzero(valid)

    def are_of(self, others: EvaluationRows | None, task: str) -> bool:
        """Whether the rows of a task are those that others have for it."""
        if others is None or task not in self.by_task or task not in others.by_task:
            return False
        one, other = (next(dataset for dataset in rows.encoded if task in dataset.tasks) for rows in (self, others))
        return one is other or one.digest() == other.digest()

    def order(self) -> np.ndarray:
        """Numbers of the rows that carry a label of any task, the shortest first."""
        return np.concatenate(self.orders())

    def orders(self) -> list[np.ndarray]:
        """The same by modality, as no batch has two."""
        rows = np.unique(np.concatenate(list(self.by_task.values())))
        lengths = np.concatenate(list(self.lengths().values()))
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        read = np.repeat([dataset.reader.modality for dataset in self.encoded], list(self.sizes.values()))[rows]
        return [rows[read == modality] for modality in dict.fromkeys(read.tolist())]

    def check(self, split: str, processes: int) -> None:
        """Check that every task has a row to be measured on, and that all processes measure the same rows.

        Raises:
            ValueError: a task has none, or they do not.
        """
        for task, numbers in self.by_task.items():
            if not len(numbers):
                raise ValueError(f"Task '{task}' has no row with a label in the {split} data. Add some.")
        if processes > 1:
            facts = {name: [size, self.digests[name]] for name, size in self.sizes.items()}
            check_alike({f"numbers of rows and contents of the {split} data": facts})

    def rows_of(self, task: str) -> list[int]:
        """The numbers of the rows of a task in their dataset, as encoded."""
        (start,) = (int(start) for one, start in zip(self.encoded, self._offsets, strict=True) if task in one.tasks)
        return (self.by_task[task] - start).tolist()

    def references(self, task: str) -> Sequence[object]:
        """What a task's answers are compared with, in the order of the dataset."""
        (dataset,) = (dataset for dataset in self.encoded if task in dataset.tasks)
        return dataset.references(task)

    def __getitems__(self, rows: Sequence[int]) -> list[Feature]:
        """See :class:`Mixture`."""
        features = super().__getitems__(rows)
        return [{**feature, NUMBERS: row} for feature, row in zip(features, rows, strict=True)]


class SweepSampler(Sampler[list[int]]):
    """Batches of rows in given orders, each rank's own; every rank has as many batches, and no row comes twice.

    Args:
        orders: numbers of the rows, the shortest first, of which no batch has those of two.
        lengths: by number of a row.
        most: by order, ``rows x longest row`` of a batch of several rows of one rank at most; None for any.
        batch: rows of a batch of one rank at most.
        world_size: ranks.
        rank: which of them this is.
    """

    def __init__(
        self,
        orders: Sequence[np.ndarray],
        lengths: np.ndarray,
        most: Sequence[int | None],
        *,
        batch: int,
        world_size: int,
        rank: int,
    ) -> None:
        self.batch, self.world_size, self.rank = batch, world_size, rank
        bounded = zip(orders, most, strict=True)
        self.wholes = [rows for order, bound in bounded for rows in self._cut(order, lengths[order], bound)]

    def _cut(self, order: np.ndarray, lengths: np.ndarray, most: int | None) -> Iterator[np.ndarray]:
        """The rows of all ranks that are read together."""
        start = 0
        while start < len(order):
            rows = min(self.batch, -(-(len(order) - start) // self.world_size))
            while most is not None and rows > 1:
                if rows * lengths[min(start + rows * self.world_size, len(order)) - 1] <= most:
                    break
                rows -= 1
            yield order[start : start + rows * self.world_size]
            start += rows * self.world_size

    def __len__(self) -> int:
        """Batches of a rank."""
        return len(self.wholes)

    def __iter__(self) -> Iterator[list[int]]:
        """A rank without a row in the last batch gets filler, a row without its labels."""
        for rows in self.wholes:
            yield rows[self.rank :: self.world_size].tolist() or [~int(rows[0])]


class SweepCollator:
    """A batch as in training, with the numbers of the rows of each task.

    Args:
        collator: makes a batch of features.
    """

    def __init__(self, collator: MixtureCollator) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Feature]) -> Batch:
        """See :class:`MixtureCollator`."""
        tasks = dict.fromkeys(name for feature in features for name in feature["labels"])
        numbers = {
            name: torch.tensor([feature[NUMBERS] for feature in features if name in feature["labels"]])
            for name in tasks
        }
        return {**self.collator(features), NUMBERS: numbers}


def sweep_loader(
    rows: EvaluationRows, collator: MixtureCollator, *, batch: int, world_size: int, rank: int, **kwargs: object
) -> DataLoader:
    """Loads all rows once; draws nothing from the random state of the training.

    Args:
        rows: what is measured.
        collator: makes a batch of features.
        batch: rows of a batch of one rank at most.
        world_size: ranks.
        rank: which of them this is.
        kwargs: of ``torch.utils.data.DataLoader``.
    """
    orders, lengths = rows.orders(), np.concatenate(list(rows.lengths().values()))
    firsts = [collator.reader(rows[int(order[0])]["inputs"]) for order in orders]
    most = [reader.most(collator.tokenizer) for reader in firsts]
    return DataLoader(
        rows,
        batch_sampler=SweepSampler(orders, lengths, most, batch=batch, world_size=world_size, rank=rank),
        collate_fn=SweepCollator(collator),
        generator=torch.Generator().manual_seed(0),
        **kwargs,  # type: ignore[arg-type]
    )
