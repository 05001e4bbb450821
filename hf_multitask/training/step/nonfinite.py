"""Steps in which a task's loss or gradient is not finite: the step without the task, and the rows that cause it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

_SHOWN = 8
_MOST_RUNS = 64


class LossError(ValueError):
    """The loss or gradient of a task was not finite in too many steps in a row, or where its task cannot be found."""


def non_finite(losses: Mapping[str, float]) -> list[str]:
    """The tasks whose loss is NaN or infinite."""
    return [name for name, loss in losses.items() if not math.isfinite(loss)]


def without(forward: Mapping[str, Any], tasks: Collection[str]) -> dict[str, Any] | None:
    """A batch without some tasks, and without the rows that only they read; None where no row is left.

    A row of theirs must not stay as one that counts for nothing: in a sum over rows, 0 times infinity is NaN.

    Args:
        forward: model inputs, (B, ...) each, ``task_rows`` and ``labels``.
        tasks: those that leave.
    """
    task_rows = {name: rows for name, rows in forward["task_rows"].items() if name not in tasks}
    if len(task_rows) == len(forward["task_rows"]):
        return dict(forward)
    labels = {name: labels for name, labels in forward["labels"].items() if name not in tasks}
    return _with_rows(forward, task_rows, labels)


def only_items(forward: Mapping[str, Any], task: str, items: Sequence[int]) -> dict[str, Any]:
    """A batch with some items of one task, and with the rows that they read.

    Args:
        forward: as in :func:`without`.
        task: whose they are.
        items: their places among the task's items.
    """
    rows, labels = forward["task_rows"][task][list(items)], forward["labels"][task][list(items)]
    return _with_rows(forward, {task: rows}, {task: labels}) or filler(forward)


def _with_rows(
    forward: Mapping[str, Any], task_rows: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor]
) -> dict[str, Any] | None:
    """A batch with the rows that some items read, and with those; None where there is none."""
    kept = sorted({row for rows in task_rows.values() for row in rows[rows >= 0].tolist()})
    if not kept:
        return None
    rest = {
        key: value[kept] if isinstance(value, torch.Tensor) else value
        for key, value in forward.items()
        if key not in ("task_rows", "labels")
    }
    count = len(next(value for value in forward.values() if isinstance(value, torch.Tensor)))
    places = torch.full((count + 1,), -1, dtype=torch.long)  # the last one for rows of -1, which are none
    places[kept] = torch.arange(len(kept))
    return {
        **rest,
        "task_rows": {name: places[rows] for name, rows in task_rows.items()},
        "labels": dict(labels),
    }


def filler(forward: Mapping[str, Any]) -> dict[str, Any]:
    """The first token of a batch, without a task: for a rank that has no row left, and has to take part."""
    rest = {
        key: value[:1, :1] if value.dim() == 2 else value[:1]
        for key, value in forward.items()
        if isinstance(value, torch.Tensor)
    }
    return {**rest, "task_rows": {}, "labels": {}}


def bad_rows(losses_N: torch.Tensor, numbers: Sequence[int]) -> list[int]:
    """The rows whose own loss is NaN or infinite."""
    return [number for number, finite in zip(numbers, losses_N.isfinite().tolist(), strict=True) if not finite]


def failing_items(count: int, fails: Callable[[Sequence[int]], bool]) -> list[int]:
    """Which of some items fail by themselves, found by halves; in 64 runs at most, after which a part counts whole.

    Args:
        count: how many there are.
        fails: whether some of them fail together, by their numbers.
    """
    found: list[int] = []
    parts = [list(range(count))]
    runs = 0
    while parts:
        part = parts.pop(0)
        runs += 1
        if runs > _MOST_RUNS:
            found += part
        elif fails(part):
            half = len(part) // 2
            if half:
                parts += [part[:half], part[half:]]
            else:
                found += part
    return sorted(found)


def describe(task: str, what: str, step: int, rows: Sequence[int], dataset: str) -> str:
    """What happened, in words."""
    listed = ", ".join(map(str, rows[:_SHOWN])) + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
    return (
        f"Task '{task}': {what} in step {step}, from row{'s' if len(rows) > 1 else ''} {listed} of the "
        f"training data of '{dataset}'."
    )
