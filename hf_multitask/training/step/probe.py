"""Norms of the per-task gradients and cosines between them, measured at intervals while the tasks train."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from transformers.utils import logging

from ...aggregation import Outcome
from ...hub.records import MEAN_COSINE, pair_key
from ..parameters import shared_parameters
from ..plain import Saved, State
from ..runtime import Figure, Runtime
from .apart import aliased, undone
from .gradients import TaskGradients, average_over
from .rows import Apart, Step
from .update import AggregatedUpdate, PlainUpdate

logger = logging.get_logger(__name__)

INTERVAL = 200  # optimizer steps, of which the first measurement, the most expensive, then costs less than 2 %
MANY = 20  # tasks, above which single pairs are not kept
_MOST = 1024.0  # MiB of gradients that are kept by default
_PAIRS = 8  # tasks whose pairs are logged one by one; 28 of them
Pair = tuple[str, str]
Sums = dict[str, dict[str, list[float]]]


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
        """Add a step; a task whose gradient is zero has no cosine with others."""
        rows = outcome.rows
        norms = [math.sqrt(max(row[number], 0.0)) for number, row in enumerate(rows)]
        for name, norm in zip(outcome.tasks, norms, strict=True):
            self._count("norms", name, norm)
        active = [number for number, norm in enumerate(norms) if norm > 0]
        if len(active) < 2:
            return
        pairs = list(itertools.combinations(active, 2))
        cosines = [rows[one][other] / (norms[one] * norms[other]) for one, other in pairs]
        self._count("mean", "", math.fsum(cosines) / len(cosines))
        if len(self._tasks) <= MANY:
            for (one, other), cosine in zip(pairs, cosines, strict=True):
                self._count("cosines", f"{outcome.tasks[one]}/{outcome.tasks[other]}", cosine)

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
        pairs = itertools.combinations(self._tasks, 2) if found else ()  # too many pairs where none are kept
        return {(one, other): found[key] for one, other in pairs if (key := f"{one}/{other}") in found}

    @property
    def mean(self) -> float | None:
        """Of the cosines."""
        return self._means("mean").get("")

    def figures(self) -> Iterator[Figure]:
        """What a log reports; a name of a task has no slash, so no metric of a task has these names."""
        norms, cosines = self.norms, self.cosines
        yield from ((name, "grad_norm", norms[name]) for name in self._tasks if name in norms)
        if len(self._tasks) > _PAIRS:
            if self.mean is not None:
                yield None, MEAN_COSINE, self.mean
            cosines = dict(sorted(cosines.items(), key=lambda entry: entry[1])[:1])  # the worst pair alone
        yield from ((None, pair_key(*pair), cosine) for pair, cosine in cosines.items())


class Probe(ABC):
    """Measures the gradients of some steps.

    Args:
        runtime: where it runs.
        tasks: names of the tasks of the run.

    Attributes:
        interval: optimizer steps from one measurement to the next; 0 for none.
        cosines: by pair of tasks, what the last log reports.
    """

    interval = 0

    def __init__(self, runtime: Runtime, tasks: Sequence[str]) -> None:
        self.runtime, self.tasks = runtime, list(tasks)
        self._sums: Sums = {}
        self.cosines: dict[Pair, float] = {}

    def begin(self) -> None:
        """Find out how often to measure; the model and its frozen parts are known when a training begins.

        Raises:
            ValueError: measurements are set where there is nothing to measure.
        """
        interval = self.runtime.args.gradient_logging_steps
        self.interval = self.usual_interval() if interval is None else interval
        if interval and (problem := self.why_not()) is not None:
            raise ValueError(f"`gradient_logging_steps = {interval}`: {problem} Set gradient_logging_steps=0.")

    @abstractmethod
    def usual_interval(self) -> int:
        """The interval where the arguments give none."""

    @abstractmethod
    def why_not(self) -> str | None:
        """Why there is nothing to measure, in a sentence; None where there is something."""

    @abstractmethod
    def measure(self, step: Step) -> Outcome | None:
        """The gradients of a step as if all weights were 1; None where they are not known."""

    def on_step(self, step: Step) -> None:
        """Measure a step that is over, before the optimizer moves the model, where one is due."""
        due = self.interval and (self.runtime.step + 1) % self.interval == 0
        if due and step.present:
            outcome = self.measure(step)
            if outcome is not None and all(map(math.isfinite, itertools.chain(*outcome.rows))):
                self.means.add(outcome)

    @property
    def means(self) -> Means:
        """Of what was measured since the last log."""
        return Means(self._sums, self.tasks)

    def figures(self) -> Iterator[Figure]:
        """What a log reports since the last one; the next log then starts from zero."""
        means, self._sums = self.means, {}
        self.cosines = means.cosines
        return means.figures()

    # Checkpoints

    def state_dict(self) -> State:
        """The key ``gradients`` of the state of a checkpoint."""
        return {"gradients": self._sums}

    def load_state_dict(self, state: Saved) -> None:
        """Continue from a checkpoint."""
        self._sums = state["gradients"]


class UpdateProbe(Probe):
    """Reads the gradients that an aggregator has seen.

    Args:
        runtime: where it runs.
        tasks: names of the tasks of the run.
        update: whose gradients they are.
    """

    def __init__(self, runtime: Runtime, tasks: Sequence[str], update: AggregatedUpdate) -> None:
        super().__init__(runtime, tasks)
        self.update = update

    def usual_interval(self) -> int:
        """Every step, as nothing runs for it."""
        return 1

    def why_not(self) -> None:
        """An aggregator has gradients."""

    def measure(self, step: Step) -> Outcome | None:
        """See :class:`Probe`; tasks whose weight was 0 are left out."""
        outcome = self.update.outcome
        if outcome is None:
            return None
        given = step.weights or {}
        weighed = [number for number, name in enumerate(outcome.tasks) if given.get(name, 1.0)]
        tasks = tuple(outcome.tasks[number] for number in weighed)
        scales = [given.get(name, 1.0) for name in outcome.tasks]
        values = [[outcome.rows[one][other] / (scales[one] * scales[other]) for other in weighed] for one in weighed]
        return Outcome(tasks, torch.tensor(values, dtype=torch.float64), None, values=values)


class PassProbe(Probe):
    """Runs the forwards of a step once more, apart from training.

    Args:
        runtime: where it runs.
        tasks: names of the tasks of the run.
        gradients: what runs them.
    """

    def __init__(self, runtime: Runtime, tasks: Sequence[str], gradients: TaskGradients) -> None:
        super().__init__(runtime, tasks)
        self.gradients = gradients
        self._aliases: dict[torch.nn.Parameter, torch.nn.Parameter] = {}

    def begin(self) -> None:  # noqa: D102
        super().begin()
        self._aliases = {}

    def usual_interval(self) -> int:
        """Every 200 steps, where that takes little memory."""
        precise = self.runtime.device.type != "mps"  # which has no float64
        few = len(self.tasks) <= MANY and self.gradients.most()[1] <= _MOST
        return INTERVAL if self.why_not() is None and precise and few else 0

    def why_not(self) -> str | None:  # noqa: D102
        if len(self.tasks) < 2:
            return "gradients are compared between tasks, and there is one task."
        if self.runtime.engine:
            return f"gradients of single tasks are measured whole, and {self.runtime.engine} shards them."
        model = self.runtime.model
        if model.config.adapters and model.config.adapters["tasks"]:
            return "gradients are compared where tasks share all parts, and task_lora gives them parts of their own."
        if not shared_parameters(model):
            return "gradients of shared weights are compared, and the backbone is frozen, or its shared layers."
        return None

    def measure(self, step: Step) -> Outcome | None:
        """See :class:`Probe`; if they cannot be measured, training continues as without the measurement."""
        runtime, ones = self.runtime, dict.fromkeys(step.present, 1.0)
        with aliased(runtime.model, self._aliases), undone(runtime.model, step.device), step.running(Apart(ones)):
            gramian_KK, problem = self._gramian(step)
            self.gradients.blocks.release()
        if gramian_KK is not None:
            if runtime.scaler is not None:  # too large a scale gives infinite gradients, which the optimizer skips
                gramian_KK /= runtime.scaler.get_scale() ** 2
            elif not gramian_KK.isfinite().all():
                norms = zip(step.present, gramian_KK.diagonal().tolist(), strict=True)
                broken = [name for name, norm in norms if not 0 <= norm < float("inf")]
                problem = f"the gradient of {', '.join(broken) or 'a task'} is not finite"
        if problem is not None:
            self.interval = 0
            if runtime.is_main:
                logger.warning(
                    f"Step {runtime.step + 1}: the gradients of the tasks could not be measured ({problem}). "
                    "They are no longer logged, and training continues. Set gradient_logging_steps=0 to turn them off."
                )
            return None
        return None if gramian_KK is None else Outcome(tuple(step.present), gramian_KK, None)

    def _gramian(self, step: Step) -> tuple[torch.Tensor | None, str | None]:
        """The Gramian of a step, or what went wrong in this process or another, in words."""
        runtime, blocks = self.runtime, self.gradients.begin(step)
        problem = None
        try:
            for forward in step.forwards:
                self.gradients.run(step, forward)
            if runtime.processes == 1:
                blocks.close()
                return blocks.gramian(), None
        except Exception as found:  # figures are not worth a run, whatever a model or a device makes of them
            problem = (str(found).strip().splitlines() or [type(found).__name__])[0].rstrip(".")
        if runtime.on_any(problem is not None):
            return None, problem or "it failed in another process"
        blocks.close(average_over(runtime))
        return blocks.gramian(), None


def build_probe(runtime: Runtime, tasks: Sequence[str], update: PlainUpdate) -> Probe:
    """The probe that fits an update."""
    if isinstance(update, AggregatedUpdate):
        return UpdateProbe(runtime, tasks, update)
    return PassProbe(runtime, tasks, update.gradients)
