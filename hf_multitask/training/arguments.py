"""Training arguments: the Trainer's, and what a mixture of tasks needs beyond them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from ..data import build_rates
from ..modeling.config import close_match

# Arguments that are one of a few words; their errors name the word that is meant.
CHOICES: dict[str, Any] = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
}
# Arguments that would be ignored, or break the step or the measures, and what they have to stay at.
_KEPT = {
    "label_smoothing_factor": 0.0,
    "train_sampling_strategy": "random",
    "dataloader_drop_last": False,
    "prediction_loss_only": False,
    "batch_eval_metrics": False,
    "eval_do_concat_batches": True,
}


@dataclass
class MultiTaskTrainingArguments(TrainingArguments):
    """Arguments of :class:`MultiTaskTrainer`: all of ``transformers.TrainingArguments`` and these.

    ``metric_for_best_model`` is ``average`` unless told otherwise: the mean over tasks of each task's primary metric.
    ``report_to`` is TensorBoard where it is installed. ``per_device_train_batch_size`` counts rows of the mixture.

    Args:
        sampling: ``proportional``, ``uniform``, ``temperature`` or ``fixed``; see :mod:`hf_multitask.data.rates`.
        sampling_kwargs: arguments of the sampling, such as ``{"temperature": 2}`` or ``{"rates": {"ner": 0.3, ...}}``.
        task_weights: fixed weight of each task's loss; 1 for tasks that are not named.
        early_stopping_patience: stop after so many evaluations without a better ``metric_for_best_model``.

    Raises:
        ValueError: an argument is not usable, or is one that a mixture of tasks cannot honour.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - as the base class has it
        *TrainingArguments._VALID_DICT_FIELDS,
        "sampling_kwargs",
        "task_weights",
    ]

    report_to: list[str] | str | None = field(
        default=None, metadata={"help": "Trackers to report to. TensorBoard where it is installed, by default."}
    )
    sampling: str = field(
        default="proportional",
        metadata={"help": "How much of each step every dataset gets: proportional, uniform, temperature or fixed."},
    )
    sampling_kwargs: dict | str | None = field(default=None, metadata={"help": "Arguments of the sampling, as JSON."})
    task_weights: dict | str | None = field(default=None, metadata={"help": "Weight of each task's loss, as JSON."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value, known = getattr(self, name), [choice.value for choice in choices]
            if value not in known:
                raise ValueError(
                    f"Parameter `{name}` should be one of {', '.join(known)}. Found `{name} = {value!r}`."
                    + close_match(str(value), known)
                )
        self.remove_unused_columns = False
        if self.report_to is None:
            self.report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # a rank may have no row of a task
        follows = self.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
        watches = self.load_best_model_at_end or self.early_stopping_patience is not None or follows
        if watches and self.metric_for_best_model is None:
            self.metric_for_best_model = "average"
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        self._check_mixture()

    def _check_mixture(self) -> None:
        for name in ("sampling_kwargs", "task_weights"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"Parameter `{name}` should be a mapping. Found `{name} = {value!r}`.")
        build_rates(self.sampling, self.sampling_kwargs)  # type: ignore[arg-type]  # a mapping, as checked above
        weights: Any = self.task_weights or {}
        for task, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ValueError(f"The weight of task '{task}' should be a number of 0 or more. Found {weight!r}.")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(
                "Parameter `early_stopping_patience` should be 1 evaluation or more. "
                f"Found `early_stopping_patience = {self.early_stopping_patience}`."
            )
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError("Early stopping watches evaluations. Set eval_strategy to 'epoch' or 'steps'.")
        for name, usual in _KEPT.items():
            if getattr(self, name) != usual:
                raise ValueError(f"Parameter `{name}` is not supported for a mixture of tasks. Leave it at {usual}.")
