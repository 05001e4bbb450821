"""What the gradients of the tasks say to each other while they train: norms and cosines in the logs, now and then."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from ...aggregation import Outcome
from ..parameters import shared_parameters
from ..report.console import MANY
from .aliases import aliased
from .gradients import average
from .rows import Batch
from .update import AggregatingTrainer

logger = logging.get_logger(__name__)

INTERVAL = 200  # optimizer steps, of which the first measurement, the dearest, then costs less than 2 %
_MOST = 1024.0  # MiB of gradients that are taken without being asked for
_PAIRS = 8  # tasks whose pairs are logged one by one; 28 of them
Pair = tuple[str, str]


class Means:
    """Means of the norms and cosines of the tasks' gradients since the last log.

    Args:
        sums: ``norms`` by task, ``cosines`` by pair, ``a/b``, and ``mean`` over the pairs of a step: each the sum of
            what was measured, and how often it was. Filled here, in a form that a checkpoint holds.
        tasks: of the run. Of more than 20 single pairs are not kept.
    """

    def __init__(self, sums: dict[str, dict[str, list[float]]], tasks: Sequence[str]) -> None:
        self._sums, self._tasks = sums, list(tasks)

    def add(self, outcome: Outcome) -> None:
        """Take in a step; a task whose gradient is zero has no angle to others."""
        norms = outcome.gramian.diagonal().sqrt().tolist()
        for name, norm in zip(outcome.tasks, norms, strict=True):
            self._count("norms", name, norm)
        active = [number for number, norm in enumerate(norms) if norm > 0]
        if len(active) < 2:
            return
        cosines_KK = outcome.cosines[active][:, active]
        upper = cosines_KK[tuple(torch.triu_indices(len(active), len(active), 1))]
        self._count("mean", "", float(upper.mean()))
        if len(self._tasks) <= MANY:
            names = [outcome.tasks[number] for number in active]
            for (one, other), cosine in zip(itertools.combinations(names, 2), upper.tolist(), strict=True):
                self._count("cosines", f"{one}/{other}", cosine)

    def _count(self, what: str, key: str, value: float) -> None:
        total, times = self._sums.setdefault(what, {}).get(key, (0.0, 0))
        self._sums[what][key] = [total + value, times + 1]

    def _means(self, what: str) -> dict[str, float]:
        return {key: total / times for key, (total, times) in self._sums.get(what, {}).items()}

    @property
    def norms(self) -> dict[str, float]:
        """By task."""
        return self._means("norms")

    @property
    def cosines(self) -> dict[Pair, float]:
        """By pair, in the order of the tasks."""
        found = self._means("cosines")
        pairs = itertools.combinations(self._tasks, 2)
        return {(one, other): found[key] for one, other in pairs if (key := f"{one}/{other}") in found}

    @property
    def mean(self) -> float | None:
        """Of the cosines."""
        return self._means("mean").get("")

    def logs(self) -> dict[str, float]:
        """What a log says of it; a name of a task has no slash, so no metric of a task has these names."""
        norms, cosines = self.norms, self.cosines
        logs = {f"{name}_grad_norm": norms[name] for name in self._tasks if name in norms}
        if len(self._tasks) > _PAIRS:
            if self.mean is not None:
                logs["cosine/mean"] = self.mean
            cosines = dict(sorted(cosines.items(), key=lambda entry: entry[1])[:1])  # the worst pair alone
        return logs | {f"cosine/{one}/{other}": cosine for (one, other), cosine in cosines.items()}


class InsightTrainer(AggregatingTrainer):
    """The Trainer, which logs the norms of its tasks' gradients and the cosines between them.

    An aggregator tells them. Without one the forwards of a step are run once more, apart from training and as if all
    weights were 1, before the optimizer moves the model.

    Attributes:
        gradient_interval: optimizer steps from one measurement to the next; 0 for none.
        cosines: by pair of tasks, what the log at hand says; None where it says nothing.
    """

    gradient_interval = 0
    cosines: dict[Pair, float] | None = None
    _measuring = False
    _on_any_rank: Callable[[bool], bool]

    # When

    def _set_aggregator(self, given: Any) -> None:
        super()._set_aggregator(given)
        self._begin_measuring()

    def _begin_measuring(self) -> None:
        """Find out how often to measure; of a search, the model and its frozen parts are known at the beginning."""
        self.gradient_interval = self._find_interval()
        self._aliases: dict[torch.nn.Parameter, torch.nn.Parameter] = {}

    def _find_interval(self) -> int:
        """How many steps there are between measurements.

        Raises:
            ValueError: they are asked for where there is nothing to measure.
        """
        asked = self.args.gradient_logging_steps
        if self.aggregator is not None:
            return 1 if asked is None else asked
        if asked == 0:
            return 0
        problem = self._why_not_apart()
        if asked is not None:
            if problem is not None:
                raise ValueError(f"`gradient_logging_steps = {asked}`: {problem} Set gradient_logging_steps=0.")
            return asked
        precise = self.args.device.type != "mps"  # which has no float64
        few = len(self.tasks) <= MANY and self._most_gradients()[1] <= _MOST
        return INTERVAL if problem is None and precise and few else 0

    def _why_not_apart(self) -> str | None:
        """Why there are no gradients of tasks to compare, in a sentence; None where there are."""
        if len(self.tasks) < 2:
            return "gradients are compared between tasks, and there is one task."
        if self._sharded:
            engine = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP"
            return f"gradients of single tasks are measured whole, and {engine} shards them."
        if self.model.config.adapters and self.model.config.adapters["tasks"]:
            return "gradients are compared where tasks share all parts, and task_lora gives them parts of their own."
        if not shared_parameters(self.model):
            return "gradients are compared where tasks share parameters that train, and the backbone is frozen."
        return None

    def describe_gradient_logging(self) -> str:
        """When and how the gradients of the tasks are measured, and the memory that they take, in a sentence."""
        return f"Gradient logging: every {self.gradient_interval:,} steps, {self._describe_engine()}"

    # The measurement

    def _end_step(self, model: torch.nn.Module, num_items: Any) -> torch.Tensor:
        loss = super()._end_step(model, num_items)
        due = self.gradient_interval and (self.state.global_step + 1) % self.gradient_interval == 0
        if due and self._present:
            outcome = self._unweighted(self.outcome) if self.aggregator is not None else self._measure(num_items)
            if outcome is not None and outcome.gramian.isfinite().all():
                Means(self.progress.gradients, list(self.tasks)).add(outcome)
        return loss

    def _unweighted(self, outcome: Outcome | None) -> Outcome | None:
        """What an aggregator has seen, as if all weights had been 1; nothing of tasks whose weight was 0."""
        if outcome is None:
            return None
        given = self._step_weights or {}
        weighed = [number for number, name in enumerate(outcome.tasks) if given.get(name, 1.0)]
        tasks = tuple(outcome.tasks[number] for number in weighed)
        weights_K = torch.tensor([given.get(name, 1.0) for name in tasks], dtype=torch.float64)
        return Outcome(tasks, outcome.gramian[weighed][:, weighed] / torch.outer(weights_K, weights_K), None)

    def _measure(self, num_items: Any) -> Outcome | None:
        """The gradients of a step, none where they could not be measured; training goes on as if nothing had been."""
        self._measuring = True
        try:
            with aliased(self.model, self._aliases), self._undone():
                gramian_KK, problem = self._measured_gramian(num_items)
                self._opened().release()
        finally:
            self._measuring = False
        scaler = self.accelerator.scaler
        if gramian_KK is not None:
            if scaler is not None:  # too large a scale gives infinite gradients, which the optimizer passes over too
                gramian_KK /= scaler.get_scale() ** 2
            elif not gramian_KK.isfinite().all():
                norms = zip(self._present, gramian_KK.diagonal().tolist(), strict=True)
                broken = [name for name, norm in norms if not 0 <= norm < float("inf")]
                problem = f"the gradient of {', '.join(broken) or 'a task'} is not finite"
        if problem is not None:
            self.gradient_interval = 0
            if self.is_world_process_zero():
                logger.warning(
                    f"Step {self.state.global_step + 1}: the gradients of the tasks could not be measured ({problem}). "
                    "They are logged no more, and training goes on. Set gradient_logging_steps=0 to do without."
                )
            return None
        return None if gramian_KK is None else Outcome(tuple(self._present), gramian_KK, None)

    def _measured_gramian(self, num_items: Any) -> tuple[torch.Tensor | None, str | None]:
        """The Gramian of a step, or what went wrong on this rank or another, in words."""
        self._row_split()
        blocks, alone = self._opened(), self.accelerator.num_processes == 1
        blocks.begin(len(self._present))
        problem = None
        try:
            for forward in self._forwards:
                self._run_part(self._prepare_inputs(forward), num_items)
            if alone:
                blocks.close()
                return blocks.gramian(), None
        except Exception as found:  # figures are not worth a run, whatever a model or a device makes of them
            problem = (str(found).strip().splitlines() or [type(found).__name__])[0].rstrip(".")
        if self._on_any_rank(problem is not None):
            return None, problem or "it failed in another process"
        blocks.close(average)
        return blocks.gramian(), None

    def _weights_of(self, losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
        return dict.fromkeys(self._present, 1.0) if self._measuring else super()._weights_of(losses)

    def _take_in(self, losses: Mapping[str, torch.Tensor], batch: Batch) -> None:
        if not self._measuring:
            super()._take_in(losses, batch)

    @property
    def _waits_for_heads(self) -> bool:
        return not self._measuring and super()._waits_for_heads

    # Logs

    def _log_tasks(self, logs: dict[str, float]) -> None:
        super()._log_tasks(logs)
        measured = Means(self.progress.gradients, list(self.tasks))
        logs.update(measured.logs())
        self.cosines = measured.cosines
        self.progress.gradients = {}


class InsightCallback(TrainerCallback):
    """Begins the measurements of a training.

    Args:
        trainer: whose they are.
    """

    def __init__(self, trainer: InsightTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Begin anew."""
        self.trainer._begin_measuring()
