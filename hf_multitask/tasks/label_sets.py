"""Sets of labels in one row: as lists of labels, as vectors of 0 and 1, and as text with separators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import labels as lab

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("vector", "set")
SEPARATORS = (";", "|", ",")


def split(cell: Any, separator: str) -> list[str] | None:
    """The labels in a cell, without blanks around them; None where the cell is empty or blank.

    A cell of nothing but separators is the empty set. A number is read as the text that it was.
    """
    if cell is None:
        return None
    text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    if not text.strip():
        return None
    return [part for part in map(str.strip, text.split(separator)) if part]


def separator_in(names: Sequence[Any]) -> str | None:
    """The separator that different labels of a column have in common, if they look like sets of fewer labels.

    They do where a tenth of them hold the separator, and half of the parts of those are parts of other labels as well.
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
    """Those of the datasets whose column holds lists with something in them."""
    return [dataset for dataset in data if lab.kind(dataset, column)[1] and len(lab.entries(dataset, column))]


def lengths(data: Sequence[Dataset], column: str) -> list[int]:
    """The different lengths of the lists of a column, in all of its datasets, sorted."""
    import pyarrow.compute as pc

    found = (pc.unique(pc.list_value_length(lab.arrow(dataset, column))).to_pylist() for dataset in data)
    return sorted({length for of_split in found for length in of_split})


def format_of(data: Sequence[Dataset], column: str, names: Sequence[str] | None) -> str:
    """What the lists of a column are: ``vector``, one 0 or 1 for every class, or ``set``, the labels that apply.

    Floats are vectors. Whole numbers, booleans and ClassLabels are, where every list of the column is as long as there
    are classes and holds nothing but 0 and 1: as sets, these would all hold every class, or one of them twice.

    Args:
        data: all datasets whose lists go together; a row alone could often be either.
        column: of the labels.
        names: of the classes; where None, a ClassLabel's are taken, and else there are as many classes as the lists are
            long, two or more.
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
