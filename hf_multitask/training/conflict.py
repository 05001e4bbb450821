"""The step of a trainer with an aggregator: gradients task by task, one update of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..aggregation import (
    Aggregator,
    Blocks,
    NoRowAxisError,
    Outcome,
    RowSplit,
    Segment,
    as_aggregator,
    build_aggregator,
    collect_task,
    combine,
)
from .balance import Balance
from .stepping import SteppingTrainer
from .task_rows import Batch, only, side_by_side

logger = logging.get_logger(__name__)

# Most that a task's gradient of the row split may differ from autograd's, relative to its norm.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5}
_TOLERANCE_LOW = 5e-2
_UNDECIDED = "a task's gradient is not finite, so the next forward is compared"
_TOLD = 3  # failures of a method that are told one by one


class AggregatingTrainer(SteppingTrainer):
    """The Trainer, whose shared parameters get one update of the gradients of all tasks.

    Heads have one task each and keep their plain gradients. The model runs unwrapped: gradients of ranks are averaged
    here, before the method weighs them.
    """

    aggregator: Aggregator | None = None
    own_aggregator: Aggregator | None = None
    outcome: Outcome | None = None
    _blocks: Blocks | None = None
    _split: RowSplit | None = None
    _checked = False
    _failures = 0
    _logged_failures = 0

    def _set_aggregator(self, given: Any) -> None:
        """Take the aggregator of the arguments, or one that is given in its place.

        Raises:
            ValueError: it does not fit the tasks or the run.
        """
        self.own_aggregator = None if given is None else as_aggregator(given)
        self._build_aggregator()
        if self.aggregator is None:
            return
        if self._sharded:
            engine = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP"
            raise ValueError(
                f"An aggregator needs whole gradients, and {engine} shards them. Set aggregation='none', or train with "
                "plain data parallelism."
            )
        if self.model.config.adapters and self.model.config.adapters["tasks"]:
            raise ValueError(
                "An aggregator needs a backbone that all tasks share, and task_lora gives tasks parts of their own. "
                "Set aggregation='none', or take lora alone."
            )
        if not self._shared_parameters():
            raise ValueError(
                "An aggregator needs shared parameters that train, and the backbone is frozen. Set aggregation='none'."
            )

    def _build_aggregator(self) -> None:
        args = self.args
        named = build_aggregator(args.aggregation, args.aggregation_kwargs)  # type: ignore[arg-type]
        if self.own_aggregator is not None and named is not None:
            raise ValueError(
                f"There is an aggregator, and aggregation='{args.aggregation}' names another. Give one of them."
            )
        self.aggregator = named or self.own_aggregator
        if self.aggregator is not None:
            self.aggregator.check_tasks(list(self.tasks))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train with a method that remembers nothing of a training before; see :class:`MultiTaskTrainer`."""
        self._build_aggregator()
        self._blocks, self._failures, self._logged_failures = None, 0, 0
        return super().train(resume_from_checkpoint, **kwargs)

    def _shared_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.backbone.parameters() if parameter.requires_grad]

    @property
    def _waits_for_heads(self) -> bool:
        return self.aggregator is None and super()._waits_for_heads

    # What it is going to do, and what it remembers

    def describe_aggregation(self) -> str:
        """Which engine tells the gradients of the tasks apart, and the memory that they take, in a sentence or two."""
        split = self._row_split()
        shared = self._shared_parameters()
        rows = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        tasks = min(len(self.tasks), rows)
        size = sum(parameter.numel() * parameter.element_size() for parameter in shared) * tasks / 2**20
        name = type(self.aggregator).__name__ if self.args.aggregation == "none" else self.args.aggregation
        engine = "row split, one forward and one backward for rows of one task each"
        if split is None:
            engine = f"per-task pass, one forward and one backward for every task ({self._why_not_split()})"
        return (
            f"Aggregation: {name}, {engine}; up to {tasks} gradients of {sum(map(torch.numel, shared)):,} shared "
            f"parameters, at most {size:,.0f} MB"
        )

    def _row_split(self) -> RowSplit | None:
        """The engine that splits rows, where the model has one."""
        if self._blocks is None or self._blocks.parameters != self._shared_parameters():
            self._blocks = Blocks(self._shared_parameters())
            self._split = RowSplit(self.model.backbone)
            self._checked = False
        return None if self._why_not_split() else self._split

    def _why_not_split(self) -> str | None:
        if self.progress.aggregation.get("fallback"):
            return self.progress.aggregation["fallback"]
        unknown = {} if self._split is None else self._split.unknown
        for name, kind in unknown.items():
            return f"{kind} '{name}' is a layer whose gradients nobody knows how to tell apart by rows"
        return None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.aggregator is not None:
            self.progress.aggregation["state"] = self.aggregator.state_dict()
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = self.progress.aggregation.get("state")
        if self.aggregator is not None and state:
            self.aggregator.load_state_dict(state)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    # The step

    def _new_balance(self) -> Balance:
        balance = super()._new_balance()
        if balance.reads_gradients and self.aggregator is not None:
            raise ValueError(
                "GradNorm and an aggregator both take the gradients of single tasks apart. Set either balancing or "
                "aggregation to 'none'."
            )
        return balance

    @property
    def _runs_once(self) -> bool:
        return self.aggregator is None and super()._runs_once  # a forward is run in parts

    def _clear_sums(self) -> None:
        super()._clear_sums()
        if self.aggregator is not None:
            self._row_split()
            self._opened().begin(len(self._present))

    def _opened(self) -> Blocks:
        if self._blocks is None:
            raise RuntimeError("A step has not begun.")
        return self._blocks

    def _run(self, model: nn.Module, forwards: list[dict[str, Any]], num_items: Any) -> None:
        """Forward and backward of some parts of a step, with the gradients of the tasks apart."""
        if self.aggregator is None:
            super()._run(model, forwards, num_items)
            return
        for part in forwards:
            self._step_loss += self._run_part(self._prepare_inputs(part), num_items)

    def _end_step(self, model: nn.Module, num_items: Any) -> torch.Tensor:
        loss = super()._end_step(model, num_items)
        if self.aggregator is not None and self._present:
            self._update()
        return loss

    def _run_rows(self, batch: Batch, num_items: Any) -> torch.Tensor:
        return Trainer.training_step(self, self.model, batch, num_items)

    def _run_part(self, batch: Batch, num_items: Any) -> torch.Tensor:
        blocks, number = self._opened(), {name: place for place, name in enumerate(self._present)}
        together, alone = side_by_side(batch, self._present, self._mixable())
        total = torch.zeros((), device=self.args.device)
        if together:
            mixed, counts = only(batch, together)
            segments, start = [], 0
            for name, rows in zip(together, counts, strict=True):
                segments.append(Segment(number[name], start, start + rows))
                start += rows
            if self._can_split(mixed, segments, num_items):
                with self._split.rows(blocks, segments):  # type: ignore[union-attr]
                    total += self._run_rows(mixed, num_items)
            else:
                alone = [*together, *alone]
        for name in alone:
            own, _ = only(batch, [name])
            with collect_task(self.model.backbone, blocks, number[name]):
                total += self._run_rows(own, num_items)
        return total

    def _mixable(self) -> set[str]:
        """Tasks whose heads leave the backbone's decoder and language model alone; none without a row split."""
        if self._row_split() is None:
            return set()
        heads: Any = self.model.heads
        return {name for name, head in heads.items() if not (head.reads_decoder or head.language_model)}

    def _update(self) -> None:
        blocks = self._opened()
        several = self.accelerator.num_processes > 1
        blocks.close(_average if several else None)
        if several:
            self._average_heads()
        scaler = self.accelerator.scaler
        self.outcome = combine(
            self.aggregator,  # type: ignore[arg-type]
            blocks,
            self._present,
            seed=(self.args.seed * 1_000_003 + self.state.global_step) % 2**63,
            scale=1.0 if scaler is None else scaler.get_scale(),
        )
        if self.outcome.problem is not None:
            self._failures += 1
            if self._failures <= _TOLD and self.is_world_process_zero():
                end = " Further ones are only counted." if self._failures == _TOLD else ""
                logger.warning(
                    f"Step {self.state.global_step + 1}: the aggregator found no update ({self.outcome.problem}). The "
                    f"plain sum of the task gradients is taken instead.{end}"
                )

    def _average_heads(self) -> None:
        """Average the gradients of the heads that any rank has one for."""
        for name in self._present:
            for parameter in self.model.heads[name].parameters():
                if parameter.requires_grad:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    _average(parameter.grad)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how many steps since the last log took the plain sum, ``aggregation_failures``, where any did."""
        if "loss" in logs and self._failures > self._logged_failures:
            logs["aggregation_failures"] = self._failures - self._logged_failures
            self._logged_failures = self._failures
        super().log(logs, start_time)

    # The check of the row split

    def _can_split(self, batch: Batch, segments: list[Segment], num_items: Any) -> bool:
        """Whether the row split gives every task of a batch its gradient; compared with autograd's the first time."""
        if not self._checked:
            reason = self._compare(batch, segments, num_items)
            if reason == _UNDECIDED:
                return False
            self._checked = True
            if reason is not None:
                self.progress.aggregation["fallback"] = reason
                logger.warning(
                    f"The row split does not fit this model: {reason}. The gradients come from one pass per task from "
                    "now on, which takes longer."
                )
        return self._row_split() is not None

    def _compare(self, batch: Batch, segments: list[Segment], num_items: Any) -> str | None:
        """What is wrong with the row split of a batch, in words; None where nothing is.

        Every run draws the same random numbers, and leaves the model, its gradients and the losses as they were.
        """
        split, shared = self._split, self._shared_parameters()
        found, wanted = Blocks(shared), Blocks(shared)
        found.begin(len(self._present))
        try:
            with self._undone(), split.rows(found, segments):  # type: ignore[union-attr]
                self._run_rows(batch, num_items)
        except NoRowAxisError as problem:
            return str(problem)
        names = [self._present[segment.task] for segment in segments]
        found.close()
        differences = []
        for segment, name in zip(segments, names, strict=True):
            wanted.begin(1)
            weights = {other: float(other == name) for other in names}
            with self._undone(), self._weighing(weights), collect_task(self.model.backbone, wanted, 0):
                self._run_rows(batch, num_items)
            wanted.close()
            differences.append(_difference(found, segment.task, wanted))
        worst = float(np.max(differences))  # NaN if one is
        tolerance = _TOLERANCE_LOW if self._low_precision else _TOLERANCE.get(shared[0].dtype, _TOLERANCE_LOW)
        if worst != worst:
            return _UNDECIDED
        if worst <= tolerance:
            return None
        return f"a task's gradient differs from autograd's by {worst:.1e} of its norm, as where a layer mixes rows"

    @property
    def _low_precision(self) -> bool:
        return self.accelerator.mixed_precision != "no"

    @contextmanager
    def _weighing(self, weights: dict[str, float]) -> Iterator[None]:
        """Within it, the losses of some tasks count for nothing."""
        self._kept = weights
        try:
            yield
        finally:
            self._kept = None

    _kept: dict[str, float] | None = None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See :class:`SteppingTrainer`."""
        if self._kept is not None:
            kept = {name: labels for name, labels in inputs["labels"].items() if self._kept[name]}
            inputs = {**inputs, "labels": kept}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Within it, training leaves no trace: random states, buffers, gradients and sums of losses are put back."""
        heads = list(self.model.heads.parameters())
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in heads]
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        losses = self._step_losses.clone()
        on_cuda = self.args.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.args.device] if on_cuda else []):
            try:
                yield
            finally:
                for parameter, gradient in zip(heads, before, strict=True):
                    parameter.grad = gradient
                with torch.no_grad():
                    for name, value in self.model.named_buffers():
                        value.copy_(buffers[name])
                self._step_losses.copy_(losses)


def _average(tensor: torch.Tensor) -> None:
    """Replace a tensor by its mean over ranks."""
    dist.all_reduce(tensor)
    tensor /= dist.get_world_size()


def _difference(found: Blocks, task: int, wanted: Blocks) -> float:
    """Norm of the difference between a task's gradient and the one that it should be, relative to its norm."""
    difference, size = 0.0, 0.0
    for parameter in wanted.parameters:
        one, other = found.gradient(parameter, task), wanted.gradient(parameter, 0)
        if one is None and other is None:
            continue
        one = torch.zeros_like(parameter) if one is None else one
        other = torch.zeros_like(parameter) if other is None else other
        difference += float((one.double() - other.double()).square().sum())
        size += float(other.double().square().sum())
    return (difference / size) ** 0.5 if size else float(difference > 0)
