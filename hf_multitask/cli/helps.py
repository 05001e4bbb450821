"""``hf-multitask train --help``: the training arguments by group, as the docstrings of their classes describe them."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields

from transformers import TrainingArguments

from ..training import MultiTaskTrainingArguments

_OURS, _REST = "Mixtures of tasks", "Others"
_HEADING = re.compile(r"> (?!\[)(?P<heading>\S.*)")
_ARGUMENT = re.compile(r"(?P<name>\w+(?:, \w+)*)(?: ?\(.*\))?: ?(?P<text>.*)")
_SENTENCE = re.compile(r".*?\.(?= |$)")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")


class TrainingHelp(argparse.Action):
    """``-h`` and ``--help`` of a command that takes training arguments."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: str | None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=kwargs.get("help"))

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:  # noqa: ARG002
        """Print the help of the command and the groups, and exit."""
        parser.print_help()
        print("\n".join(training_help(argparse.HelpFormatter("")._width)))
        parser.exit()


def add_help(parser: argparse.ArgumentParser) -> None:
    """Give ``--help`` to a parser that was made without."""
    parser.add_argument(
        "-h", "--help", action=TrainingHelp, help="show this help message with all training arguments and exit"
    )


def training_help(width: int) -> Iterator[str]:
    """The lines of the help: by group, every training argument with its default and what it does."""
    yield "\ntraining arguments, in the recipe under `training` or as --NAME VALUE:"
    defaults = {one.name: one for one in fields(MultiTaskTrainingArguments) if one.init}
    for heading, arguments in argument_groups().items():
        yield f"\n{heading}:"
        for name, text in arguments.items():
            default = getattr(defaults[name].default, "value", defaults[name].default)  # the word of an enum
            yield f"  --{name}" + ("" if default is MISSING or default is None else f" (default: {default})")
            yield from textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def argument_groups() -> dict[str, dict[str, str]]:
    """By heading, what is said of each training argument: ours, then the Trainer's in the groups of its docstring."""
    known = [one.name for one in fields(MultiTaskTrainingArguments) if one.init]
    ours = _described(MultiTaskTrainingArguments, _OURS)[_OURS]
    found = {_OURS: {name: text for name, text in ours.items() if name in known}}
    for heading, arguments in _described(TrainingArguments, _REST).items():
        found[heading] = {
            name: _first_sentence(text) for name, text in arguments.items() if name in known and name not in ours
        }
    told = {name for arguments in found.values() for name in arguments}
    rest = {**found.pop(_REST, {}), **{name: "" for name in known if name not in told}}
    return {heading: arguments for heading, arguments in {**found, _REST: rest}.items() if arguments}


def _described(kind: object, first: str) -> dict[str, dict[str, str]]:
    """By heading of a class's docstring, its arguments with their text; those before all headings under ``first``."""
    lines, heading = inspect.cleandoc(kind.__doc__ or "").splitlines(), first
    groups: dict[str, dict[str, list[str]]] = {}
    inside, name = False, None
    for line in lines:
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if indent == 0 and text:
            inside, name = text in ("Args:", "Parameters:"), None
        elif inside and indent == 4 and (found := _HEADING.fullmatch(text)):
            heading, name = found["heading"], None
        elif inside and indent == 4 and (found := _ARGUMENT.fullmatch(text)):
            name = found["name"]
            groups.setdefault(heading, {})[name] = [found["text"]]
        elif inside and name is not None and text:
            groups[heading][name].append(text)
    return {
        heading: {name: _plain(" ".join(parts)) for name, parts in arguments.items()}
        for heading, arguments in groups.items()
    }


def described(*things: object) -> dict[str, str]:
    """By name, what docstrings say of arguments; of the first that says more than where to look."""
    found: dict[str, str] = {}
    for thing in things:
        for arguments in _described(thing, "").values():
            for names, text in arguments.items():
                for name in names.split(", "):
                    if name not in found and not text.startswith("see "):
                        found[name] = text
    return found


def _plain(text: str) -> str:
    """A docstring's text without its markup."""
    plain = re.sub(r":\w+:`[~.]?([^`]+)`", r"\1", _LINK.sub(r"\1", " ".join(text.split())))
    return re.sub(r"`+|\*+", "", plain)


def _first_sentence(text: str) -> str:
    found = _SENTENCE.match(text)
    return found[0] if found else text
