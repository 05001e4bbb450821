"""What balancers and aggregators cost: the time of a step over that of a plain one, and the memory."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...aggregation import AGGREGATORS
from ...balancing import BALANCING, build_balancer
from ..parameters import freeze, last_shared_matrix, shared_parameters
from ..plain import State
from ..step.engine import Engine, build_engine
from ..step.gradients import TaskGradients
from ..step.rows import Batch
from ..step.update import AggregatedUpdate, UpdateBuilder
from ..step.weights import TaskWeights

if TYPE_CHECKING:
    from ..trainer import MultiTaskTrainer

Method = tuple[str, str]  # kind and name: there is a balancer and an aggregator `random`

BALANCERS, AGGREGATIONS = "balancing", "aggregation"
PLAIN = (BALANCERS, "none")
ROUNDS = 8  # steps of each method; the first is to warm up


@dataclass
class Price:
    """What a method costs.

    Args:
        kwargs: arguments that it was built with.
        time: its step over the plain one on the same rows, the median over the rounds.
        low: lower quartile of that.
        high: upper quartile.
        kept_mb: gradients that it keeps beside the plain one's, at most, computed.
        peak_mb: most that its step takes of a GPU's memory beyond the plain one's, measured; None on the CPU.
        problem: why it was not measured, in words; None where it was.
    """

    kwargs: State = field(default_factory=dict)
    time: float | None = None
    low: float | None = None
    high: float | None = None
    kept_mb: float | None = None
    peak_mb: float | None = None
    problem: str | None = None


def methods(tasks: Sequence[str]) -> dict[Method, State]:
    """All methods, with the arguments that they need."""
    equal = {"weights": dict.fromkeys(tasks, 1.0)}
    needed: dict[str, State] = {"fixed": equal, "constant": equal, "pcd": {"primary": tasks[0]}}
    names = [*((BALANCERS, name) for name in BALANCING), *((AGGREGATIONS, name) for name in AGGREGATORS)]
    return {method: needed.get(method[1], {}) for method in names}


class PriceList:
    """Runs all methods in turn on one model, step by step, on the rows of a run.

    A step is all of it: forward, backward, what the method does, clipping and the optimizer, whose learning rate is 0,
    so that all find the same weights. Balancers are not exact; evaluations, which CoBa reads, are not in it.

    Args:
        trainer: with a mixture; its balancing and aggregation are replaced.
        rounds: steps of each method.
    """

    def __init__(self, trainer: MultiTaskTrainer, *, rounds: int = ROUNDS) -> None:
        self.trainer, self.rounds = trainer, rounds
        self._gradients: TaskGradients | None = None  # shared by all methods, as they take much memory
        trainer.model = trainer.call_model_init()
        freeze(trainer.model, trainer.args.freeze or ())
        trainer.model.to(trainer.args.device)  # type: ignore[arg-type]
        trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
        trainer.optimizer = None
        self.optimizer = trainer.create_optimizer()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        size = trainer.args.gradient_accumulation_steps
        batches = list(islice(trainer.get_train_dataloader(), size * rounds))
        self.steps = [batches[start : start + size] for start in range(0, len(batches), size)]

    def plain(self) -> float:
        """Seconds of a plain step, the median of all but the first."""
        taken = [self._turn({}, PLAIN, {}, batches) for batches in islice(cycle(self.steps), self.rounds)]
        return statistics.median(taken[1:] or taken)

    def measure(self, progress: Callable[[], object] = lambda: None) -> tuple[float, dict[Method, Price]]:
        """Seconds of a plain step, and the price of every method.

        Args:
            progress: called after every step.
        """
        prices = {method: Price(kwargs) for method, kwargs in methods(list(self.trainer.tasks)).items()}
        engines: dict[Method, Engine] = {}
        taken: dict[Method, list[float]] = {method: [] for method in (PLAIN, *prices)}
        draw = random.Random(0)
        for number, batches in enumerate(islice(cycle(self.steps), self.rounds)):
            running = [PLAIN, *(method for method, price in prices.items() if price.problem is None)]
            for method in draw.sample(running, len(running)):
                seconds = self._try(engines, method, prices.get(method, Price()), batches)
                if number and seconds is not None:  # the first round warms up
                    taken[method].append(seconds)
                progress()
        for method, price in prices.items():
            if price.problem is None:
                ratios = np.array(taken[method]) / np.array(taken[PLAIN])
                price.low, price.time, price.high = (float(one) for one in np.percentile(ratios, [25, 50, 75]))
                price.kept_mb = self._kept(*method)
        self._measure_memory(prices)
        return statistics.median(taken[PLAIN]), prices

    def _engine(self, method: Method, kwargs: State) -> Engine:
        """The engine of a method, as it is before its first step."""
        trainer, (kind, name) = self.trainer, method
        aggregates = kind == AGGREGATIONS
        update = UpdateBuilder(trainer.runtime, list(trainer.tasks), None).named(
            name if aggregates else "none", kwargs if aggregates else None
        )
        if isinstance(update, AggregatedUpdate):
            update.reported = 0  # the report names them
            self._gradients = update.gradients = self._gradients or update.gradients
        weights = TaskWeights(
            None if aggregates else build_balancer(name, kwargs),
            list(trainer.tasks),
            trainer.task_weights,
            seed=trainer.args.seed,
            constants=trainer.constants,
        )
        sources = {name: task.source for name, task in trainer.tasks.items()}
        return build_engine(trainer.runtime, sources, list(trainer.plan.data.sizes), weights=weights, update=update)

    def _try(self, engines: dict[Method, Engine], method: Method, price: Price, batches: list[Batch]) -> float | None:
        """Seconds of a turn; None, and the problem noted, where the method cannot do it."""
        if method == PLAIN:
            return self._turn(engines, method, price.kwargs, batches)
        fresh = method not in engines
        try:
            seconds = self._turn(engines, method, price.kwargs, batches)
        except (ImportError, ValueError, TypeError, RuntimeError, ArithmeticError) as problem:
            self.trainer.model.zero_grad()
            price.problem = " ".join(str(problem).split()) or type(problem).__name__
            return None
        outcome = self.trainer.engine.update.outcome
        if fresh and outcome is not None and outcome.problem is not None:
            price.problem = f"its first step took the plain sum: {outcome.problem}"
            return None
        return seconds

    def _turn(self, engines: dict[Method, Engine], method: Method, kwargs: State, batches: list[Batch]) -> float:
        trainer = self.trainer
        if method not in engines:
            engines[method] = self._engine(method, kwargs)
        trainer.engine = engine = engines[method]
        engine.update.outcome = None
        start = time.perf_counter()
        items = engine.open(batches)
        for number, batch in enumerate(batches, 1):
            trainer.accelerator.gradient_state._set_sync_gradients(number == len(batches))
            trainer.training_step(trainer.model_wrapped, batch, items)
        self.optimizer.step()
        engine.after_update()
        trainer.model.zero_grad()
        if trainer.args.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    # Memory

    def _kept(self, kind: str, name: str) -> float:
        """The gradients that a method keeps, in MB."""
        tasks = len(self.trainer.tasks)
        if kind == AGGREGATIONS:
            shared = shared_parameters(self.trainer.model)
            return tasks * sum(one.numel() * one.element_size() for one in shared) / 2**20
        if BALANCING[name].reads_gradients:
            matrix = last_shared_matrix(self.trainer.model)
            return tasks * matrix.numel() * max(matrix.element_size(), 4) / 2**20
        return 0.0

    def _measure_memory(self, prices: dict[Method, Price]) -> None:
        if self.trainer.args.device.type != "cuda":
            return
        plain = self._peak(PLAIN, {})
        for method, price in prices.items():
            if price.problem is None:
                price.peak_mb = self._peak(method, price.kwargs) - plain

    def _peak(self, method: Method, kwargs: State) -> float:
        """Most memory that a step of a method takes, in MB, with nothing there of the others."""
        self._gradients = None
        engines: dict[Method, Engine] = {}
        self._turn(engines, method, kwargs, self.steps[0])  # compares engines, which takes memory of its own
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._turn(engines, method, kwargs, self.steps[0])
        return torch.cuda.max_memory_allocated() / 2**20
