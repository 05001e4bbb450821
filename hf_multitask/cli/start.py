"""``from_model`` of a recipe: the saved model that its training continues, with the tasks that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
from transformers.utils import logging

from ..modeling import MultiTaskConfig, MultiTaskModel
from ..modeling.backbone import resolve_backbone
from ..modeling.kinds import fitted
from ..modeling.labels import more_labels
from ..modeling.loading import explained
from ..modeling.values import shown
from ..tasks import Task, build_task
from .document import Values

if TYPE_CHECKING:
    from ..training import MultiTaskTrainer, MultiTaskTrainingArguments
    from .recipe import Recipe

logger = logging.get_logger(__name__)

KEY = "from_model"
LABELS = "add_labels"
LOADING = ("attn_implementation", "dtype", "revision", "token", "cache_dir", "trust_remote_code", "device_map")
_SHOWN = 12


@dataclass(frozen=True)
class Continued:
    """What a recipe says of the tasks of a saved model.

    Args:
        labels: by task, new labels.
        keys: by task, the arguments that the recipe sets.
    """

    labels: Mapping[str, list[str]]
    keys: Mapping[str, frozenset[str]]


def read_continued(given: Mapping[str, Values], *, saved: bool) -> Continued:
    """What a recipe says of the tasks of a saved model; new labels are taken out of the arguments of the tasks.

    Args:
        given: the arguments by task.
        saved: whether the recipe continues a saved model.

    Raises:
        ValueError: new labels are not a list of names, or there is no saved model.
    """
    labels = {}
    for name, values in given.items():
        if LABELS not in values:
            continue
        labels[name] = values.pop(LABELS)
        if not saved:
            raise ValueError(
                f"Task '{name}': `{LABELS}` is for the tasks of a saved model, and the recipe has no `{KEY}`. Set "
                "`label_names` instead."
            )
        names = labels[name]
        if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
            raise ValueError(
                f"Task '{name}': `{LABELS}` should be a list of labels, one or more. Found {shown(names)}. Write it as "
                "[neutral], and put names such as 'no' in quotes."
            )
    return Continued(labels, {name: frozenset(values) for name, values in given.items()})


def saved_config(recipe: Recipe) -> MultiTaskConfig:
    """The configuration of the saved model.

    Raises:
        ValueError: the folder or repository has no multi-task model.
        OSError: the Hub does not return it.
    """
    hub = {key: recipe.model[key] for key in ("revision", "token", "cache_dir") if key in recipe.model}
    with explained(recipe.backbone, recipe.model.get("revision")):
        return MultiTaskConfig.from_pretrained(resolve_backbone(recipe.backbone), **hub)


def fit_saved(recipe: Recipe) -> None:
    """Make the tasks of a recipe those of its saved model: labels, and options that the recipe does not set, stay.

    Columns are those of the recipe.

    Raises:
        ValueError: a task has another type or other labels there, or labels are not usable.
    """
    config, continued = saved_config(recipe), recipe.continued or Continued({}, {})
    for name, task in recipe.tasks.items():
        given, labels = task.to_dict(), continued.labels.get(name)
        if name not in config.task_names:
            if labels:
                raise ValueError(
                    f"Task '{name}' is not in the saved model, whose tasks are {', '.join(config.task_names)}, so "
                    f"`{LABELS}` has nothing to add to. Set `label_names` instead."
                )
            recipe.tasks[name] = build_task(
                name, fitted({**given, "name": name}, config.backbone_config, config.subsampler)
            )
            continue
        saved = config.task(name)
        if given["type"] != saved["type"]:
            raise ValueError(
                f"Task '{name}' of the saved model is of type {saved['type']}. Found `type = '{given['type']}'`. Keep "
                "the type, or give the new task another name."
            )
        for key in ("label_names", "problem_type", "vocabulary"):
            if key in continued.keys[name] and given.get(key) not in (None, saved.get(key)):
                raise ValueError(
                    f"Task '{name}' of the saved model has `{key} = {saved.get(key)}`. Found `{key} = {given[key]}`. "
                    + (f"Leave it out, and name new labels in `{LABELS}`." if key == "label_names" else "Leave it out.")
                )
        values = more_labels(saved, labels) if labels else dict(saved)
        kept = {"label_names", "problem_type", "vocabulary", "name"}
        own = {key for key in given if key.endswith("_column") or key in continued.keys[name]} - kept
        recipe.tasks[name] = build_task(name, {**values, **{key: given[key] for key in own}})
    _check_sources(recipe, config)


def unnamed(recipe: Recipe) -> list[str]:
    """The saved tasks that a recipe does not name; none if it starts from a backbone."""
    return (
        []
        if recipe.continued is None
        else [name for name in saved_config(recipe).task_names if name not in recipe.tasks]
    )


def _check_sources(recipe: Recipe, config: MultiTaskConfig) -> None:
    for saved in config.tasks:
        source = saved.get("dataset") or saved["name"]
        if saved["name"] not in recipe.tasks and source in recipe.datasets:
            raise ValueError(
                f"Dataset '{source}' of the recipe is the one that task '{saved['name']}' of the saved model reads, "
                "and the recipe does not name the task. Name the task to train it as well, or give the dataset "
                "another name."
            )


def freeze_unnamed(recipe: Recipe, args: MultiTaskTrainingArguments) -> None:
    """Freeze the saved tasks that a recipe does not name.

    Raises:
        ValueError: the run would overwrite the model that it starts from.
    """
    if recipe.continued is None:
        return
    if Path(str(args.output_dir)).resolve() == Path(recipe.backbone).resolve():
        raise ValueError(
            f"Key '{KEY}' and `output_dir` name the same folder, '{recipe.backbone}', so the run would overwrite the "
            "model that it starts from. Set another output_dir."
        )
    others = [name for name in unnamed(recipe) if name not in (args.freeze or ())]
    if others:
        args.freeze = [*(args.freeze or ()), *others]


def check_labels(recipe: Recipe, tasks: Mapping[str, Task], train: Mapping[str, datasets.Dataset]) -> None:
    """Check that saved heads have the labels of the training data.

    Raises:
        ValueError: one has not.
    """
    saved = [] if recipe.continued is None else saved_config(recipe).task_names
    for task in [task for name, task in tasks.items() if name in saved]:
        labels = getattr(task, "label_names", None)
        if labels and (unseen := list(task.unseen(train[task.source]))):
            more = [f"and {len(unseen) - _SHOWN} more"] if len(unseen) > _SHOWN else []
            raise task.error(
                f"the training data have labels that its head does not have: "
                f"{', '.join([*map(str, unseen[:_SHOWN]), *more])}. Name them in `{LABELS}` of the task, which gives "
                "the head more labels, or remove the rows."
            )


def build_model(recipe: Recipe, tasks: Mapping[str, Task]) -> MultiTaskModel:
    """The model of a recipe: a backbone with fresh heads, or the saved model with its heads and fresh ones.

    Args:
        recipe: a recipe.
        tasks: its tasks, with resolved labels.
    """
    if recipe.continued is None:
        return MultiTaskModel.from_backbone(recipe.backbone, tasks=tasks, **recipe.model)
    model: MultiTaskModel = MultiTaskModel.from_pretrained(resolve_backbone(recipe.backbone), **recipe.model)
    for name, task in tasks.items():
        if name not in model.config.task_names:
            model.add_task(name, task)
            continue
        if labels := recipe.continued.labels.get(name):
            model.add_labels(name, labels)
        model.set_task(name, task.to_dict())
    return model


def tell_unnamed(trainer: MultiTaskTrainer, names: Sequence[str]) -> None:
    """Warn if training changes what frozen tasks answer, because they read weights that train.

    Args:
        trainer: before its training.
        names: of the tasks.
    """
    if not names or not trainer.is_world_process_zero():
        return
    changed = [name for name in names if _reads_trained(trainer.model, name)]
    if changed:
        logger.warning(
            f"The recipe does not name {', '.join(changed)} of the saved model. Their heads are frozen, but they read "
            "weights that train, so their answers change. To keep them, add 'backbone' to freeze; to train them as "
            "well, name them."
        )


def _reads_trained(model: MultiTaskModel, task: str) -> bool:
    apart = {id(parameter) for parameter in model.unread_parameters([task])}
    return any(parameter.requires_grad and id(parameter) not in apart for parameter in model.parameters())
