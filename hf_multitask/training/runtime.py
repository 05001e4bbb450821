"""What a part of the trainer may know of the Trainer: device, processes, precision, and how a pass runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import Trainer, TrainerCallback

from ..modeling import MultiTaskModel
from .compiled import compilation, release
from .plain import Saved, State

if TYPE_CHECKING:
    from .arguments import MultiTaskTrainingArguments
    from .trainer import MultiTaskTrainer

Inputs = dict[str, Any]
Items = Mapping[str, torch.Tensor]  # by task, the number of its items in the whole step
Norm = torch.Tensor | float | None
Value = TypeVar("Value")


class Part(Protocol):
    """A part of the trainer that a checkpoint holds something of."""

    def state_dict(self) -> State:
        """Its keys of ``multitask_state.json``."""

    def load_state_dict(self, state: Saved) -> None:
        """Continue from the state of a checkpoint.

        Args:
            state: its keys, and ``folder``, by which messages name it.

        Raises:
            ValueError: it is of another run.
        """


Figure = tuple[str | None, str, float]  # task, or None for the run, name, value


class Reporting(Part, Protocol):
    """A part that logs something."""

    def figures(self) -> Iterator[Figure]:
        """What a log reports since the last one; counting begins again then."""


class Runtime(Protocol):
    """Where the parts of a trainer run.

    Attributes:
        args: of the run.
        model: without the wrappers of distributed training.
        wrapped: with them.
        optimizer: of the run.
        device: of this process.
        is_accelerator: whether that is not a CPU, so that a forward pass has a fixed cost that is worth measuring.
        processes: how many there are.
        rank: of this process among them.
        is_main: whether this process logs and saves.
        engine: "FSDP" or "DeepSpeed" where parameters are sharded over the processes; else None.
        mixed_precision: "no", "fp16", "bf16" or "fp8".
        scaler: of the loss in fp16; else None.
        compiles: whether torch.compile compiles the backbone.
        step: optimizer steps that are complete.
        total_steps: optimizer steps of the whole training; 0 before it.
        rows_per_step: rows of an optimizer step, over micro-batches and processes.
        is_last_part: whether the micro-batch at hand is the last of its optimizer step.
    """

    @property
    def args(self) -> MultiTaskTrainingArguments: ...
    @property
    def model(self) -> MultiTaskModel: ...
    @property
    def wrapped(self) -> nn.Module: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def is_accelerator(self) -> bool: ...
    @property
    def processes(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def is_main(self) -> bool: ...
    @property
    def engine(self) -> str | None: ...
    @property
    def mixed_precision(self) -> str: ...
    @property
    def scaler(self) -> torch.amp.GradScaler | None: ...
    @property
    def compiles(self) -> bool: ...
    @property
    def step(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def rows_per_step(self) -> int: ...
    @property
    def is_last_part(self) -> bool: ...

    def clock(self) -> float:
        """The time in seconds, once the device has finished its work."""

    def prepare(self, inputs: Inputs) -> Inputs:
        """The inputs of a pass on this process's device."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it, a forward pass runs in the precision of training."""

    def forward_backward(self, model: nn.Module, inputs: Inputs, items: Items | None) -> torch.Tensor:
        """Forward and backward pass of some rows of a step; their loss."""

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Within it, processes do not reduce gradients."""

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over processes."""

    def gather(self, value: Value) -> list[Value]:
        """A picklable value of every process."""

    def on_any(self, happened: bool) -> bool:
        """Whether something happened in any process; where there are several, they wait for each other."""

    def clip(self, model: nn.Module, most: float) -> Norm:
        """Clip the gradients to a norm, 0 for no limit; their norm before, None where it is not known."""


