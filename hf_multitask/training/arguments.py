"""Training arguments: the Trainer's, and what a mixture of tasks needs beyond them."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cached_property
from typing import cast

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from ..aggregation import build_aggregator
from ..balancing import build_balancer
from ..data import build_rates
from ..modeling.config import close_match
from ..tasks.directions import rises
from .automatic import AUTO, check_kwargs, settled
from .optimizing import check_schedule
from .plain import State
from .ranges import BY_NAME, check_by_name, check_finite, check_ranges
from .ranks import check_world_size, only_cpus, set_timeout
from .secrets import arguments_without_secrets, dict_without_secrets
from .step.distill import check_distillation
from .supported import check_given, check_supported, idle

# Arguments that are one of a few words; their errors name the word that is meant.
CHOICES: dict[str, type[Enum]] = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
}
_TOKENS_SEEN = ["all", "non_padding", "no"]
# Likewise, where they are given.
_COMPILING = {
    "torch_compile_backend": [backend.value.lower() for backend in DynamoBackend],
    "torch_compile_mode": ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
}
# Arguments that may differ between ranks.
OWN_TO_A_RANK = (
    "local_rank",
    "output_dir",
    "logging_dir",
    "run_name",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
)
# Whole numbers, one for all or by name.
_COUNTS = ("max_train_samples", "max_eval_samples", "task_early_stopping_patience")

# Whole numbers of 0 or more, and of what they are.
_FROM_ZERO = {
    "gradient_logging_steps": "optimizer steps, 0 for none",
    "forward_cost_tokens": "tokens, 0 or more",
}


@dataclass
class MultiTaskTrainingArguments(TrainingArguments):
    """Arguments of :class:`MultiTaskTrainer`: all of ``transformers.TrainingArguments`` and these.

    ``metric_for_best_model`` is ``average`` by default: the mean over tasks of each task's primary metric.
    ``greater_is_better`` follows from the metric's name, see :func:`hf_multitask.tasks.directions.rises`.
    ``report_to`` is TensorBoard where it is installed. ``per_device_train_batch_size`` counts rows of the mixture.

    Args:
        sampling: ``proportional``, ``uniform``, ``temperature``, ``annealed`` or ``fixed``; see
            :mod:`hf_multitask.data.rates`.
        sampling_kwargs: arguments of the sampling, such as ``{"temperature": 2}`` or ``{"rates": {"ner": 0.3, ...}}``.
        balancing: how tasks are weighed, a name of :data:`hf_multitask.balancing.BALANCING`, or ``none``; ``auto``
            chooses, see :mod:`hf_multitask.training.automatic`.
        balancing_kwargs: arguments of the balancing, such as ``{"temperature": 1}`` or ``{"exact": true}``.
        non_finite_patience: stop at so many steps in a row in which a task's loss is NaN or infinite. Until then such
            steps continue without the task.
        max_train_samples: rows of each training set that are used at most, drawn with the seed; a number for all, or
            one by dataset.
        max_eval_samples: likewise, of the evaluation sets.
        task_weights: fixed weight of each task's loss; 1 for tasks that are not named.
        aggregation: how one update of the shared parameters is made of the gradients of the tasks: ``none``, which is
            the gradient of the summed loss, or a method of :data:`hf_multitask.aggregation.AGGREGATORS`; ``auto``
            chooses, likewise.
        aggregation_kwargs: arguments of the method, such as ``{"c": 0.4}`` of ``cagrad``.
        distillation: how tasks with a teacher learn from labels and teacher: ``annealed``, the weight of the labels
            grows linearly from 0 to 1 over training; or ``fixed``.
        distillation_kwargs: ``temperature`` of the teacher's classes, 1 by default; ``rows``, ``own`` for those with a
            label of the teacher's task, or ``all`` for those of other datasets with the same kind of input, too; and
            ``weight`` of the labels where it is fixed, 0.5 by default.
        gradient_logging_steps: log the norms and cosines of the gradients that the tasks have for the shared parameters
            every so many optimizer steps, 0 for never. None is every 200 steps, each of which then takes as long as two
            or three, for 2 to 20 tasks where the gradients take at most 1 GiB, and never where they cannot be
            separated; with an aggregation, which needs them anyway, it is every step. Training is the same with it.
        forward_cost_tokens: what an additional forward pass of a micro-batch costs, in tokens of padding that it has to
            save. None is 64 on a CPU; on an accelerator it is measured when training begins.
        learning_rates: by task, of its head and adapter, and of the ``backbone``, of which the ``shared_layers``, those
            below all branches, may have another one; ``learning_rate`` for those that are not named.
        weight_decays: likewise, in place of ``weight_decay``.
        layerwise_lr_decay: factor from each layer of the backbone to the one below; none where None.
        freeze: names of tasks whose heads and adapters do not train and which then need no data, ``backbone``, and
            ``shared_layers``, the backbone without the branches of the tasks that train.
        tasks: those of the model that are trained and evaluated, None for all; the heads and adapters of the others
            stay as they are.
        early_stopping_patience: stop after so many evaluations without a better ``metric_for_best_model``.
        task_early_stopping_patience: stop a task after so many evaluations without a better primary metric; a number
            for all tasks, or one by task. Its loss counts no more from then on, and its rows from the next epoch on.
        save_best_by_task: keep the model that was best on average and the one that was best for each task under
            ``best`` in ``output_dir``; ``best_checkpoints.json`` there says which is which.
        save_adapters_only: save and push adapters and heads, and not the backbone that they are for.

    Raises:
        ValueError: an argument is not usable, or is one that a mixture of tasks cannot use.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - as the base class has it
        *TrainingArguments._VALID_DICT_FIELDS,
        "sampling_kwargs",
        "balancing_kwargs",
        "aggregation_kwargs",
        "distillation_kwargs",
        *BY_NAME,
        *_COUNTS,
    ]

    report_to: list[str] | str | None = field(
        default=None, metadata={"help": "Trackers to report to. TensorBoard where it is installed, by default."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Filter NaN and infinite losses for logging, which reads each loss; none reaches the log."},
    )
    sampling: str = field(
        default="proportional",
        metadata={
            "help": "Share of every step that each dataset gets: proportional, uniform, temperature, annealed or fixed."
        },
    )
    sampling_kwargs: dict | str | None = field(default=None, metadata={"help": "Arguments of the sampling, as JSON."})
    balancing: str = field(
        default=AUTO, metadata={"help": "How tasks are weighed: auto, none, uniform, fixed, scale, uncertainty, ..."}
    )
    balancing_kwargs: dict | str | None = field(default=None, metadata={"help": "Arguments of the balancing, as JSON."})
    non_finite_patience: int = field(
        default=3, metadata={"help": "Stop at so many steps in a row in which a task's loss is NaN or infinite."}
    )
    max_train_samples: dict | str | None = field(
        default=None, metadata={"help": "Most rows of a training set: a number, or JSON by dataset."}
    )
    max_eval_samples: dict | str | None = field(
        default=None, metadata={"help": "Most rows of an evaluation set: a number, or JSON by dataset."}
    )
    task_weights: dict | str | None = field(default=None, metadata={"help": "Weight of each task's loss, as JSON."})
    aggregation: str = field(
        default=AUTO,
        metadata={"help": "Method that makes one update of the tasks' gradients, such as pcgrad; auto, none for none."},
    )
    aggregation_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of the aggregation, as JSON."}
    )
    distillation: str = field(
        default="annealed",
        metadata={"help": "Weight of the labels of tasks with a teacher: annealed, from 0 to 1, or fixed."},
    )
    distillation_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of the distillation, as JSON: temperature, rows, weight."}
    )
    gradient_logging_steps: int | None = field(
        default=None,
        metadata={"help": "Steps between logs of the tasks' gradient norms and cosines; 0 for none, 200 by default."},
    )
    forward_cost_tokens: int | None = field(
        default=None,
        metadata={"help": "Cost of an additional forward pass, in tokens; measured on accelerators by default."},
    )
    learning_rates: dict | str | None = field(
        default=None, metadata={"help": "Learning rates by task, of the backbone, and of its shared_layers, as JSON."}
    )
    weight_decays: dict | str | None = field(
        default=None, metadata={"help": "Weight decays by task, of the backbone, and of its shared_layers, as JSON."}
    )
    layerwise_lr_decay: float | None = field(
        default=None, metadata={"help": "Factor of the learning rate from each layer of the backbone to the one below."}
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={"help": "What does not train: names of tasks, for their heads, 'backbone', and its 'shared_layers'."},
    )
    tasks: list[str] | None = field(
        default=None, metadata={"help": "Tasks of the model that are trained and evaluated; all by default."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )
    task_early_stopping_patience: dict | str | None = field(
        default=None,
        metadata={"help": "Stop a task after so many evaluations without a better metric: a number, or JSON by task."},
    )
    save_best_by_task: bool = field(default=False, metadata={"help": "Keep the best model of every task."})
    save_adapters_only: bool = field(
        default=False, metadata={"help": "Save and push adapters and heads only, without the backbone."}
    )

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            _check_word(name, getattr(self, name), [choice.value for choice in choices])
        for name, known in _COMPILING.items():
            if (value := getattr(self, name)) is not None:
                _check_word(name, value.lower() if name.endswith("backend") else value, known)
        if not isinstance(self.include_num_input_tokens_seen, bool):
            _check_word("include_num_input_tokens_seen", self.include_num_input_tokens_seen, _TOKENS_SEEN)
        if self.max_grad_norm is None:
            self.max_grad_norm = 0.0  # no clipping, in the words of the Trainer
        self._check_numbers()
        self.remove_unused_columns = False
        if self.report_to is None:
            self.report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
        if self.ddp_find_unused_parameters is None:
            # A rank may have no row of a task. Checkpointing and the search for such heads do not go together; without
            # the search every head takes part in every batch.
            checkpointing = getattr(self, "activation_checkpointing", False)  # transformers 5.17 has the other only
            self.ddp_find_unused_parameters = not (checkpointing or self.gradient_checkpointing)
        follows = self.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
        watches = self.load_best_model_at_end or self.early_stopping_patience is not None or follows
        watches |= self.save_strategy == SaveStrategy.BEST
        if watches and self.metric_for_best_model is None:
            self.metric_for_best_model = "average"
        self.use_cpu = self.use_cpu or only_cpus()
        self._left_out = {"greater_is_better"} if self.greater_is_better is None else set()
        check_given(self)
        self.idle = list(idle(self))
        super().__post_init__()
        if follows and "mode" not in (self.lr_scheduler_kwargs or {}):
            self._left_out.add("mode")
        if self.metric_for_best_model is not None:
            self._check_direction(self.metric_for_best_model)
            self.set_direction(self.metric_for_best_model)
        check_world_size(self.world_size)
        set_timeout(self.ddp_timeout_delta)
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        self.check_mixture()

    def _check_direction(self, metric: str) -> None:
        known = rises(metric)
        if known is not None and self.greater_is_better != known and "greater_is_better" not in self._left_out:
            raise ValueError(
                f"Parameter `greater_is_better` should be {known} for `metric_for_best_model = {metric!r}`, of which a "
                f"better model has {'more' if known else 'less'}. Found `greater_is_better = "
                f"{self.greater_is_better!r}`, which would keep the worst model. Leave it out, or rename the metric."
            )

    def set_direction(self, metric: str) -> None:
        """Fill in which way ``metric_for_best_model`` goes where the user does not say, also for the scheduler.

        Args:
            metric: its name, without its task's where that is known.
        """
        if "greater_is_better" in self._left_out:
            self.greater_is_better = rises(metric) is not False
        if "mode" in self._left_out:
            kwargs = cast(State, self.lr_scheduler_kwargs or {})
            self.lr_scheduler_kwargs = {**kwargs, "mode": "max" if self.greater_is_better else "min"}

    def to_dict(self) -> State:
        """The arguments as trackers, logs and checkpoints write them: without secrets, such as tokens."""
        return dict_without_secrets(self, super().to_dict())

    def __getstate__(self) -> State:
        """What a pickle holds, such as training_args.bin: no secrets. A copy in the same process has them."""
        return vars(arguments_without_secrets(self))

    def __copy__(self) -> MultiTaskTrainingArguments:
        result = object.__new__(type(self))
        result.__dict__.update(vars(self))
        return result

    def __deepcopy__(self, memo: dict[int, object]) -> MultiTaskTrainingArguments:
        result = memo[id(self)] = object.__new__(type(self))
        result.__dict__.update(copy.deepcopy(vars(self), memo))
        return result

    def __repr__(self) -> str:
        values = "".join(f"{name}={value!r},\n" for name, value in sorted(self.to_dict().items()))
        return f"{type(self).__name__}(\n{values})"

    __str__ = __repr__

    @cached_property
    def device(self) -> torch.device:
        """Where a process trains; the CPU without the number of a rank, with which Transformers 5.17 cannot resume."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def check_mixture(self) -> None:
        """Check that the arguments beyond the Trainer's are usable.

        Raises:
            ValueError: one is not.
        """
        self._check_numbers()
        for name in _COUNTS:
            self._check_counts(name)
        for name in ("sampling_kwargs", "balancing_kwargs", "aggregation_kwargs", "distillation_kwargs", *BY_NAME):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"Parameter `{name}` should be a mapping. Found `{name} = {value!r}`.")
            if name in BY_NAME and value is not None:
                check_by_name(name, value)
        build_rates(self.sampling, self.sampling_kwargs)  # type: ignore[arg-type]  # a mapping, as checked above
        check_kwargs(self)
        build_balancer(settled(self.balancing), self.balancing_kwargs)  # type: ignore[arg-type]
        build_aggregator(settled(self.aggregation), self.aggregation_kwargs)  # type: ignore[arg-type]
        check_distillation(self.distillation, self.distillation_kwargs)  # type: ignore[arg-type]
        patience = self.non_finite_patience
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise ValueError(
                "Parameter `non_finite_patience` should be a whole number of steps, 1 or more. "
                f"Found `non_finite_patience = {patience!r}`."
            )
        for name, what in _FROM_ZERO.items():
            count: object = getattr(self, name)
            if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
                raise ValueError(f"Parameter `{name}` should be a whole number of {what}. Found `{name} = {count!r}`.")
        for name in ("freeze", "tasks"):
            self._check_names(name)
        if self.tasks is not None and not self.tasks:
            raise ValueError("Parameter `tasks` should name a task. Found `tasks = []`. Leave it out for all of them.")
        self._check_watching()
        check_supported(self)
        check_schedule(self)

    def _check_numbers(self) -> None:
        """Check that numbers are finite and in their range, before the Trainer's arguments compute with them."""
        check_ranges({one.name: getattr(self, one.name) for one in fields(self)})
        check_finite("lr_scheduler_kwargs", self.lr_scheduler_kwargs)

    def _check_counts(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, str) and value.isdigit():
            value = int(value)  # a number on the command line
            setattr(self, name, value)
        for count in value.values() if isinstance(value, Mapping) else [] if value is None else [value]:
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(
                    f"Parameter `{name}` should be a whole number of 1 or more, or one by name. "
                    f"Found `{name} = {value!r}`."
                )

    def _check_names(self, name: str) -> None:
        given = getattr(self, name)
        names = [given] if isinstance(given, str) else given
        if names is not None and not (isinstance(names, list | tuple) and all(isinstance(one, str) for one in names)):
            raise ValueError(f"Parameter `{name}` should be a list of names. Found `{name} = {given!r}`.")
        setattr(self, name, None if names is None else list(names))

    def _check_watching(self) -> None:
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(
                "Parameter `early_stopping_patience` should be 1 evaluation or more. "
                f"Found `early_stopping_patience = {self.early_stopping_patience}`."
            )
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError("Early stopping watches evaluations. Set eval_strategy to 'epoch' or 'steps'.")
        for name in ("task_early_stopping_patience", "save_best_by_task"):
            if getattr(self, name) and self.eval_strategy == "no":
                raise ValueError(f"Parameter `{name}` watches evaluations. Set eval_strategy to 'epoch' or 'steps'.")


def _check_word(name: str, value: object, known: list[str]) -> None:
    if value not in known:
        raise ValueError(
            f"Parameter `{name}` should be one of {', '.join(known)}. Found `{name} = {value!r}`."
            + close_match(str(value), known)
        )
