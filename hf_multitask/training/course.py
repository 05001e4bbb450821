"""The course of a run: where it begins, begins again or resumes, and what its evaluations lead to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..balancing import build_balancer
from .arguments import OWN_TO_A_RANK
from .automatic import settled
from .compiled import compile_backbone
from .optimizing import check_optimizing
from .parameters import freeze
from .plain import State
from .preparation.named import check_arguments_by_name, check_measured, check_metrics
from .preparation.setup import facts_of
from .ranks import check_alike
from .runtime import Part
from .state.checkpoint import check_checkpoint
from .state.fitted import restore_fitted
from .state.progress import Progress
from .state.resuming import check_arguments, compared
from .step.distill import Distillation
from .step.engine import Engine, build_engine
from .step.weights import TaskWeights, check_balancer

if TYPE_CHECKING:
    from .trainer import MultiTaskTrainer

logger = logging.get_logger(__name__)


class Course:
    """Gives the parts of a trainer their state when a training begins or resumes, and collects it for a checkpoint.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self._trainer = trainer
        self._progress = Progress()
        self._caps = _caps(trainer)
        self._start: State = {}
        self._begun_with: int | None = None
        self._has_seen_arguments = False

    @property
    def _parts(self) -> tuple[Part, ...]:
        """Those that a checkpoint holds something of."""
        trainer = self._trainer
        return trainer.best, trainer.running_loss, trainer.saver, trainer.plan, trainer.engine

    @property
    def progress(self) -> Progress:
        """What a checkpoint would hold of the parts now."""
        for part in self._parts:
            vars(self._progress).update(part.state_dict())
        return self._progress

    @property
    def metrics(self) -> dict[str, list[str]]:
        """By task, the names of its metrics in the order of its last evaluation."""
        return self._progress.metrics

    def _restore(self, progress: Progress, folder: str | None) -> None:
        """Give the parts what a checkpoint holds of them; without a folder, of none."""
        self._progress = progress
        state = {**vars(progress), "folder": folder}
        for part in self._parts:
            if folder is not None or part is not self._trainer.engine:
                part.load_state_dict(state)

    # Beginning

    def begin(self) -> None:
        """Begin a training.

        Raises:
            ValueError: processes have different data, tasks or arguments.
        """
        trainer = self._trainer
        self._begun_with, self._has_seen_arguments = None, False
        trainer.engine = new_engine(trainer)
        self._restore(Progress(), None)
        if trainer.args.world_size > 1:
            arguments = {key: value for key, value in trainer.args.to_dict().items() if key not in OWN_TO_A_RANK}
            check_alike({**trainer.plan.row_order(), **facts_of(trainer.tasks), "arguments": arguments})

    def begin_loop(self, batch: int) -> None:
        """Begin the loop over steps, or begin it again, as ``auto_find_batch_size`` does with a smaller batch.

        Args:
            batch: rows of a micro-batch; nothing happens where it is that of the loop at hand.
        """
        trainer = self._trainer
        if self._begun_with is None:
            self._see_arguments()
            self._start = deepcopy(asdict(self.progress))
        elif self._begun_with != batch:
            trainer.engine = new_engine(trainer)
            self._restore(Progress(**deepcopy(self._start)), "of the start")
        self._begun_with = batch
        trainer.plan.settle()
        compile_backbone(trainer.runtime)

    def _see_arguments(self) -> None:
        """Check the arguments as they are by now, those of a trial too, and freeze a fresh model; once."""
        trainer = self._trainer
        if self._has_seen_arguments:
            return
        self._has_seen_arguments = True
        trainer.args.check_mixture()
        check_arguments_by_name(trainer.args, trainer.tasks, trainer.model.config.task_names)
        measured = trainer.measures and trainer.args.eval_strategy != "no"
        check_metrics(trainer.args, trainer.tasks, trainer.metric_by_task, measured=measured)
        freeze(trainer.model, trainer.args.freeze or (), trainer.args.tasks)
        if trainer.hp_search_backend is not None:
            check_optimizing(trainer.args, trainer.model, (None, None), trainer.optimizer_cls_and_kwargs)
            if self._caps != _caps(trainer):
                raise ValueError(
                    "Rows are chosen when the trainer is built, and answered by teachers. Leave tasks, max_*_samples "
                    "and rows of distillation_kwargs out of the search."
                )
            trainer.engine = new_engine(trainer)  # by the arguments of the trial

    # Resuming

    def read(self, checkpoint: str) -> tuple[Progress, list[str]]:
        """What a checkpoint holds beyond the Trainer's own state, and what becomes of arguments that differ.

        Raises:
            ValueError: this run cannot resume from it: it is damaged, or of other tasks, data, arguments or another
                version.
        """
        trainer = self._trainer
        check_checkpoint(checkpoint, trainer.model)
        progress = Progress.load(checkpoint)
        if trainer.args.auto_find_batch_size:  # the Trainer takes the size that was found, but too late
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            trainer._train_batch_size = state.train_batch_size or trainer._train_batch_size
        if not trainer.args.ignore_data_skip:
            progress.check_data(trainer.plan.row_order(), checkpoint)
        now = compared(trainer.args, trainer.teachers.digests)
        return progress, check_arguments(progress.arguments, now, checkpoint, progress.optimizer)

    def resume(self, checkpoint: str) -> None:
        """Continue from a checkpoint; see :meth:`read`."""
        self._see_arguments()  # a checkpoint of a trial is for the parts that its arguments set
        progress, messages = self.read(checkpoint)
        for message in messages if self._trainer.runtime.is_main else ():
            logger.warning(message)
        self._restore(progress, checkpoint)
        restore_fitted(self._trainer.model, self._trainer.tasks, checkpoint)

    # Evaluations and checkpoints

    def log(self, found: Sequence[dict[str, float]]) -> dict[str, float]:
        """Log an evaluation of one or more sets, and return the metrics of all.

        Args:
            found: the metrics of every set.
        """
        self.metrics.update(self._trainer.evaluator.metric_names)
        for of_set in found:
            self._trainer.log(of_set)
        return {key: value for of_set in found for key, value in of_set.items()}

    def evaluated(self, metrics: Mapping[str, float], folder: str) -> None:
        """Note an evaluation: the balancer sees its losses, the best models are saved, tasks stop.

        Args:
            metrics: of the evaluation.
            folder: of the run.

        Raises:
            ValueError: the metric for the best model is not among them.
        """
        trainer, best = self._trainer, self._trainer.best
        if trainer.args.metric_for_best_model is not None:
            check_measured(trainer.args.metric_for_best_model, metrics)
        losses = {name: metrics.get(f"eval_{name}_loss", math.nan) for name in trainer.tasks}
        trainer.engine.weights.on_evaluate({name: loss for name, loss in losses.items() if math.isfinite(loss)})
        kept = Path(folder) if trainer.args.save_best_by_task else None
        best.keep(trainer.evaluator.primary, trainer.state.global_step, kept, trainer.saver)
        patience = cast(Mapping[str, int] | int | None, trainer.args.task_early_stopping_patience)
        tasks = trainer.plan.training_tasks
        if patience is not None:
            by_task = patience if isinstance(patience, Mapping) else dict.fromkeys(tasks, patience)
            best.stop(by_task, trainer.state.global_step)
            trainer.plan.leave(best.finished, math.ceil(trainer.state.epoch or 0))
            trainer.control.should_training_stop |= best.is_all(tasks)
        trainer.saver.note_best()

    def is_over(self) -> bool:
        """Whether nothing is left to do, as in a run that was killed after its last checkpoint."""
        trainer = self._trainer
        ended = trainer.state.global_step >= trainer.state.max_steps
        return ended or trainer.best.is_all(trainer.plan.training_tasks)

    def note(self) -> None:
        """Note what a checkpoint will hold; all processes together."""
        self._trainer.running_loss.note()
        self._progress.data = self._trainer.plan.row_order()


