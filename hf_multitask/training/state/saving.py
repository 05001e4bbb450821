"""The part of the trainer that saves: checkpoints that are whole or not there, and runs that outlive a failed save."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import Trainer, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from ...modeling.adapted import left_out_weights
from ...modeling.finite import WeightsError, broken_weight
from ...modeling.saving import storage_failure, whole
from ..report.callbacks import SaveAfterEpoch, Termination
from .checkpoint import drop_torn, hashes, last_whole_checkpoint
from .lock import RunLock
from .progress import Progress
from .resuming import Settings, check_optimizer_state, compared, describe_optimizer

logger = logging.get_logger(__name__)

_UNSAVED = "so nothing is saved, and the checkpoints before stay."


class SaveError(Exception):
    """The storage took no more, on this rank or on another."""


class SavingTrainer(Trainer):
    """The Trainer, resumable from whatever moment it was killed at.

    A checkpoint is whole once its Trainer state is, which is written when every rank has written its part. Each part
    is written by all ranks together, so that where it fails on one it fails on all.
    """

    progress: Progress
    _writes_checkpoint = False
    _saved_step = -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._progress = Progress()
        self._termination = Termination()
        self._after_epoch = SaveAfterEpoch()
        self._best_before: tuple[float | None, int | None] = (None, None)
        self.add_callback(self._after_epoch)

    # Going on

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train, or go on from a checkpoint, as ``Trainer.train`` does; True takes the last whole one.

        SIGTERM or Ctrl-C end the run after the optimizer step that it is in, with a checkpoint; a second one ends it at
        once.

        Raises:
            SystemExit: with code 143, the run was ended by SIGTERM.
            KeyboardInterrupt: it was ended by Ctrl-C.
            ValueError: there is no checkpoint to go on from, it is not one of this run, another run is at work in
                ``output_dir``, or it ends with weights that are NaN or infinite.
        """
        lock = RunLock(str(self.args.output_dir))
        try:
            self._take(lock)
            return self._train(resume_from_checkpoint, **kwargs)
        finally:
            lock.release()

    def _take(self, lock: RunLock) -> None:
        problem = None
        try:
            if self.is_world_process_zero():
                lock.take()
        except ValueError as found:
            problem = found
        if self._on_any_rank(problem is not None):
            raise problem or ValueError(
                f"The folder '{lock.folder}' is in use by another run. Give another output_dir."
            )

    def _train(self, resume_from_checkpoint: str | bool | None, **kwargs: Any) -> TrainOutput:
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(str(self.args.output_dir), logger.warning)
            if resume_from_checkpoint is None:
                raise ValueError(f"No valid checkpoint found in output directory ({self.args.output_dir})")
        self._saved_step = -1
        with self._termination:
            output = super().train(resume_from_checkpoint, **kwargs)
            if self._on_any_rank(self._termination.asked):  # after the last step
                if self.args.load_best_model_at_end:  # whose weights are not those of the last step
                    self._saved_step = self.state.global_step
                self._terminate(self.model_wrapped, kwargs.get("trial"))
        self._check_weights("so the training that ends with it has failed.")
        return output

    def _is_over(self) -> bool:
        """Whether the run has nothing left to do, as when it was killed after its last checkpoint."""
        return self.state.global_step >= self.state.max_steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.control.should_training_stop |= self._is_over()
        if not self.control.should_training_stop:  # the Trainer would look only after another step
            super()._run_epoch(*args, **kwargs)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        then, now = self.progress.ranks, self.args.world_size
        if then in (0, now):
            super()._load_rng_state(checkpoint)
            return
        if self.is_world_process_zero():
            logger.warning(
                f"Checkpoint '{checkpoint}' was written by {then} processes and is gone on from by {now}: the rows "
                "stay the same, while random draws such as dropout start anew from the seed and the step."
            )
        set_seed(self.args.seed + self.state.global_step)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        check_optimizer_state(self.progress.optimizer, self._describe_optimizer(), checkpoint)
        lacking = [name for name in (OPTIMIZER_NAME, SCHEDULER_NAME) if not (Path(checkpoint) / name).is_file()]
        if lacking and self.is_world_process_zero():
            logger.warning(
                f"Checkpoint '{checkpoint}' has no {' and no '.join(lacking)}: save_only_model leaves out the state of "
                "optimizer, scheduler and random draws. The optimizer starts anew, and the schedule of the learning "
                "rate from its beginning, so the run ends elsewhere than one that was left alone."
            )
        settings = Settings(self.optimizer, self.lr_scheduler)
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (ValueError, KeyError) as problem:
            raise ValueError(
                f"The state of the optimizer in checkpoint '{checkpoint}' does not fit this run's ({problem}). Put "
                "optim, freeze and the learning rates by part back."
            ) from problem
        settings.put_back()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        model: Any = self.model
        if model.config.adapters and model.config.adapters["only"]:  # the backbone is there already
            left_out = left_out_weights(model)
            load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in left_out]
        super()._issue_warnings_after_load(load_result)

    # Saving

    def _on_any_rank(self, happened: bool) -> bool:
        """Whether something happened on any rank; where there are several, they wait for each other."""
        if self.args.world_size == 1:
            return happened
        return bool(self.accelerator.reduce(torch.tensor(int(happened), device=self.args.device), "sum").item())

    def _write(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Write something on all ranks.

        Raises:
            SaveError: on all ranks, when the storage of one took no more.
        """
        failure, reason = None, "the storage of another process took no more"
        try:
            write(*args, **kwargs)
        except Exception as problem:
            reason = storage_failure(problem) or ""
            if not reason:
                raise
            failure = problem
        if self._on_any_rank(failure is not None):
            raise SaveError(reason) from failure

    def _write_part(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self._writes_checkpoint:
            self._write(write, *args, **kwargs)
        else:
            write(*args, **kwargs)

    def _check_weights(self, consequence: str) -> None:
        """See that all weights are numbers, on all ranks.

        Raises:
            WeightsError: on all ranks, where one is NaN or infinite.
        """
        model: Any = self.model
        every = [*model.named_parameters(), *model.named_buffers()]
        own = [(name, value.to_local() if isinstance(value, DTensor) else value) for name, value in every]
        found = broken_weight(own, [name for name, _ in model.named_buffers()])
        if self._on_any_rank(found is not None):
            raise WeightsError(
                f"{found or 'A weight of another process is NaN or infinite'} after step {self.state.global_step}, "
                f"{consequence} Go on from an earlier checkpoint with a lower learning rate."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, as in ``Trainer``; one with weights that are NaN or infinite is not saved."""
        self._check_weights(_UNSAVED)
        self._write_part(super().save_model, output_dir, _internal_call)
        if self._writes_checkpoint and self.args.save_only_model:
            self._write(self._seal, output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = str(output_dir or self.args.output_dir)
        if not self.args.should_save:
            super()._save(folder, state_dict)
            return
        with whole(folder) as stage:  # model, tokenizer and arguments take their place together
            super()._save(str(stage), state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self._write_part(super()._save_optimizer_and_scheduler, output_dir)

    def _save_scaler(self, output_dir: str) -> None:
        self._write_part(super()._save_scaler, output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        self._write_part(super()._save_rng_state, output_dir)  # the last part that every rank writes
        if self._writes_checkpoint:
            self._write(self._seal, output_dir)

    def _seal(self, folder: str | None) -> None:
        """Write our own state, with hashes of the files that are there by now."""
        if self.args.should_save and folder is not None:
            self.progress.ranks = self.args.world_size
            self.progress.arguments = compared(self.args)
            self.progress.optimizer = self._describe_optimizer()
            self.progress.files = hashes(Path(folder))
            self.progress.save(folder)

    def _describe_optimizer(self) -> dict[str, Any]:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # which check their states themselves
            return {}
        return describe_optimizer(self.optimizer, self.lr_scheduler, self.accelerator.unwrap_model(self.model))

    def _seal_last(self, folder: Path) -> None:
        """Add the hash of the Trainer's state, which is written last; without it the checkpoint is whole as well."""
        if self.args.should_save and TRAINER_STATE_NAME not in self.progress.files:
            self.progress.files |= hashes(folder, TRAINER_STATE_NAME)
            try:
                self.progress.save(folder)
            except OSError as problem:
                if storage_failure(problem) is None:
                    raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._seal_last(Path(checkpoint_folder))  # before it is read
        super()._push_from_checkpoint(checkpoint_folder)

    def _clear(self, run: Path, folder: Path) -> None:
        """Make way: for the checkpoint, and for the count of those that are kept."""
        if not self.args.should_save:
            return
        if folder.exists():
            shutil.rmtree(folder)
        if self.args.save_total_limit:
            for path in drop_torn(run):
                logger.warning(f"{path} was not whole and is removed.")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        self._check_weights(_UNSAVED)  # before any checkpoint makes way for it
        self._writes_checkpoint = True
        try:
            self._write(self._clear, run, folder)
            self._write(super()._save_checkpoint, model, trial)
            self._seal_last(folder)
        except SaveError as problem:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            if self.state.best_global_step == step:  # which is the best only once it is kept
                self.state.best_metric, self.state.best_global_step = self._best_before
            if self.is_world_process_zero():
                last = last_whole_checkpoint(run)
                there = f"{last} is still there" if last else "there is none before it"
                logger.warning(
                    f"The checkpoint of step {step} could not be saved ({problem}); {there}. Training goes on, and the "
                    "next save is tried again. Free some space."
                )
            raise
        finally:
            self._writes_checkpoint = False
        self._saved_step = step

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Save metrics, as in ``Trainer``; a file of all results that a killed run has torn is begun anew."""
        path = Path(str(self.args.output_dir)) / "all_results.json"
        if combined and path.exists() and self.is_world_process_zero():
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                path.unlink()
        super().save_metrics(split, metrics, combined)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, as in ``Trainer``; curves that find no place are given up, and the run goes on."""
        try:
            super().log(logs, start_time)
        except Exception as problem:
            reason = storage_failure(problem)
            if reason is None:
                raise
            self.remove_callback(TensorBoardCallback)  # whose writer does not recover
            step = self.state.global_step
            logger.warning(f"The log of step {step} could not be written ({reason}). TensorBoard ends here.")

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        self._best_before = (self.state.best_metric, self.state.best_global_step)
        return super()._determine_best_metric(metrics=metrics, trial=trial)

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except SaveError:  # told where it happened
            self.control.should_save = False
        if not self._after_epoch.waiting and self._on_any_rank(self._termination.asked):
            self._terminate(model, trial)

    def _terminate(self, model: Any, trial: Any) -> None:
        if self._saved_step != self.state.global_step:
            try:
                self._save_checkpoint(model, trial)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            except SaveError:
                self.control.should_save = False
        if self.is_world_process_zero():
            last = last_whole_checkpoint(self._get_output_dir(trial=trial))
            on = f"Go on from {last} with resume_from_checkpoint=True." if last else "Nothing could be saved."
            logger.warning(f"{self._termination.name} ended the run after step {self.state.global_step}. {on}")
        raise self._termination.error()
