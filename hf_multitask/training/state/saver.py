"""Saves the state of a run: checkpoints that are whole or absent, and runs that survive a failed save."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from ...modeling.finite import WeightsError, broken_weight
from ...modeling.saving import storage_failure, whole
from ..plain import Saved, State
from ..runtime import Runtime
from .checkpoint import drop_torn, hashes, last_whole_checkpoint
from .ending import SaveAfterEpoch, Termination
from .lock import RunLock
from .resuming import Settings, check_optimizer_state, compared, describe_optimizer

if TYPE_CHECKING:
    import optuna

Trial: TypeAlias = "optuna.Trial | State | None"
Tensors = dict[str, torch.Tensor]  # the state of a model

logger = logging.get_logger(__name__)

_UNSAVED = "so nothing is saved, and the checkpoints before stay."


class SaveError(Exception):
    """The storage was full or failed, on this rank or on another."""


class Saver:
    """Keeps a run resumable, whenever it is killed.

    A checkpoint is whole once its Trainer state is, which is written when every rank has written its part. If the
    storage of one rank is full, the save fails on all: see :meth:`save_checkpoint`.

    Args:
        trainer: whose run it is; the methods of ``Trainer`` that a hook overrides are handed to the Saver's.
        runtime: of the run.
        write_state: writes what the Trainer does not save into a checkpoint.
        teachers: by task, a hash of its teacher.

    Attributes:
        after_epoch: a callback that the Trainer needs.
        leaves_checkpoint: whether a run that is ended by a signal saves one.
    """

    def __init__(
        self,
        trainer: Trainer,
        runtime: Runtime,
        write_state: Callable[[str | Path], None],
        teachers: Mapping[str, str],
    ) -> None:
        self._trainer, self._runtime, self._write_state, self._teachers = trainer, runtime, write_state, teachers
        self.ranks = 0
        self.arguments: State = {}
        self.optimizer: State = {}
        self.files: State = {}
        self.after_epoch = SaveAfterEpoch()
        self.leaves_checkpoint = True
        self._termination = Termination()
        self._best_before: tuple[float | None, int | None] = (None, None)
        self._writes_checkpoint = False
        self._saved_step = -1

    def state_dict(self) -> State:
        """What a checkpoint holds of it."""
        return {"ranks": self.ranks, "arguments": self.arguments, "optimizer": self.optimizer, "files": self.files}

    def load_state_dict(self, state: Saved) -> None:
        """Continue from a checkpoint."""
        self.ranks, self.arguments = state["ranks"], dict(state["arguments"])
        self.optimizer, self.files = dict(state["optimizer"]), dict(state["files"])

    @property
    def saves_here(self) -> bool:
        """Whether this rank writes what all ranks share."""
        return self._runtime.args.should_save

    # Resuming

    def train(
        self,
        train: Callable[..., TrainOutput],
        resume_from_checkpoint: str | bool | None,
        trial: Trial,
        ignore_keys_for_eval: list[str] | None,
    ) -> TrainOutput:
        """Train, or resume from a checkpoint; True resumes from the last whole one. A folder has one run at a time."""
        lock = RunLock(str(self._runtime.args.output_dir))
        try:
            self._take(lock)
            return self._train(train, resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            lock.release()

    def _take(self, lock: RunLock) -> None:
        problem = None
        try:
            if self._runtime.is_main:
                lock.take()
        except ValueError as found:
            problem = found
        if self._runtime.on_any(problem is not None):
            raise problem or ValueError(
                f"The folder '{lock.folder}' is in use by another run. Give another output_dir."
            )

    def _train(
        self,
        train: Callable[..., TrainOutput],
        resume_from_checkpoint: str | bool | None,
        trial: Trial,
        ignore_keys_for_eval: list[str] | None,
    ) -> TrainOutput:
        args = self._runtime.args
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(str(args.output_dir), logger.warning)
            if resume_from_checkpoint is None:
                raise ValueError(f"No valid checkpoint found in output directory ({args.output_dir})")
        self._saved_step = -1
        with self._termination:
            output = train(resume_from_checkpoint, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)
            if self._runtime.on_any(self._termination.asked):  # after the last step
                if args.load_best_model_at_end:  # whose weights are not those of the last step
                    self._saved_step = self._runtime.step
                self._terminate(self._runtime.wrapped, trial)
        self._check_weights("so the training that ends with it has failed.")
        return output

    def load_random_state(self, load: Callable[[str | None], None], checkpoint: str | None) -> None:
        """Restore the random state of a checkpoint; after another number of ranks, set a new one."""
        then, now = self.ranks, self._runtime.processes
        if then in (0, now):
            load(checkpoint)
            return
        if self._runtime.is_main:
            logger.warning(
                f"Checkpoint '{checkpoint}' was written by {then} processes and is resumed by {now}: the rows stay "
                "the same, while random draws such as dropout start again from the seed and the step."
            )
        set_seed(self._runtime.args.seed + self._runtime.step)

    def load_optimizer(self, load: Callable[[str | None], None], checkpoint: str | None) -> None:
        """Restore the states of optimizer and schedule, with the current arguments.

        Raises:
            ValueError: they are of another optimizer, or of other parameters.
        """
        if checkpoint is None or self._runtime.engine is not None:
            load(checkpoint)
            return
        check_optimizer_state(self.optimizer, self._describe_optimizer(), checkpoint)
        missing = [name for name in (OPTIMIZER_NAME, SCHEDULER_NAME) if not (Path(checkpoint) / name).is_file()]
        if missing and self._runtime.is_main:
            logger.warning(
                f"Checkpoint '{checkpoint}' has no {' and no '.join(missing)}: save_only_model leaves out the state of "
                "optimizer, scheduler and random draws. Optimizer and learning rate schedule start from their "
                "beginning, so the result differs from that of a run without interruption."
            )
        settings = Settings(self._runtime.optimizer, self._trainer.lr_scheduler)
        try:
            load(checkpoint)
        except (ValueError, KeyError) as problem:
            raise ValueError(
                f"The state of the optimizer in checkpoint '{checkpoint}' does not fit this run's ({problem}). Put "
                "optim, freeze and the learning rates by part back."
            ) from problem
        settings.put_back()

    # Saving

    def write(self, write: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Write something on all ranks.

        Raises:
            SaveError: on all ranks, when the storage of one is full or fails.
        """
        failure, reason = None, "the storage of another process is full or failed"
        try:
            write(*args, **kwargs)
        except Exception as problem:
            reason = storage_failure(problem) or ""
            if not reason:
                raise
            failure = problem
        if self._runtime.on_any(failure is not None):
            raise SaveError(reason) from failure

    def _write_part(self, write: Callable[..., object], *args: object) -> None:
        if self._writes_checkpoint:
            self.write(write, *args)
        else:
            write(*args)

    def _check_weights(self, consequence: str) -> None:
        """Check that all weights are finite, on all ranks.

        Raises:
            WeightsError: on all ranks, where one is NaN or infinite.
        """
        model: nn.Module = self._runtime.model
        every = [*model.named_parameters(), *model.named_buffers()]
        own = [(name, value.to_local() if isinstance(value, DTensor) else value) for name, value in every]
        found = broken_weight(own, [name for name, _ in model.named_buffers()])
        if self._runtime.on_any(found is not None):
            raise WeightsError(
                f"{found or 'A weight of another process is NaN or infinite'} after step {self._runtime.step}, "
                f"{consequence} Resume from an earlier checkpoint with a lower learning rate."
            )

    def save_model(self, save: Callable[[str | None, bool], None], folder: str | None) -> None:
        """Save the model; one with weights that are NaN or infinite is not saved."""
        self._check_weights(_UNSAVED)
        self._write_part(save, folder, True)  # the trainer pushes by itself
        if self._writes_checkpoint and self._runtime.args.save_only_model:
            self.write(self._seal, folder)

    def keep_model(self, folder: Path) -> None:
        """Save the model beside the checkpoints.

        Raises:
            SaveError: on all ranks, when the storage of one is full or fails.
        """
        self.write(self._trainer.save_model, str(folder), _internal_call=True)

    def save_files(
        self, save: Callable[[str, Tensors | None], None], folder: str | None, state: Tensors | None
    ) -> None:
        """Write model, tokenizer and arguments, which take their place together."""
        target = str(folder or self._runtime.args.output_dir)
        if not self.saves_here:
            save(target, state)
            return
        with whole(target) as stage:
            save(str(stage), state)

    def save_random_state(self, save: Callable[[str], None], folder: str) -> None:
        """Write the last part that every rank writes, and seal the checkpoint."""
        self._write_part(save, folder)
        if self._writes_checkpoint:
            self.write(self._seal, folder)

    def _seal(self, folder: str | None) -> None:
        """Write our own state, with hashes of the files that are there by now."""
        if self.saves_here and folder is not None:
            self.ranks = self._runtime.processes
            self.arguments = compared(self._runtime.args, self._teachers)
            self.optimizer = self._describe_optimizer()
            self.files = hashes(Path(folder))
            self._write_state(folder)

    def _describe_optimizer(self) -> State:
        if self._runtime.engine is not None:  # which checks its states itself
            return {}
        trainer = self._trainer
        return describe_optimizer(
            self._runtime.optimizer, trainer.lr_scheduler, trainer.accelerator.unwrap_model(self._runtime.model)
        )

    def seal_last(self, folder: Path) -> None:
        """Add the hash of the Trainer's state, which is written last; without it the checkpoint is whole as well."""
        if self.saves_here and TRAINER_STATE_NAME not in self.files:
            self.files |= hashes(folder, TRAINER_STATE_NAME)
            try:
                self._write_state(folder)
            except OSError as problem:
                if storage_failure(problem) is None:
                    raise

    def _clear(self, run: Path, folder: Path) -> None:
        """Remove what is in the way of the checkpoint, and torn ones, which do not count as kept."""
        if not self.saves_here:
            return
        if folder.exists():
            shutil.rmtree(folder)
        if self._runtime.args.save_total_limit:
            for path in drop_torn(run):
                logger.warning(f"{path} was not whole and is removed.")

    def save_checkpoint(self, save: Callable[[nn.Module, Trial], None], model: nn.Module, trial: Trial) -> None:
        """Save a checkpoint; all ranks together.

        Ranks meet after each part that all of them write, the last of which is the random state, and once more at the
        end. A rank whose optimizer cannot be saved leaves ``save`` for the end, and meets the others where they have
        written their random states: the save ends there on all of them.

        Raises:
            SaveError: on all ranks, when the storage of one is full or fails.
        """
        state, step = self._trainer.state, self._runtime.step
        run = self._run_folder(trial)
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        self._check_weights(_UNSAVED)  # before another checkpoint is removed for it
        self._writes_checkpoint = True
        try:
            self.write(self._clear, run, folder)
            self.write(save, model, trial)
            self.seal_last(folder)
        except SaveError as problem:
            if self.saves_here:
                shutil.rmtree(folder, ignore_errors=True)
            if state.best_global_step == step:  # which is the best only once it is kept
                state.best_metric, state.best_global_step = self._best_before
            if self._runtime.is_main:
                last = last_whole_checkpoint(run)
                there = f"{last} is still there" if last else "there is none before it"
                logger.warning(
                    f"The checkpoint of step {step} could not be saved ({problem}); {there}. Training continues, and "
                    "the next save is tried as planned. Free some space."
                )
            raise
        finally:
            self._writes_checkpoint = False
        self._saved_step = step

    def _run_folder(self, trial: Trial) -> Path:
        return Path(self._trainer._get_output_dir(trial=trial))

    def note_best(self) -> None:
        """Note what was the best on average, before an evaluation may change it."""
        self._best_before = (self._trainer.state.best_metric, self._trainer.state.best_global_step)

    # Surviving

    def save_metrics(self, save: Callable[..., None], split: str, metrics: dict[str, float], combined: bool) -> None:
        """Save metrics; a file of all results that a killed run has damaged is replaced."""
        path = Path(str(self._runtime.args.output_dir)) / "all_results.json"
        if combined and path.exists() and self._runtime.is_main:
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                path.unlink()
        save(split, metrics, combined)

    def log(self, log: Callable[..., None], logs: dict[str, float], start_time: float | None) -> None:
        """Log; if the storage is full, TensorBoard's curves end, and the run continues."""
        try:
            log(logs, start_time)
        except Exception as problem:
            reason = storage_failure(problem)
            if reason is None:
                raise
            self._trainer.remove_callback(TensorBoardCallback)  # whose writer does not recover
            step = self._runtime.step
            logger.warning(f"The log of step {step} could not be written ({reason}). TensorBoard ends here.")

    def after_step(self, log_save_evaluate: Callable[[], None], model: nn.Module, trial: Trial) -> None:
        """Log, evaluate and save as is due after a step or an epoch, and end the run if a signal has been received."""
        try:
            log_save_evaluate()
        except SaveError:  # logged where it was raised
            self._trainer.control.should_save = False
        if not self.after_epoch.waiting and self._runtime.on_any(self._termination.asked):
            self._terminate(model, trial)

    def _terminate(self, model: nn.Module, trial: Trial) -> None:
        trainer = self._trainer
        if not self.leaves_checkpoint:
            raise self._termination.error()
        if self._saved_step != self._runtime.step:
            try:
                trainer._save_checkpoint(model, trial)
                trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
            except SaveError:
                trainer.control.should_save = False
        if self._runtime.is_main:
            last = last_whole_checkpoint(self._run_folder(trial))
            on = f"Resume from {last} with resume_from_checkpoint=True." if last else "Nothing could be saved."
            logger.warning(f"{self._termination.name} ended the run after step {self._runtime.step}. {on}")
        raise self._termination.error()
