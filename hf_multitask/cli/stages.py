"""The key ``stages`` of a recipe: trainings of one model, one after the other, each with arguments of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data.digests import digest_of_rows
from ..hub.edits import digest
from ..modeling.config import close_match
from ..modeling.values import shown
from ..tasks import Task
from ..tasks.measured import MEASURING
from .document import Values
from .splits import Splits
from .subruns import files_of

# Of a finished stage, what its weights do not depend on.
_SET_ASIDE = {"save_total_limit", "save_only_model", "per_device_eval_batch_size", "eval_accumulation_steps"}
_OF_THE_RUN = ("output_dir", "resume_from_checkpoint", "push_to_hub", "do_train", "do_eval", "do_predict")


@dataclass(frozen=True)
class Stage:
    """A checked stage.

    Args:
        number: from 1.
        tasks: names of those that it trains.
        training: its own training arguments.
    """

    number: int
    tasks: list[str]
    training: Values


def read_stages(value: object, tasks: Sequence[str], training: Mapping[str, object]) -> list[Stage]:
    """Check the stages of a recipe.

    Args:
        value: of the key.
        tasks: names of the tasks of the recipe.
        training: its training arguments.

    Raises:
        ValueError: there is none, a stage is not a mapping, names an unknown task or sets what belongs to the whole
            run, or a task is in no stage.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(
            "Key 'stages' should be a list of stages, such as [{tasks: [ner], num_train_epochs: 2}, {}]. Found "
            f"{shown(value)}."
        )
    stages = [_stage(number, given, tasks) for number, given in enumerate(value, start=1)]
    frozen = training.get("freeze")
    known = {*(frozen if isinstance(frozen, list) else [frozen]), *(name for stage in stages for name in stage.tasks)}
    for name in tasks:
        if name not in known:
            raise ValueError(
                f"Task '{name}' is in no stage, so its head would not be trained. Add it to the tasks of a stage, or "
                "remove it."
            )
    return stages


def _stage(number: int, given: object, tasks: Sequence[str]) -> Stage:
    what = f"Stage {number}"
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{what} should be a mapping of tasks and training arguments, such as {{tasks: [{tasks[0]}]}}. Found "
            f"{shown(given)}."
        )
    for key in given:
        if key in _OF_THE_RUN or str(key).startswith("hub_"):
            raise ValueError(
                f"{what} sets '{key}', which belongs to the whole run. Set it under 'training'; a stage writes into "
                f"stage-{number} in its output_dir."
            )
    own = [given["tasks"]] if isinstance(given.get("tasks"), str) else given.get("tasks", list(tasks))
    if not isinstance(own, list) or not own:
        raise ValueError(f"{what}: `tasks` should be a list of tasks. Found {shown(own)}. Leave it out for all tasks.")
    for name in own:
        if name not in tasks:
            raise ValueError(
                f"{what} names the task {shown(name)}, and the tasks are {', '.join(tasks)}."
                + close_match(str(name), list(tasks))
            )
    chosen = [name for name in tasks if name in own]
    return Stage(number, chosen, {str(key): value for key, value in given.items() if key != "tasks"})


def facts_of(tasks: Mapping[str, Task], backbone: str, model: Mapping[str, object], rows: Splits) -> dict[str, Any]:
    """What a stage trains with beside its arguments, in words that an error can say, as plain values.

    Args:
        tasks: that it trains, by name.
        backbone: its name, or its folder, which counts by its files.
        model: the arguments of the model.
        rows: to train on, by dataset, of which the columns that these tasks read count; streams are not compared.
    """
    local = Path(backbone)
    facts: dict[str, object] = {"backbone": backbone}
    if local.is_dir():
        facts = {"files of the backbone": digest(files_of(local))}
    facts |= {f"`{key}` of the model": value for key, value in model.items()}
    for name, task in tasks.items():
        own = task.to_dict()
        facts |= {f"`{key}` of task '{name}'": own[key] for key in own if key not in {*MEASURING, "slice_columns"}}
    for name, own in rows.items():
        if isinstance(own, Dataset):
            read = {column for task in tasks.values() if task.source == name for column in task.all_columns}
            kept = own.select_columns([column for column in own.column_names if column in read])
            facts[f"training rows of dataset '{name}'"] = digest_of_rows(kept)
    return json.loads(json.dumps(facts, default=str))


def teachers_of(stage: Stage, teachers: Mapping[str, str]) -> dict[str, str]:
    """By task of a stage, a hash of the files of its teacher, or its id on the Hub."""
    own = {name: Path(given) for name, given in teachers.items() if name in stage.tasks}
    return {name: digest(files_of(given)) if given.is_dir() else str(given) for name, given in own.items()}


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """What of a finished stage is not as it was: its name, its value then and now; None if all of it is.

    Arguments and options that one of the two does not know are of another version, and are not compared.

    Args:
        then: ``tasks``, ``arguments`` and ``facts`` when it was trained.
        now: the same of the recipe.
    """
    if "facts" not in then:  # of a stage that an earlier version has trained
        now = {**now, "facts": {}}
    if then.get("tasks") != now["tasks"]:
        return "tasks", then.get("tasks"), now["tasks"]
    for part in ("facts", "arguments"):
        before, after = then.get(part, {}), now[part]
        for name in {**after, **before}:
            one, other = before.get(name), after.get(name)
            known = name in before and name in after
            by_version = part == "arguments" or "` of task '" in name
            if one != other and name not in _SET_ASIDE and (known or not by_version):
                return name, one, other
    return None
