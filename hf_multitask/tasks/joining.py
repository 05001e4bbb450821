"""Texts of several columns that a task reads as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..modeling.columns import joined_columns, joined_text

if TYPE_CHECKING:
    from .base import Task
    from .columns import Columns


def check_joined(task: Task) -> None:
    """Check that the ``text_column`` of a task is one column, or a list of columns if its type reads these.

    Raises:
        ValueError: it is not.
    """
    given = getattr(task, "text_column", None)
    if given is None or isinstance(given, str):
        return
    named = isinstance(given, list | tuple) and given and all(isinstance(one, str) and one for one in given)
    if not named or not task.joins_texts:
        wanted = "a column or a list of columns" if task.joins_texts else "one column"
        raise task.error(f"`text_column` should be {wanted}. Found `text_column = {given!r}`.")


def stored_columns(task: Task, *columns: str | None) -> list[str]:
    """The columns of the data that hold some of the columns that a task reads."""
    joined = joined_columns(task.to_dict())
    return [part for column in columns if column for part in joined.get(column, [column])]


def joining(task: Task, rows: Columns) -> Columns:
    """Rows of a batch with the texts of several columns as one more column, where a task reads them so."""
    joined = joined_columns(task.to_dict())
    return rows | {
        name: [joined_text(cells) for cells in zip(*(rows[part] for part in parts), strict=True)]
        for name, parts in joined.items()
    }
