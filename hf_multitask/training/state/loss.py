"""The training loss over a whole run, with its interruptions, and the logs of tasks across a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import TrainOutput

from ..plain import Saved, State
from ..step.tally import Tally


class RunningLoss(TrainerCallback):
    """Ensures that ``train_loss`` is the mean over all steps of a run, those before a resume as well.

    Args:
        trainer: whose run it is.
        tally: returns the one that counts for the logs now.
    """

    def __init__(self, trainer: Trainer, tally: Callable[[], Tally]) -> None:
        self._trainer, self._tally = trainer, tally
        self._saved: State = {}
        self._since = 0

    def state_dict(self) -> State:
        """What a checkpoint holds of it: the sums of when they were last noted."""
        return {"loss": self._saved}

    def load_state_dict(self, state: Saved) -> None:
        """Continue from a checkpoint, once the training begins."""
        self._saved = dict(state["loss"])

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Continue the sums of the checkpoint; the Trainer has set its own to 0."""
        saved, trainer = self._saved, self._trainer
        self._since = saved.get("since", state.global_step)  # a checkpoint of before has no sums
        if saved:
            trainer._total_loss_scalar, trainer._globalstep_last_logged = saved["total"], saved["last_logged"]
            trainer._tr_loss += saved["running"]
            self._tally().continue_log(saved)

    def note(self) -> None:
        """Note the sums for a checkpoint; all ranks together."""
        self._saved = {
            "since": self._since,
            "total": self._trainer._total_loss_scalar,
            "last_logged": self._trainer._globalstep_last_logged,
            "running": self._over_ranks().item(),
            **deepcopy(self._tally().since_log()),
        }

    def mean(self) -> float:
        """The mean loss of all steps whose losses are summed up."""
        return self._trainer._total_loss_scalar / max(self._trainer.state.global_step - self._since, 1)

    def finalize(self, finalize: Callable[..., TrainOutput], *args: object, **kwargs: object) -> TrainOutput:
        """End a training as the Trainer does, with the loss of the whole run."""
        self._trainer._tr_loss = self._over_ranks()  # the Trainer adds that of the rank
        output = finalize(*args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _over_ranks(self) -> torch.Tensor:
        """The sum of the losses since the last log, of which a rank has its own part."""
        return nested_gather(self._trainer._tr_loss, self._trainer.args.parallel_mode).mean()
