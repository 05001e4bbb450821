"""What arguments name: tasks, datasets and parts of the model, and the metric that says which model is the best."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, cast

from ...hub.records import whole
from ...modeling.config import close_match
from ...tasks import Task
from ...tasks.slicing import quoted
from ..evaluation.results import check_primary
from ..parameters import BACKBONE, SHARED_LAYERS

if TYPE_CHECKING:
    from ..arguments import MultiTaskTrainingArguments


def check_arguments_by_name(
    args: MultiTaskTrainingArguments, tasks: Mapping[str, Task], known: Iterable[str] = ()
) -> None:
    """Check that arguments by name refer to tasks, datasets and the backbone.

    Args:
        args: of the run.
        tasks: that it trains.
        known: all tasks of the model, of which any may be frozen.

    Raises:
        ValueError: one names something else, or no task has a weight.
    """
    weights = cast("Mapping[str, float]", args.task_weights or {})
    check_names("task_weights", weights, tasks)
    if not any((dict.fromkeys(tasks, 1.0) | dict(weights)).values()):
        raise ValueError("`task_weights` are 0 for every task, so nothing would train. Give one a weight above 0.")
    for argument in ("learning_rates", "weight_decays"):
        check_names(argument, getattr(args, argument), [*tasks, BACKBONE, SHARED_LAYERS])
    check_names("freeze", args.freeze, [*dict.fromkeys([*tasks, *known]), BACKBONE, SHARED_LAYERS])
    if isinstance(args.task_early_stopping_patience, Mapping):
        check_names("task_early_stopping_patience", args.task_early_stopping_patience, tasks)
    for argument in ("max_train_samples", "max_eval_samples"):
        if isinstance(caps := getattr(args, argument), Mapping):
            check_names(argument, caps, sorted({task.source for task in tasks.values()}), "dataset")


def check_names(argument: str, given: Iterable[str] | None, known: Iterable[str], what: str = "task") -> None:
    """Check that an argument by name only names what exists.

    Raises:
        ValueError: it names something else.
    """
    for name in given or ():
        if name not in known:
            raise ValueError(
                f"`{argument}` names the {what} '{name}', and the names are {', '.join(known)}."
                + close_match(str(name), list(known))
            )


def check_metrics(
    args: MultiTaskTrainingArguments, tasks: Mapping[str, Task], own: Container[str], *, measured: bool
) -> None:
    """Check that primary metrics grow, and that evaluations give the metric for the best model, with a direction.

    Args:
        args: of the run.
        tasks: by name.
        own: tasks with a ``compute_metrics``, whose metrics are unknown before it has run.
        measured: whether the run evaluates, and as this package does.

    Raises:
        ValueError: one does not grow, or no evaluation could give the metric for the best model.
    """
    for name, task in tasks.items():
        if name not in own and task.reported_metrics:
            check_primary(task, task.reported_metrics[0])
    if measured:
        args.set_direction(check_watched(args.metric_for_best_model, tasks, own))


def check_watched(metric: str | None, tasks: Mapping[str, Task], own: Container[str]) -> str:
    """The name of the metric for the best model without its task's; it is one of a task, or the average.

    Args:
        metric: ``metric_for_best_model``.
        tasks: by name.
        own: tasks with a ``compute_metrics``, whose metrics are unknown before it has run.

    Raises:
        ValueError: no evaluation could give it.
    """
    name = (metric or "average").removeprefix("eval_")
    if name == "average":
        return name
    owners = sorted((task for task in tasks if name.startswith(f"{task}_")), key=len)
    if not owners:
        known = [*(f"{task}_{of}" for task in tasks for of in _metrics_of(tasks[task]) or ["loss"]), "average"]
        raise ValueError(
            "Parameter `metric_for_best_model` should be average, or a metric of a task, as "
            f"{next(iter(tasks))}_loss. Found `metric_for_best_model = {metric!r}`." + close_match(name, known)
        )
    for task in reversed(owners):
        measured, of_task = (None if task in own else _metrics_of(tasks[task])), name.removeprefix(f"{task}_")
        if measured is None or of_task in measured or _is_sliced(of_task, tasks[task], measured):
            return whole(of_task)
    task = owners[-1]
    of_task, known = name.removeprefix(f"{task}_"), _metrics_of(tasks[task]) or []
    near = get_close_matches(of_task, known, n=1, cutoff=0.5)  # of words as short as f1 and f2
    raise ValueError(
        f"Parameter `metric_for_best_model` names the metric '{of_task}' of task '{task}', which has "
        f"{', '.join(known)}. Found `metric_for_best_model = {metric!r}`."
        + (f" Did you mean '{task}_{near[0]}'?" if near else " Name one of those.")
    )


def _is_sliced(metric: str, task: Task, measured: Container[str]) -> bool:
    """Whether a metric is one of a slice; whether a row has its value is known in an evaluation only."""
    column = metric.partition("/")[2].partition("=")[0]
    return whole(metric) in measured and column in map(quoted, task.slice_columns or ())


def _metrics_of(task: Task) -> list[str] | None:
    return None if task.reported_metrics is None else ["loss", *task.reported_metrics]


def check_measured(metric: str | None, found: Iterable[str]) -> None:
    """Check that an evaluation returned the metric for the best model.

    Raises:
        ValueError: it did not.
    """
    name = f"eval_{(metric or 'average').removeprefix('eval_')}"
    if name not in found:
        known = [key for key in found if key.startswith("eval_")]
        raise ValueError(
            f"Parameter `metric_for_best_model` names '{metric}', and the evaluation gives {', '.join(known)}."
            + (close_match(name, known) or " Name one of those.")
        )
