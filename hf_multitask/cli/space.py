"""The space of a hyperparameter search in YAML: by training argument, the ends of a range or a list of choices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..modeling.config import close_match
from ..modeling.values import shown
from ..training.ranges import BY_NAME
from .arguments import known_arguments
from .document import Values

_RANGE = ("low", "high", "log", "step")
_NESTED = (*BY_NAME, "task_weights", "sampling_kwargs", "balancing_kwargs", "aggregation_kwargs", "distillation_kwargs")
# What decides where a run writes, what it measures and which rows it has, and is the same in all trials.
_FIXED = {
    *("output_dir", "resume_from_checkpoint", "tasks", "max_train_samples", "max_eval_samples", "run_name", "use_cpu"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_patience", "report_to"),
    *("push_to_hub", "do_train", "do_eval", "do_predict", "deepspeed", "disable_tqdm", "parallelism_config"),
}
_FIXED_BY_START = ("hub_", "logging_", "save_", "eval_", "dataloader_", "ddp_", "fsdp", "torch_compile", "include_")


class Trial(Protocol):
    """What is used of an ``optuna.Trial``."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...  # noqa: D102
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...  # noqa: D102
    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...  # noqa: ANN401, D102


@dataclass(frozen=True)
class Dimension:
    """One value of a trial.

    Args:
        path: the training argument, and the keys inside of it.
        low: the lower end of a range, which belongs to it.
        high: the upper end, likewise.
        log: whether values are drawn by their logarithm.
        step: between the values of a range; None for all.
        choices: in place of a range; None for one.
    """

    path: tuple[str, ...]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] | None = None

    @property
    def name(self) -> str:
        """``learning_rate``, or ``learning_rates.ner``."""
        return ".".join(self.path)

    @property
    def _whole(self) -> bool:
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))

    def draw(self, trial: Trial) -> object:
        """The value of a trial."""
        if self.choices is not None:
            return self.value(trial.suggest_categorical(self.name, [_written(one) for one in self.choices]))
        if self._whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def value(self, drawn: object) -> object:
        """The value that a study has kept."""
        if self.choices is None:
            return drawn
        return next(one for one in self.choices if _written(one) == drawn)

    def ends(self) -> list[object]:
        """The values that are checked before the search."""
        return [self.low, self.high] if self.choices is None else list(self.choices)


@dataclass(frozen=True)
class Space:
    """A checked space.

    Args:
        dimensions: in their order in the document.
        given: the document.
        training: the training arguments of the run, into whose values by name those of a trial are written.
    """

    dimensions: list[Dimension]
    given: Values
    training: Values

    def draw(self, trial: Trial) -> Values:
        """The training arguments of a trial."""
        return self._arguments({one.name: one.draw(trial) for one in self.dimensions})

    def kept(self, params: Mapping[str, object]) -> Values:
        """The training arguments of a trial that a study has kept."""
        return self._arguments({one.name: one.value(params[one.name]) for one in self.dimensions})

    def corners(self) -> Iterator[tuple[str, Values]]:
        """Every end of every dimension, in words, with the first values of the others."""
        first = {one.name: one.ends()[0] for one in self.dimensions}
        for dimension in self.dimensions:
            for end in dimension.ends():
                yield f"{dimension.name} = {shown(end)}", self._arguments(first | {dimension.name: end})

    def _arguments(self, values: Mapping[str, object]) -> Values:
        found: Values = {}
        for dimension in self.dimensions:
            argument, *inner = dimension.path
            if not inner:
                found[argument] = values[dimension.name]
                continue
            place = found.setdefault(argument, _copied(self.training.get(argument)))
            for key in inner[:-1]:
                place[key] = place = _copied(place.get(key))
            place[inner[-1]] = values[dimension.name]
        return found


def _copied(value: object) -> Values:
    return json.loads(json.dumps(value)) if isinstance(value, Mapping) else {}


def _written(choice: object) -> object:
    """A choice as a study keeps it: values that are not plain are JSON."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


def read_space(value: object, where: str, training: Values) -> Space:
    """Check a space.

    Args:
        value: of the document.
        where: it stands, as messages begin.
        training: the training arguments of the run.

    Raises:
        ValueError: it is not a mapping of training arguments to ranges and choices.
    """
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"{where} should be a mapping of training arguments to ranges and choices, such as learning_rate: {{low: "
            f"1e-5, high: 1e-3, log: true}}. Found {shown(value)}."
        )
    known = known_arguments()
    for name in value:
        if name not in known:
            raise ValueError(f"{where} has the unknown training argument '{name}'." + close_match(str(name), known))
        if name in _FIXED or str(name).startswith(_FIXED_BY_START):
            raise ValueError(f"{where} has '{name}', which is the same in all trials. Set it under 'training'.")
    dimensions = [one for name, given in value.items() for one in _dimensions((str(name),), given, where)]
    return Space(dimensions, _copied(value), training)


def _dimensions(path: tuple[str, ...], given: object, where: str) -> Iterator[Dimension]:
    what = f"{where}, '{'.'.join(path)}',"
    if path == ("distillation_kwargs", "rows"):
        raise ValueError(
            f"{what} is the same in all trials, as teachers answer the rows once. Set it under 'training'."
        )
    if isinstance(given, list):
        if not given:
            raise ValueError(f"{what} has no choices. Add some.")
        if len({json.dumps(one) for one in given}) < len(given):
            raise ValueError(f"{what} has the same choice twice. Found {shown(given)}.")
        yield Dimension(path, choices=tuple(given))
    elif isinstance(given, Mapping) and "low" in given and "high" in given:
        yield _range(path, given, what)
    elif isinstance(given, Mapping) and given and path[0] in _NESTED:
        for name, inner in given.items():
            yield from _dimensions((*path, str(name)), inner, where)
    else:
        raise ValueError(
            f"{what} should be a list of choices, or a range such as {{low: 1e-5, high: 1e-3, log: true}}. Found "
            f"{shown(given)}."
        )


def _range(path: tuple[str, ...], given: Mapping[object, Any], what: str) -> Dimension:
    for key in given:
        if key not in _RANGE:
            raise ValueError(
                f"{what} has the unknown key '{key}'; a range has {', '.join(_RANGE)}."
                + close_match(str(key), list(_RANGE))
            )
    for key in ("low", "high", "step"):
        number = given.get(key, 1)
        if isinstance(number, bool) or not isinstance(number, int | float) or number != number:
            raise ValueError(f"{what}: `{key}` should be a number. Found {shown(number)}.")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"{what}: `log` should be true or false. Found {shown(log)}.")
    if not low < high < float("inf"):
        raise ValueError(f"{what}: `low` should be less than `high`. Found low: {low}, high: {high}.")
    if log and (low <= 0 or step is not None):
        raise ValueError(f"{what}: with `log`, `low` should be more than 0, and there is no `step`. Found {given}.")
    if step is not None and step <= 0:
        raise ValueError(f"{what}: `step` should be more than 0. Found {step}.")
    return Dimension(path, low, high, log, step)
