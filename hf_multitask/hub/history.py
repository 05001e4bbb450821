"""What a trainer's log says of tasks: their losses, their metrics, and the figures of the model that is saved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPLITS = {"eval": "validation", "test": "test"}
Points = list[tuple[int, float]]  # optimizer steps, and what was measured there
Orders = Mapping[str, Sequence[str]]  # by task, the names of its metrics
Cosines = dict[tuple[str, str], float]  # by pair of tasks


@dataclass(frozen=True)
class Result:
    """One figure of an evaluation; ``task`` is None for the average of the primary metrics."""

    split: str
    task: str | None
    metric: str
    value: float
    step: int


def _owner(key: str, tasks: Collection[str]) -> tuple[str, str] | None:
    """The task and metric of a key such as ``ner_f1``: of two names that begin it the longer one owns it."""
    words = key.split("_")
    for end in range(len(words) - 1, 0, -1):
        if (name := "_".join(words[:end])) in tasks:
            return name, "_".join(words[end:])
    return None


def _figures(entry: Mapping[str, Any], prefix: str, tasks: Collection[str]) -> Iterator[tuple[str, str, float]]:
    """Task, metric and value of what an entry says under a prefix."""
    for key, value in entry.items():
        if key.startswith(prefix) and (owner := _owner(key.removeprefix(prefix), tasks)):
            yield *owner, value


def _evaluations(history: Sequence[Mapping[str, Any]], best: int | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Splits and log entries of the evaluations that tell of the saved model, the later ones last.

    Args:
        history: the trainer's log.
        best: the step whose weights were loaded at the end of training; None where the last ones are saved.
    """
    end = _end(history)
    for number, entry in enumerate(history):
        for prefix in SPLITS:
            if f"{prefix}_average" in entry and (best is None or number > end or entry.get("step") == best):
                yield prefix, entry


def _end(history: Sequence[Mapping[str, Any]]) -> int:
    """Where the log's entry of the end of training stands."""
    ends = [number for number, entry in enumerate(history) if "train_runtime" in entry]
    return ends[-1] if ends else len(history)


def results(
    history: Sequence[Mapping[str, Any]],
    tasks: Collection[str],
    metrics: Orders | None = None,
    *,
    best: int | None = None,
) -> list[Result]:
    """The last figures of each split that were measured on the saved model, task by task.

    Args:
        history: the trainer's log.
        tasks: their names.
        metrics: by task, the names of its metrics in their order: a checkpoint's log has them by the alphabet. That of
            the log where a task is not named.
        best: the step whose weights were loaded at the end of training; None where the last ones are saved.
    """
    names = set(tasks)
    found: dict[tuple[str, str | None, str], Result] = {}
    for prefix, entry in _evaluations(history, best):
        step = entry.get("step", 0) if best is None else best
        for task, metric, value in _figures(entry, f"{prefix}_", names):
            found[prefix, task, metric] = Result(SPLITS[prefix], task, metric, value, step)
        found[prefix, None, "average"] = Result(SPLITS[prefix], None, "average", entry[f"{prefix}_average"], step)
    place = {task: number for number, task in enumerate([*tasks, None])}
    orders = {task: {name: number for number, name in enumerate(names)} for task, names in (metrics or {}).items()}

    def where(result: Result) -> tuple[int, int]:
        order = orders.get(str(result.task), {})
        return place[result.task], order.get(result.metric, len(order))

    return sorted(found.values(), key=where)


def primary_metrics(found: Sequence[Result]) -> dict[str, str]:
    """By task, the name of its primary metric, the first one that is no loss."""
    primary: dict[str, str] = {}
    for result in found:
        if result.task is not None and result.metric != "loss":
            primary.setdefault(result.task, result.metric)
    return primary


def curves(
    history: Sequence[Mapping[str, Any]], tasks: Collection[str], metrics: Orders | None = None
) -> tuple[dict[str, Points], dict[str, tuple[str, Points]]]:
    """By task, the losses of training, and the primary metric's name and values on the validation data.

    What was measured after the end of training is left out: it may be of other weights than the last step's.

    Args:
        history: the trainer's log.
        tasks: their names.
        metrics: see :func:`results`.
    """
    names = set(tasks)
    losses: dict[str, Points] = {}
    orders = {task: [name for name in own if name != "loss"] for task, own in (metrics or {}).items()}
    primary: dict[str, tuple[str, Points]] = {task: (own[0], []) for task, own in orders.items() if own}
    for entry in history[: _end(history)]:
        step = entry.get("step", 0)
        if "loss" in entry:
            for task, metric, value in _figures(entry, "", names):
                if metric == "loss":
                    losses.setdefault(task, []).append((step, value))
        elif "eval_average" in entry:
            for task, metric, value in _figures(entry, "eval_", names):
                if metric != "loss" and primary.setdefault(task, (metric, []))[0] == metric:
                    primary[task][1].append((step, value))
    measured = {task: primary[task] for task in tasks if task in primary and primary[task][1]}
    return {task: losses[task] for task in tasks if task in losses}, measured


def gradients(history: Sequence[Mapping[str, Any]], tasks: Collection[str]) -> tuple[dict[str, Points], Cosines]:
    """By task, the norms of its gradients of the shared parameters, and by pair the last cosine between theirs.

    Of more tasks than are logged pair by pair there are no cosines.
    """
    names = set(tasks)
    norms: dict[str, Points] = {}
    cosines: Cosines = {}
    for entry in history[: _end(history)]:
        if "loss" in entry and "cosine/mean" not in entry:
            pairs = {key: value for key, value in entry.items() if key.startswith("cosine/")}
            cosines |= {(one, other): value for key, value in pairs.items() for _, one, other in [key.split("/")]}
        for task, metric, value in _figures(entry, "", names) if "loss" in entry else ():
            if metric == "grad_norm":
                norms.setdefault(task, []).append((entry.get("step", 0), value))
    return {name: norms[name] for name in tasks if name in norms}, cosines
