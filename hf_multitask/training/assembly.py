"""Builds the parts of a trainer, and adds their callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from .compiled import take_over
from .course import Course, new_engine
from .evaluation.evaluator import Evaluator
from .evaluation.precision import weights_kept
from .evaluation.rows import EvaluationRows, Preprocess
from .report.card import CardCallback, CardWriter
from .report.confusions import ConfusionsCallback
from .report.console import SEVERAL, PlanCallback, summary_callbacks
from .report.picture import CosinesCallback
from .runtime import EngineCallback
from .state.best import Best, ResumableEarlyStopping
from .state.fitted import FittedCallback
from .state.loss import RunningLoss
from .state.saver import Saver
from .step.engine import Engine

if TYPE_CHECKING:
    from .trainer import MultiTaskTrainer


Parts = tuple[Evaluator, CardWriter, Best, Saver, RunningLoss, Engine, Course]


def assemble(trainer: MultiTaskTrainer, preprocess: Mapping[str, Preprocess]) -> Parts:
    """The parts of a trainer.

    Args:
        trainer: once the Trainer's own ``__init__`` has run.
        preprocess: by task, what is kept of its logits for the user's metrics.
    """
    runtime = trainer.runtime
    take_over(runtime, trainer.accelerator)
    if trainer.plan.mixture is not None:
        trainer.plan.new_sampler()  # rates that do not fit the data fail here

    def sweep(rows: EvaluationRows, title: str) -> int:
        """Run ``prediction_step`` on all rows of an evaluation; the number of batches."""
        loader = trainer.get_test_dataloader(rows)
        rounds = (trainer.args.bf16_full_eval or trainer.args.fp16_full_eval) and not trainer.is_in_train
        with weights_kept(trainer.model, rounds=rounds):
            trainer.evaluation_loop(loader, description=title, prediction_loss_only=False)
        return len(loader)

    evaluator = Evaluator(
        runtime,
        tasks=trainer.tasks,
        metrics=trainer.metric_by_task,
        preprocess=preprocess,
        collator=trainer.data_collator,
        given=trainer.processing_class,
        sweep=sweep,
    )
    engine = new_engine(trainer)
    engine.probe.begin()
    return (
        evaluator,
        CardWriter(
            runtime,
            trainer,
            measured=evaluator.measured_rows,
            labeled=evaluator.labeled_rows,
            reports=evaluator.reports,
        ),
        Best(),
        Saver(trainer, runtime, lambda folder: trainer.progress.save(folder), trainer.teachers.digests),
        RunningLoss(trainer, lambda: trainer.engine.tally),
        engine,
        Course(trainer),
    )


def add_callbacks(trainer: MultiTaskTrainer) -> None:
    """Add the callbacks of a trainer's parts after those of the user."""
    parts: list[TrainerCallback] = [
        trainer.saver.after_epoch,
        trainer.running_loss,
        FittedCallback(trainer),
        CardCallback(trainer),
        EngineCallback(trainer),
        PlanCallback(trainer),
        CosinesCallback(trainer),
        ConfusionsCallback(trainer),
    ]
    for callback in parts:
        trainer.add_callback(callback)
    if len(trainer.tasks) > SEVERAL:
        consoles = [trainer.pop_callback(PrinterCallback), trainer.pop_callback(ProgressCallback)]
        shown = next((type(callback) for callback in consoles if callback is not None), None)
        for summary in summary_callbacks(shown, list(trainer.tasks), lambda: trainer.course.metrics):
            trainer.add_callback(summary)
    if trainer.args.early_stopping_patience is not None:
        trainer.add_callback(ResumableEarlyStopping(trainer.args.early_stopping_patience))
