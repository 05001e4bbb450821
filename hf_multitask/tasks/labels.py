"""Labels in the format of the user - names, numbers, ClassLabel - and in that of the heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..modeling.config import close_match
from ..modeling.heads import IGNORE

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from datasets import Dataset

    from .columns import Cells, Table

# The kinds of values of a column, with their description in errors.
KINDS = {
    "name": "names",
    "number": "whole numbers",
    "float": "floats",
    "mixed": "values of different kinds",
    "other": "values that are neither names nor numbers",
    "nothing": "nothing usable",
}


def leaf(feature: object) -> tuple[object, int]:
    """The innermost feature of a column, and the number of lists around it."""
    depth = 0
    while hasattr(feature, "feature") or isinstance(feature, list):
        feature = feature[0] if isinstance(feature, list) else feature.feature
        depth += 1
    return feature, depth


def kind(dataset: Dataset, column: str) -> tuple[str, int]:
    """The kind of values of a column, a key of ``KINDS``, and the number of lists. A ClassLabel counts as ``name``."""
    feature, depth = leaf(dataset.features[column])
    if type(feature).__name__ == "ClassLabel":
        return "name", depth
    if type(feature).__name__ == "Json":  # the type in datasets for values without a common type
        return "mixed", depth
    dtype = str(getattr(feature, "dtype", ""))
    for word, start in (
        ("name", ("string", "large_string")),
        ("number", ("int", "uint", "bool")),
        ("float", ("float", "double")),
    ):
        if dtype.startswith(start):
            return word, depth
    return ("nothing" if dtype == "null" else "other"), depth


def class_names(dataset: Dataset, column: str) -> list[str] | None:
    """Names of a ClassLabel column; None for other columns."""
    return getattr(leaf(dataset.features[column])[0], "names", None)


def holds_strings(dataset: Dataset, column: str) -> bool:
    """Whether a column contains names as text, in lists or not."""
    return kind(dataset, column)[0] == "name" and class_names(dataset, column) is None


def arrow(dataset: Dataset, column: str) -> pa.ChunkedArray:
    """A column as an Arrow array, without missing values."""
    return dataset.select_columns([column]).with_format("arrow")[:][column].drop_null()


def entries(dataset: Dataset, column: str) -> pa.ChunkedArray:
    """All labels of a column, with lists flattened and without missing ones."""
    import pyarrow.compute as pc

    data = arrow(dataset, column)
    for _ in range(leaf(dataset.features[column])[1]):
        data = pc.list_flatten(data)
    return data.drop_null()


def values(dataset: Dataset, column: str) -> Cells:
    """The different labels of a column, sorted, with lists flattened and without missing ones; ClassLabels by name.

    Floats without a fraction are integers: pandas and CSV files convert integers to floats if some are missing.
    """
    import pyarrow.compute as pc

    if not len(dataset):
        return []
    found = pc.unique(entries(dataset, column)).to_pylist()
    found = [int(value) if isinstance(value, float) and value.is_integer() else value for value in found]
    names = class_names(dataset, column)
    if names is not None:
        found = [names[value] for value in found if value >= 0]
    return sorted(found)


def are_numbers_with_gaps(dataset: Dataset, column: str) -> bool:
    """Whether a column of floats may consist of integers some of which are missing."""
    if kind(dataset, column) != ("float", 0) or not all(isinstance(value, int) for value in values(dataset, column)):
        return False
    return len(arrow(dataset, column)) < len(dataset)


def misplaced(names: Sequence[str]) -> str | None:
    """The first name that is a number other than its own index."""
    return next((name for place, name in enumerate(names) if name.isdecimal() and name != str(place)), None)


def label_names(found: Iterable[Cells]) -> list[str]:
    """Names for the labels of several splits: those of the first split, then the additional ones of the others, sorted.

    Numbers, which index the names, become ``LABEL_0``, ``LABEL_1`` and so on, up to the largest.
    """
    ordered = list(dict.fromkeys(value for split in found for value in split))
    if ordered and all(isinstance(value, bool) for value in ordered):
        return ["False", "True"]
    if ordered and all(isinstance(value, int) for value in ordered):
        return [f"LABEL_{number}" for number in range(max(ordered) + 1)]
    return [str(value) for value in ordered]


def numbering(names: list[str], unseen: Cells) -> Table:
    """The index of each label of the data, a name or a number; unseen labels are numbered after the known ones."""
    table: dict[object, int] = {name: number for number, name in enumerate(names)}
    table.update({number: number for number in range(len(names))})
    table.update({label: len(names) + number for number, label in enumerate(unseen)})
    return table


def unseen_labels(found: Cells, names: list[str]) -> Cells:
    """The labels that are neither one of the names nor an index of one."""
    known = numbering(names, [])
    return [label for label in found if label not in known]


def describe(found: str, depth: int) -> str:
    """A description of the values of a column."""
    return "lists of " * depth + KINDS[found]


def padded(labels: Sequence[list[int]], length: int, padding_side: str) -> torch.Tensor:
    """Labels of the tokens of N rows as (N, length), padded with -100."""
    import torch

    pads = [[IGNORE] * (length - len(row)) for row in labels]
    rows = zip(pads, labels, strict=True)
    return torch.tensor([pad + row if padding_side == "left" else row + pad for pad, row in rows])


def close(word: str, known: Sequence[str]) -> str:
    """See :func:`close_match`."""
    return close_match(word, list(known))
