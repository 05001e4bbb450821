"""Recipes: a training run as a YAML file, checked before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..modeling import MultiTaskModel
from ..modeling.config import close_match
from ..tasks import Task, build_task
from .jsonl import read_jsonl

_KEYS = ("backbone", "model", "datasets", "tasks", "training")
_FILE_BUILDERS = ("json", "csv", "parquet", "text", "arrow")
_FILES = {"data_files", "data_dir"}  # what a dataset of files alone has
_PATH_ARGUMENTS = ("output_dir", "resume_from_checkpoint", "deepspeed")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; paths in it are absolute."""

    path: Path
    backbone: str
    model: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    tasks: dict[str, Task]
    training: dict[str, Any]

    @property
    def hub_datasets(self) -> dict[str, str]:
        """Names on the Hub, by dataset, of those that come from there: neither files nor a folder here."""
        return {
            name: arguments["path"]
            for name, arguments in self.datasets.items()
            if not Path(arguments["path"]).is_absolute()
            and (arguments["path"].count("/") == 1 or not arguments.keys() & _FILES)
        }

    def load(self) -> dict[str, dict[str, Any]]:
        """The datasets, by name, each with its splits; of those with ``streaming`` the training split is a stream.

        Raises:
            ValueError: a file is missing, malformed or empty.
        """
        caps = self.training.get("max_eval_samples")
        return {
            name: _load(name, arguments, caps.get(name) if isinstance(caps, Mapping) else caps)
            for name, arguments in self.datasets.items()
        }


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ValueError: the file is missing or no mapping, a key is unknown, or a value is not usable.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no recipe '{path}'. Check the path.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ValueError(f"Recipe '{path}' is not valid YAML: {' '.join(str(problem).split())}.") from None
    recipe = _mapping(content, f"Recipe '{path}'")
    _check_keys(recipe, _KEYS, f"Recipe '{path}'")
    for key in ("backbone", "tasks"):
        if not recipe.get(key):
            raise ValueError(f"Recipe '{path}' has no '{key}'. Add it.")
    if not isinstance(recipe["backbone"], str):
        raise ValueError(f"Key 'backbone' should be a name or a path. Found {recipe['backbone']!r}.")
    folder = path.resolve().parent
    model = _mapping(recipe.get("model"), "Key 'model'")
    _check_keys(model, _model_keys(), "Key 'model'")
    tasks = {
        str(name): build_task(str(name), _mapping(values, f"Task '{name}'"))
        for name, values in _mapping(recipe["tasks"], "Key 'tasks'").items()
    }
    datasets = {
        str(name): _resolve_dataset(_mapping(values, f"Dataset '{name}'"), str(name), folder)
        for name, values in _mapping(recipe.get("datasets"), "Key 'datasets'").items()
    }
    for name, task in tasks.items():
        if task.source not in datasets:
            raise ValueError(
                f"Task '{name}' reads the dataset '{task.source}', and the recipe has {', '.join(datasets) or 'none'}."
                + (close_match(task.source, list(datasets)) or " Add it, or name another in `dataset`.")
            )
    training = _mapping(recipe.get("training"), "Key 'training'")
    for key in _PATH_ARGUMENTS:
        if isinstance(training.get(key), str) and training[key].lower() not in ("true", "false"):
            training[key] = str(folder / Path(training[key]).expanduser())
    local = folder / recipe["backbone"]
    backbone = str(local) if local.is_dir() else recipe["backbone"]
    return Recipe(path, backbone, model, datasets, tasks, training)


def _mapping(value: object, what: str) -> dict[str, Any]:
    if value is None and what.startswith("Key"):
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} should be a mapping of keys to values. Found {type(value).__name__}.")
    return dict(value)


