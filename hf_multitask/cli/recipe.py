"""Recipes: a training run as a YAML file, checked before anything is loaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..modeling import MultiTaskModel
from ..modeling.config import close_match
from ..modeling.values import shown
from ..tasks import Task, build_task
from .arguments import JSON_FILES
from .document import Values, read_document
from .labels import LabelMap, label_maps, read_label_maps
from .source import check_source, find_folder, folders_of, is_read_here, load_source, local_path
from .splits import SPLITS, Splits
from .stages import Stage, read_stages
from .start import KEY, LOADING, Continued, read_continued

KEYS = ("backbone", KEY, "model", "datasets", "tasks", "teachers", "training", "stages", "tune")
_PATH_ARGUMENTS = ("output_dir", "resume_from_checkpoint", *JSON_FILES)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; paths in it are absolute.

    ``backbone`` is the saved model if the recipe is ``continued``.
    """

    path: Path
    backbone: str
    model: Values
    datasets: dict[str, Values]
    tasks: dict[str, Task]
    training: Values
    teachers: dict[str, str]
    label_maps: dict[str, LabelMap]
    continued: Continued | None = None
    stages: list[Stage] = field(default_factory=list)
    tune: object = None

    @property
    def hub_datasets(self) -> dict[str, str]:
        """Names on the Hub of the datasets that are loaded from there, that is, neither from files nor a folder."""
        return {
            name: arguments["path"]
            for name, arguments in self.datasets.items()
            if not Path(arguments["path"]).is_absolute() and not is_read_here(arguments["path"])
        }

    def check_backbone(self) -> None:
        """Check that the backbone, or the saved model, may exist; an evaluation does not need it.

        Raises:
            ValueError: it is a path without a model.
        """
        key = f"Key '{'backbone' if self.continued is None else KEY}'"
        if self.backbone.startswith("package:"):
            return
        local = find_folder(self.backbone, self.path.resolve().parent, key)
        if local is not None and not (local / "config.json").is_file():
            raise ValueError(f"{key} names the folder '{local}', which has no model: there is no config.json.")

    def load(self, wanted: Iterable[str] = SPLITS) -> dict[str, Splits]:
        """The datasets by name, each with its splits; with ``streaming``, the training split is a stream.

        Args:
            wanted: the splits to return.

        Raises:
            ValueError: a file is missing, malformed or empty, or the data do not have a label of ``label_map``.
        """
        wanted = list(wanted)
        caps = self.training.get("max_eval_samples")
        loaded = {}
        for name, arguments in self.datasets.items():
            splits = load_source(name, arguments, caps.get(name) if isinstance(caps, Mapping) else caps, wanted)
            for task in (task for task in self.tasks.values() if task.source == name):
                splits = {split: task.located(rows, folders_of(arguments, split)) for split, rows in splits.items()}
            for labels in self.label_maps.values():
                if labels.task.source == name:
                    splits = labels.apply(splits)
                    if set(SPLITS) <= set(wanted) and not arguments.get("streaming"):
                        labels.check()
            loaded[name] = splits
        return loaded


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ValueError: the file is missing or not a mapping, a key is unknown, or a value is invalid.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no recipe '{path}'. Check the path.")
    recipe = _mapping(read_document(path), f"Recipe '{path}'", "Write a line 'key: value' for each of its keys.")
    _check_keys(recipe, KEYS, f"Recipe '{path}'")
    start = KEY if recipe.get(KEY) else "backbone"
    if start == KEY and recipe.get("backbone"):
        raise ValueError(f"Recipe '{path}' has both 'backbone' and '{KEY}'. Keep the one that it starts from.")
    for key in (start, "tasks"):
        if not recipe.get(key):
            raise ValueError(f"Recipe '{path}' has no '{key}'. Add it.")
    folder = path.resolve().parent
    model = _mapping(recipe.get("model"), "Key 'model'", "Write it as model: {dropout: 0.1}.")
    _check_keys(model, model_keys(), "Key 'model'")
    for key in model if start == KEY else ():
        if key not in LOADING:
            raise ValueError(
                f"Key 'model' has '{key}', which is for a new model, and '{KEY}' keeps what the saved one has. Remove "
                f"it; the keys beside '{KEY}' are {', '.join(LOADING)}."
            )
    if isinstance(model.get("cache_dir"), str):
        model["cache_dir"] = str(local_path(folder, model["cache_dir"]))
    given = {
        name: _mapping(values, f"Task '{name}'", "Write it as {type: sequence-classification}.")
        for name, values in _mapping(recipe["tasks"], "Key 'tasks'", "Name each task, and set its type.").items()
    }
    maps = read_label_maps(given)
    continued = read_continued(given, saved=start == KEY)
    tasks = {name: build_task(name, values) for name, values in given.items()}
    datasets = {
        name: check_source(_mapping(values, f"Dataset '{name}'", "Write it as {path: NAME}."), name, folder)
        for name, values in _mapping(
            recipe.get("datasets"), "Key 'datasets'", "Name each dataset, and set its path."
        ).items()
    }
    for name, task in tasks.items():
        if task.source not in datasets:
            raise ValueError(
                f"Task '{name}' reads the dataset '{task.source}', but the recipe has {', '.join(datasets) or 'none'}."
                + (close_match(task.source, list(datasets)) or " Add it, or set another in `dataset`.")
            )
    training = _mapping(recipe.get("training"), "Key 'training'", "Write it as training: {output_dir: out}.")
    stages = read_stages(recipe["stages"], list(tasks), training) if "stages" in recipe else []
    for values in (training, *(stage.training for stage in stages)):
        for key in _PATH_ARGUMENTS:
            if key in values:
                values[key] = _path_argument(values[key], key, folder)
    teachers = _teachers(recipe.get("teachers"), tasks)
    labels = label_maps(tasks, maps)
    backbone = _backbone(recipe[start], folder, start)
    return Recipe(
        path,
        backbone,
        model,
        datasets,
        tasks,
        training,
        teachers,
        labels,
        continued=continued if start == KEY else None,
        stages=stages,
        tune=recipe.get("tune"),
    )


