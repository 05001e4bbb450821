"""The part of the trainer that pushes: every commit is a model that loads, and a Hub that fails ends no run."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import hf_api

from ...modeling.loading import PushError, hub_failure, pushing
from ...modeling.saving import storage_failure

logger = logging.get_logger(__name__)


class PushingTrainer(Trainer):
    """The Trainer, whose pushes bring along what a model needs to load, the last one and those before it."""

    hub_model_id: Any = None
    push_in_progress: Any = None
    _pushed_step = 0

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, and the branch that ``hub_revision`` names.

        Raises:
            PushError: the Hub refuses, or is not there.
        """
        if private is not None:
            self.args.hub_private_repo = private  # transformers 5.17 asks the arguments only
        with pushing(self.args.hub_model_id or Path(str(self.args.output_dir)).resolve().name):
            super().init_hf_repo(token)
            self._make_branch(self.args.hub_revision, token)

    def _make_branch(self, revision: str | None, token: str | None) -> None:
        if revision is not None and self.is_world_process_zero():
            token = token if token is not None else self.args.hub_token
            hf_api().create_branch(self.hub_model_id, branch=revision, token=token, exist_ok=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and push it where ``push_to_hub`` is set; a push that fails is told and leaves it saved."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            try:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
            except PushError as problem:
                logger.warning(str(problem))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save model, code, tokenizer and card in ``output_dir`` and push it, as ``Trainer.push_to_hub`` does.

        A ``revision`` that is not there is made. What a push before this one has uploaded is not uploaded again.

        Raises:
            PushError: the Hub refuses, or is not there; what was to be pushed is saved.
        """
        self._finish_current_push()  # which reads the files that are written now
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        kwargs.setdefault("model_name", self.hub_model_id)
        try:
            self._make_branch(revision, token)
            return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)
        except Exception as problem:
            if (reason := hub_failure(problem)) is None:
                raise
            raise PushError(self._said_of_push(reason)) from problem

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint's model in the background, as the Trainer does, with its code and a card."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            # Files that are being uploaded must not change, and a checkpoint must not make way for the next one.
            whole_ones = self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
            if not self.args.hub_always_push and not (whole_ones and self.args.save_total_limit):
                return
        self._finish_current_push()
        try:
            for path in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(path, Path(str(self.args.output_dir)) / path.name)
            self.create_model_card(model_name=self.hub_model_id)
            super()._push_from_checkpoint(checkpoint_folder)
            self._pushed_step = self.state.global_step
        except Exception as problem:  # of a copy of the checkpoint, which is whole and stays
            if (reason := storage_failure(problem)) is None:
                raise
            self._tell(self.state.global_step, f"{reason}. Free some space.")

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        jobs: list[Future[Any]] = [] if self.push_in_progress is None else self.push_in_progress.jobs
        self.push_in_progress = None
        for job in jobs:
            if (problem := job.exception()) is not None:
                self._tell(self._pushed_step, hub_failure(problem) or f"{type(problem).__name__}: {problem}.")

    def _tell(self, step: int, reason: str) -> None:
        logger.warning(
            f"The push of step {step} to '{self.hub_model_id}' failed: {reason} Training goes on, and a later push "
            "brings all files: the next one, or trainer.push_to_hub()."
        )

    def _said_of_push(self, reason: str) -> str:
        name, folder = self.hub_model_id, self.args.output_dir
        return (
            f"The push to '{name}' failed: {reason} All files are whole in {folder}. Push them later with: "
            f"hf upload {name} {folder} . --exclude 'checkpoint-*'"
        )
