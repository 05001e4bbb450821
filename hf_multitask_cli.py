"""The console script ``hf-multitask``.

It is a module beside the package, because importing the package takes seconds: help and versions appear at once, and a
command imports what it runs.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

# By command, what its line in the help says. The command is the module of its name in hf_multitask.cli.
COMMANDS = {
    "init": "write a recipe for your data",
    "train": "train the tasks of a recipe",
    "evaluate": "evaluate a saved model",
    "predict": "print the answers of a saved model",
    "serve": "answer requests over HTTP",
    "export": "export a task as a stock model",
    "diagnose": "measure how tasks affect each other",
    "tune": "search for training arguments",
    "completion": "print a script that completes commands in a shell",
    "version": "print the versions of the package and of what it runs on",
}
_PACKAGES = (
    *("hf_multitask", "torch", "transformers", "tokenizers", "datasets", "evaluate", "accelerate", "huggingface_hub"),
    *("safetensors", "torchjd", "peft", "onnxruntime", "tensorboard"),
)


def build_parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]:
    """The parser of all commands, and the action that a command adds its own parser to."""
    parser = argparse.ArgumentParser(
        prog="hf-multitask", description="Multi-task fine-tuning on the Hugging Face stack."
    )
    parser.add_argument("--version", action="version", version=f"hf-multitask {_version('hf_multitask')}")
    return parser, parser.add_subparsers(dest="command", required=True, metavar="COMMAND")


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code, see :func:`hf_multitask.cli.main`.
    """
    given = list(sys.argv[1:] if words is None else words)
    if not given or given[0] not in COMMANDS or given[0] == "version":
        parser, commands = build_parser()
        for name, line in COMMANDS.items():
            commands.add_parser(name, help=line, description=line)
        _, rest = parser.parse_known_args(given)  # prints a help or a mistake, and exits
        return _show_versions(rest)
    try:  # importing takes seconds, in which Ctrl-C may come
        from hf_multitask.cli import main as run

        return run(given)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _show_versions(rest: Sequence[str]) -> int:
    if rest:
        sys.stderr.write(f"hf-multitask: error: version does not accept the argument '{rest[0]}'. Remove it.\n")
        return 2
    lines = {package: _version(package) for package in _PACKAGES}
    lines |= {"python": platform.python_version(), "platform": platform.platform()}
    width = max(map(len, lines))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))
    return 0
