"""Weights of rows, as a column of an encoded dataset and as tensors of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from datasets import Dataset

    from ..modeling.readers import Row
    from ..tasks import Task
    from ..tasks.columns import Cells

WEIGHTS = "weights"


def weights_column(task: str) -> str:
    """The feature column with the weights of the rows in the loss of a task."""
    return f"{WEIGHTS}:{task}"


def encode_weights(task: Task, cells: Cells, labels: Cells, indices: Sequence[int], split: str) -> Cells:
    """The weights of a batch of rows as numbers: one each, or a list if a row combines rows of the data.

    Args:
        task: with a ``weight_column``.
        cells: of this column.
        labels: as encoded; a row without a label needs no weight.
        indices: the indices of the rows in their dataset, for messages.
        split: name of the split, for messages.

    Raises:
        ValueError: a weight is not a number of 0 or more; the message names the row.
    """
    return [
        [_weight(task, value, label, index + place, split) for place, value in enumerate(cell)]
        if isinstance(cell, list)
        else _weight(task, cell, label, index, split)
        for cell, label, index in zip(cells, labels, indices, strict=True)
    ]


def _weight(task: Task, value: object, label: object, index: int, split: str) -> float:
    if value is None and label is None:
        return 1.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise task.row_error(
            index,
            split,
            f"column '{task.weight_column}': a weight should be a number, 0 or more. Found {value!r}. Fix the row.",
        )
    return float(value)


def check_weights(task: Task, rows: Dataset) -> None:
    """Check that some of the encoded training rows with a label of a task count.

    Raises:
        ValueError: the weights of all of them are 0.
    """
    column = weights_column(str(task.name))
    if column not in rows.column_names:
        return
    cells = rows[column]
    if not any(any(cell) if isinstance(cell, list) else cell for cell in cells):
        raise task.error(
            f"column '{task.weight_column}' is 0 in every row of the train data with its label, so nothing would "
            "train. Give a row a weight above 0."
        )


def weights_of(values: Row, tasks: Sequence[str]) -> dict[str, Any]:
    """By task whose rows have weights, the weight of a row of an encoded dataset."""
    found = {}
    for column, value in values.items():
        kind, _, task = column.partition(":")
        if kind == WEIGHTS and task in tasks:
            found[task] = value
    return found


def collate_weights(task: str, features: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The weights of N rows, 1 for a row without one: (N,), or (N, P) of rows that combine P rows, filled up with 0."""
    values = [feature.get(WEIGHTS, {}).get(task, 1.0) for feature in features]
    if not any(isinstance(value, list) for value in values):
        return torch.tensor(values)
    most = max(len(value) for value in values)
    return torch.tensor([value + [0.0] * (most - len(value)) for value in values])
