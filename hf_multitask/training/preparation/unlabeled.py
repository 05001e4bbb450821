"""Rows without labels, which are predicted and not measured."""

from __future__ import annotations

from collections.abc import Mapping

import datasets

from ...tasks import Task
from ...tasks.joining import stored_columns
from ...tasks.labels import class_names
from .tasks import Datasets


def with_placeholders(tasks: Mapping[str, Task], data: Datasets) -> tuple[Datasets, set[str]]:
    """The data with a placeholder as the label of every row of tasks whose rows have none, and the names of the tasks.

    Args:
        tasks: by name.
        data: raw rows by dataset name.

    Raises:
        ValueError: the type of a task has no placeholder.
    """
    unlabeled: set[str] = set()
    if not isinstance(data, Mapping):
        return data, unlabeled
    result = dict(data)
    for name, task in tasks.items():
        rows, target = result.get(task.source), task.target_column
        inputs = stored_columns(task, *task.input_columns)
        if not isinstance(rows, datasets.Dataset) or not target or target in task.input_columns:
            continue
        if not set(inputs) <= set(rows.column_names) or not len(rows) or not _is_unlabeled(rows, target):
            continue
        unlabeled.add(name)
        cells = [task.placeholder(row) for row in rows.with_format(None).select_columns(inputs)]
        columns = task.label_columns
        for column, own in zip(columns, zip(*cells, strict=True) if len(columns) > 1 else [cells], strict=True):
            if column in rows.column_names:
                rows = rows.remove_columns([column])
            rows = rows.add_column(column, list(own))
        result[task.source] = rows
    return result, unlabeled


def _is_unlabeled(rows: datasets.Dataset, column: str) -> bool:
    import pyarrow.compute as pc

    if column not in rows.column_names:
        return True
    cells = rows.select_columns([column]).with_format("arrow")[:][column]
    if cells.null_count == len(cells):
        return True
    return class_names(rows, column) is not None and cells.type.equals("int64") and pc.max(cells).as_py() < 0
