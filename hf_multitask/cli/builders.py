"""The builders of ``datasets`` that a recipe names as the ``path`` of a dataset, such as csv."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from .document import Values

_MODULES = {name: module for name, (module, *_) in _PACKAGED_DATASETS_MODULES.items()}
_MODULES["sql"] = "datasets.packaged_modules.sql.sql"  # which load_dataset does not take


def is_format(path: str) -> bool:
    """Whether the ``path`` of a dataset is a builder of ``datasets``, such as csv, not a folder or repository."""
    return path in _MODULES


def config_class(path: str) -> type[Any]:
    """The configuration of a builder, whose fields are its keys in a recipe."""
    module = importlib.import_module(_MODULES[path])
    builders: list[type[datasets.DatasetBuilder]] = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type)
        and issubclass(thing, datasets.DatasetBuilder)
        and thing.__module__ == module.__name__
    ]
    return builders[0].BUILDER_CONFIG_CLASS


def keys_of(path: str) -> list[str]:
    """The keys of a builder's own configuration."""
    return [field.name for field in dataclasses.fields(config_class(path))]


def load_xml(arguments: Values) -> datasets.DatasetDict:
    """Files of XML as rows, the text of each as ``xml``; the builder of ``datasets`` 5.2 does not find its files."""
    encoding, errors = arguments.get("encoding") or "utf-8", arguments.get("encoding_errors")
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"xml": [Path(file).read_text(encoding, errors) for file in files]})
            for split, files in arguments["data_files"].items()
        }
    )
