"""``--dry_run``: everything up to the first step, and the plan of the training in place of the training."""

from __future__ import annotations

import argparse

from transformers import TrainerCallback

from ..training import MultiTaskTrainer
from .document import Values

QUIET: Values = {"report_to": "none", "push_to_hub": False, "disable_tqdm": True}


class _Planned(Exception):
    """A training was about to begin."""


class _Stop(TrainerCallback):
    """Ends a training before its first step, after the callback that prints the plan."""

    def on_train_begin(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        """See the class."""
        raise _Planned


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option to the parser of a command."""
    parser.add_argument("--dry_run", action="store_true", help="check everything, print the plan, and train nothing")


def show_plan(trainer: MultiTaskTrainer) -> None:
    """Print what a trainer would do."""
    trainer.add_callback(_Stop())
    try:
        trainer.train()
    except _Planned:
        return
