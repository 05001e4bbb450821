"""Console output of a run: the plan, its result, and short logs of many tasks, which a file has in full."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments
from transformers.utils import logging

from ...data import Share
from ...hub.records import MEAN_COSINE, Orders, by_task, pair_key, pairs, ranked
from ...modeling.saving import storage_failure
from ..automatic import describe_automatic
from ..plain import Saved, State
from .branches import describe_branches

if TYPE_CHECKING:
    from ..trainer import MultiTaskTrainer

logger = logging.get_logger(__name__)

MANY = 20  # with more tasks, consoles and tables show the worst and best few
FEW = 3
SEVERAL = 4  # with more tasks, consoles show one of the cosines between them
FILE_NAME = "task_metrics.jsonl"


def summarize(logs: Saved, tasks: Collection[str], metrics: Orders | None = None) -> State:
    """A log that replaces the metrics of single tasks by their mean, and the worst and best few."""
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


def shorten(logs: Saved, tasks: Collection[str], metrics: Orders | None = None) -> State:
    """A log for a console: the summary of many tasks, and of several the lowest cosine of all pairs."""
    if len(tasks) > MANY:
        return summarize(logs, tasks, metrics)
    cosines = [*(pair_key(*pair) for pair in pairs(logs)), *([MEAN_COSINE] if MEAN_COSINE in logs else [])]
    hidden = set(sorted(cosines, key=lambda key: (logs[key], key))[1:])
    return {key: value for key, value in logs.items() if key not in hidden}


class _Summarizing(TrainerCallback):
    """Shortens the logs for the other base class."""

    tasks: Collection[str] = ()
    metrics: Callable[[], Orders] = dict

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: State | None = None,
        **kwargs: object,
    ) -> None:
        """Pass the short log on."""
        super().on_log(args, state, control, logs=shorten(logs or {}, self.tasks, self.metrics()), **kwargs)


class SummaryPrinter(_Summarizing, PrinterCallback):
    """Prints summaries."""


class SummaryProgress(_Summarizing, ProgressCallback):
    """Shows progress, and summaries."""


class TaskMetricsFile(TrainerCallback):
    """Writes every log by task into ``task_metrics.jsonl`` in ``output_dir``.

    A line holds ``step``, ``epoch``, ``metrics`` of no single task, and ``tasks``: by task, its metrics.

    Args:
        tasks: their names.
        metrics: returns the names of the metrics of each task.
    """

    def __init__(self, tasks: Collection[str], metrics: Callable[[], Orders] = dict) -> None:
        self.tasks, self.metrics = tasks, metrics

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: State | None = None,
        **kwargs: object,  # noqa: ARG002
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
                logger.warning(f"{path} has no log of step {state.global_step} ({reason}). Free some space.")


def summary_callbacks(
    shown: type[TrainerCallback] | None, tasks: Collection[str], metrics: Callable[[], Orders] = dict
) -> list[TrainerCallback]:
    """The callbacks that replace a console's if there are several tasks, and the file if there are many."""
    console: _Summarizing | None = None
    if shown is not None:
        console = SummaryPrinter() if issubclass(shown, PrinterCallback) else SummaryProgress()
        console.tasks, console.metrics = tasks, metrics
    file = [TaskMetricsFile(tasks, metrics)] if len(tasks) > MANY else []
    return [*file, *([] if console is None else [console])]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


@dataclass(frozen=True)
class Reader:
    """A task that reads a dataset: rows with its label, None where they are not known before they are read, and its
    classes, None where its labels are no classes.
    """

    task: str
    labelled: int | None
    classes: int | None


def describe_shares(title: str, shares: Sequence[Share], readers: Mapping[str, Sequence[Reader]]) -> str:
    """A plan, or its result: for each task its dataset, rows, share of the batches, how often a row is seen.

    Args:
        title: the first line.
        shares: what each dataset gets.
        readers: by dataset, the tasks that read it, which share its rows.
    """
    lines = [(share, reader) for share in shares for reader in readers[share.name]]
    shown: Sequence[int] = range(len(lines))
    if len(lines) > MANY:
        order = sorted(shown, key=lambda line: -lines[line][0].drawn)
        shown = [*order[:FEW], *order[-FEW:]]
    body = [
        [
            reader.task,
            share.name,
            _number(share.rows or None, "?"),  # of a stream that does not say
            _number(reader.labelled, "?"),
            _number(reader.classes, "-"),
            f"{share.share:.1%}",
            f"{share.passes:.2f}" if share.rows else "?",
        ]
        for share, reader in (lines[line] for line in shown)
    ]
    if len(lines) > MANY:
        named = {lines[line][0].name for line in shown}
        rest = sum(share.rows for share in shares if share.name not in named)
        body.insert(FEW, [f"... {len(lines) - 2 * FEW:,} more", "", f"{rest:,}", "", "", "", ""])
    text = f"{title}\n" + table([["task", "dataset", "rows", "labelled", "classes", "share", "passes"], *body])
    if any(len(tasks) > 1 for tasks in readers.values()):
        text += "\nTasks that read the same dataset share its rows."
    if any(reader.labelled is None for _, reader in lines):
        text += "\nHow many rows of a stream have labels is not known before training reads them."
    return text


def _number(value: int | None, unknown: str) -> str:
    return unknown if value is None else f"{value:,}"


class PlanCallback(TrainerCallback):
    """Prints the plan before the first step, and what was seen after the last.

    Args:
        trainer: whose plan it is.
    """

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Print the plan."""
        if state.is_world_process_zero:
            tqdm.write(self.trainer.plan.describe(state.max_steps))
            forwards = self.trainer.plan.describe_forwards()
            model = self.trainer.plan.runtime.model
            datasets = {name: task.source for name, task in self.trainer.tasks.items()}
            told = [describe_branches(model, datasets), describe_automatic(self.trainer.args, model)]
            for sentence in (forwards, *told, self.trainer.teachers.describe(), self.trainer.engine.describe()):
                if sentence:
                    tqdm.write(sentence)

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Print what was seen."""
        if state.is_world_process_zero:
            tqdm.write(self.trainer.plan.describe_seen(self.trainer.engine.tally.seen))
