"""``map`` of datasets for columns whose first values are all missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import Dataset, Features

if TYPE_CHECKING:
    from ..tasks.columns import Columns

_BATCH = 1000


def mapped(rows: Dataset, function: Callable[[Columns, list[int]], Columns], **options: Any) -> Dataset:
    """What a function makes of batches of rows, in place of their columns.

    ``map`` takes the type of a column from its first batch, and fails where that has no value of it, as where the first
    thousand rows have no label of a task. The types are then those of all batches.

    Args:
        rows: to read.
        function: of the columns of a batch, and the numbers of its rows.
        options: of ``map``.
    """
    options |= {"batched": True, "with_indices": True, "remove_columns": rows.column_names}
    try:
        return rows.map(function, **options)
    except (TypeError, pa.ArrowInvalid):
        return rows.map(function, features=_features(rows, function), **options)


def _features(rows: Dataset, function: Callable[[Columns, list[int]], Columns]) -> Features:
    schemas = []
    for start in range(0, len(rows), _BATCH):
        places = list(range(start, min(start + _BATCH, len(rows))))
        schemas.append(Dataset.from_dict(function(rows[start : start + _BATCH], places)).data.schema.remove_metadata())
    return Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))
