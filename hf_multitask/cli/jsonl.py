"""Files of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with the numbers of their lines; empty lines are passed over.

    Raises:
        ValueError: a line holds no JSON object.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as problem:
                raise ValueError(
                    f"line {number} of '{path}' is not valid JSON ({problem.msg}). Mend the line."
                ) from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of '{path}' is no JSON object. Write one object a line.")
            yield number, row
