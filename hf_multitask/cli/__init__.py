"""The command line: ``hf-multitask COMMAND``; see :data:`hf_multitask_cli.COMMANDS`."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import time
from collections.abc import Sequence

import hf_multitask_cli

from ..modeling.finite import WeightsError
from ..modeling.loading import PushError
from ..modeling.saving import storage_failure
from ..training.secrets import without_secrets
from ..training.step.guard import LossError
from .secrets import blank, secrets_of

MISTAKES = (ValueError, TypeError, OSError, ImportError)  # their messages explain the mistake in one sentence
_GRACE = 15.0  # seconds


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 on success; 2 for a mistake of the user, or if losses or weights that are not finite have ended the
        training, with a message of one sentence; 130 if interrupted. A run that receives SIGTERM saves first and
        exits with 143.
    """
    given = list(sys.argv[1:] if words is None else words)
    if not given or given[0] not in hf_multitask_cli.COMMANDS or given[0] == "version":
        return hf_multitask_cli.main(given)
    parser, commands = hf_multitask_cli.build_parser()
    command = importlib.import_module(f".{given[0]}", __name__)
    command.add_parser(commands)
    namespace, rest = parser.parse_known_args(given)
    rank = os.environ.get("RANK", "0")  # set by a launcher
    try:
        with contextlib.nullcontext() if rank == "0" else contextlib.redirect_stdout(io.StringIO()):
            command.run(namespace, rest)
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
