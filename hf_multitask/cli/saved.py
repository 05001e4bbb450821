"""A saved model and its tokenizer, as the commands take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..modeling import MultiTaskModel
from ..modeling.loading import explained


def load_saved(name: str) -> tuple[MultiTaskModel, Any]:
    """Load a folder or a Hub id.

    Raises:
        ValueError: the name is plainly a path, and there is no model, or what is there is none of ours.
        OSError: the Hub does not give it.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"The folder '{name}' holds no model: it has no config.json. Name the output_dir of a run.")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ValueError(f"There is no folder '{name}'. Check the path.")
    model = MultiTaskModel.from_pretrained(name)
    with explained(name):
        return model, AutoTokenizer.from_pretrained(name)
