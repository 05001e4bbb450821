"""The rows of an evaluation by the values of columns, see the option ``slice_columns`` of tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers.utils import logging

from ...tasks import Task
from ...tasks.slicing import MISSING, slice_column, unquoted
from .rows import EvaluationRows

logger = logging.get_logger(__name__)

MOST = 20  # values of a column in a log


@dataclass(frozen=True)
class Slice:
    """The rows of a task with a value in a column.

    Args:
        column: its name.
        value: quoted, see :func:`hf_multitask.tasks.slicing.quoted`.
        places: of the rows among those with a label, (N,).
        within: which parts of these rows have the value, (N, P), where a row combines P rows; else None.
        rows: the number of rows of the data.
    """

    column: str
    value: str
    places: np.ndarray
    within: np.ndarray | None
    rows: int

    @property
    def text(self) -> str:
        """The value as the data have it."""
        return unquoted(self.value)


def slices_by_column(rows: EvaluationRows, task: Task) -> dict[str, list[Slice]]:
    """By column of a task's ``slice_columns``, its values in their order; rows without a value are in none.

    Args:
        rows: of the evaluation.
        task: that measures them.
    """
    name = str(task.name)
    found: dict[str, list[Slice]] = {}
    if not task.slice_columns:
        return found
    (dataset,) = (dataset for dataset in rows.encoded if name in dataset.tasks)
    for column in task.slice_columns:
        if slice_column(name, column) in dataset.rows.column_names:
            cells = dataset.labelled(name)[slice_column(name, column)][:]
            found[column] = _slices(column, cells)
    return found


def _slices(column: str, cells: list[str] | list[list[str]]) -> list[Slice]:
    if cells and isinstance(cells[0], list):
        most = max(map(len, cells))
        table = np.array([[*cell, *[MISSING] * (most - len(cell))] for cell in cells], dtype=object)
    else:
        table = np.array(cells, dtype=object)
    found = []
    for value in sorted(set(table.ravel().tolist()) - {MISSING}, key=_order):
        own = table == value
        places = np.flatnonzero(own if own.ndim == 1 else own.any(1))
        within = own[places] if own.ndim == 2 else None
        found.append(Slice(column, value, places, within, int(own.sum())))
    return found


def _order(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def logged(task: Task, slices: list[Slice]) -> list[Slice]:
    """Those of the slices of a column that a log has: of the values with most rows, 20 at most."""
    if len(slices) <= MOST:
        return slices
    logger.warning_once(
        f"Task '{task.name}': column '{slices[0].column}' of `slice_columns` has {len(slices):,} values. The logs have "
        f"the {MOST} with most rows, and eval_report.json has all."
    )
    kept = sorted(slices, key=lambda one: -one.rows)[:MOST]
    return [one for one in slices if one in kept]
