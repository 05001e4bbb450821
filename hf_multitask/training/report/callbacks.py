"""What is shown before a mixture trains, and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...data import Share
from .console import FEW, MANY


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as aligned columns, the first to the left and the others to the right."""
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
    """A plan, or what came of it: for each task its dataset, rows, share of the batches, how often a row is seen.

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
    told = f"{title}\n" + table([["task", "dataset", "rows", "labelled", "classes", "share", "passes"], *body])
    if any(len(tasks) > 1 for tasks in readers.values()):
        told += "\nTasks that read the same dataset share its rows."
    return told


def _number(value: int | None, unknown: str) -> str:
    return unknown if value is None else f"{value:,}"


class PlanCallback(TrainerCallback):
    """Prints the plan before the first step, and what was seen after the last.

    Args:
        trainer: whose plan it is.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Print the plan."""
        if state.is_world_process_zero:
            tqdm.write(self.trainer.describe_plan(state.max_steps))
            if sentence := self.trainer.engine.describe():
                tqdm.write(sentence)

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Print what was seen."""
        if state.is_world_process_zero:
            tqdm.write(self.trainer.plan.describe_seen(self.trainer.engine.tally.seen))
