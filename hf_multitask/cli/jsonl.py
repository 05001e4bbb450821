"""Files of one JSON value a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .lines import read_lines

HALF = re.compile("[\ud800-\udfff]")  # of a character, a surrogate


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with the numbers of their lines; empty lines are passed over.

    Raises:
        ValueError: a line holds no JSON object.
    """
    for number, row in read_values(path):
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of '{path}' is no JSON object. Write one object a line.")
        yield number, row


def read_values(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file with the numbers of their lines; empty lines are passed over.

    Raises:
        ValueError: a line holds no JSON.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield number, parse_json(line, f"line {number} of '{path}'")


def parse_json(text: str, where: str) -> Any:
    """A JSON value.

    Args:
        text: in JSON.
        where: it stands, as the message says it.

    Raises:
        ValueError: it is not valid, or holds half of a character.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:  # a number of too many digits, too many brackets
        told = getattr(problem, "msg", problem)
        if isinstance(problem, json.JSONDecodeError) and "\n" in text.strip():
            told = f"{told}, line {problem.lineno}"
        raise ValueError(f"{where} is not valid JSON ({told}). Fix it.") from None
    if "\\u" in text and HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError(
            f"{where} holds half of a character, a surrogate such as \\ud83d without the other. Write the character."
        )
    return value
