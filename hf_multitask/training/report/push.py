"""Pushes: every commit is a model that loads, and a failure of the Hub does not end a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import cast

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress, hf_api

from ...modeling.loading import PushError, hub_failure, pushing
from ...modeling.saving import storage_failure
from ..runtime import Runtime

logger = logging.get_logger(__name__)


class Pusher:
    """Ensures that every push uploads all files that a model needs to load.

    Args:
        runtime: where it runs.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pushed_step = 0

    def creating(self, private: bool | None) -> AbstractContextManager[None]:
        """Within it, the repository is created.

        Raises:
            PushError: the Hub refuses, or is not there.
        """
        args = self._runtime.args
        if private is not None:
            args.hub_private_repo = private  # transformers 5.17 reads the arguments only
        return pushing(args.hub_model_id or Path(str(args.output_dir)).resolve().name)

    def make_branch(self, name: str | None, revision: str | None, token: str | None) -> None:
        """Make the branch of a repository that a revision names, if it is not there."""
        if name is not None and revision is not None and self._runtime.is_main:
            token = token if token is not None else self._runtime.args.hub_token
            hf_api().create_branch(name, branch=revision, token=token, exist_ok=True)

    @contextmanager
    def pushing(self, name: str | None) -> Iterator[None]:
        """Within it, ``output_dir`` is pushed, and the push is waited for.

        Raises:
            PushError: the Hub refuses, or is not there; what was to be pushed is saved.
        """
        try:
            yield
        except Exception as problem:
            if (reason := hub_failure(problem)) is None:
                raise
            folder = self._runtime.args.output_dir
            raise PushError(
                f"The push to '{name}' failed: {reason} All files are whole in {folder}. Push them later with: "
                f"hf upload {name} {folder} . --exclude 'checkpoint-*'"
            ) from problem

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """Within it, a push that fails is logged, and what was saved stays."""
        try:
            yield
        except PushError as problem:
            logger.warning(str(problem))

    def leaves_out(self, before: PushInProgress | None) -> bool:
        """Whether a checkpoint is not pushed, as another is being pushed or the end alone is to be."""
        args = self._runtime.args
        if not self._runtime.is_main or args.hub_strategy == HubStrategy.END:
            return True
        if before is None or before.is_done():
            return False
        # Files that are being uploaded must not change, and a checkpoint must not make way for the next one.
        whole_ones = args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        return not args.hub_always_push and not (whole_ones and args.save_total_limit)

    @contextmanager
    def beginning(self, name: str | None, checkpoint: str) -> Iterator[None]:
        """Within it, a push of a checkpoint's model begins in the background; its code is in ``output_dir`` then."""
        try:
            for path in Path(checkpoint).glob("*.py"):
                shutil.copy(path, Path(str(self._runtime.args.output_dir)) / path.name)
            yield
            self._pushed_step = self._runtime.step
        except Exception as problem:  # of a copy of the checkpoint, which is whole and stays
            if (reason := storage_failure(problem)) is None:
                raise
            self._log_failure(name, self._runtime.step, f"{reason}. Free some space.")

    def tell_failures(self, name: str | None, push: PushInProgress | None) -> None:
        """Log the failures of a push in the background, if there are any."""
        for job in [] if push is None else cast("list[Future[object]]", push.jobs):
            if (problem := job.exception()) is not None:
                self._log_failure(
                    name, self._pushed_step, hub_failure(problem) or f"{type(problem).__name__}: {problem}."
                )

    def _log_failure(self, name: str | None, step: int, reason: str) -> None:
        logger.warning(
            f"The push of step {step} to '{name}' failed: {reason} Training continues, and a later push "
            "uploads all files: the next one, or trainer.push_to_hub()."
        )
