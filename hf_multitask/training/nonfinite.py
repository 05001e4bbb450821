"""Steps in which a task's loss is NaN or infinite: the step without the task, and the rows that it comes from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

_SHOWN = 8


class LossError(ValueError):
    """The loss of a task was NaN or infinite in too many steps in a row; the sentence names task, step and rows."""


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
        "labels": {name: labels for name, labels in forward["labels"].items() if name not in tasks},
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


def describe(task: str, loss: float, step: int, rows: Sequence[int], dataset: str) -> str:
    """What happened, in words."""
    listed = ", ".join(map(str, rows[:_SHOWN])) + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
    return (
        f"Task '{task}': its loss is {loss} in step {step}, from row{'s' if len(rows) > 1 else ''} {listed} of the "
        f"training data of '{dataset}'."
    )
