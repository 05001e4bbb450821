"""How the gradients of a step become one update: plainly, or by an aggregator of the per-task gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import nn
from transformers.utils import logging

from ...aggregation import Aggregator, Outcome, Products, as_aggregator, build_aggregator, combine
from ..automatic import settled
from ..parameters import own_parameters, shared_parameters
from ..plain import Saved, State
from ..runtime import Figure, Runtime
from .gradients import TaskGradients, average, average_over
from .guard import Guard
from .rows import Batch, Step

logger = logging.get_logger(__name__)


class PlainUpdate:
    """The update of the Trainer: the gradient of the weighted sum of the task losses.

    Args:
        runtime: where it runs.
        tasks: names of the tasks of the run.

    Attributes:
        gradients: of single tasks, for whoever measures them.
        method: its name in checkpoints.
    """

    aggregator: Aggregator | None = None
    outcome: Outcome | None = None
    method = "none"

    def __init__(self, runtime: Runtime, tasks: Sequence[str]) -> None:
        self.runtime = runtime
        self.gradients = TaskGradients(runtime, tasks, updates=self.aggregator is not None)

    @cached_property
    def waits_for_heads(self) -> bool:
        """Whether the processes wait for the gradients of heads that one of them has no row for."""
        searched = self.runtime.args.ddp_find_unused_parameters and not self.runtime.engine
        return self.runtime.processes > 1 and not searched

    def runs_once(self, step: Step) -> bool:
        """Whether the step is one forward, which gives the losses of all tasks by itself."""
        return len(step.forwards) == 1 and self.runtime.processes == 1

    def begin(self, step: Step) -> None:
        """Begin a step, or begin it again."""

    def run(self, step: Step, model: nn.Module, forwards: Sequence[Batch]) -> None:
        """Forward and backward of some parts of a step; processes reduce their gradients at the last."""
        *parts, last = forwards
        for part in parts:
            with self.runtime.no_sync(model):
                step.loss += self.runtime.forward_backward(model, part, step.num_items)
        step.loss += self.runtime.forward_backward(model, last, step.num_items)

    def close(self, step: Step, guard: Guard) -> dict[str, str]:  # noqa: ARG002
        """Make the gradients of a step those of its update, after the last backward pass.

        Returns:
            By task whose gradient is not finite, what is wrong in words.
        """
        return {}

    def figures(self) -> Iterator[Figure]:
        """Nothing."""
        return iter(())

    # Checkpoints

    def state_dict(self) -> State:
        """The key ``aggregation`` of the state of a checkpoint."""
        state: State = {"method": self.method}
        if self.gradients.fallback:
            state["fallback"] = self.gradients.fallback
        return {"aggregation": state}

    def load_state_dict(self, state: Saved) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it is of another method.
        """
        saved, folder = state["aggregation"], state["folder"]
        then = saved.get("method", self.method)  # checkpoints of early versions do not say
        if then != self.method:
            raise ValueError(
                f"The aggregation of this run and of checkpoint '{folder}' differ: {self.method} now, {then} then. "
                "Put it back."
            )
        self.gradients.fallback = saved.get("fallback")


