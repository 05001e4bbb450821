"""Rows of the data folder, which has a folder per dataset, with a JSON object per line in ``<split>.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of a split of one dataset."""
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


def columns(rows: list[dict[str, Any]], *names: str) -> dict[str, list[Any]]:
    """Some columns of the rows, by name."""
    return {name: [row[name] for row in rows] for name in names}
