"""The part of the trainer that leaves tasks out of a step: those whose loss or gradient is NaN or infinite."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.utils import logging

from ..parameters import drop_gradients
from .aliases import aliased
from .nonfinite import LossError, bad_rows, describe, failing_items, filler, non_finite, only_items, without
from .weighing import WeighingTrainer

logger = logging.get_logger(__name__)

_LOSS, _GRADIENT = "its loss is {}", "its gradient is not finite, under a loss of {:.4g},"


class LeavingTrainer(WeighingTrainer):
    """The Trainer, whose steps go on without the tasks that fail.

    Losses and the norm of the gradients, which clipping needs anyway, are read together, once a step. A norm that is
    not finite under finite losses has each task run by itself, to see whose gradient it is.
    """

    _grad_norm: Any = None

    # What fails

    def _failed(self, model: torch.nn.Module, num_items: Any) -> dict[str, str]:
        """By task of the step, what of it is not finite, in words; after the last backward. It clips the gradients."""
        drop_gradients(self.model, self._items)
        if not self._present:
            self._nothing_to_update()
            return {}
        self._grad_norm = self._clipped(model)
        self._losses, norm = self._read(self._grad_norm)
        if failed := non_finite(self._losses):
            return {name: _LOSS.format(self._losses[name]) for name in failed}
        if np.isfinite(norm) or self._is_scaled_too_much():
            return {}
        if self._sharded:
            raise LossError(
                f"The gradient is not finite in step {self.state.global_step + 1}, while the losses of all its tasks "
                "are. It is held in pieces over the processes, so its task cannot be found, and training stops. Train "
                "without FSDP and DeepSpeed to find it, or lower the learning rate."
            )
        return self._by_gradient(self._failing_tasks(num_items))

    def _by_gradient(self, names: Sequence[str]) -> dict[str, str]:
        return {name: _GRADIENT.format(self._losses[name]) for name in names}

    def _clipped(self, model: torch.nn.Module) -> Any:
        """Clip what has a gradient, found in the optimizer's list: a walk through a thousand heads takes its time.

        Returns:
            The norm before, which is measured where nothing is clipped as well.
        """
        most = self.args.max_grad_norm
        if self._sharded or self._has_mixed_mesh_grads(model):
            return super()._clip_grad_norm(model) if most > 0 else super()._get_grad_norm(model)
        optimizer: Any = self.optimizer
        graded = [one for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        return self.accelerator.clip_grad_norm_(graded, most if most > 0 else float("inf"))

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:  # noqa: ARG002
        """The norm of the step, whose gradients are clipped by now."""
        return self._grad_norm

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:  # noqa: ARG002
        return self._grad_norm

    def _read(self, norm: Any) -> tuple[dict[str, float], float]:
        """By task of the step its loss over all ranks, and the norm, in one read by the host."""
        totals = self.accelerator.reduce(self._step_losses, "sum")
        if norm is None:  # DeepSpeed knows none yet
            norm = 0.0
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        *values, found = torch.cat([totals, torch.as_tensor(norm).to(totals).reshape(1)]).tolist()
        return {name: values[number] for number, name in enumerate(self.tasks) if name in self._present}, found

    def _is_scaled_too_much(self) -> bool:
        """Whether gradients that are not finite may be due to the scale of fp16's loss, which skips the step then."""
        if self.is_deepspeed_enabled:
            return self.accelerator.mixed_precision == "fp16"
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def _nothing_to_update(self) -> None:
        """Leave the weights as they are: without a gradient the optimizer passes over them."""
        self._losses, self._grad_norm = {}, torch.zeros((), device=self.args.device)
        if self.accelerator.scaler is not None:  # which needs a gradient to see, and skips one that is infinite
            parameter = next(one for one in self.model.parameters() if one.requires_grad)
            parameter.grad = torch.full_like(parameter, float("inf"))

    def _failing_tasks(self, num_items: Any) -> list[str]:
        """The tasks whose own gradient of the step is not finite; all of them, where it is that of none alone."""
        failing = torch.zeros(len(self.tasks), device=self.args.device)
        for number, name in enumerate(self.tasks):
            if name in self._present:
                others = [other for other in self._present if other != name]
                own = [rest for forward in self._forwards if (rest := without(forward, others)) is not None]
                failing[number] = float(self._fails(own, num_items))
        found = self.accelerator.reduce(failing, "sum").tolist()
        return [name for name, ranks in zip(self.tasks, found, strict=True) if ranks] or list(self._present)

    def _fails(self, forwards: Sequence[Mapping[str, Any]], num_items: Any) -> bool:
        """Whether the gradient of some forwards is not finite on this rank; training goes on as if they had not run."""
        apart = nullcontext() if self.args.world_size == 1 else aliased(self.model, {})  # no rank waits for another
        with apart, self._undone():
            for forward in forwards:
                if forward["labels"]:
                    Trainer.training_step(self, self.model, dict(forward), num_items)
            found = [one.grad for one in self.model.parameters() if one.grad is not None]
            return not torch.nn.utils.get_total_norm(found).isfinite()

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Within it, training leaves no trace: random states, buffers, gradients and sums of losses are put back."""
        gradients = {parameter: parameter.grad for parameter in self.model.parameters()}
        for parameter in gradients:
            parameter.grad = None
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        losses = self._step_losses.clone()
        drawn = random.getstate(), np.random.get_state()  # some models of speech draw their masks from the latter
        with self._random_state_kept():
            try:
                yield
            finally:
                random.setstate(drawn[0])
                np.random.set_state(drawn[1])
                for parameter, gradient in gradients.items():
                    parameter.grad = gradient
                with torch.no_grad():
                    for name, value in self.model.named_buffers():
                        value.copy_(buffers[name])
                self._step_losses.copy_(losses)

    # The step without it

    def _leave_out(self, failed: dict[str, str]) -> None:
        """Take tasks out of the step, count and tell.

        Raises:
            LossError: that was once too often.
        """
        rows = self._rows_of(failed)
        step, most = self.state.global_step + 1, 1 if self._sharded else self.args.non_finite_patience
        for name, what in failed.items():
            counts = self.progress.non_finite.setdefault(name, {"steps": 0, "in_a_row": 0})
            counts["steps"] += 1
            counts["in_a_row"] += 1
            self._left_out[name] = self._left_out.get(name, 0) + 1
            sentence = describe(name, what, step, rows[name], self.tasks[name].source)
            if counts["in_a_row"] >= most:
                raise LossError(
                    f"{sentence} It is the last of {counts['in_a_row']} such steps in a row, so training stops. Fix "
                    "the rows, or lower the learning rate; `non_finite_patience` says how many are let pass."
                )
            if self.is_world_process_zero():
                logger.warning(f"{sentence} The step goes on without the task.")
        self._items |= dict.fromkeys(failed, 0)
        self._present = [name for name in self._present if name not in failed]
        first = self._forwards[0]
        kept = [
            (rest, numbers)
            for forward, numbers in zip(self._forwards, self._row_numbers, strict=True)
            if (rest := without(forward, failed)) is not None
        ]
        self._forwards = [rest for rest, _ in kept] or [filler(first)]
        self._row_numbers = [numbers for _, numbers in kept] or [{}]
        if not self.balance.looks_ahead:
            self._step_weights = self.balance.weights(self._present)
        else:
            losses = self._reduced(self._step_losses)
            finite = {name: losses[name] for name in losses if name not in non_finite(losses)}
            self._step_weights = self.balance.weights(list(finite), finite)

    def _rows_of(self, failed: Mapping[str, str]) -> dict[str, list[int]]:
        """By task, the numbers of the rows whose loss or gradient is NaN or infinite, over all ranks."""
        own: dict[str, list[int]] = {}
        for name, numbers in self._found_rows(failed):
            own.setdefault(name, []).extend(numbers)
        ranks = gather_object([own]) if self.args.world_size > 1 else [own]
        bad = {name: sorted({row for of_rank in ranks for row in of_rank.get(name, [])}) for name in failed}
        if all(bad.values()):
            return bad
        return {name: rows or sorted(set(self._rows_by_task().get(name, []))) for name, rows in bad.items()}

    def _rows_by_task(self) -> dict[str, list[int]]:
        """By task, the numbers of its rows in the step, on this rank."""
        rows: dict[str, list[int]] = {}
        for numbers in self._row_numbers:
            for name, own in numbers.items():
                rows.setdefault(name, []).extend(own)
        return rows

    def _found_rows(self, failed: Mapping[str, str]) -> Iterator[tuple[str, list[int]]]:
        """Names of tasks with their rows that fail by themselves; none where the model is in pieces over the ranks."""
        if self._sharded:
            return
        for forward, numbers in zip(self._forwards, self._row_numbers, strict=True):
            names = [name for name in failed if name in forward["labels"]]
            by_loss = self._rows_by_loss(forward, numbers, names) if names else {}
            for name in names:
                yield name, by_loss[name] or self._rows_by_gradient(forward, numbers[name], name)

    def _rows_by_loss(
        self, forward: Mapping[str, Any], numbers: Mapping[str, Sequence[int]], names: Sequence[str]
    ) -> dict[str, list[int]]:
        heads: Any = self.model.heads
        with self._random_state_kept(), torch.no_grad(), self.compute_loss_context_manager():
            given: Any = self._prepare_inputs(dict(forward))
            logits: Any = self.model(**given).logits
            losses = {name: heads[name].loss(logits[name], given["labels"][name]) for name in names}
        return {name: bad_rows(losses_N, numbers[name]) for name, losses_N in losses.items()}

    def _rows_by_gradient(self, forward: Mapping[str, Any], numbers: Sequence[int], name: str) -> list[int]:
        def fails(items: Sequence[int]) -> bool:
            return self._fails([only_items(forward, name, items)], self._num_items)

        return [numbers[item] for item in failing_items(len(numbers), fails)]

    def _repeat(self, model: torch.nn.Module, num_items: Any) -> None:
        """Run the step again, as if it had no row of the tasks that left."""
        model.zero_grad()
        if (scaler := self.accelerator.scaler) is not None and scaler.is_enabled():
            scaler.update(scaler.get_scale())  # it has seen gradients of this step, and would take no others
        self._clear_sums()
        if any(self._items.values()):
            self._run(model, self._forwards, num_items)

    def _run(self, model: torch.nn.Module, forwards: list[dict[str, Any]], num_items: Any) -> None:
        """Forward and backward of some parts of a step; ranks meet at the last."""
        *parts, last = forwards
        for part in parts:
            with self.accelerator.no_sync(model):
                self._step_loss += super().training_step(model, part, num_items)
        self._step_loss += super().training_step(model, last, num_items)