class AggregatedUpdate(PlainUpdate):
    """One update of the shared parameters from the gradients of all tasks.

    Heads, and branches of one task, keep their plain gradients. Gradients of processes are averaged before the method
    weighs them.

    Args:
        runtime: where it runs.
        tasks: names of the tasks of the run.
        aggregator: the method.
        method: its name in checkpoints.

    Attributes:
        outcome: of the last update.
        reported: failures of the method that are reported one by one.
    """

    reported = 3
    waits_for_heads = False

    def __init__(self, runtime: Runtime, tasks: Sequence[str], aggregator: Aggregator, method: str) -> None:
        self.aggregator, self.method = aggregator, method
        super().__init__(runtime, tasks)
        self._failures = self._logged_failures = 0

    def runs_once(self, step: Step) -> bool:  # noqa: ARG002
        """Never: a forward runs in parts."""
        return False

    def begin(self, step: Step) -> None:  # noqa: D102
        self.gradients.begin(step)

    def run(self, step: Step, model: nn.Module, forwards: Sequence[Batch]) -> None:  # noqa: ARG002
        """Forward and backward of some parts of a step, whose per-task gradients are collected."""
        for part in forwards:
            step.loss += self.gradients.run(step, part)

    def close(self, step: Step, guard: Guard) -> dict[str, str]:
        """See :class:`PlainUpdate`; a method sees only gradients that are finite."""
        if not step.present:
            return {}
        if self.runtime.processes > 1:
            self._average_heads(step)
        self.gradients.blocks.close(average_over(self.runtime))
        products_KK = self.gradients.blocks.products()
        heads = torch.nn.utils.get_total_norm(self._head_gradients(step.present))
        norm, *products = guard.read(step, heads, products_KK.flatten())
        if guard.by_loss(step):
            return {}  # which the guard finds once more
        if not math.isfinite(norm) and not guard.is_scaled_too_much():
            return guard.by_gradient(step, self._broken_heads(step))
        size = len(step.present)
        return guard.by_gradient(step, self._combine(step, guard, [products[k * size :][:size] for k in range(size)]))

    def _head_gradients(self, names: Iterable[str]) -> list[torch.Tensor]:
        own = (one for name in names for one in own_parameters(self.runtime.model, name))
        return [one.grad for one in own if one.grad is not None]

    def _broken_heads(self, step: Step) -> list[str]:
        norms = {name: torch.nn.utils.get_total_norm(self._head_gradients([name])) for name in step.present}
        return [name for name, norm in norms.items() if not norm.isfinite()]

    def _combine(self, step: Step, guard: Guard, products: Products) -> Sequence[str]:
        """Make one update of the gradients of the tasks, or find those of which one is not finite."""
        runtime, blocks, scaler = self.runtime, self.gradients.blocks, self.runtime.scaler
        self.outcome = combine(
            self.aggregator,  # type: ignore[arg-type]
            blocks,
            step.present,
            seed=(runtime.args.seed * 1_000_003 + runtime.step) % 2**63,
            scale=1.0 if scaler is None else scaler.get_scale(),
            products=products,
        )
        if self.outcome.problem is not None:
            if self.outcome.broken:
                return () if guard.is_scaled_too_much() else self.outcome.broken
            self._failures += 1
            if self._failures <= self.reported and runtime.is_main:
                end = " Further ones are only counted." if self._failures == self.reported else ""
                logger.warning(
                    f"Step {runtime.step + 1}: the aggregator found no update ({self.outcome.problem}). The "
                    f"plain sum of the task gradients is used instead.{end}"
                )
        return ()

    def _average_heads(self, step: Step) -> None:
        """Average the gradients of the heads, and of branches of one task, that any process has one for."""
        for name in step.present:
            for parameter in own_parameters(self.runtime.model, name):
                if parameter.requires_grad:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    average(parameter.grad)

    def figures(self) -> Iterator[Figure]:
        """``aggregation_failures``, the number of steps since the last log that used the plain sum, if any."""
        new, self._logged_failures = self._failures - self._logged_failures, self._failures
        if new:
            yield None, "aggregation_failures", new

    def state_dict(self) -> State:  # noqa: D102
        state = super().state_dict()
        state["aggregation"]["state"] = self.aggregator.state_dict()  # type: ignore[union-attr]
        return state

    def load_state_dict(self, state: Saved) -> None:  # noqa: D102
        super().load_state_dict(state)
        if saved := state["aggregation"].get("state"):
            try:
                self.aggregator.load_state_dict(saved)  # type: ignore[union-attr]
            except (KeyError, TypeError, AttributeError) as problem:
                raise ValueError(
                    f"What '{self.method}' remembers in checkpoint '{state['folder']}' is not of this method and these "
                    "aggregation_kwargs. Put them back."
                ) from problem


class UpdateBuilder:
    """Makes the update of every training of a run, with a method that remembers nothing of the one before.

    Args:
        runtime: where it runs.
        tasks: names of the tasks of the run.
        given: an aggregator, or a weighting of torchjd's; None for the one of the arguments.

    Raises:
        TypeError: it is neither.
        ValueError: see :meth:`build`.
    """

    def __init__(self, runtime: Runtime, tasks: Sequence[str], given: object | None) -> None:
        self.runtime, self.tasks = runtime, list(tasks)
        self.given = None if given is None else as_aggregator(given)
        self._beginning = {} if self.given is None else copy.deepcopy(self.given.state_dict())

    def build(self) -> PlainUpdate:
        """The update that the arguments set.

        Raises:
            ValueError: it does not fit the tasks or the run.
        """
        args = self.runtime.args
        return self.named(settled(args.aggregation), args.aggregation_kwargs)  # type: ignore[arg-type]

    def named(self, aggregation: str, kwargs: dict[str, object] | None) -> PlainUpdate:
        """The update by a method of this name.

        Args:
            aggregation: "none", or the name of an aggregator.
            kwargs: of the aggregator.

        Raises:
            ValueError: it does not fit the tasks or the run.
        """
        named = build_aggregator(aggregation, kwargs)
        if self.given is not None and named is not None:
            raise ValueError(
                f"There is an aggregator, and aggregation='{aggregation}' names another. Give one of them."
            )
        aggregator = named or self.given
        if aggregator is None:
            return PlainUpdate(self.runtime, self.tasks)
        aggregator.check_tasks(self.tasks)
        if problem := why_not_aggregated(self.runtime):
            raise ValueError(f"An aggregator needs {problem}")
        if self.given is not None and self._beginning:
            self.given.load_state_dict(copy.deepcopy(self._beginning))
        method = type(self.given).__name__ if self.given is not None else str(aggregation).lower()
        return AggregatedUpdate(self.runtime, self.tasks, aggregator, method.replace("-", "_"))


def why_not_aggregated(runtime: Runtime) -> str | None:
    """What an aggregator needs that a run does not have, and what to do, in words; None where it has all."""
    if runtime.engine:
        return (
            f"whole gradients, and {runtime.engine} shards them. Set aggregation='none', or train with plain data "
            "parallelism."
        )
    if runtime.compiles:
        return (
            "the gradients of single rows, which the layers of a compiled backbone do not show. Set "
            "aggregation='none', or leave out torch_compile."
        )
    if runtime.model.config.adapters and runtime.model.config.adapters["tasks"]:
        return (
            "a backbone that all tasks share, and task_lora gives tasks parts of their own. Set aggregation='none', "
            "or use lora alone."
        )
    if not shared_parameters(runtime.model):
        return "shared parameters that train, and the backbone is frozen, or its shared layers. Set aggregation='none'."
    return None
