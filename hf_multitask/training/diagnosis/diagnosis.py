"""How the tasks of a recipe affect each other, and what to do about it, measured on its data and backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import logging

from ...hub.beside import noise
from ..evaluation.scores import Scores
from ..parameters import shared_parameters
from ..plain import Saved, State
from .affinity import Measured, StepProbe, evenly
from .findings import affinity_report, compared_in_words, gradients_report, groups_report, uneven_in_words
from .prices import AGGREGATIONS, BALANCERS, ROUNDS, PriceList, methods
from .trainer import DiagnosingTrainer

logger = logging.get_logger(__name__)

PARTS = ("cosines", "affinity", "single", "prices")
STEPS = 300  # optimizer steps of a training, at most, by default
MEASURED_STEPS = 20
FORMAT = 1

T = TypeVar("T")


class _Bar(TrainerCallback):
    """Shows the progress of a training."""

    def __init__(self, words: str) -> None:
        self.words = words

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **kwargs: object) -> None:  # noqa: ARG002
        self.bar = tqdm(total=state.max_steps, desc=self.words, unit="step", leave=False, disable=args.disable_tqdm)

    def on_step_end(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        self.bar.update()

    def on_train_end(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        self.bar.close()


class Diagnosis:
    """Makes a report, part by part; if a part fails, the others are still made.

    Args:
        trainer: with the data of all tasks.
        facts: of the run, for the report.
        parts: some of :data:`PARTS`.
        steps: optimizer steps of every training; those of the arguments, and 300 at most, where None.
        measured_steps: of these, how many are measured for ``cosines`` and ``affinity``.
        tell: is called with messages for the user.
        save: is called with the report whenever a part is done.
    """

    def __init__(
        self,
        trainer: DiagnosingTrainer,
        facts: Saved,
        *,
        parts: Collection[str] = PARTS,
        steps: int | None = None,
        measured_steps: int = MEASURED_STEPS,
        tell: Callable[[str], object] = lambda _: None,
        save: Callable[[State], object] = lambda _: None,
    ) -> None:
        self.trainer, self.tell, self.save = trainer, tell, save
        self.tasks = trainer.plan.training_tasks
        self.parts = [part for part in PARTS if part in parts]
        own = trainer.plan.steps()
        self.steps = min(own, STEPS) if steps is None else steps
        trainer.args.max_steps = self.steps
        if trainer.args.warmup_steps >= 1:  # as long a part of the run as it was
            trainer.args.warmup_steps = round(trainer.args.warmup_steps * self.steps / own)
        self.measured_at = evenly(self.steps, measured_steps)
        self.report: State = {
            "format": FORMAT,
            **facts,
            "tasks": self.tasks,
            "seed": trainer.args.seed,
            "device": _device(trainer.args.device),
            "budget": {
                "steps": self.steps,
                "steps_of_the_recipe": own,
                "rows_of_a_step": trainer.runtime.rows_per_step,
                "measured_steps": [step + 1 for step in self.measured_at],
            },
            "left_out": {},
            "failed": {},
            "seconds": {},
        }
        measurable = {} if trainer.eval_dataset is None else trainer.eval_dataset.by_task
        if "single" in self.parts and not set(self.tasks) & set(measurable):
            self._leave_out("single", "no task has validation data")
        for task in self.tasks if "single" in self.parts else ():
            if task not in measurable:
                self._leave_out(f"single of '{task}'", "it has no validation data")
        if "affinity" in self.parts and any(one.element_size() < 4 for one in shared_parameters(trainer.model)):
            self._leave_out("affinity", "the weights are of half precision, in which a small step is lost")

    def _leave_out(self, part: str, reason: str) -> None:
        self.report["left_out"][part] = reason
        self.parts = [other for other in self.parts if other != part]

    def run(self) -> State:
        """Make the report."""
        begun = time.perf_counter()
        for part, reason in self.report["left_out"].items():
            self.tell(f"Left out: {part}, as {reason}.")
        self._tell_plan()
        measuring = [part for part in ("cosines", "affinity") if part in self.parts]
        compares = "single" in self.parts
        trained = bool(measuring) and self._attempt(measuring, lambda: self._train_together(measuring))
        if compares and not trained:  # nothing was to be measured on the way, or that failed
            trained = self._attempt(["single"], lambda: self._train_together([]))
        if compares and trained and (together := self._attempt(["single"], lambda: self.trainer.measure(self.tasks))):
            self._compare(together)
        if "prices" in self.parts:
            self._attempt(["prices"], self._prices)
        self._conclude()
        self.report["seconds"]["all"] = round(time.perf_counter() - begun, 1)
        self.save(self.report)
        return self.report

    def _attempt(self, parts: Sequence[str], work: Callable[[], T]) -> T | None:
        """The result of some work; None if it fails, which is logged and reported."""
        begun = time.perf_counter()
        found: T | None = None
        try:
            found = work()
        except Exception as problem:
            reason = " ".join(str(problem).split()) or type(problem).__name__
            logger.debug("A part failed.", exc_info=True)
            self.report["failed"] |= dict.fromkeys(parts, reason)
            self.tell(f"Failed: {' and '.join(parts)} ({reason}). The other parts continue.")
        seconds = self.report["seconds"]
        key = "+".join(parts)
        seconds[key] = round(seconds.get(key, 0.0) + time.perf_counter() - begun, 1)
        self.save(self.report)
        return found

    # The plan

    def _tell_plan(self) -> None:
        budget, trainer = self.report["budget"], self.trainer
        own, rows = budget["steps_of_the_recipe"], budget["rows_of_a_step"]
        text = f"Every training has {self.steps:,} steps of {rows} rows"
        if own > self.steps:
            text += f", of the {own:,} of the recipe (set --max_steps {own} for all of them)"
        self.tell(f"{text}.\n{trainer.plan.describe(self.steps)}")
        begun = time.perf_counter()
        step = PriceList(trainer, rounds=3).plain()
        start, tasks = (time.perf_counter() - begun) / 2, len(self.tasks)
        measuring = {"cosines", "affinity"} & set(self.parts)
        runs = ("single" in self.parts or bool(measuring)) + ("single" in self.parts) * 1.3
        each = 1.5 * bool(measuring) + 0.5 * tasks * ("affinity" in self.parts)
        turns = ROUNDS * (len(methods(self.tasks)) + 1) * 1.3 if "prices" in self.parts else 0
        evaluated = 0 if trainer.eval_dataset is None or "single" not in self.parts else len(trainer.eval_dataset)
        steps = runs * self.steps + each * len(self.measured_at) + turns + 2 * evaluated / rows / 3
        self.tell(f"A plain step takes {step:.2g} s; all of it about {_span(steps * step + start * (tasks + 2))}.")

    # Parts

    def _train(self, words: str, alone: str | None = None, probe: TrainerCallback | None = None) -> None:
        """Train the model from its beginning."""
        callbacks = [_Bar(words), *([] if probe is None else [probe])]
        self.trainer.alone = alone
        for callback in callbacks:
            self.trainer.add_callback(callback)
        try:
            self.trainer.train()
        finally:
            self.trainer.alone = None
            for callback in callbacks:
                self.trainer.remove_callback(callback)

    def _train_together(self, measuring: Sequence[str]) -> bool:
        """Train on the mixture, and report what is measured on the way; whether that is done."""
        probe = StepProbe(self.trainer, self.measured_at, lookahead="affinity" in measuring)
        self._train("all tasks together", probe=probe if measuring else None)
        self.report["budget"]["rows"] = self.trainer.rows_trained()
        if "cosines" in measuring:
            self.report["cosines"] = gradients_report(probe.measured, self.tasks)
        if "affinity" in measuring:
            self.report["affinity"] = affinity_report(probe.measured, self.tasks)
            self._attempt(["groups"], lambda: self._group(probe.measured))
        return True

    def _group(self, measured: Sequence[Measured]) -> None:
        config = self.trainer.plan.runtime.model.config
        branches = "; ".join(f"{name} ({', '.join(own)})" for name, own in (config.branches or {}).items())
        self.report["groups"] = groups_report(measured, self.tasks, branches, config.branch_layers or 0)

    def _compare(self, together: Mapping[str, Scores]) -> None:
        """Train every task alone, and compare its scores with those of all together."""
        args = self.trainer.args
        args.balancing, args.balancing_kwargs, args.aggregation, args.aggregation_kwargs = "none", None, "none", None
        args.task_weights = None
        self.report["single"] = {
            "metric": {name: scores.primary[0] for name, scores in together.items()},
            "together": {name: scores.primary[1] for name, scores in together.items()},
            "together_loss": {name: scores.metrics["loss"] for name, scores in together.items()},
            "noise": {name: noise(one.primary[1], len(one.labels), one.primary[0]) for name, one in together.items()},
            "alone": {},
            "alone_loss": {},
        }

        def train(name: str) -> None:
            try:
                self._train(f"{name} alone", alone=name)
                scores = self.trainer.measure([name])[name]
            except Exception as problem:
                raise RuntimeError(f"task '{name}' alone: {problem}") from problem
            self.report["single"]["alone"][name] = scores.primary[1]
            self.report["single"]["alone_loss"][name] = scores.metrics["loss"]

        for name in together:
            self._attempt(["single"], lambda name=name: train(name))  # type: ignore[misc]

    def _prices(self) -> None:
        prices = PriceList(self.trainer)
        total = (len(methods(self.tasks)) + 1) * ROUNDS
        with tqdm(total=total, desc="prices", unit="step", leave=False, disable=self.trainer.args.disable_tqdm) as bar:
            plain, found = prices.measure(bar.update)
        report: State = {"seconds_of_a_plain_step": plain, BALANCERS: {}, AGGREGATIONS: {}, "not_measured": {}}
        for (kind, name), price in found.items():
            if price.problem is not None:
                report["not_measured"].setdefault(kind, {})[name] = price.problem
                continue
            values = asdict(price)
            del values["problem"]
            report[kind][name] = values
        self.report["prices"] = report

    def _conclude(self) -> None:
        report, sentences = self.report, []
        if "single" in report:
            sentences.append(compared_in_words(report["single"]))
        if "cosines" in report:
            sentences.append(uneven_in_words(report["cosines"]["norms"]))
        if "groups" in report:
            words = report["groups"]["suggestion"]["words"]
            sentences.append(f"Forecast from the affinities: {words[0].lower()}{words[1:]}")
        report["conclusion"] = " ".join(filter(None, sentences))


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _span(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
