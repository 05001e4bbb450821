"""The rows of an optimizer step: its forwards, and parts of them by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from ..runtime import Items

# By name, the inputs of a forward pass, or a micro-batch of several: ModelInputs and MicroBatch of data/batch.py, with
# the open set of names that readers and the Trainer need.
Batch = dict[str, Any]
# Its keys that are no inputs of the rows: by task, rows and labels.
_ROWS, _LABELS = ("task_rows", "soft_rows"), ("labels", "row_weights", "soft_labels", "soft_weights")
_BY_TASK = (*_ROWS, *_LABELS)
_OF_TEACHERS = ("soft_rows", "soft_labels", "soft_weights")


@dataclass(frozen=True)
class Apart:
    """How a pass runs that is not of the training itself: its losses are not counted.

    Args:
        weights: of the losses, in place of those of the step; None for these.
        task: the only one whose loss counts; None for all.
    """

    weights: Mapping[str, float] | None = None
    task: str | None = None


@dataclass
class Step:
    """An optimizer step as one process sees it, from its rows to its loss.

    Args:
        tasks: of the run, K of them.
        forwards: the batches of its micro-batches, in the order in which they run.
        row_numbers: of each of them, by task, the numbers of its rows in their dataset.
        items: by task, the number or weight of its items in all processes; 0 once the task is left out.
        device: of the process.
        num_items: what the losses are divided by; None outside of training.
        weights: by task, of the losses; None until they are known.
        begun: whether a forward has run.
        losses: by task, over all processes, once the step is over.
        apart: how a pass runs that is not of the training; None for one that is.

    Attributes:
        present: the tasks that have items in the step and are not left out, in the order of the run's.
    """

    tasks: Sequence[str]
    forwards: list[Batch]
    row_numbers: list[Mapping[str, Sequence[int]]]
    items: dict[str, float]
    device: torch.device
    num_items: Items | None = None
    weights: dict[str, float] | None = None
    begun: bool = False
    losses: dict[str, float] = field(default_factory=dict)
    apart: Apart | None = None

    def __post_init__(self) -> None:
        self._rows: dict[int, tuple[Batch, Rows]] = {}  # by the id of a forward
        self._find_present()
        self.clear()

    def _find_present(self) -> None:
        self.present = [name for name in self.tasks if self.items.get(name)]

    def clear(self) -> None:
        """Set the sums of this process to 0: ``losses_K`` by task, and ``loss``, the weighted sum of the losses."""
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        self.losses_K = torch.tensor([0.0] * len(self.tasks), dtype=precise, device=self.device)
        self.loss = torch.tensor(0.0, device=self.device)

    def by_task(self, values_K: Sequence[float]) -> dict[str, float]:
        """Values of all tasks, as a dict of those that are present."""
        return {name: value for name, value in zip(self.tasks, values_K, strict=True) if self.items.get(name)}

    def add(self, losses: Mapping[str, torch.Tensor], totals_K: torch.Tensor) -> None:
        """Add the losses of a forward to sums by task."""
        numbers = [number for number, name in enumerate(self.tasks) if name in losses]
        if numbers:
            own = [losses[name].detach() for name in self.tasks if name in losses]
            found = torch.stack(own) if len(own) > 1 else own[0].reshape(1)
            if len(numbers) == len(self.tasks):
                totals_K += found
            else:
                places = torch.tensor(numbers, device=totals_K.device)
                totals_K.index_add_(0, places, found.to(totals_K.dtype))

    def rows(self, forward: Batch) -> Rows:
        """The rows of one of the forwards that the tasks of the step read."""
        if id(forward) not in self._rows:
            self._rows[id(forward)] = forward, rows_of_tasks(forward)
        return {name: own for name, own in self._rows[id(forward)][1].items() if self.items.get(name)}

    def leave_out(self, tasks: Collection[str]) -> None:
        """Continue without some tasks, and without the rows that only they read."""
        self.items |= dict.fromkeys(tasks, 0)
        self._find_present()
        first = self.forwards[0]
        kept = [
            (rest, numbers)
            for forward, numbers in zip(self.forwards, self.row_numbers, strict=True)
            if (rest := without(forward, tasks)) is not None
        ]
        self.forwards = [rest for rest, _ in kept] or [filler(first)]
        self._rows.clear()
        self.row_numbers = [numbers for _, numbers in kept] or [{}]

    @contextmanager
    def running(self, apart: Apart) -> Iterator[None]:
        """Within it, passes run apart from the training."""
        before, self.apart = self.apart, apart
        try:
            yield
        finally:
            self.apart = before


def drop(batch: Batch, tasks: Collection[str]) -> None:
    """Drop the labels of some tasks from a batch; their rows stay in it."""
    for name in tasks:
        for key in _BY_TASK:
            batch.get(key, {}).pop(name, None)


def plain(batch: Batch) -> Batch:
    """A batch without what teachers answer."""
    return {key: value for key, value in batch.items() if key not in _OF_TEACHERS}


def labelled_by(batch: Batch, task: str) -> Batch:
    """A batch of which only one task's labels count."""
    kept = {key: batch[key] for key in ("soft_rows", *_LABELS) if key in batch}
    return {**batch, **{key: {name: own for name, own in by.items() if name == task} for key, by in kept.items()}}


Rows = dict[str, list[int]]  # by task, the rows of a batch that it reads, in rising order, each once


