"""What is shown while a mixture trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data import Share


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


def describe_shares(title: str, shares: Sequence[Share], tasks: Mapping[str, Sequence[str]]) -> str:
    """A plan, or what came of it: for each dataset its tasks, rows, share of the batches, how often a row is seen."""
    head = ["dataset", "tasks", "rows", "share", "passes"]
    body = [
        [line.name, ", ".join(tasks[line.name]), f"{line.rows:,}", f"{line.share:.1%}", f"{line.passes:.2f}"]
        for line in shares
    ]
    return f"{title}\n" + table([head, *body])


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

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Print what was seen, and where the best models are."""
        if state.is_world_process_zero:
            tqdm.write(self.trainer.describe_seen())


class ResumableEarlyStopping(EarlyStoppingCallback):
    """Early stopping that goes on counting where a checkpoint left off."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the count from the checkpoint's state."""
        super().on_train_begin(args, state, control, **kwargs)
        callbacks: Any = state.stateful_callbacks or {}
        saved = callbacks.get(type(self).__name__, {})
        counted = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
        self.early_stopping_patience_counter = counted
