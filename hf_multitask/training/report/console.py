"""Logs of many tasks: shorter ones for the console, and all of it in a file, a JSON line per log."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments
from transformers.utils import logging

from ...hub.records import MEAN_COSINE, Orders, by_task, pair_key, pairs, ranked
from ...modeling.saving import storage_failure

logger = logging.get_logger(__name__)

MANY = 20  # with more tasks, consoles and tables show the worst and best few
FEW = 3
SEVERAL = 4  # with more tasks, consoles show one of the cosines between them
FILE_NAME = "task_metrics.jsonl"


def summarise(logs: Mapping[str, Any], tasks: Collection[str], metrics: Orders | None = None) -> dict[str, Any]:
    """A log without what belongs to single tasks, and in its place their mean, and the worst and best few."""
    own, rest = by_task(logs, tasks, metrics)
    what, order = ranked(own)
    if not order:
        return rest

    def shown(entries: list[tuple[str, float]]) -> str:
        return ", ".join(f"{task} {value:.4g}" for task, value in entries)

    mean = sum(value for _, value in order) / len(order)
    return {
        **rest,
        "tasks": len(order),
        f"mean_{what}": mean,
        f"worst_{what}": shown(order[:FEW]),
        f"best_{what}": shown(order[: -FEW - 1 : -1]),
    }


def shorten(logs: Mapping[str, Any], tasks: Collection[str], metrics: Orders | None = None) -> dict[str, Any]:
    """A log for a console: the summary of many tasks, and of several the lowest cosine of all pairs."""
    if len(tasks) > MANY:
        return summarise(logs, tasks, metrics)
    cosines = [*(pair_key(*pair) for pair in pairs(logs)), *([MEAN_COSINE] if MEAN_COSINE in logs else [])]
    hidden = set(sorted(cosines, key=lambda key: (logs[key], key))[1:])
    return {key: value for key, value in logs.items() if key not in hidden}


class _Summarising(TrainerCallback):
    """Shows less where the class beside it would show all."""

    tasks: Collection[str] = ()
    metrics: Callable[[], Orders] = dict

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand on what is left."""
        super().on_log(args, state, control, logs=shorten(logs or {}, self.tasks, self.metrics()), **kwargs)


class SummaryPrinter(_Summarising, PrinterCallback):
    """Prints summaries."""


class SummaryProgress(_Summarising, ProgressCallback):
    """Shows progress, and summaries."""


class TaskMetricsFile(TrainerCallback):
    """Writes every log by task into ``task_metrics.jsonl`` in ``output_dir``.

    A line holds ``step``, ``epoch``, ``metrics`` of no single task, and ``tasks``: by task, its metrics.

    Args:
        tasks: their names.
        metrics: gives by task the names of its metrics.
    """

    def __init__(self, tasks: Collection[str], metrics: Callable[[], Orders] = dict) -> None:
        self.tasks, self.metrics = tasks, metrics

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Add a line."""
        own, rest = by_task(logs or {}, self.tasks, self.metrics())
        if own and state.is_world_process_zero:
            path = Path(str(args.output_dir)) / FILE_NAME
            line = {"step": state.global_step, "epoch": state.epoch, "metrics": rest, "tasks": own}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as problem:
                if (reason := storage_failure(problem)) is None:
                    raise
                logger.warning(f"{path} lacks the log of step {state.global_step} ({reason}). Free some space.")


def summary_callbacks(
    shown: type[TrainerCallback] | None, tasks: Collection[str], metrics: Callable[[], Orders] = dict
) -> list[TrainerCallback]:
    """What takes the place of a console's callback where there are several tasks; the file, where there are many."""
    console: _Summarising | None = None
    if shown is not None:
        console = SummaryPrinter() if issubclass(shown, PrinterCallback) else SummaryProgress()
        console.tasks, console.metrics = tasks, metrics
    file = [TaskMetricsFile(tasks, metrics)] if len(tasks) > MANY else []
    return [*file, *([] if console is None else [console])]
