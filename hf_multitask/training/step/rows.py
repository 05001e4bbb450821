"""The rows of a forward, task by task: those that have one task, side by side, and those that share a row apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

Batch = dict[str, Any]


def rows_of_tasks(batch: Batch, tasks: Collection[str]) -> dict[str, torch.Tensor]:
    """The rows of a batch that some tasks read, by task, in the order of the batch, each once."""
    found = {}
    for name, rows in batch["task_rows"].items():
        if name in tasks and name in batch["labels"]:
            found[name] = torch.unique(rows[rows >= 0])
    return found


def side_by_side(batch: Batch, tasks: Collection[str], mixable: Collection[str]) -> tuple[list[str], list[str]]:
    """The tasks of a batch whose rows can be told apart in one pass, and those that need one of their own.

    Args:
        batch: with ``task_rows`` and ``labels``.
        tasks: those that count.
        mixable: those whose heads leave the shared part of the model to the rows of the batch.
    """
    rows = rows_of_tasks(batch, tasks)
    readers_B = torch.zeros(rows_of(batch), dtype=torch.long)
    for own in rows.values():
        readers_B[own.cpu()] += 1
    together = [name for name, own in rows.items() if name in mixable and bool((readers_B[own.cpu()] == 1).all())]
    if len(together) < 2:
        together = []
    return together, [name for name in rows if name not in together]


def only(batch: Batch, tasks: Sequence[str]) -> tuple[Batch, list[int]]:
    """A batch with the rows of some tasks, one task after the other, and how many each has."""
    by_task = rows_of_tasks(batch, tasks)
    rows_B = torch.cat([by_task[name] for name in tasks])
    place_B = torch.full((rows_of(batch) + 1,), -1, dtype=torch.long, device=rows_B.device)  # the last for -1
    parts: Batch = {}
    for key, value in batch.items():
        if key not in ("task_rows", "labels"):
            parts[key] = value[rows_B]
    task_rows, start = {}, 0
    for name in tasks:
        place_B[by_task[name]] = torch.arange(start, start + len(by_task[name]), device=rows_B.device)
        task_rows[name] = place_B[batch["task_rows"][name]]
        start += len(by_task[name])
    return (
        {**parts, "task_rows": task_rows, "labels": {name: batch["labels"][name] for name in tasks}},
        [len(by_task[name]) for name in tasks],
    )


def rows_of(batch: Batch) -> int:
    """The number of rows of a batch."""
    return len(next(value for key, value in batch.items() if key not in ("task_rows", "labels")))
