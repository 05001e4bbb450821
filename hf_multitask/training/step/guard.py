"""Steps in which a task's loss or gradient is not finite: finds the task and its rows, and runs the step without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from ...modeling import Head
from ..parameters import drop_gradients
from ..plain import Saved, State
from ..runtime import Runtime
from .apart import aliased, random_state_kept, undone
from .rows import Apart, Batch, Step, only_items, plain, without
from .tally import Tally

logger = logging.get_logger(__name__)

_LOSS, _GRADIENT = "its loss is {}", "its gradient is not finite, under a loss of {:.4g},"
_SHOWN = 8
_MOST_RUNS = 64


class LossError(ValueError):
    """The loss or gradient of a task was not finite in too many steps in a row, or where its task cannot be found."""


class Guard:
    """Keeps values that are not finite out of an update.

    Losses and the norm of the gradients, which clipping needs anyway, are read together, once a step. A norm that is
    not finite under finite losses has each task run by itself, to see whose gradient it is.

    Args:
        runtime: where it runs.
        sources: by task, the dataset that it reads.
        tally: counts the steps without a task.

    Attributes:
        grad_norm: of the step, before it was clipped.
    """

    grad_norm: torch.Tensor | float | None = None

    def __init__(self, runtime: Runtime, sources: Mapping[str, str], tally: Tally) -> None:
        self.runtime, self.sources, self.tally = runtime, dict(sources), tally
        self.non_finite: dict[str, dict[str, int]] = {}

    # What fails

    def read(self, step: Step, norm: torch.Tensor | float | None, more: torch.Tensor | None = None) -> list[float]:
        """Note the losses of a step over all processes, in one read by the host together with a norm.

        Args:
            step: at hand.
            norm: 0 is read where it is not known.
            more: numbers (N,) that are read as well.

        Returns:
            The norm, and the numbers.
        """
        totals_K = self.runtime.reduce(step.losses_K)
        if norm is None:  # DeepSpeed does not know one yet
            norm = 0.0
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        found = [totals_K, torch.as_tensor(norm, device=totals_K.device).reshape(1)]
        values = torch.cat(found if more is None else [*found, more.to(totals_K.device)]).tolist()
        step.losses = step.by_task(values[: len(totals_K)])
        return values[len(totals_K) :]

    def is_scaled_too_much(self) -> bool:
        """Whether gradients that are not finite may be due to the scale of fp16's loss, which skips the step then."""
        if self.runtime.engine == "DeepSpeed":
            return self.runtime.mixed_precision == "fp16"
        scaler = self.runtime.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def by_loss(self, step: Step) -> dict[str, str]:
        """By task whose loss is not finite, what is wrong in words."""
        return {name: _LOSS.format(loss) for name, loss in step.losses.items() if not math.isfinite(loss)}

    def by_gradient(self, step: Step, names: Sequence[str]) -> dict[str, str]:
        """By task whose gradient is not finite, what is wrong in words."""
        return {name: _GRADIENT.format(step.losses[name]) for name in names}

    def failed(self, step: Step, model: torch.nn.Module) -> dict[str, str]:
        """By task, what of it is not finite, in words; after the last backward pass. It clips the gradients."""
        drop_gradients(self.runtime.model, step.items)
        if not step.present:
            self._nothing_to_update(step)
            return {}
        self.grad_norm = self.runtime.clip(model, self.runtime.args.max_grad_norm)
        (norm,) = self.read(step, self.grad_norm)
        failed = self.by_loss(step)
        if failed or math.isfinite(norm) or self.is_scaled_too_much():
            return failed
        if self.runtime.engine:
            raise LossError(
                f"The gradient is not finite in step {self.runtime.step + 1}, while the losses of all its tasks "
                "are. It is sharded over the processes, so its task cannot be found, and training stops. Train "
                "without FSDP and DeepSpeed to find it, or lower the learning rate."
            )
        return self.by_gradient(step, self._failing_tasks(step))

    def _nothing_to_update(self, step: Step) -> None:
        """Leave the weights as they are: without a gradient the optimizer passes over them."""
        step.losses, self.grad_norm = {}, torch.zeros((), device=step.device)
        if self.runtime.scaler is not None:  # which needs a gradient to see, and skips one that is infinite
            parameter = next(one for one in self.runtime.model.parameters() if one.requires_grad)
            parameter.grad = torch.full_like(parameter, float("inf"))

    def _failing_tasks(self, step: Step) -> list[str]:
        """The tasks whose own gradient of the step is not finite; all of them, where it is that of none alone."""
        failing_K = torch.zeros(len(step.tasks), device=step.device)
        for number, name in enumerate(step.tasks):
            if name in step.present:
                others = [other for other in step.present if other != name]
                own = [rest for forward in step.forwards if (rest := without(forward, others)) is not None]
                failing_K[number] = float(self._fails(step, own))
        found_K = self.runtime.reduce(failing_K).tolist()
        return [name for name, ranks in zip(step.tasks, found_K, strict=True) if ranks] or step.present

    def _fails(self, step: Step, forwards: Sequence[Batch]) -> bool:
        """Whether the gradient of some forwards is not finite in this process; they leave no trace in training."""
        model = self.runtime.model
        alone: AbstractContextManager[None] = nullcontext()
        if self.runtime.processes > 1:  # none waits for another
            alone = aliased(model, {})
        with alone, undone(model, step.device), step.running(Apart()):
            for forward in forwards:
                if forward["labels"] or forward.get("soft_rows"):
                    self.runtime.forward_backward(model, dict(forward), step.num_items)
            found = [one.grad for one in model.parameters() if one.grad is not None]
            return not torch.nn.utils.get_total_norm(found).isfinite()

    # The step without it

    def leave_out(self, step: Step, failed: Mapping[str, str]) -> None:
        """Leave tasks out of a step, count them and log a warning.

        Raises:
            LossError: it was the last step in a row that ``non_finite_patience`` allows.
        """
        rows, number = self._rows_of(step, failed), self.runtime.step + 1
        most = 1 if self.runtime.engine else self.runtime.args.non_finite_patience
        for name, what in failed.items():
            counts = self.non_finite.setdefault(name, {"steps": 0, "in_a_row": 0})
            counts["steps"] += 1
            counts["in_a_row"] += 1
            self.tally.leave_out(name)
            sentence = describe(name, what, number, rows[name], self.sources[name])
            if counts["in_a_row"] >= most:
                raise LossError(
                    f"{sentence} It is the last of {counts['in_a_row']} such steps in a row, so training stops. Fix "
                    "the rows, or lower the learning rate; `non_finite_patience` sets how many such steps are allowed."
                )
            if self.runtime.is_main:
                logger.warning(f"{sentence} The step continues without the task.")
        step.leave_out(failed)
        self.runtime.model.zero_grad()
        if (scaler := self.runtime.scaler) is not None and scaler.is_enabled():
            scaler.update(scaler.get_scale())  # it has seen gradients of this step, and would not accept others

    def passed(self, step: Step) -> None:
        """Note the tasks of a step whose losses and gradients are finite."""
        for name in step.losses:
            self.non_finite.get(name, {})["in_a_row"] = 0

    def _rows_of(self, step: Step, failed: Mapping[str, str]) -> dict[str, list[int]]:
        """By task, the numbers of the rows whose loss or gradient is not finite, over all processes."""
        own: dict[str, list[int]] = {}
        for name, numbers in self._found_rows(step, failed):
            own.setdefault(name, []).extend(numbers)
        everywhere = self.runtime.gather(own)
        bad = {name: sorted({row for rows in everywhere for row in rows.get(name, [])}) for name in failed}
        if all(bad.values()):
            return bad
        every = {
            name: sorted({row for numbers in step.row_numbers for row in numbers.get(name, [])}) for name in failed
        }
        return {name: rows or every[name] for name, rows in bad.items()}

    def _found_rows(self, step: Step, failed: Mapping[str, str]) -> Iterator[tuple[str, list[int]]]:
        """Names of tasks with their rows that fail by themselves; none where parameters are sharded."""
        if self.runtime.engine:
            return
        for forward, numbers in zip(step.forwards, step.row_numbers, strict=True):
            names = [name for name in failed if name in forward["labels"]]
            by_loss = self._rows_by_loss(step, forward, numbers, names) if names else {}
            for name in names:
                yield name, by_loss[name] or self._rows_by_gradient(step, forward, numbers[name], name)

    def _rows_by_loss(
        self, step: Step, forward: Batch, numbers: Mapping[str, Sequence[int]], names: Sequence[str]
    ) -> dict[str, list[int]]:
        heads = cast("Mapping[str, Head]", self.runtime.model.heads)
        with random_state_kept(step.device), torch.no_grad(), self.runtime.autocast():
            given = self.runtime.prepare(dict(forward))
            logits = self.runtime.model(**plain(given)).logits
            losses = {name: heads[name].loss(logits[name], given["labels"][name]) for name in names}
        return {name: bad_rows(losses_N, numbers[name]) for name, losses_N in losses.items()}

    def _rows_by_gradient(self, step: Step, forward: Batch, numbers: Sequence[int], name: str) -> list[int]:
        def fails(items: Sequence[int]) -> bool:
            return self._fails(step, [only_items(forward, name, items)])

        return [numbers[item] for item in failing_items(len(numbers), fails)]

    # Checkpoints

    def state_dict(self) -> State:
        """The key ``non_finite`` of the state of a checkpoint."""
        return {"non_finite": {name: dict(counts) for name, counts in self.non_finite.items()}}

    def load_state_dict(self, state: Saved) -> None:
        """Continue the counts of a checkpoint."""
        self.non_finite = {name: dict(counts) for name, counts in state["non_finite"].items()}


def bad_rows(losses_N: torch.Tensor, numbers: Sequence[int]) -> list[int]:
    """The rows whose own loss is NaN or infinite."""
    return [number for number, finite in zip(numbers, losses_N.isfinite().tolist(), strict=True) if not finite]


def failing_items(count: int, fails: Callable[[Sequence[int]], bool]) -> list[int]:
    """Which of some items fail by themselves, found by halves; in 64 runs at most, after which a part counts whole.

    Args:
        count: how many there are.
        fails: whether some of them fail together, by their numbers.
    """
    found: list[int] = []
    parts = [list(range(count))]
    runs = 0
    while parts:
        part = parts.pop(0)
        runs += 1
        if runs > _MOST_RUNS:
            found += part
        elif fails(part):
            half = len(part) // 2
            if half:
                parts += [part[:half], part[half:]]
            else:
                found += part
    return sorted(found)


def describe(task: str, what: str, step: int, rows: Sequence[int], dataset: str) -> str:
    """What happened, in words."""
    listed = ", ".join(map(str, rows[:_SHOWN])) + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
    return (
        f"Task '{task}': {what} in step {step}, from row{'s' if len(rows) > 1 else ''} {listed} of the "
        f"training data of '{dataset}'."
    )
