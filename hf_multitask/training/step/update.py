"""The step of a trainer with an aggregator: gradients task by task, one update of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ...aggregation import Aggregator, Outcome, as_aggregator, build_aggregator, combine
from ..parameters import shared_parameters
from .gradients import GradientsTrainer, average
from .nonfinite import non_finite
from .weights import Balance

logger = logging.get_logger(__name__)

_TOLD = 3  # failures of a method that are told one by one


class AggregatingTrainer(GradientsTrainer):
    """The Trainer, whose shared parameters get one update of the gradients of all tasks.

    Heads have one task each and keep their plain gradients. Gradients of ranks are averaged before the method weighs
    them.
    """

    own_aggregator: Aggregator | None = None
    outcome: Outcome | None = None
    _failures = 0
    _logged_failures = 0

    def _set_aggregator(self, given: Any) -> None:
        """Take the aggregator of the arguments, or one that is given in its place.

        Raises:
            ValueError: it does not fit the tasks or the run.
        """
        self.own_aggregator = None if given is None else as_aggregator(given)
        self._beginning = {} if self.own_aggregator is None else copy.deepcopy(self.own_aggregator.state_dict())
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
        if not shared_parameters(self.model):
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
        if self.own_aggregator is not None and self._beginning:
            self.own_aggregator.load_state_dict(copy.deepcopy(self._beginning))
        self._blocks, self._failures, self._logged_failures = None, 0, 0
        return super().train(resume_from_checkpoint, **kwargs)

    def _begin_again(self) -> None:
        super()._begin_again()
        self._build_aggregator()
        self._blocks = None
        state = self.progress.aggregation.get("state")
        if self.aggregator is not None and state:
            self.aggregator.load_state_dict(state)

    @property
    def _waits_for_heads(self) -> bool:
        return self.aggregator is None and super()._waits_for_heads

    # What it is going to do, and what it remembers

    def describe_aggregation(self) -> str:
        """Which engine tells the gradients of the tasks apart, and the memory that they take, in a sentence or two."""
        name = type(self.aggregator).__name__ if self.args.aggregation == "none" else self.args.aggregation
        return f"Aggregation: {name}, {self._describe_engine()}"

    @property
    def _method(self) -> str:
        """The name of the method, for checkpoints."""
        if self.own_aggregator is not None:
            return type(self.own_aggregator).__name__
        return str(self.args.aggregation).lower().replace("-", "_")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.progress.aggregation["method"] = self._method
        if self.aggregator is not None:
            self.progress.aggregation["state"] = self.aggregator.state_dict()
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved, now = self.progress.aggregation, self._method
        then = saved.get("method", now)  # checkpoints of old do not say
        if then != now:
            raise ValueError(
                f"The aggregation of this run and of checkpoint '{resume_from_checkpoint}' differ: {now} now, {then} "
                "then. Put it back."
            )
        if self.aggregator is not None and saved.get("state"):
            try:
                self.aggregator.load_state_dict(saved["state"])
            except (KeyError, TypeError, AttributeError) as problem:
                raise ValueError(
                    f"What '{now}' remembers in checkpoint '{resume_from_checkpoint}' is not of this method and these "
                    "aggregation_kwargs. Put them back."
                ) from problem
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

    def _run(self, model: nn.Module, forwards: list[dict[str, Any]], num_items: Any) -> None:
        """Forward and backward of some parts of a step, with the gradients of the tasks apart."""
        if self.aggregator is None:
            super()._run(model, forwards, num_items)
            return
        for part in forwards:
            self._step_loss += self._run_part(self._prepare_inputs(part), num_items)

    def _failed(self, model: nn.Module, num_items: Any) -> dict[str, str]:
        if self.aggregator is not None and self._present:
            if self.accelerator.num_processes > 1:
                self._average_heads()
            self._losses, norm = self._read(torch.nn.utils.get_total_norm(self._head_gradients(self._present)))
            if not non_finite(self._losses):
                good = math.isfinite(norm) or self._is_scaled_too_much()
                if broken := self._update() if good else self._broken_heads():  # no method sees what is left out
                    return self._by_gradient(broken)
        return super()._failed(model, num_items)

    def _head_gradients(self, names: Iterable[str]) -> list[torch.Tensor]:
        heads = (self.model.heads[name] for name in names)
        return [one.grad for head in heads for one in head.parameters() if one.grad is not None]

    def _broken_heads(self) -> tuple[str, ...]:
        norms = {name: torch.nn.utils.get_total_norm(self._head_gradients([name])) for name in self._present}
        return tuple(name for name, norm in norms.items() if not norm.isfinite())

    def _update(self) -> tuple[str, ...]:
        """Make one update of the gradients of the tasks, or find those of which one is not finite."""
        blocks = self._opened()
        several = self.accelerator.num_processes > 1
        blocks.close(average if several else None)
        scaler = self.accelerator.scaler
        self.outcome = combine(
            self.aggregator,  # type: ignore[arg-type]
            blocks,
            self._present,
            seed=(self.args.seed * 1_000_003 + self.state.global_step) % 2**63,
            scale=1.0 if scaler is None else scaler.get_scale(),
        )
        if self.outcome.broken:
            return () if self._is_scaled_too_much() else self.outcome.broken
        if self.outcome.problem is not None:
            self._failures += 1
            if self._failures <= _TOLD and self.is_world_process_zero():
                end = " Further ones are only counted." if self._failures == _TOLD else ""
                logger.warning(
                    f"Step {self.state.global_step + 1}: the aggregator found no update ({self.outcome.problem}). The "
                    f"plain sum of the task gradients is taken instead.{end}"
                )
        return ()

    def _average_heads(self) -> None:
        """Average the gradients of the heads that any rank has one for."""
        for name in self._present:
            for parameter in self.model.heads[name].parameters():
                if parameter.requires_grad:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    average(parameter.grad)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how many steps since the last log took the plain sum, ``aggregation_failures``, where any did."""
        if "loss" in logs and self._failures > self._logged_failures:
            logs["aggregation_failures"] = self._failures - self._logged_failures
            self._logged_failures = self._failures
        super().log(logs, start_time)
