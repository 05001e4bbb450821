"""``hf-multitask completion SHELL``: a script with which a shell completes commands, options and their values.

It is made from the parsers of all commands by shtab, and runs without this package, so that a key press is answered
at once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, cast

import hf_multitask_cli

from ..aggregation import AGGREGATORS
from ..balancing import BALANCING
from ..data import SAMPLING
from ..training.arguments import CHOICES
from .arguments import training_options
from .helps import argument_groups

SHELLS = ("bash", "zsh", "fish")
_FILES = ("recipe", "data", "text", "input", "space", "token_file", "deepspeed")
_FOLDERS = ("model", "output_dir", "resume_from_checkpoint")
_OUTPUTS = {"export": "directory"}  # of a command; those of others are files
_WORDS = {
    **{name: [one.value for one in words] for name, words in CHOICES.items()},
    "sampling": list(SAMPLING),
    "balancing": ["auto", "none", *BALANCING],
    "aggregation": ["auto", "none", *AGGREGATORS],
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("completion", description=(__doc__ or "").replace("``", ""))
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Print the script.

    Raises:
        ImportError: the extra ``completion`` is not installed.
        ValueError: an argument is unknown.
    """
    if words:
        raise ValueError(f"completion does not accept the argument '{words[0]}'. Remove it.")
    if importlib.util.find_spec("shtab") is None:
        raise ImportError("Completion needs shtab, which is not installed. Run: pip install 'hf_multitask[completion]'")
    import shtab

    print(shtab.complete(whole_parser(), shell=namespace.shell))


class _Commands:
    """Adds the parsers of commands with the line that the help of all commands has for each."""

    def __init__(self, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        self.commands = commands
        self.parsers: dict[str, argparse.ArgumentParser] = {}

    def add_parser(self, name: str, **given: Any) -> argparse.ArgumentParser:
        self.parsers[name] = self.commands.add_parser(name, help=hf_multitask_cli.COMMANDS[name], **given)
        return self.parsers[name]


def whole_parser() -> argparse.ArgumentParser:
    """The parser of all commands, with training arguments where they may follow, and what completes each argument."""
    parser, action = hf_multitask_cli.build_parser()
    commands = _Commands(action)
    for name in hf_multitask_cli.COMMANDS:
        if name == "version":
            commands.add_parser(name)
            continue
        module = importlib.import_module(f".{name}", __package__)
        module.add_parser(cast("argparse._SubParsersAction[argparse.ArgumentParser]", commands))
        if hasattr(module, "parse_overrides"):
            _add_training(commands.parsers[name])
        for argument in commands.parsers[name]._actions:
            _complete(argument, _OUTPUTS.get(name, "file"))
    return parser


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add the training arguments to the parser of a command."""
    told = {name: text for group in argument_groups().values() for name, text in group.items()}
    for name, flag in training_options().items():
        if f"--{name}" not in parser._option_string_actions:
            words = _WORDS.get(name, ["true", "false"] if flag else None)
            parser.add_argument(f"--{name}", choices=words, help=told.get(name, "").replace("%", "%%"))


def _complete(argument: argparse.Action, output: str) -> None:
    """Let an argument that is a path be completed by paths."""
    import shtab

    kind = {**dict.fromkeys(_FILES, "file"), **dict.fromkeys(_FOLDERS, "directory"), "output": output}
    if argument.dest in kind:
        argument.complete = {"file": shtab.FILE, "directory": shtab.DIRECTORY}[kind[argument.dest]]  # type: ignore[attr-defined]
