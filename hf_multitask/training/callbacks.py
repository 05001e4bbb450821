"""What is shown while a mixture trains, when it saves, and what stops it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data import Share
from .summary import FEW, MANY

# By signal, the seconds in which another one is taken for the first.
_SAME = {int(signal.SIGTERM): 1.0, int(signal.SIGINT): 0.3}
_CAUGHT = b"\nCtrl-C: the run ends after this step, with a checkpoint. Press it again to end at once, without one.\n"


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
    if any(reader.labelled is None for _, reader in lines):
        told += "\nHow many rows of a stream have labels is not known before training reads them."
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
            if self.trainer.aggregator is not None:
                tqdm.write(self.trainer.describe_aggregation())
            elif self.trainer.gradient_interval:
                tqdm.write(self.trainer.describe_gradient_logging())

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Print what was seen."""
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
        if counted >= self.early_stopping_patience:  # killed between the last checkpoint and the end
            control.should_training_stop = True


class SaveAfterEpoch(TrainerCallback):
    """Puts off a save that is due at the last step of an epoch until the epoch's evaluation and log are done.

    A run that goes on from a checkpoint of that step begins the next epoch, and would lose them. It logs, evaluates and
    saves as often as its own arguments say, where the Trainer keeps to those of the checkpoint.
    """

    def __init__(self) -> None:
        self.waiting = False  # between the last step of an epoch and its end
        self._due = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Begin anew."""
        state.compute_steps(args, state.max_steps)
        self.waiting = self._due = False

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Put a save off."""
        self.waiting = float(state.epoch or 0).is_integer()
        if self.waiting:
            self._due, control.should_save = control.should_save, False

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Make up for it."""
        control.should_save |= self._due
        self.waiting = self._due = False


class Termination:
    """Catches SIGTERM and Ctrl-C while a run trains: ``asked`` tells of the first; a second ends the process at once.

    One that follows shortly is taken for the first: launchers, schedulers and terminals may each send it. Signals reach
    the main thread only; in another nothing is caught. Where SIGINT is ignored, as in a shell's background jobs, it
    stays so.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._time = 0.0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self._number is not None

    @property
    def name(self) -> str:
        """What asked for it, in words."""
        return "Ctrl-C" if self._number == signal.SIGINT else "SIGTERM"

    def error(self) -> BaseException:
        """What ends the run once all is saved: ``SystemExit`` with code 143, or ``KeyboardInterrupt``."""
        return KeyboardInterrupt() if self._number == signal.SIGINT else SystemExit(128 + signal.SIGTERM)

    def __enter__(self) -> None:
        self._number, self._before = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in _SAME:
                if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._catch)

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _catch(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._number is None:
            self._number, self._time = number, time.monotonic()
            if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
                os.write(2, _CAUGHT)  # nothing else is safe here
        elif time.monotonic() - self._time > _SAME[number]:
            self._put_back()
            os.kill(os.getpid(), number)