def _check_keys(values: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in values:
        if key not in known:
            raise ValueError(
                f"{what} has the unknown key '{key}'; known are {', '.join(known)}."
                + close_match(str(key), list(known))
            )


def _model_keys() -> tuple[str, ...]:
    own = [
        name
        for name in inspect.signature(MultiTaskModel.from_backbone).parameters
        if name not in ("backbone", "tasks", "kwargs")
    ]
    return (*own, "attn_implementation", "dtype", "revision", "token", "cache_dir", "trust_remote_code", "device_map")


def _resolve_dataset(values: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    known = tuple(inspect.signature(load_dataset).parameters)
    path = values.get("path")
    if not isinstance(path, str):
        raise ValueError(
            f"Dataset '{name}' has no 'path'. Name a file format such as json, a folder, or a Hub dataset."
        )
    if "split" in values:
        raise ValueError(
            f"Dataset '{name}' names a 'split'. Leave it out: train, validation and test are read as they are."
        )
    if path not in _FILE_BUILDERS:
        if (folder / path).exists():
            values["path"] = str(folder / path)
    else:
        known = (*known, "field", "delimiter", "column_names", "sep", "encoding")
        if not values.get("data_files"):
            raise ValueError(f"Dataset '{name}' has no 'data_files'. Name a file for train, validation and test.")
    _check_keys(values, known, f"Dataset '{name}'")
    files = values.get("data_files")
    if isinstance(files, Mapping):
        values["data_files"] = {split: _files(given, name, folder) for split, given in files.items()}
    elif files is not None:
        values["data_files"] = {"train": _files(files, name, folder)}
    if isinstance(values.get("data_dir"), str):
        values["data_dir"] = str(folder / values["data_dir"])
    return values


def _files(given: Any, name: str, folder: Path) -> list[str]:
    found = []
    for one in given if isinstance(given, list) else [given]:
        if not isinstance(one, str):
            raise ValueError(f"Dataset '{name}': a data file should be a path. Found {one!r}.")
        if "://" in one:
            found.append(one)
            continue
        path = folder / Path(one).expanduser()
        matches = sorted(path.parent.glob(path.name)) if any(mark in one for mark in "*?[") else [path]
        if not matches or not all(match.is_file() for match in matches):
            raise ValueError(
                f"Dataset '{name}': there is no file '{path}'. Check data_files; paths are relative to the recipe."
            )
        found += [str(match) for match in matches]
    return found


def _load(name: str, arguments: dict[str, Any], most: int | None) -> dict[str, Any]:
    files = [file for split in (arguments.get("data_files") or {}).values() for file in split]
    for file in files:
        if "://" not in file and not Path(file).stat().st_size:
            raise ValueError(f"Dataset '{name}': the file '{file}' is empty. Add rows.")
    try:
        if arguments["path"] == "json":
            # Split by split: together, the first split's kinds would turn lists and numbers of the others to strings.
            splits = arguments["data_files"]
            loaded: Any = (IterableDatasetDict if arguments.get("streaming") else DatasetDict)(
                {split: load_dataset(**arguments | {"data_files": {split: splits[split]}})[split] for split in splits}
            )
        else:
            loaded = load_dataset(**arguments)
        if isinstance(next(iter(loaded.values())), IterableDataset):
            loaded = {split: rows if split == "train" else _first(rows, most) for split, rows in loaded.items()}
    except (DatasetGenerationError, ValueError, TypeError, StopIteration, OSError) as problem:
        for file in files if arguments["path"] == "json" and "field" not in arguments else []:
            _check_lines(name, file)
        reason = problem.__cause__ or problem
        raise ValueError(
            f"Dataset '{name}' could not be loaded: {' '.join(str(reason).split()) or type(reason).__name__}."
        ) from None
    for split, rows in loaded.items():
        if isinstance(rows, Dataset) and not len(rows):
            raise ValueError(f"Dataset '{name}' has no rows in its split '{split}'. Add rows.")
    return dict(loaded)


def _first(stream: IterableDataset, most: int | None) -> Dataset:
    """The first rows of a stream, all where None."""
    return Dataset.from_list(list(stream if most is None else stream.take(most)), features=stream.features)


def _check_lines(name: str, file: str) -> None:
    """Name the first line of a JSONL file that cannot be read; a file that is one JSON list is left to datasets."""
    if "://" in file or Path(file).suffix not in (".jsonl", ".ndjson"):
        return
    try:
        for _ in read_jsonl(Path(file)):
            pass
    except ValueError as problem:
        raise ValueError(f"Dataset '{name}': {problem}") from None
