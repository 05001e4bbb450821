"""``map`` of datasets with a cache that may be cut, and for columns whose first values are all missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import Dataset, Features

from ..modeling.saving import StorageFullError, storage_failure

if TYPE_CHECKING:
    from ..tasks.columns import Columns

_BATCH = 1000
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of Arrow; one without it reads as if it had fewer rows


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
        return cached_map(rows, function, **options)
    except (TypeError, pa.ArrowInvalid):
        return cached_map(rows, function, features=_features(rows, function), **options)


def cached_map(rows: Dataset, function: Callable[[Columns, list[int]], Columns], **options: Any) -> Dataset:
    """``map``, from its cache where that is complete; a file of it that is cut is replaced.

    Args:
        rows: to read.
        function: of the columns of a batch, and the numbers of its rows.
        options: of ``map``.

    Raises:
        OSError: the storage is full.
    """
    try:
        try:
            found = rows.map(function, **options)
            if all(_is_whole(file["filename"]) for file in found.cache_files):
                return found
        except (pa.ArrowInvalid, OSError) as problem:
            if getattr(problem, "errno", None) is not None:  # of the storage, and not of the file
                raise
        return rows.map(function, load_from_cache_file=False, **options)
    except OSError as problem:
        reason = storage_failure(problem)
        if reason is None:
            raise
        folder = Path(rows.cache_files[0]["filename"]).parent if rows.cache_files else "the cache of datasets"
        raise StorageFullError(
            problem.errno,
            f"The rows cannot be cached in '{folder}' ({reason}). Free some space, there or with another HF_HOME, and "
            "run again; files there whose names begin with tmp are incomplete and can be deleted.",
        ) from problem


def _is_whole(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(len(_END), os.path.getsize(path)), os.SEEK_END)
        return file.read() == _END


def _features(rows: Dataset, function: Callable[[Columns, list[int]], Columns]) -> Features:
    schemas = []
    for start in range(0, len(rows), _BATCH):
        places = list(range(start, min(start + _BATCH, len(rows))))
        schemas.append(Dataset.from_dict(function(rows[start : start + _BATCH], places)).data.schema.remove_metadata())
    return Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))
