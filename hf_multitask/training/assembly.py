"""Builds the parts of a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from .course import Course, new_engine
from .evaluation.evaluator import Evaluator
from .evaluation.rows import Preprocess
from .report.card import CardCallback, CardWriter
from .report.console import SEVERAL, PlanCallback, summary_callbacks
from .report.picture import CosinesCallback
from .runtime import EngineCallback
from .state.best import Best, ResumableEarlyStopping
from .state.loss import RunningLoss
from .state.saver import Saver

if TYPE_CHECKING:
    from .trainer import MultiTaskTrainer


def assemble(trainer: MultiTaskTrainer, preprocess: Mapping[str, Preprocess]) -> None:
    """Give a trainer its parts, and add their callbacks after those of the user.

    Args:
        trainer: once the Trainer's own ``__init__`` has run.
        preprocess: by task, what is kept of its logits for the user's metrics.
    """
    runtime = trainer.runtime
    trainer.evaluator = Evaluator(
        runtime,
        tasks=trainer.tasks,
        metrics=trainer.metric_by_task,
        preprocess=preprocess,
        collator=trainer.data_collator,
        given=trainer.processing_class,
        sweep=trainer.sweep,
    )
    trainer.card = CardWriter(runtime, trainer, measured=trainer.evaluator.measured_rows)
    trainer.best = Best()
    trainer.saver = Saver(trainer, runtime, lambda folder: trainer.progress.save(folder))
    trainer.running_loss = RunningLoss(
        trainer, lambda: trainer.engine.tally.since_log(), lambda sums: trainer.engine.tally.continue_log(sums)
    )
    trainer.engine = new_engine(trainer)
    trainer.engine.probe.begin()
    trainer.course = Course(trainer)
    _add_callbacks(trainer)


def _add_callbacks(trainer: MultiTaskTrainer) -> None:
    parts: list[TrainerCallback] = [
        trainer.saver.after_epoch,
        trainer.running_loss,
        CardCallback(trainer),
        EngineCallback(trainer),
        PlanCallback(trainer),
        CosinesCallback(trainer),
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
