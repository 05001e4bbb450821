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
from ..training.nonfinite import LossError
from ..training.secrets import without_secrets
from . import diagnose, evaluate, export, predict, train
from .secrets import blank, secrets_of

MISTAKES = (ValueError, TypeError, OSError, ImportError)  # which say in a sentence what the user did wrong
_GRACE = 15.0  # seconds
_COMMANDS = {"train": train, "evaluate": evaluate, "predict": predict, "export": export, "diagnose": diagnose}


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 when it went well, 2 for a user's mistake, or a training that losses or weights which are not finite have
        ended, which is told in one sentence, 130 when interrupted; a run that SIGTERM ends saves first and exits with
        143.
    """
    parser = argparse.ArgumentParser(
        prog="hf-multitask", description="Multi-task fine-tuning on the Hugging Face stack."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS.values():
        command.add_parser(commands)
    namespace, rest = parser.parse_known_args(words)
    rank = os.environ.get("RANK", "0")  # of a launcher's process
    try:
        with contextlib.nullcontext() if rank == "0" else contextlib.redirect_stdout(io.StringIO()):
            _COMMANDS[namespace.command].run(namespace, rest)
    except MISTAKES as problem:
        told = isinstance(problem, PushError | LossError | WeightsError) or storage_failure(problem)
        if getattr(namespace, "prepared", False) and not told:
            blank(problem, secrets_of(namespace, rest))
            raise  # training has begun: this is no mistake in the recipe
        if rank != "0":
            time.sleep(_GRACE)  # the launcher ends this process if the first one has said the same
        below = "\n" if getattr(namespace, "prepared", False) else ""  # a bar of progress, which is not at its end
        said = without_secrets(" ".join(str(problem).split()), told=secrets_of(namespace, rest))
        sys.stderr.write(f"{below}hf-multitask: error: {said}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130
    return 0
