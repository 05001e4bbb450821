"""Folders of runs inside of a run's ``output_dir``: the file that says how far one is, and what is not pushed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..training.state.checkpoint import checkpoints, hashes

_LOADED = ("config.json", "*.safetensors*", "tokenizer*")
STAGES = "stages.json"  # a table of stages
RESULTS = (*(f"{split}_results.json" for split in ("all", "train", "eval", "test")), "eval_report.json", STAGES)


def leave_out(output_dir: Path, *patterns: str) -> None:
    """Keep folders out of the pushes of the folder that they are in, which the Hub reads ``.gitignore`` for."""
    path = output_dir / ".gitignore"
    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if new := [pattern for pattern in patterns if pattern not in known]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*known, *new]) + "\n", encoding="utf-8")


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that starts from its beginning."""
    for stale in checkpoints(folder):
        shutil.rmtree(stale)


def files_of(folder: Path) -> dict[str, list[int | str]]:
    """The sizes and hashes of the files that a model and its tokenizer are loaded from."""
    names = [path.name for pattern in _LOADED for path in sorted(folder.glob(pattern))]
    return hashes(folder, *names) if names else {}


def drop_results(folder: Path) -> None:
    """Remove the results of an earlier run, with which those of this one would be mixed."""
    for stale in RESULTS:
        (folder / stale).unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is none, or if it breaks off."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_state(path: Path, state: Mapping[str, object]) -> None:
    """Write a JSON file, which is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.new")
    written.write_text(json.dumps(state) + "\n", encoding="utf-8")
    written.replace(path)
