"""The option ``slice_columns``: columns by whose values the metrics of a task are reported as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ..modeling.config import close_match

if TYPE_CHECKING:
    from datasets import Dataset

    from .base import Task
    from .columns import Cells

MISSING = "/"  # which no quoted value contains


def slice_column(task: str, column: str) -> str:
    """The column of an encoded dataset that holds the slices of a task by the values of a column."""
    return f"slice:{task}:{column}"


def quoted(text: str) -> str:
    """A text in which every character outside of ``[A-Za-z0-9_.-]`` is percent-encoded."""
    return quote(text, safe="").replace("~", "%7E")


def unquoted(text: str) -> str:
    """The text that :func:`quoted` has encoded."""
    return unquote(text)


def slice_of(cell: object) -> str:
    """The quoted value of a cell. A float that is whole is the integer: gaps make floats of a column of integers."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return MISSING
    return quoted(str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell))


def slices_of(cells: Cells) -> Cells:
    """The quoted values of a column; a list for a row that combines several rows."""
    return [list(map(slice_of, cell)) if isinstance(cell, list) else slice_of(cell) for cell in cells]


def check_slice_columns(task: Task) -> None:
    """Check the option of a task.

    Raises:
        ValueError: it is not a list of different names.
    """
    given: object = task.slice_columns
    if given is None:
        return
    named = isinstance(given, list | tuple) and given and all(isinstance(one, str) and one for one in given)
    if not isinstance(given, list | tuple) or not named or len(set(given)) < len(given):
        raise task.error(
            f"`slice_columns` should be a list of different columns, one or more. Found `slice_columns = {given!r}`."
        )
    task.slice_columns = list(given)


def check_sliced(task: Task, dataset: Dataset, split: str) -> None:
    """Check that evaluation data have the columns of the option, with one value in every row.

    Raises:
        ValueError: a column is missing, or contains lists or mappings.
    """
    for column in task.slice_columns or ():
        if column not in dataset.column_names:
            raise task.error(
                f"`slice_columns` names the column '{column}', and the {split} data have "
                f"{', '.join(dataset.column_names) or 'none'}."
                + (close_match(column, dataset.column_names) or " Add it, or remove it from the option.")
            )
        feature = dataset.features[column]
        if type(feature).__name__ not in ("Value", "ClassLabel"):
            raise task.error(
                f"`slice_columns` names the column '{column}', whose values in the {split} data are {feature!r}, but a "
                "slice needs one text, number or boolean in every row. Name another column."
            )


def sliced_columns(task: Task, present: Sequence[str]) -> list[str]:
    """The columns of the option that some data have."""
    return [column for column in task.slice_columns or () if column in present]
