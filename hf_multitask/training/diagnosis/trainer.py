"""The trainer of a diagnosis: it trains the same model from its beginning, on all tasks or on one of them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator

import torch
from transformers import PrinterCallback, ProgressCallback

from ...balancing import BALANCING
from ..evaluation.scores import Scores
from ..parameters import shared_parameters
from ..plain import Saved, State
from ..report.console import PlanCallback, TaskMetricsFile
from ..step.rows import Batch, Items, filler, without
from ..trainer import MultiTaskTrainer

# Nothing is saved, reported or stopped early.
_QUIET: State = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "gradient_logging_steps": 0,
    "report_to": "none",
    "push_to_hub": False,
    "load_best_model_at_end": False,
    "early_stopping_patience": None,
    "task_early_stopping_patience": None,
    "save_best_by_task": False,
    "resume_from_checkpoint": None,
    "distillation": "annealed",  # of teachers, without which it measures
    "distillation_kwargs": None,
}
_WATCHING = ("reduce_lr_on_plateau", "greedy")  # learning rates that follow evaluations


def quiet(training: Saved) -> State:
    """Arguments that take the place of a run's in its diagnosis; evaluations stay where training itself reads them."""
    reads = reads_evaluations(training)
    return {name: value for name, value in _QUIET.items() if not (reads and name == "eval_strategy")}


def reads_evaluations(training: Saved) -> bool:
    """Whether balancing or schedule of a training follow its evaluations."""
    balancer = BALANCING.get(str(training.get("balancing")))
    return (balancer is not None and balancer.reads_evaluations) or training.get("lr_scheduler_type") in _WATCHING


class DiagnosingTrainer(MultiTaskTrainer):
    """Trains on the mixture, or on one task's rows of it, any number of times, each time from the same beginning.

    ``alone`` names the task: it then gets the rows that it has in the mixture, in the same steps, and all other rows
    are left out. Takes a ``model_init``.

    Raises:
        ValueError: the tasks cannot be compared.
    """

    alone: str | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        if self.args.world_size > 1 or self.runtime.engine:
            raise ValueError(
                f"diagnose runs in one process, and there are {self.args.world_size}. Start it without torchrun or "
                "accelerate launch."
                if self.args.world_size > 1
                else "diagnose needs whole gradients, and FSDP and DeepSpeed shard them. Leave them out."
            )
        if len(self.plan.training_tasks) < 2:
            raise ValueError("diagnose compares tasks, and the recipe has one. Add another.")
        if not shared_parameters(self.model):
            raise ValueError(
                "The backbone is frozen, so the tasks share nothing that trains and cannot help or harm each other. "
                "Take 'backbone', or 'shared_layers', out of freeze."
            )
        self.saver.leaves_checkpoint = False  # no run resumes from it
        for kind in (PrinterCallback, ProgressCallback, PlanCallback, TaskMetricsFile):
            for callback in [one for one in self.callback_handler.callbacks if isinstance(one, kind)]:
                self.remove_callback(callback)

    def get_batch_samples(  # type: ignore[override]  # the Trainer counts items of all tasks in one number
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Items]:
        """See :class:`MultiTaskTrainer`; of one task alone only its rows are left."""
        return super().get_batch_samples(map(self._alone, epoch_iterator), num_batches, device)

    def _alone(self, batch: Batch) -> Batch:
        if self.alone is None:
            return batch
        others = set(self.tasks) - {self.alone}
        pairs = zip(batch["forwards"], batch["row_numbers"], strict=True)
        kept = [
            (rest, {name: rows for name, rows in numbers.items() if name == self.alone})
            for forward, numbers in pairs
            if (rest := without(forward, others)) is not None
        ]
        return {
            **batch,
            "forwards": [rest for rest, _ in kept] or [filler(batch["forwards"][0])],
            "row_numbers": [numbers for _, numbers in kept] or [{}],
        }

    def rows_trained(self) -> dict[str, int]:
        """Rows of each task in the last training."""
        return self.engine.tally.rows_since_log()

    def measure(self, tasks: Collection[str]) -> dict[str, Scores]:
        """Metrics of some tasks on the evaluation data, by task that has such."""
        if self.eval_dataset is None:
            return {}
        rows = copy.copy(self.eval_dataset)
        rows.by_task = {name: numbers for name, numbers in rows.by_task.items() if name in tasks}
        return self.evaluator.scores(rows, "Evaluation") if rows.by_task else {}
