"""Files of one JSON object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with the numbers of their lines; empty lines are passed over.

    Raises:
        ValueError: a line holds no JSON object.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as problem:  # a number of too many digits, too many brackets
                told = getattr(problem, "msg", problem)
                raise ValueError(f"line {number} of '{path}' is not valid JSON ({told}). Mend the line.") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of '{path}' is no JSON object. Write one object a line.")
            if "\\u" in line and _HALF.search(json.dumps(row, ensure_ascii=False)):
                raise ValueError(
                    f"line {number} of '{path}' holds half of a character, a surrogate such as \\ud83d without the "
                    "other. Mend the line."
                )
            yield number, row
