"""A log by task, and its flat keys: the only place where a task and a metric become a key, and where keys are parsed.

The Trainer, its callbacks and the Hub use flat keys: ``ner_loss`` of training, ``eval_ner_f1`` of an evaluation. Names
of tasks and metrics contain underscores, and the Trainer has its own keys, such as ``grad_norm`` and ``learning_rate``,
which may begin with the name of a task. A key is therefore looked up in the known metrics of each task.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

Orders = Mapping[str, Sequence[str]]  # by task, the names of its metrics
Log = Mapping[str, Any]  # by flat key
Value = TypeVar("Value")
ByTask = dict[str, dict[str, Any]]  # by task and metric

TRAINING = ("loss", "share", "rows", "weight", "left_out", "grad_norm")  # metrics of a task in a log of training
MEAN_COSINE = "cosine/mean"
_COSINE = "cosine/"  # names of tasks contain no slash
_AVERAGE = "_average"  # no name of a task; every evaluation has it, after the prefix
_SPEED = ("runtime", "samples_per_second", "steps_per_second", "tokens_per_second", "jit_compilation_time")


def key_of(task: str, metric: str, prefix: str | None = None) -> str:
    """The flat key of a task's metric: ``ner_loss``, or ``eval_ner_loss`` with the prefix ``eval``."""
    return f"{task}_{metric}" if prefix is None else f"{prefix}_{task}_{metric}"


def slice_metric(metric: str, column: str, value: str) -> str:
    """The name of a metric of the rows that have a value in a column, both quoted: ``f1/language=de``."""
    return f"{metric}/{column}={value}"


def whole(metric: str) -> str:
    """The name of a metric of a task without that of a slice."""
    name, _, part = metric.partition("/")
    return name if "=" in part else metric


def flat(own: Mapping[str, Mapping[str, Value]], prefix: str | None = None) -> dict[str, Value]:
    """Metrics by task under their flat keys."""
    return {key_of(task, metric, prefix): value for task, found in own.items() for metric, value in found.items()}


def pair_key(one: str, other: str) -> str:
    """The flat key of the cosine between the gradients of two tasks."""
    return f"{_COSINE}{one}/{other}"


def prefix_of(log: Log) -> str | None:
    """The prefix of an evaluation's log, such as ``eval``; None for a log of training."""
    averages = [name.removesuffix(_AVERAGE) for name in log if name.endswith(_AVERAGE)]
    return min(averages, key=len, default=None)  # a task's metric may be named average as well, behind the prefix


def is_end(log: Log) -> bool:
    """Whether a log is that of the end of training, which contains nothing about single tasks."""
    return "train_runtime" in log and prefix_of(log) is None


def average_of(log: Log) -> float:
    """The mean of the primary metrics in the log of an evaluation."""
    return log[f"{prefix_of(log)}{_AVERAGE}"]


def of_set(metrics: Log, name: str) -> dict[str, Any]:
    """The part of an evaluation that is of a further evaluation set."""
    return {key: value for key, value in metrics.items() if key.startswith(f"eval_{name}_")}


def by_task(log: Log, tasks: Collection[str], metrics: Orders | None = None) -> tuple[ByTask, dict[str, object]]:
    """Split a log into what belongs to each task, by task and metric, and the rest.

    A metric of an evaluation that ``metrics`` does not name belongs to the task with the longest name that begins its
    key.

    Args:
        log: of training or of an evaluation.
        tasks: their names.
        metrics: by task, the names of its metrics in evaluations.
    """
    own: ByTask = {}
    rest: dict[str, object] = {}
    known, prefix, end = set(tasks), prefix_of(log), is_end(log)
    orders = {task: set(names) for task, names in (metrics or {}).items()}
    for name, value in log.items():
        found = None if end else _owner(name, known, prefix, orders)
        if found is None:
            rest[name] = value
        else:
            own.setdefault(found[0], {})[found[1]] = value
    return own, rest


def _owner(name: str, tasks: set[str], prefix: str | None, metrics: Mapping[str, set[str]]) -> tuple[str, str] | None:
    """Task and metric of a flat key; None for a key that belongs to no single task."""
    if prefix is None:
        return next((pair for pair in _pairs(name, tasks) if pair[1] in TRAINING), None)
    if not name.startswith(f"{prefix}_"):
        return None
    rest = name.removeprefix(f"{prefix}_")
    pairs = list(_pairs(rest, tasks))
    exact = next((pair for pair in pairs if {pair[1], whole(pair[1])} & set(metrics.get(pair[0], ()))), None)
    return exact or next(iter(pairs if rest not in _SPEED else ()), None)


def _pairs(name: str, tasks: set[str]) -> Iterator[tuple[str, str]]:
    """Every way to read a key as a task and a metric, that with the longest task first."""
    words = name.split("_")
    for end in range(len(words) - 1, 0, -1):
        if (task := "_".join(words[:end])) in tasks:
            yield task, "_".join(words[end:])


def pairs(log: Log) -> dict[tuple[str, str], float]:
    """By pair of tasks, the cosine of their gradients in a log."""
    found = {}
    for name, value in log.items():
        if name.startswith(_COSINE) and name != MEAN_COSINE:
            one, other = name.removeprefix(_COSINE).split("/")
            found[one, other] = value
    return found


def ranked(own: Mapping[str, Log]) -> tuple[str, list[tuple[str, float]]]:
    """Tasks from worst to best: by their primary metric in an evaluation, by their loss in training.

    Returns:
        The criterion, ``primary`` or ``loss``, and the tasks with their values.
    """
    measured = {task: next((name for name in found if name != "loss"), None) for task, found in own.items()}
    if any(metric not in (None, "share") for metric in measured.values()):
        values = [(task, float(own[task][metric])) for task, metric in measured.items() if metric is not None]
        return "primary", sorted(values, key=lambda entry: -math.inf if math.isnan(entry[1]) else entry[1])
    values = [(task, float(found["loss"])) for task, found in own.items() if "loss" in found]
    return "loss", sorted(values, key=lambda entry: -math.inf if math.isnan(entry[1]) else -entry[1])
