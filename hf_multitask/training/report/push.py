"""Pushes: every commit is a model that loads, and a failure of the Hub does not end a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, cast

from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress, hf_api

from ...modeling.beside import NEEDS
from ...modeling.loading import PushError, hub_failure, pushing
from ...modeling.saving import storage_failure
from ..runtime import Runtime

logger = logging.get_logger(__name__)


class Pushing(Protocol):
    """What a push reads of a trainer.

    Attributes:
        hub_model_id: the repository, once it is known.
        push_in_progress: the push in the background, if there is one.
    """

    hub_model_id: str | None
    push_in_progress: PushInProgress | None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository."""

    def create_model_card(self, *, model_name: str | None = None) -> None:
        """Write the card into ``output_dir``."""

    def push_to_hub(self, *, commit_message: str, revision: str | None) -> CommitInfo:
        """Save and push ``output_dir``."""


class Pusher:
    """Ensures that every push uploads all files that a model needs to load.

    Methods take the ones of ``Trainer`` that a hook overrides.

    Args:
        trainer: whose model is pushed.
        runtime: where it runs.
    """

    def __init__(self, trainer: Pushing, runtime: Runtime) -> None:
        self._trainer, self._runtime = trainer, runtime
        self._pushed_step = 0

    def create(self, create: Callable[[str | None], None], token: str | None, private: bool | None) -> None:
        """Create the repository, and the branch that ``hub_revision`` names.

        Raises:
            PushError: the Hub refuses, or is not there.
        """
        args = self._runtime.args
        if private is not None:
            args.hub_private_repo = private  # transformers 5.17 reads the arguments only
        with pushing(args.hub_model_id or Path(str(args.output_dir)).resolve().name):
            create(token)
            self._make_branch(args.hub_revision, token)

    def _make_branch(self, revision: str | None, token: str | None) -> None:
        """Make the branch of the repository that a revision names, if it is not there."""
        name = self._trainer.hub_model_id
        if name is not None and revision is not None and self._runtime.is_main:
            token = token if token is not None else self._runtime.args.hub_token
            hf_api().create_branch(name, branch=revision, token=token, exist_ok=True)

    def push(
        self,
        push: Callable[..., CommitInfo],
        message: str | None,
        blocking: bool,
        token: str | None,
        revision: str | None,
        *,
        private: bool | None,
        metadata: dict[str, Any],
    ) -> CommitInfo:
        """Push ``output_dir``; a repository or branch that is not there is made.

        Raises:
            PushError: the Hub refuses, or is not there; what was to be pushed is saved.
        """
        if self._trainer.hub_model_id is None:
            self._trainer.init_hf_repo(token=token, private=private)
        name = self._trainer.hub_model_id
        try:
            self._make_branch(revision, token)
            return push(message, blocking, token, revision, **{"model_name": name, **metadata})
        except Exception as problem:
            if (reason := hub_failure(problem)) is None:
                raise
            folder = self._runtime.args.output_dir
            raise PushError(
                f"The push to '{name}' failed: {reason} All files are whole in {folder}. Push them later with: "
                f"hf upload {name} {folder} . --exclude 'checkpoint-*'"
            ) from problem

    def push_saved(self) -> None:
        """Push a model that was just saved, where ``push_to_hub`` is set; a push that fails is logged."""
        if self._runtime.args.push_to_hub:
            try:
                self._trainer.push_to_hub(commit_message="Model save", revision=self._runtime.args.hub_revision)
            except PushError as problem:
                logger.warning(str(problem))

    def leaves_out(self) -> bool:
        """Whether a checkpoint is not pushed, as another is being pushed or the end alone is to be."""
        args, before = self._runtime.args, self._trainer.push_in_progress
        if not self._runtime.is_main or args.hub_strategy == HubStrategy.END:
            return True
        if before is None or before.is_done():
            return False
        # Files that are being uploaded must not change, and a checkpoint must not make way for the next one.
        whole_ones = args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        return not args.hub_always_push and not (whole_ones and args.save_total_limit)

    def push_checkpoint(self, push: Callable[[str], None], checkpoint: str) -> None:
        """Begin to push a checkpoint's model in the background; its code is in ``output_dir`` then."""
        name = self._trainer.hub_model_id
        try:
            for path in (*Path(checkpoint).glob("*.py"), Path(checkpoint) / NEEDS):
                shutil.copy(path, Path(str(self._runtime.args.output_dir)) / path.name)
            self._trainer.create_model_card(model_name=name)
            push(checkpoint)
            self._pushed_step = self._runtime.step
        except Exception as problem:  # of a copy of the checkpoint, which is whole and stays
            if (reason := storage_failure(problem)) is None:
                raise
            self._log_failure(name, self._runtime.step, f"{reason}. Free some space.")

    def finish(self, wait: Callable[[], None]) -> None:
        """Wait for the push in the background, if there is one, and log its failures."""
        wait()
        push, self._trainer.push_in_progress = self._trainer.push_in_progress, None
        for job in [] if push is None else cast("list[Future[object]]", push.jobs):
            if (problem := job.exception()) is not None:
                reason = hub_failure(problem) or f"{type(problem).__name__}: {problem}."
                self._log_failure(self._trainer.hub_model_id, self._pushed_step, reason)

    def _log_failure(self, name: str | None, step: int, reason: str) -> None:
        logger.warning(
            f"The push of step {step} to '{name}' failed: {reason} Training continues, and a later push "
            "uploads all files: the next one, or trainer.push_to_hub()."
        )
