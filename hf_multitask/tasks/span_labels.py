"""Labeled spans of characters in the formats of annotation tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

from ..modeling.words import trimmed

if TYPE_CHECKING:
    from .base import Task

Span = tuple[int, int, str]
_WANTED = (
    "A span is [start, end, label], or a mapping with 'start' and 'end', or 'start_offset' and 'end_offset', and "
    "'label' or 'slot'."
)
_STARTS, _ENDS, _LABELS = ("start", "start_offset"), ("end", "end_offset"), ("label", "slot")


def spans_of(cell: object) -> list[Span] | None:
    """The spans of a row, or None for a row without labels, which is None or a blank string.

    Args:
        cell: a list of spans, see :func:`span_of`; a mapping of columns, such as ``{"start": [...], "end": [...],
            "label": [...]}``; or either as JSON.

    Raises:
        ValueError: the value has another format; the message contains it.
    """
    if isinstance(cell, str):
        if not cell.strip():
            return None
        cell = _parsed(cell)
    if cell is None:
        return None
    if isinstance(cell, Mapping):
        cell = _rows(cell)
    if not _is_list(cell):
        raise ValueError(f"the spans of a row should be a list. Found {cell!r}. {_WANTED}")
    if len(cell) == 3 and _is_number(cell[0]) and _is_number(cell[1]):
        raise ValueError(
            f"the spans of a row should be a list of spans. Found the single span {cell!r}. Put it in a list."
        )
    return [span_of(value) for value in cell]


def placed_spans(task: Task, text: str, cell: object, where: str) -> list[Span] | None:
    """The spans of a row in ascending order, without white space at their edges; see :func:`spans_of`.

    Args:
        task: for messages.
        text: that they are in.
        cell: see :func:`spans_of`.
        where: the row, for messages.

    Raises:
        ValueError: the value has another format, or a span is not in the text.
    """
    try:
        found = spans_of(cell)
    except ValueError as problem:
        raise task.error(f"{where}, column '{task.target_column}': {problem} Fix the row.") from None
    for start, end, _ in found or ():
        if end > len(text):
            raise task.error(
                f"{where} has a span from {start!r} to {end!r} in column '{task.target_column}', but the text has "
                f"{len(text)} characters. Fix the row."
            )
    return None if found is None else [(*trimmed(text, (start, end)), kind) for start, end, kind in sorted(found)]


def span_of(value: object) -> Span:
    """Start, end and label of a span, which covers ``text[start:end]``.

    Args:
        value: ``[start, end, label]``, as in doccano; a mapping with ``start`` and ``end``, or ``start_offset`` and
            ``end_offset``, and the name under ``label`` or ``slot``; or either as JSON.

    Raises:
        ValueError: the value has another format; the message contains it.

    Example::

        span_of([0, 5, "PER"]) == span_of({"start_offset": 0, "end_offset": 5, "label": "PER"}) == (0, 5, "PER")
    """
    found = _parsed(value) if isinstance(value, str) else value
    if isinstance(found, Mapping):
        parts = [_under(found, names) for names in (_STARTS, _ENDS, _LABELS)]
    elif _is_list(found) and len(found) == 3:
        parts = list(found)
    else:
        raise ValueError(f"{value!r} is not a span. {_WANTED}")
    (start, end), label = (_position(part, value) for part in parts[:2]), parts[2]
    if not isinstance(label, str) or not label:
        raise ValueError(f"the label of the span {value!r} should be a name. Found {label!r}. {_WANTED}")
    if not 0 <= start < end:
        raise ValueError(
            f"the span {value!r} goes from {start} to {end}. The start of a span should be 0 or more, and its end "
            "greater than the start, in characters of the text."
        )
    return start, end, label


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a span nor JSON. {_WANTED}") from None


def _under(span: Mapping[str, object], names: Sequence[str]) -> object:
    return next((span[name] for name in names if span.get(name) is not None), None)


def _position(value: object, span: object) -> int:
    """A position in the text, which may be a string of digits in a column of strings."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if not _is_number(value):
        raise ValueError(f"the span {span!r} should have a whole number as start and end. Found {value!r}. {_WANTED}")
    return int(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _rows(columns: Mapping[str, object]) -> object:
    """A mapping of columns as a list of mappings; other values are returned unchanged."""
    lists = [values for values in columns.values() if _is_list(values)]
    if len(lists) < len(columns) or len(set(map(len, lists))) > 1:
        return columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
