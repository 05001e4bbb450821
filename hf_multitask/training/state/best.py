"""The best models of a mixture, of every task and on average, and the tasks that do not improve any more."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..plain import Saved, State
from .saver import SaveError, Saver

logger = logging.get_logger(__name__)

BEST_NAME = "best_checkpoints.json"
BEST_FOLDER = "best"


class Best:
    """What each task, and the ``average``, was at its best, and what follows from that.

    Attributes:
        best: by task, and for ``average``: ``metric``, its ``value`` in the best evaluation, and the ``step`` of that.
        waited: by task, evaluations in a row without a better value.
        finished: by task that has stopped training, the step at which it stopped.
    """

    def __init__(self) -> None:
        self.best: dict[str, State] = {}
        self.waited: dict[str, int] = {}
        self.finished: dict[str, int] = {}

    def state_dict(self) -> State:
        """What a checkpoint holds of it."""
        return {"best": self.best, "waited": self.waited, "finished": self.finished}

    def load_state_dict(self, state: Saved) -> None:
        """Continue from a checkpoint."""
        self.best, self.waited = dict(state["best"]), dict(state["waited"])
        self.finished = dict(state["finished"])

    def record(self, primary: Mapping[str, tuple[str, float]], step: int) -> bool:
        """Add an evaluation: by task, the name and value of its primary metric, larger being better.

        A value that is NaN or infinite is never the best.

        Returns:
            Whether any of them was never better.
        """
        for task, (metric, value) in primary.items():
            if math.isfinite(value) and (task not in self.best or value > self.best[task]["value"]):
                self.best[task] = {"metric": metric, "value": value, "step": step}
                self.waited[task] = 0
            else:
                self.waited[task] = self.waited.get(task, 0) + 1
        return any(best["step"] == step for best in self.best.values())

    def finish(self, patience: Mapping[str, int], step: int) -> list[str]:
        """Stop the tasks that have waited long enough for something better, and return the messages.

        Args:
            patience: by task, the evaluations that it may wait.
            step: at which it is.
        """
        messages = []
        for task, most in patience.items():
            if task not in self.finished and self.waited.get(task, 0) >= most:
                self.finished[task] = step
                if (best := self.best.get(task)) is None:
                    messages.append(f"Task '{task}' stops at step {step}: no finite metric in {most} evaluations.")
                    continue
                messages.append(
                    f"Task '{task}' stops at step {step}: no better {best['metric']} than {best['value']:.4f} of step "
                    f"{best['step']} in {most} evaluations."
                )
        return messages

    def keep(self, primary: Mapping[str, tuple[str, float]], step: int, folder: Path | None, saver: Saver) -> None:
        """Add an evaluation, and keep the model where it is the best of something; all ranks together.

        Args:
            primary: as for :meth:`record`.
            step: at which it is.
            folder: of the run; None where no models are kept.
            saver: of the run.
        """
        before = dict(self.best)
        better = self.record(primary, step)
        if folder is None:
            return
        try:
            if better:
                saver.keep_model(folder / BEST_FOLDER / f"step-{step}")
            saver.write(self._tidy, folder, saver.saves_here)
        except SaveError as problem:
            self.best = before
            if saver.saves_here:
                shutil.rmtree(folder / BEST_FOLDER / f"step-{step}", ignore_errors=True)
                logger.warning(
                    f"The model of step {step}, better than those before, could not be saved ({problem}); those before "
                    "it are still there. Training continues. Free some space."
                )

    def _tidy(self, folder: Path, saves_here: bool) -> None:
        if saves_here:
            tidy_best(folder, self.best)

    def stop(self, patience: Mapping[str, int], step: int) -> None:
        """Stop the tasks whose patience is at its end.

        Args:
            patience: by task that trains, the evaluations that it may wait.
            step: at which it is.
        """
        for message in self.finish(patience, step):
            logger.warning(message)

    def is_all(self, tasks: Sequence[str]) -> bool:
        """Whether all of these tasks are finished."""
        return set(tasks) <= set(self.finished)


def tidy_best(folder: Path, best: Mapping[str, Saved]) -> None:
    """Drop saved models that are no longer the best of anything, and write down which is the best of what."""
    entries = {}
    for name, entry in best.items():
        saved = folder / BEST_FOLDER / f"step-{entry['step']}"
        if saved.is_dir():
            entries[name] = {**entry, "checkpoint": f"{BEST_FOLDER}/{saved.name}"}
    kept = {entry["checkpoint"] for entry in entries.values()}
    written = folder / f"{BEST_NAME}.new"
    written.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    written.replace(folder / BEST_NAME)
    for saved in (folder / BEST_FOLDER).glob("step-*"):
        if f"{BEST_FOLDER}/{saved.name}" not in kept:
            shutil.rmtree(saved)


class ResumableEarlyStopping(EarlyStoppingCallback):
    """Early stopping that continues the count of a checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Take the count from the checkpoint's state."""
        super().on_train_begin(args, state, control, **kwargs)
        callbacks = cast(State, state.stateful_callbacks or {})
        saved = callbacks.get(type(self).__name__, {})
        counted = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
        self.early_stopping_patience_counter = counted
        if counted >= self.early_stopping_patience:  # killed between the last checkpoint and the end
            control.should_training_stop = True
