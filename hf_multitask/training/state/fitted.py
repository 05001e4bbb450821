"""What tasks have fitted to validation rows, which belongs to the weights that it was fitted with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import CONFIG_NAME, logging

from ...modeling import MultiTaskModel
from ...tasks import Task

logger = logging.get_logger(__name__)


class Fitting(Protocol):
    """A trainer whose tasks may fit.

    Attributes:
        model: that it trains.
        tasks: by name.
    """

    model: MultiTaskModel
    tasks: dict[str, Task]


def restore_fitted(model: MultiTaskModel, tasks: Mapping[str, Task], folder: str | Path) -> None:
    """Give tasks what they had fitted when a checkpoint was saved.

    Args:
        model: that has its weights now.
        tasks: by name.
        folder: the checkpoint.
    """
    fitting = {name: task for name, task in tasks.items() if task.fits}
    if not fitting:
        return
    saved = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8"))["tasks"]
    values = {task["name"]: task.get("fitted") for task in saved}
    for name, task in fitting.items():
        vars(task)["fitted"] = values.get(name)
        model.set_task(name, task.to_dict())


class FittedCallback(TrainerCallback):
    """Restores what was fitted with the best weights when the trainer has loaded these, and warns of what is missing.

    Args:
        trainer: whose tasks fit.
    """

    def __init__(self, trainer: Fitting) -> None:
        self.trainer = trainer

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """See the class."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            restore_fitted(self.trainer.model, self.trainer.tasks, state.best_model_checkpoint)
        for name, task in self.trainer.tasks.items():
            if task.fits and not vars(task)["fitted"]:
                logger.warning(
                    f"Task '{name}': `{task.fits[0]}` is fitted in an evaluation of the validation data, and none has "
                    "run. Run evaluate() before you save the model, or set eval_strategy."
                )
