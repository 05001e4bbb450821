"""A recipe with other training arguments, which trains wherever it is."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import yaml

from .arguments import JSON_FILES
from .document import Values, read_document
from .recipe import Recipe

_PATHS = ("data_files", "data_dir", "cache_dir", "con")  # of a dataset


def write_best(path: Path, recipe: Recipe, arguments: Values, teachers: Mapping[str, str]) -> Path:
    """Write a recipe with some training arguments in place of its own; paths in it are absolute.

    Args:
        path: of the file; the run has the folder ``best`` beside it.
        recipe: as it was read.
        arguments: that replace those of ``training``.
        teachers: by task, their folders.
    """
    found = read_document(recipe.path)
    document: Values = dict(found) if isinstance(found, Mapping) else {}
    document.pop("tune", None)
    document["backbone"] = recipe.backbone
    if recipe.model:
        document["model"] = recipe.model
    document["datasets"] = {name: _dataset(recipe, name, dict(given)) for name, given in document["datasets"].items()}
    if teachers:
        document["teachers"] = dict(teachers)
    training = {**recipe.training, **arguments, "output_dir": "best"}
    for key in JSON_FILES:
        if isinstance(training.get(key), str) and Path(training[key]).is_file():
            training[key] = str(Path(training[key]).absolute())
    document["training"] = {key: _plain(value) for key, value in training.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _dataset(recipe: Recipe, name: str, given: Values) -> Values:
    resolved = recipe.datasets[name]
    names = (*_PATHS, *(["path"] if "format" not in given else []))
    return given | {key: resolved[key] for key in names if key in given}


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value