def _caps(trainer: MultiTaskTrainer) -> tuple[object, ...]:
    args = trainer.args
    rows = cast("dict[str, object]", args.distillation_kwargs or {}).get("rows")
    return args.max_train_samples, args.max_eval_samples, args.tasks, rows


def new_engine(trainer: MultiTaskTrainer) -> Engine:
    """The engine of a training, at its beginning.

    Raises:
        ValueError: balancing and aggregation do not fit each other or the run.
    """
    args = trainer.args
    update, names = trainer.updates.build(), list(trainer.tasks)
    weights = TaskWeights(None, names, trainer.task_weights)
    if trainer.constants is not None:  # of the training data, if there are any
        balancer = trainer.own_balancer or build_balancer(settled(args.balancing), args.balancing_kwargs)  # type: ignore[arg-type]
        check_balancer(balancer, trainer.runtime, aggregates=update.aggregator is not None)
        weights = TaskWeights(balancer, names, trainer.task_weights, seed=args.seed, constants=trainer.constants)
    return build_engine(
        trainer.runtime,
        {name: task.source for name, task in trainer.tasks.items()},
        [] if trainer.plan.mixture is None else list(trainer.plan.mixture.sizes),
        weights=weights,
        update=update,
        distillation=Distillation(trainer.runtime, trainer.teachers.forms) if trainer.teachers.forms else None,
    )
