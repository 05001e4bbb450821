"""The secrets of a command, which are removed from errors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ..training.secrets import without_secrets
from .document import read_document

_PAIR = re.compile(r"""([\w.-]+)["']?\s*[:=]\s*["']?([^\s"',{}]+)""")


def secrets_of(namespace: argparse.Namespace, words: Sequence[str]) -> list[object]:
    """The values that contain the secrets of a command by name: its recipe, and the arguments after it."""
    told: list[object] = [{name: value} for name, value in _PAIR.findall(" ".join(words))]
    told += [{name.lstrip("-"): value} for name, value in pairwise(words)]
    if hasattr(namespace, "recipe"):
        try:
            told.append(read_document(Path(namespace.recipe)))
        except ValueError:  # invalid YAML, whose lines may contain secrets
            text = Path(namespace.recipe).read_text(encoding="utf-8", errors="replace")
            told += [{name: value} for name, value in _PAIR.findall(text)]
        except OSError:
            pass
    return told


def blank(problem: BaseException | None, told: object) -> None:
    """Remove the secrets from an error and from its causes, before it is shown with its traceback."""
    seen: list[BaseException] = []
    while problem is not None and problem not in seen:
        seen.append(problem)
        problem.args = without_secrets(problem.args, told=told)
        problem = problem.__cause__ or problem.__context__
