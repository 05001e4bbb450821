"""The training loss over a whole run, whatever interrupted it, and the logs of tasks across a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import TrainOutput

from ..step.engine import Engine
from .progress import Progress


class RunningLossCallback(TrainerCallback):
    """Gives a run the sums of the checkpoint that it goes on from, once the Trainer has set them to 0.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: RunningLossTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Go on counting."""
        self.trainer._take_up_loss()


class RunningLossTrainer(Trainer):
    """The Trainer, whose ``train_loss`` is the mean over all steps of a run, those before a resume as well."""

    progress: Progress
    engine: Engine
    _tr_loss: torch.Tensor
    _total_loss_scalar: float
    _globalstep_last_logged: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(RunningLossCallback(self))

    def _take_up_loss(self) -> None:
        saved = self.progress.loss
        self._loss_since = saved.get("since", self.state.global_step)  # a checkpoint of before has no sums
        if not saved:
            return
        self._total_loss_scalar, self._globalstep_last_logged = saved["total"], saved["last_logged"]
        self._tr_loss += saved["running"]
        self.engine.tally.continue_log(saved)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.progress.loss = {
            "since": self._loss_since,
            "total": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "running": self._mean_over_ranks().item(),
            **self.engine.tally.since_log(),
        }
        super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, as in ``Trainer``, the training loss of the whole run."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self._loss_since, 1)
        super().log(logs, start_time)

    def _mean_over_ranks(self) -> torch.Tensor:
        """The sum of the losses since the last log, of which a rank has its own part."""
        return nested_gather(self._tr_loss, self.args.parallel_mode).mean()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._tr_loss = self._mean_over_ranks()  # the Trainer adds that of the rank
        output = super()._finalize_training(*args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])
