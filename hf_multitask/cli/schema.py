"""The JSON schema of recipes, by which editors complete and check; ``python -m hf_multitask.cli.schema`` prints it."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path

import datasets

from ..modeling import MultiTaskModel
from ..modeling.values import hints_of, parameters_of
from ..tasks import TASK_TYPES, Task
from ..training import MultiTaskTrainingArguments
from .document import Values
from .helps import argument_groups, described
from .labels import KEY as LABEL_MAP
from .recipe import KEYS, model_keys
from .source import OWN
from .start import LABELS as ADD_LABELS

FILE = Path(__file__).with_name("recipe.schema.json")
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_EXPONENT = {"type": "string", "pattern": r"^[-+]?\d+\.?\d*[eE][-+]?\d+$"}  # 1e-3, which YAML 1.1 reads as a string
_OFF = {"const": False}  # "no" and "off", which YAML 1.1 reads as a boolean
_SET_BY_THE_PACKAGE = ("name", "fitted", "architecture")
_MAPPING: Values = {"type": "object"}
_ABOUT = {
    "backbone": "The pretrained model that the tasks share: an id on the Hub, a folder, or package:NAME.",
    "model": "Arguments of MultiTaskModel.from_backbone.",
    "datasets": "The data, by a name of your own.",
    "tasks": "The tasks, by a name of your own.",
    "from_model": "In place of backbone, a saved multi-task model to continue: a folder, or an id on the Hub.",
    "stages": "Trainings of the same model, one after the other: tasks and training arguments of each.",
    "tune": "The space of hf-multitask tune: by training argument, {low, high, log, step} or a list of choices.",
    "teachers": "By task, a model that it learns from: a folder, or an id on the Hub.",
    "training": "Training arguments.",
}


def recipe_schema() -> Values:
    """The schema, in draft 2020-12."""
    known: Values = {
        "backbone": {"type": "string"},
        "model": {"type": ["object", "null"], "properties": _model(), "additionalProperties": False},
        "datasets": {**_MAPPING, "additionalProperties": _dataset()},
        "tasks": {**_MAPPING, "minProperties": 1, "additionalProperties": _task()},
        "teachers": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        "training": {"type": ["object", "null"], "properties": _training(), "additionalProperties": False},
        "from_model": {"type": "string"},
        "stages": {"type": "array", "minItems": 1, "items": _stage()},
        "tune": dict(_MAPPING),
    }
    properties = {
        key: {**known.get(key, {}), **({"description": _ABOUT[key]} if key in _ABOUT else {})} for key in KEYS
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of hf-multitask",
        "type": "object",
        "properties": properties,
        "required": ["tasks", "datasets"],
        "oneOf": [{"required": ["backbone"]}, {"required": ["from_model"]}],
        "additionalProperties": False,
    }


def _model() -> Values:
    hints = hints_of(MultiTaskModel.from_backbone)
    about = described(MultiTaskModel.from_backbone)
    return {key: _about(_of(hints.get(key, object)), about.get(key)) for key in model_keys()}


def _dataset() -> Values:
    """Keys of a dataset; a builder of the library may take others."""
    hints = hints_of(datasets.load_dataset)
    keys = [key for key in parameters_of(datasets.load_dataset) if key != "features"]
    plain = {key: _of(hints.get(key, object)) for key in keys if key in ("path", "name", "revision", "streaming")}
    return {**_MAPPING, "properties": {**{key: {} for key in (*keys, *OWN, "format")}, **plain}}


def _task() -> Values:
    """Arguments of a task, by its type; of a type from outside the package, whatever it takes."""
    by_type = []
    for name, kind in TASK_TYPES.items():
        allowed = {"type": {}, LABEL_MAP: _MAPPING, ADD_LABELS: {"type": "array"}, **_arguments(kind)}
        by_type.append(
            {
                "if": {"properties": {"type": {"const": name}}},
                "then": {"properties": allowed, "additionalProperties": False},
            }
        )
    kinds = {"anyOf": [{"enum": list(TASK_TYPES)}, {"type": "string"}]}
    return {**_MAPPING, "properties": {"type": kinds}, "required": ["type"], "allOf": by_type}


def _arguments(kind: type[Task]) -> Values:
    hints, about = hints_of(kind), described(*kind.__mro__)
    names = [one.name for one in fields(kind) if one.init and one.name not in _SET_BY_THE_PACKAGE]
    return {name: _about(_of(hints.get(name, object)), about.get(name)) for name in names}


def _training() -> Values:
    hints = hints_of(MultiTaskTrainingArguments)
    found = {}
    for group in argument_groups().values():
        for name, text in group.items():
            schema = _of(hints.get(name, object))
            if schema and name.endswith("_strategy"):
                schema = {"anyOf": [schema, _OFF]}
            found[name] = _about(schema, text)
    return found


def _stage() -> Values:
    names = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]}
    return {**_MAPPING, "properties": {**_training(), "tasks": names}, "additionalProperties": False}


def _about(schema: Values, text: str | None) -> Values:
    return {**schema, "description": text} if text else schema


def _of(hint: object) -> Values:
    """The schema of an annotation; one that takes everything where it is not of plain kinds."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [_of(one) for one in typing.get_args(hint)]
        return {} if {} in parts else {"anyOf": parts}
    if hint is float:
        return {"anyOf": [{"type": "number"}, _EXPONENT]}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [one.value for one in hint]}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if hint in (list, Sequence) or origin in (list, Sequence):
        items = typing.get_args(hint)
        return {"type": "array", **({"items": _of(items[0])} if items else {})}
    if hint in (dict, Mapping) or origin in (dict, Mapping):
        return dict(_MAPPING)
    return {}


if __name__ == "__main__":
    print(json.dumps(recipe_schema(), indent=1))