class TrainerRuntime:
    """The runtime of a Trainer, read from it at every access but for what never changes; see :class:`Runtime`.

    Args:
        trainer: whose it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer: Any = trainer

    @property
    def args(self) -> MultiTaskTrainingArguments:
        return self._trainer.args

    @property
    def model(self) -> MultiTaskModel:
        return self._trainer.model

    @property
    def wrapped(self) -> nn.Module:
        return self._trainer.model_wrapped

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._trainer.optimizer

    @cached_property
    def device(self) -> torch.device:
        return self._trainer.args.device

    @property
    def is_accelerator(self) -> bool:
        return self.device.type != "cpu"

    @cached_property
    def processes(self) -> int:
        return self._trainer.args.world_size

    @cached_property
    def rank(self) -> int:
        return self._trainer.args.process_index

    @property
    def is_main(self) -> bool:
        return self._trainer.is_world_process_zero()

    @property
    def engine(self) -> str | None:
        if self._trainer.is_deepspeed_enabled:
            return "DeepSpeed"
        return "FSDP" if self._trainer.is_fsdp_enabled else None

    @property
    def mixed_precision(self) -> str:
        return self._trainer.accelerator.mixed_precision

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        return self._trainer.accelerator.scaler

    @property
    def compiles(self) -> bool:
        return compilation(self.args) is not None

    @property
    def step(self) -> int:
        return self._trainer.state.global_step

    @property
    def total_steps(self) -> int:
        return self._trainer.state.max_steps

    @property
    def rows_per_step(self) -> int:
        return self._trainer._train_batch_size * self.args.gradient_accumulation_steps * self.processes

    @property
    def is_last_part(self) -> bool:
        return self._trainer.accelerator.sync_gradients

    def clock(self) -> float:
        torch.get_device_module(self.device).synchronize()
        return time.perf_counter()

    def prepare(self, inputs: Inputs) -> Inputs:
        return self._trainer._prepare_inputs(inputs)

    def autocast(self) -> AbstractContextManager[Any]:
        return self._trainer.compute_loss_context_manager()

    def forward_backward(self, model: nn.Module, inputs: Inputs, items: Items | None) -> torch.Tensor:
        return Trainer.training_step(self._trainer, model, inputs, items)  # type: ignore[arg-type]  # which hands them on

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        return self._trainer.accelerator.no_sync(model)

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._trainer.accelerator.reduce(tensor, "sum") if self.processes > 1 else tensor

    def gather(self, value: Value) -> list[Value]:
        return gather_object([value]) if self.processes > 1 else [value]

    def on_any(self, happened: bool) -> bool:
        if self.processes == 1:
            return happened
        return bool(self.reduce(torch.tensor(int(happened), device=self.device)).item())

    def clip(self, model: nn.Module, most: float) -> Norm:
        """See :class:`Runtime`. What has a gradient is found in the optimizer's list, not by a walk over all heads."""
        trainer = self._trainer
        if self.engine or trainer._has_mixed_mesh_grads(model):
            return Trainer._clip_grad_norm(trainer, model) if most > 0 else Trainer._get_grad_norm(trainer, model)
        graded = [one for group in self.optimizer.param_groups for one in group["params"] if one.grad is not None]
        return trainer.accelerator.clip_grad_norm_(graded, most if most > 0 else float("inf"))


class PlainRuntime:
    """One process without a Trainer, for tests of the parts; see :class:`Runtime`.

    Args:
        args: of the run.
        model: on the device of its inputs.
        optimizer: of its parameters.
    """

    wrapped: nn.Module
    rank, processes, is_main, is_last_part = 0, 1, True, True
    is_accelerator = compiles = False
    engine = scaler = None
    mixed_precision = "no"
    loss: Callable[[nn.Module, Inputs, Items | None], tuple[torch.Tensor, Any]]  # of the engine that runs here; set it

    def __init__(
        self, args: MultiTaskTrainingArguments, model: MultiTaskModel, optimizer: torch.optim.Optimizer
    ) -> None:
        self.args, self.model, self.wrapped, self.optimizer, self.step = args, model, model, optimizer, 0
        self.device = next(model.parameters()).device
        self.rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.total_steps = max(args.max_steps, 0)

    def clock(self) -> float:
        return time.perf_counter()

    def prepare(self, inputs: Inputs) -> Inputs:
        return inputs

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def forward_backward(self, model: nn.Module, inputs: Inputs, items: Items | None) -> torch.Tensor:
        model.train()
        loss, _ = self.loss(model, inputs, items)
        loss.backward()
        return loss.detach()

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:  # noqa: ARG002
        return nullcontext()

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def gather(self, value: Value) -> list[Value]:
        return [value]

    def on_any(self, happened: bool) -> bool:
        return happened

    def clip(self, model: nn.Module, most: float) -> Norm:
        graded = [one for one in model.parameters() if one.grad is not None]
        return torch.nn.utils.clip_grad_norm_(graded, most if most > 0 else float("inf"))


class EngineCallback(TrainerCallback):
    """Tells the engine of a trainer when a training and an epoch begin and end, and when an update is made.

    Args:
        trainer: whose engine it is.
    """

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        """The model and its frozen parts are known."""
        self.trainer.engine.probe.begin()

    def on_step_end(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        """An update is made."""
        self.trainer.engine.after_update()

    def on_train_end(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        """A training is over, and what runs from now on has other shapes."""
        release(self.trainer.model)

    def on_epoch_end(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        """An epoch is over."""
        self.trainer.engine.weights.on_epoch()
