"""The part of the trainer that weighs: weights before a step, and losses after it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from ...balancing import Balancer, build_balancer
from ...data import Mixture
from ...modeling import MultiTaskModel
from ...tasks import Task
from ..arguments import MultiTaskTrainingArguments
from ..parameters import last_shared_matrix
from ..state.progress import Progress
from .constants import constant_losses
from .matrix import MatrixGradients
from .nonfinite import non_finite
from .rows import Batch
from .weights import Balance


class WeighingTrainer(Trainer):
    """The Trainer, whose tasks have weights that change from step to step.

    What a step measures is summed over its micro-batches and, at its end, over ranks. A task whose loss or gradient is
    NaN or infinite is taken out then: the gradients are dropped, and the step is run again without its rows.
    """

    args: MultiTaskTrainingArguments
    model: MultiTaskModel
    tasks: dict[str, Task]
    balance: Balance
    progress: Progress
    _sharded: bool
    _items: dict[str, int]

    own_balancer: Balancer | None
    task_weights: dict[str, float]
    _constants: dict[str, float] | None = None
    _matrix: MatrixGradients | None = None

    _losses: dict[str, float]

    @abstractmethod
    def _mixture(self) -> Mixture: ...

    @abstractmethod
    def _failed(self, model: torch.nn.Module, num_items: Any) -> dict[str, str]: ...

    @abstractmethod
    def _leave_out(self, failed: dict[str, str]) -> None: ...

    @abstractmethod
    def _repeat(self, model: torch.nn.Module, num_items: Any) -> None: ...

    def _new_balance(self) -> Balance:
        """The balancer of a training, at its beginning.

        Raises:
            ValueError: the run does not give it what it reads.
        """
        args: Any = self.args
        self._matrix = None
        balancer = self.own_balancer or build_balancer(args.balancing, args.balancing_kwargs)
        if balancer is not None and balancer.reads_evaluations and args.eval_strategy == "no":
            raise ValueError(
                f"{type(balancer).__name__} weighs tasks by their evaluations. Set eval_strategy to 'epoch' or 'steps'."
            )
        if balancer is not None and balancer.reads_gradients:
            if self._sharded:
                raise ValueError(
                    f"{type(balancer).__name__} reads gradients, which FSDP and DeepSpeed hold in pieces. "
                    "Choose another balancing, or train without them."
                )
            last_shared_matrix(self.model)
        return Balance(
            balancer, list(self.tasks), self.task_weights, seed=args.seed, constants=self._measured_constants
        )

    def _measured_constants(self, names: Any) -> dict[str, float]:
        """The loss of every task's best constant answer, on the training data."""
        if self._constants is None:
            tokenizer: Any = self.processing_class
            mixture = self._mixture()
            trained = {name for readers in mixture.tasks.values() for name in readers}
            self._constants = dict.fromkeys(set(names) - trained, 1.0) | constant_losses(  # frozen ones have no rows
                mixture, {name: self.tasks[name] for name in names}, tokenizer
            )
        return self._constants

    # A step

    def _open_step(self, batches: list[dict[str, Any]], present: list[str]) -> None:
        """Take in what a step consists of."""
        self._forwards = [forward for batch in batches for forward in batch["forwards"]]
        self._row_numbers = [numbers for batch in batches for numbers in batch["row_numbers"]]
        self._present = present
        self._step_weights: dict[str, float] | None = None
        self._step_begun = False
        self._clear_sums()

    def _clear_sums(self) -> None:
        device = self.args.device
        precise = torch.float32 if device.type == "mps" else torch.float64
        self._step_losses = torch.zeros(len(self.tasks), dtype=precise, device=device)
        self._step_loss = torch.zeros((), device=device)
        if self._matrix is not None:
            self._matrix.begin()

    def _begin_step(self, num_items: Any) -> None:
        """Find the weights, unless the only forward of the step tells its losses itself."""
        self._step_begun = True
        if not self.balance.looks_ahead:
            self._step_weights = self.balance.weights(self._present)
        elif not self._runs_once:
            losses = self._measured(num_items)
            failed = non_finite(losses)
            self._step_weights = self.balance.weights(
                [name for name in self._present if name not in failed],
                {name: loss for name, loss in losses.items() if name not in failed},
            )

    @property
    def _runs_once(self) -> bool:
        """Whether the step is one forward, which tells the losses of all tasks by itself."""
        return len(self._forwards) == 1 and self.args.world_size == 1

    def _weights_of(self, losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The weights of the step that a forward belongs to, which found these losses."""
        if self._step_weights is None:
            found = {name: float(loss.detach()) for name, loss in losses.items() if name in self._present}
            finite = {name: loss for name, loss in found.items() if name not in non_finite(found)}
            self._step_weights = self.balance.weights(list(finite), finite)
        return self._step_weights

    def _take_in(self, losses: Mapping[str, torch.Tensor], batch: Batch) -> None:
        """Add up what a forward found, before its backward pass."""
        if not losses:
            return
        numbers = [number for number, name in enumerate(self.tasks) if name in losses]
        found = torch.stack([losses[name].detach() for name in self.tasks if name in losses])
        self._step_losses[numbers] += found.to(self._step_losses.dtype)
        if self._matrix is not None:
            self._matrix.take_in(losses, self._step_weights or {}, batch)

    @contextmanager
    def _matrix_watched(self) -> Iterator[None]:
        """Within it, a forward pass shows what the last shared matrix sees, where the balancer reads its gradients."""
        if not self.balance.reads_gradients:
            yield
            return
        with nullcontext() if self.args.torch_compile else self._read_matrix().watched():
            yield

    def _read_matrix(self) -> MatrixGradients:
        """The gradients of the step for the last matrix that the tasks share."""
        if self._matrix is None:
            self._matrix = MatrixGradients(self.model, last_shared_matrix(self.model), list(self.tasks))
        return self._matrix

    def _end_step(self, model: torch.nn.Module, num_items: Any) -> torch.Tensor:
        """See what the step was, after its last backward; its loss on this rank."""
        self._num_items = num_items
        while failed := self._failed(model, num_items):
            self._leave_out(failed)
            self._repeat(model, num_items)
        losses = self._losses
        for name in losses:
            self.progress.non_finite.get(name, {})["in_a_row"] = 0
        norms = self._norms() if self.balance.reads_gradients else None
        weights = self._step_weights or {}
        for name in losses:
            new = (losses[name], weights.get(name, 0.0), 1)
            self._logged[name] = [total + one for total, one in zip(self._logged[name], new, strict=True)]
        self.balance.on_step(losses, norms)
        return self._step_loss

    def _reduced(self, totals: torch.Tensor) -> dict[str, float]:
        """By task of the step, its loss over all ranks."""
        values = self.accelerator.reduce(totals, "sum").tolist()
        return {name: values[number] for number, name in enumerate(self.tasks) if name in self._present}

    def _norms(self) -> dict[str, float]:
        matrix = self._read_matrix()
        norms = self.accelerator.reduce(matrix.gradients(), "sum").flatten(1).norm(dim=1).tolist()
        matrix.begin()
        return {name: norms[number] for number, name in enumerate(self.tasks) if name in self._present}

    def _after_update(self) -> None:
        """Measure the step once more, where the balancer asks for it."""
        if self.balance.looks_back:
            losses = self._measured(self._num_items)
            self.balance.after_step({name: losses[name] for name in losses if name not in non_finite(losses)})
        self._forwards = []

    def _measured(self, num_items: Any) -> dict[str, float]:
        """By task, its loss over the whole step, as the weights are now. No random state moves."""
        totals = torch.zeros_like(self._step_losses)
        self.model.train()
        with self._random_state_kept(), torch.no_grad(), self.compute_loss_context_manager():
            for forward in self._forwards:
                given: Any = self._prepare_inputs(forward)
                # Ranks may have different numbers of forwards, so a wrapper that waits for the others is left out.
                model = self.model_wrapped if self._sharded else self.model
                found = model(**given, num_items_in_batch=num_items, all_heads=self._sharded).losses
                for number, name in enumerate(self.tasks):
                    if name in found:
                        totals[number] += found[name].to(totals.dtype)
        return self._reduced(totals)

    def _random_state_kept(self) -> Any:
        device = self.args.device
        if device.type in ("cpu", "mps"):
            return torch.random.fork_rng(devices=[])
        return torch.random.fork_rng(devices=[device], device_type=device.type)

    # Logs

    def _drop_logged(self) -> None:
        """Start counting anew what the next log reports: sums of each task's losses and weights, and its steps."""
        self._logged: dict[str, list[float]] = {name: [0.0, 0.0, 0] for name in self.tasks}
        self._left_out: dict[str, int] = {}


class BalanceCallback(TrainerCallback):
    """Tells a trainer's balancer of updates and epochs.

    Args:
        trainer: whose balancer it is.
    """

    def __init__(self, trainer: WeighingTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """An update is made."""
        self.trainer._after_update()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """An epoch is over."""
        self.trainer.balance.on_epoch()