def _teachers(value: object, tasks: Mapping[str, Task]) -> dict[str, str]:
    fix = "Write it as {TASK: FOLDER}, or leave it out and train the teachers with `--teachers auto`."
    given = _mapping(value, "Key 'teachers'", fix)
    for name, teacher in given.items():
        if name not in tasks:
            raise ValueError(
                f"Key 'teachers' names the task '{name}', and the tasks are {', '.join(tasks)}."
                + close_match(name, list(tasks))
            )
        if not isinstance(teacher, str) or not teacher.strip():
            raise ValueError(
                f"Key 'teachers' should name a folder or a repository of the Hub for task '{name}'. Found "
                f"{shown(teacher)}."
            )
    return {name: str(teacher) for name, teacher in given.items()}


def _path_argument(value: object, key: str, folder: Path) -> object:
    """A training argument that may be a path, converted to an absolute path if it is one."""
    if key == "output_dir":
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"Training argument 'output_dir' should be a path. Found {shown(value)}. Set a folder.")
    if not isinstance(value, str) or value.lower() in ("true", "false") or value.lstrip().startswith("{"):
        return value
    return str(local_path(folder, value))


def _backbone(value: object, folder: Path, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"Key '{key}' should be a name or a path. Found {shown(value)}.")
    local = local_path(folder, value)
    return str(local.absolute()) if os.path.isdir(local) else value


def _mapping(value: object, what: str, fix: str) -> Values:
    if value is None and what.startswith("Key"):
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{what} should be a mapping of keys to values. Found {type(value).__name__} {shown(value)}. {fix}"
        )
    for key in value:
        if not isinstance(key, str):
            raise ValueError(
                f"{what} has the key {shown(key)}, which YAML reads as {type(key).__name__}. Keys are strings: put it "
                f"in quotes."
            )
    return dict(value)


def _check_keys(values: Mapping[str, object], known: tuple[str, ...], what: str) -> None:
    for key in values:
        if key not in known:
            raise ValueError(
                f"{what} has the unknown key '{key}'; known keys are {', '.join(known)}."
                + close_match(str(key), list(known))
            )


def model_keys() -> tuple[str, ...]:
    """The keys that `model` may have."""
    own = [
        name
        for name in inspect.signature(MultiTaskModel.from_backbone).parameters
        if name not in ("backbone", "tasks", "kwargs")
    ]
    return (*own, *LOADING, "quantization_config")