def rows_of_tasks(batch: Batch) -> Rows:
    """The rows of a batch that each task reads; one read of a tensor by the host."""
    soft = batch.get("soft_rows", {})
    tables: list[tuple[str, torch.Tensor]] = [
        *((name, rows) for name, rows in batch["task_rows"].items() if name in batch["labels"]),
        *soft.items(),
    ]
    if not tables:
        return {}
    found: dict[str, set[int]] = {name: set() for name in dict.fromkeys((*batch["task_rows"], *soft))}
    numbers = iter(torch.cat([rows.flatten() for _, rows in tables]).tolist())
    for name, rows in tables:
        found[name].update(islice(numbers, rows.numel()))
    return {name: sorted(own - {-1}) for name, own in found.items() if own}


def side_by_side(rows: Rows, mixable: Collection[str]) -> tuple[list[str], list[str]]:
    """The tasks of a batch that one pass can separate by their rows, and those that need a pass of their own.

    Args:
        rows: of the batch, by task.
        mixable: those whose heads leave the shared part of the model to the rows of the batch.
    """
    readers = Counter(row for own in rows.values() for row in own)
    together = [name for name, own in rows.items() if name in mixable and all(readers[row] == 1 for row in own)]
    if len(together) < 2:
        together = []
    return together, [name for name in rows if name not in together]


def only(batch: Batch, tasks: Sequence[str], rows: Rows | None = None) -> tuple[Batch, list[int]]:
    """A batch with the rows of some tasks, one task after the other, and how many each has.

    Args:
        batch: with ``task_rows`` and ``labels``.
        tasks: whose rows remain.
        rows: of the batch, by task; read from it if None.
    """
    by_task = rows_of_tasks(batch) if rows is None else rows
    order = [row for name in tasks for row in by_task[name]]
    parts: Batch = {key: value for key, value in batch.items() if key not in _BY_TASK}
    for key in _BY_TASK:
        if key in batch:
            parts[key] = {name: batch[key][name] for name in tasks if name in batch[key]}
    if order != list(range(rows_of(batch))):
        for key, value in parts.items():
            if key not in _BY_TASK:
                parts[key] = value[torch.tensor(order, device=value.device)]
        places = [-1] * (rows_of(batch) + 1)  # the last for -1
        for place, row in enumerate(order):
            places[row] = place
        _place(parts, places)
    return parts, [len(by_task[name]) for name in tasks]


def _place(batch: Batch, places: Sequence[int]) -> None:
    """Replace the rows of all tasks by their places in another batch."""
    tables = [(key, name, table) for key in _ROWS for name, table in batch.get(key, {}).items()]
    every = torch.cat([table.flatten() for _, _, table in tables])
    moved = torch.tensor(places, device=every.device)[every].split([table.numel() for _, _, table in tables])
    for (key, name, table), own in zip(tables, moved, strict=True):
        batch[key][name] = own.view(table.shape)


def rows_of(batch: Batch) -> int:
    """The number of rows of a batch."""
    return len(next(value for key, value in batch.items() if key not in _BY_TASK))


def without(forward: Batch, tasks: Collection[str]) -> Batch | None:
    """A batch without some tasks, and without the rows that only they read; None where no row is left.

    A row of theirs must not stay as one that counts for nothing: in a sum over rows, 0 times infinity is NaN.

    Args:
        forward: model inputs, (B, ...) each, ``task_rows`` and ``labels``.
        tasks: those that leave.
    """
    by_task = {key: dict(forward[key]) for key in _BY_TASK if key in forward}
    for own in by_task.values():
        for name in tasks:
            own.pop(name, None)
    if all(len(by_task[key]) == len(forward[key]) for key in _ROWS if key in forward):
        return dict(forward)
    return _with_rows(forward, by_task)


def only_items(forward: Batch, task: str, items: Sequence[int]) -> Batch:
    """A batch with some items of one task, and with the rows that they read.

    Args:
        forward: as in :func:`without`.
        task: whose they are.
        items: their places among the task's items.
    """
    keys = [key for key in ("task_rows", *_LABELS) if task in forward.get(key, ())]
    by_task = {key: {task: forward[key][task][list(items)]} for key in keys}
    return _with_rows(forward, by_task) or filler(forward)


def _with_rows(forward: Batch, by_task: Mapping[str, Mapping[str, torch.Tensor]]) -> Batch | None:
    """A batch with the rows that some items read, and with those; None where there is none.

    Args:
        forward: the batch.
        by_task: the keys of rows and labels by task, with the rows of ``forward``.
    """
    tables = [rows.flatten() for key in _ROWS for rows in by_task.get(key, {}).values()]
    kept = sorted(set(torch.cat(tables).tolist()) - {-1}) if tables else []
    if not kept:
        return None
    rest = {
        key: value[kept] if isinstance(value, torch.Tensor) else value
        for key, value in forward.items()
        if key not in _BY_TASK
    }
    count = len(next(value for value in forward.values() if isinstance(value, torch.Tensor)))
    places = [-1] * (count + 1)  # the last one for rows of -1, which are none
    for place, row in enumerate(kept):
        places[row] = place
    parts = {**rest, "task_rows": {}, "labels": {}, **{key: dict(own) for key, own in by_task.items()}}
    _place(parts, places)
    return parts


def filler(forward: Batch) -> Batch:
    """The first row of a batch, without a task: for a process that has no row left, but has to run a forward pass.

    The row is whole, as convolutions over recordings need more than one sample.
    """
    rest = {key: value[:1] for key, value in forward.items() if isinstance(value, torch.Tensor)}
    return {**rest, "task_rows": {}, "labels": {}}


def add_tokens(batches: Sequence[Batch], names: Sequence[str]) -> None:
    """Add the inputs of all parts to every micro-batch, flat, for those who count tokens by the micro-batch.

    Args:
        batches: micro-batches, with ``forwards``.
        names: of the inputs.
    """
    for batch in batches:
        found = {name: [part[name].flatten() for part in batch["forwards"] if name in part] for name in names}
        batch |= {name: torch.cat(values) for name, values in found.items() if values}
