"""Training arguments from a recipe and from the command line, converted to the types of their fields."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NoReturn

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..modeling.config import close_match
from ..modeling.values import check_value, hints_of, shown
from ..tasks import Task
from ..training import MultiTaskTrainingArguments
from ..training.arguments import CHOICES
from ..training.parameters import BACKBONE, SHARED_LAYERS
from ..training.ranges import BY_NAME
from .document import Values

_HINTS = hints_of(MultiTaskTrainingArguments)
_DICTS = MultiTaskTrainingArguments._VALID_DICT_FIELDS
# Arguments by name of a task, and by name of a dataset.
_BY_TASK = ("task_weights", "learning_rates", "weight_decays", "task_early_stopping_patience")
_BY_DATASET = ("max_train_samples", "max_eval_samples")
JSON_FILES = ("deepspeed", "fsdp_config", "accelerator_config")  # each may be the path of a JSON file
Resume = str | Literal[True] | None  # of a checkpoint: its path, or True for the last one
_EXPONENT = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")  # 1e-3 and 1.5e3, which YAML reads as strings


class _Parser(HfArgumentParser):
    """Parses training arguments without filling in defaults; a mistake is an error, not an exit."""

    def __init__(self) -> None:
        super().__init__(
            MultiTaskTrainingArguments,  # type: ignore[arg-type]
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
        )
        for action in self._actions:
            action.default = argparse.SUPPRESS
            action.required = False
            if action.dest in CHOICES:  # checked by the arguments, with a close match
                action.choices, action.type = None, str

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[:1].upper()}{message[1:]}.")

    def known(self) -> list[str]:
        return [action.dest for action in self._actions]


def known_arguments() -> list[str]:
    """The names of all training arguments."""
    return _Parser().known()


def training_options() -> dict[str, bool]:
    """The names of all training arguments, and whether each is true or false."""
    return {action.dest: action.type is string_to_bool for action in _Parser()._actions if action.nargs != 0}


def parse_overrides(words: Sequence[str]) -> Values:
    """``--name value`` pairs of the command line as typed training arguments, without defaults.

    Raises:
        ValueError: a name is unknown, or a value has the wrong type.
    """
    parser = _Parser()
    try:
        namespace, rest = parser.parse_known_args(list(words))
    except argparse.ArgumentError as problem:
        raise ValueError(f"{problem}.") from None
    if rest:
        name = rest[0].lstrip("-").split("=")[0].replace("-", "_")
        if not rest[0].startswith("-"):
            raise ValueError(
                f"'{rest[0]}' does not belong to an argument. Put the name before it, as in --learning_rate 5e-5."
            )
        raise ValueError(f"There is no training argument '{name}'." + close_match(name, parser.known()))
    return _parse_json(vars(namespace))


def typed(training: Mapping[str, object], where: str = "Key 'training'") -> Values:
    """The ``training`` of a recipe with the types of its fields: ``5e-5``, a string in YAML, becomes a number.

    Args:
        training: names and values.
        where: they are, as messages begin.

    Raises:
        ValueError: a key is unknown, or a value has the wrong type.
    """
    parser = _Parser()
    actions = {action.dest: action for action in parser._actions}
    result: Values = {}
    for name, value in training.items():
        if name not in actions:
            raise ValueError(f"{where} has the unknown argument '{name}'." + close_match(str(name), list(actions)))
        if value is None or isinstance(value, Mapping | list):
            try:
                check_value(name, value, _HINTS.get(name, Any))
            except ValueError as problem:
                raise ValueError(f"{where}: {problem} Set one value, or remove it.") from None
        if value is False and name.endswith("_strategy"):
            value = "no"  # which YAML reads as a boolean
        if isinstance(value, Mapping):
            value = {part: _number(number) for part, number in value.items()} if name in BY_NAME else _numbers(value)
        if value is None or isinstance(value, Mapping | list):
            result[name] = value
            continue
        try:
            result.update(vars(parser.parse_known_args([f"--{name}={value}"])[0]))
        except (argparse.ArgumentError, ValueError) as problem:
            raise ValueError(f"Training argument '{name}' cannot be {shown(value)}: {problem}.") from None
    return _parse_json(result)


def _number(value: object) -> object:
    """A number such as ``1e-3``, which YAML reads as a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _numbers(value: object) -> object:
    """Likewise for the arguments of a method, which may be strings, and by task."""
    if isinstance(value, Mapping):
        return {key: _numbers(inner) for key, inner in value.items()}
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _parse_json(values: Values) -> Values:
    for name in _DICTS:
        text = values.get(name)
        if isinstance(text, str) and text.lstrip().startswith("{"):
            try:
                values[name] = json.loads(text)
            except json.JSONDecodeError as problem:
                raise ValueError(
                    f"Training argument '{name}' is not valid JSON ({problem.msg}). Found {text!r}."
                ) from None
        elif isinstance(text, str) and name in JSON_FILES:
            _check_json_file(name, text)
    return values


def _check_json_file(name: str, path: str) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            json.load(file)
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"Training argument '{name}' should be a mapping, or a JSON file with one ({problem}). Found {shown(path)}."
        ) from None


def of_tasks(values: Mapping[str, Any], kept: Mapping[str, Task], others: Collection[str]) -> Values:
    """Training arguments without what they say by name of other tasks, and of datasets that only these read.

    Args:
        values: with the types of their fields.
        kept: tasks by name.
        others: names of the other tasks.
    """
    own, names = dict(values), {*kept, BACKBONE, SHARED_LAYERS}
    for keys, known in ((_BY_TASK, names), (_BY_DATASET, {task.source for task in kept.values()})):
        for key in keys:
            if isinstance(given := own.get(key), Mapping):
                own[key] = {part: value for part, value in given.items() if part in known} or None
    watched = str(own.get("metric_for_best_model") or "").removeprefix("eval_")
    if _starts(watched, others) and not _starts(watched, kept):
        for key in ("metric_for_best_model", "greater_is_better"):
            own.pop(key, None)
    if frozen := own.get("freeze"):
        parts = [part for part in ([frozen] if isinstance(frozen, str) else frozen) if part in names]
        own["freeze"] = parts or None
    return own


def _starts(metric: str, tasks: Collection[str]) -> bool:
    return any(metric.startswith(f"{name}_") for name in tasks)


def build_arguments(
    training: Mapping[str, object], overrides: Mapping[str, object]
) -> tuple[MultiTaskTrainingArguments, Resume]:
    """The training arguments, and the value of ``resume_from_checkpoint``: a path, True or None.

    Raises:
        ValueError: an argument is unknown or invalid.
    """
    values: Values = {**typed(training), **overrides}
    resume = values.pop("resume_from_checkpoint", None)
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        resume = resume.lower() == "true"
    if "output_dir" not in values:
        raise ValueError("There is no output_dir. Add it under 'training' in the recipe, or as --output_dir.")
    return MultiTaskTrainingArguments(**values), resume or None
