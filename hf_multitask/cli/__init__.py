"""The command line: ``hf-multitask train | evaluate | predict | export | diagnose``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Sequence

from ..modeling.finite import WeightsError
from ..modeling.loading import PushError
from ..modeling.saving import storage_failure
from ..training.secrets import without_secrets
from ..training.step.guard import LossError
from . import diagnose, evaluate, export, predict, train
from .secrets import blank, secrets_of

MISTAKES = (ValueError, TypeError, OSError, ImportError)  # their messages explain the mistake in one sentence
_GRACE = 15.0  # seconds
_COMMANDS = {"train": train, "evaluate": evaluate, "predict": predict, "export": export, "diagnose": diagnose}


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 on success; 2 for a mistake of the user, or if losses or weights that are not finite have ended the
        training, with a message of one sentence; 130 if interrupted. A run that receives SIGTERM saves first and
        exits with 143.
    """
    parser = argparse.ArgumentParser(
        prog="hf-multitask", description="Multi-task fine-tuning on the Hugging Face stack."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS.values():
        command.add_parser(commands)
    namespace, rest = parser.parse_known_args(words)
    rank = os.environ.get("RANK", "0")  # set by a launcher
    try:
        with contextlib.nullcontext() if rank == "0" else contextlib.redirect_stdout(io.StringIO()):
            _COMMANDS[namespace.command].run(namespace, rest)
    except MISTAKES as problem:
        told = isinstance(problem, PushError | LossError | WeightsError) or storage_failure(problem)
        if getattr(namespace, "prepared", False) and not told:
            blank(problem, secrets_of(namespace, rest))
            raise  # training has started, so this is not a mistake in the recipe
        if rank != "0":
            time.sleep(_GRACE)  # the launcher ends this process if the first one has failed with the same message
        below = "\n" if getattr(namespace, "prepared", False) else ""  # after an unfinished progress bar
        said = without_secrets(" ".join(str(problem).split()), told=secrets_of(namespace, rest))
        sys.stderr.write(f"{below}hf-multitask: error: {said}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130
    return 0
