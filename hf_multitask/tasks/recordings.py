"""Columns of ``datasets.Audio`` as the files that they hold, which readers decode; ``datasets`` needs torchcodec."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from datasets import Audio, Dataset, Features, IterableDataset, Value

Rows = TypeVar("Rows", Dataset, IterableDataset)
_FILE = {"bytes": Value("binary"), "path": Value("string")}


class AudioFile(Audio):
    """A column of recordings, each by its path or the bytes of its file, neither decoded nor encoded."""

    def __init__(self) -> None:
        super().__init__(decode=False)

    def encode_example(self, value: object) -> dict[str, Any]:
        """A cell as it is stored."""
        if isinstance(value, str | os.PathLike):
            return {"bytes": None, "path": os.fspath(value)}
        if isinstance(value, bytes | bytearray):
            return {"bytes": bytes(value), "path": None}
        if isinstance(value, Mapping) and value.keys() <= _FILE.keys():
            return {key: value.get(key) for key in _FILE}
        return super().encode_example(value)


def undecoded(dataset: Rows) -> Rows:
    """A dataset whose columns of recordings are not decoded."""
    for name, kind in (dataset.features or {}).items():
        if isinstance(kind, Audio) and not isinstance(kind, AudioFile):
            dataset = dataset.cast_column(name, AudioFile())
    return dataset


def dataset_of(rows: Sequence[dict[str, Any]], features: Features | None) -> Dataset:
    """Rows of an undecoded stream as a dataset, with recordings as ``{"bytes": ..., "path": ...}``."""
    if features is not None:
        features = Features({name: _FILE if isinstance(kind, Audio) else kind for name, kind in features.items()})
    return Dataset.from_list(list(rows), features=features)
