"""Files with one JSON value per line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .lines import read_lines

HALF = re.compile("[\ud800-\udfff]")  # half of a character, a surrogate


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a file with their line numbers; empty lines are skipped.

    Raises:
        ValueError: a line is not a JSON object.
    """
    for number, row in read_values(path):
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of '{path}' is not a JSON object. Write one object per line.")
        yield number, row


def read_values(path: Path) -> Iterator[tuple[int, object]]:
    """The values of a file with their line numbers; empty lines are skipped.

    Raises:
        ValueError: a line is not valid JSON.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield number, parse_json(line, f"line {number} of '{path}'")


def parse_json(text: str, where: str) -> object:
    """A JSON value.

    Args:
        text: the JSON text.
        where: the position of the text, for the message.

    Raises:
        ValueError: the text is not valid JSON, or contains half of a character.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:  # a number with too many digits, too many brackets
        told = getattr(problem, "msg", problem)
        if isinstance(problem, json.JSONDecodeError) and "\n" in text.strip():
            told = f"{told}, line {problem.lineno}"
        raise ValueError(f"{where} is not valid JSON ({told}). Fix it.") from None
    if "\\u" in text and HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError(
            f"{where} contains half of a character, an unpaired surrogate such as \\ud83d. Write the whole character."
        )
    return value
