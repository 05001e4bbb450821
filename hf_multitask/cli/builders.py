"""The builders of ``datasets`` that a recipe names as the ``path`` of a dataset, such as csv."""

from __future__ import annotations

import importlib
from typing import Any

import datasets
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES


def is_format(path: str) -> bool:
    """Whether the ``path`` of a dataset is a builder of ``datasets``, such as csv, not a folder or repository."""
    return path in _PACKAGED_DATASETS_MODULES


def config_class(path: str) -> type[Any]:
    """The configuration of a builder, whose fields are its keys in a recipe."""
    module = importlib.import_module(_PACKAGED_DATASETS_MODULES[path][0])
    builders: list[type[datasets.DatasetBuilder]] = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type)
        and issubclass(thing, datasets.DatasetBuilder)
        and thing.__module__ == module.__name__
    ]
    return builders[0].BUILDER_CONFIG_CLASS
