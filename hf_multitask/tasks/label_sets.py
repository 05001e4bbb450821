"""Sets of labels in a row: as lists of labels, as vectors of 0 and 1, and as text with separators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from . import labels as lab

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("vector", "set")
SEPARATORS = (";", "|", ",")


def split(cell: object, separator: str) -> list[str] | None:
    """The labels in a cell, without surrounding spaces; None if the cell is empty or blank.

    A cell with separators only is the empty set. A number is converted back to its text.
    """
    if cell is None:
        return None
    text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    if not text.strip():
        return None
    return [part for part in map(str.strip, text.split(separator)) if part]


def separator_in(names: Iterable[object]) -> str | None:
    """The common separator of the different labels of a column if they look like sets of fewer labels.

    They do if a tenth of them contain the separator, and half of their parts are also parts of other labels.
    """
    words = [name for name in names if isinstance(name, str)]
    for separator in SEPARATORS:
        if not any(separator in word for word in words):
            continue
        sets = [set(split(word, separator) or ()) for word in words]
        several = [parts for parts in sets if len(parts) > 1]
        counts = Counter(part for parts in sets for part in parts)
        joined = set().union(*several)
        repeated = sum(counts[part] > 1 for part in joined)
        if several and len(several) * 10 >= len(words) and repeated * 2 >= len(joined):
            return separator
    return None


def lists_of(data: Sequence[Dataset], column: str) -> list[Dataset]:
    """The datasets whose column contains lists that are not all empty."""
    return [dataset for dataset in data if lab.kind(dataset, column)[1] and len(lab.entries(dataset, column))]


def lengths(data: Sequence[Dataset], column: str) -> list[int]:
    """The different lengths of the lists of a column, in all of its datasets, sorted."""
    import pyarrow.compute as pc

    found = (pc.unique(pc.list_value_length(lab.arrow(dataset, column))).to_pylist() for dataset in data)
    return sorted({length for of_split in found for length in of_split})


def format_of(data: Sequence[Dataset], column: str, names: Sequence[str] | None) -> str:
    """The format of the lists of a column: ``vector``, one 0 or 1 for every class, or ``set``, the labels that apply.

    Floats are vectors. Integers, booleans and ClassLabels are vectors if every list of the column is as long as the
    number of classes and contains only 0 and 1: as sets, these would all contain every class, or one of them twice.

    Args:
        data: all datasets of the column; the format of a single row is often ambiguous.
        column: of the labels.
        names: of the classes; if None, those of a ClassLabel, and otherwise there are as many classes as the length of
            the lists, at least two.
    """
    data = lists_of(data, column)
    if any(lab.kind(dataset, column)[0] == "float" for dataset in data):
        return "vector"
    if not data or any(lab.holds_strings(dataset, column) for dataset in data):
        return "set"
    found = lengths(data, column)
    known = names or next((own for dataset in data if (own := lab.class_names(dataset, column))), None)
    wanted = len(known) if known else max(2, found[0])
    numbers = (lab.entries(dataset, column).unique().to_pylist() for dataset in data)
    return "vector" if found == [wanted] and all(set(own) <= {0, 1} for own in numbers) else "set"
