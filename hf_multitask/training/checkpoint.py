"""What a checkpoint must hold to be resumed from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..modeling import MultiTaskModel


def check_checkpoint(folder: str, model: MultiTaskModel) -> None:
    """See that a checkpoint has the weights of the model's heads and of no other; the Trainer would only warn.

    Raises:
        ValueError: a head is missing or foreign, or the folder holds no safetensors.
    """
    saved = _head_keys(_keys(Path(folder)))
    own = _head_keys(model.state_dict())
    for problem, keys in (("no", own - saved), ("foreign", saved - own)):
        if keys:
            head = sorted(keys)[0].split(".")[1]
            raise ValueError(
                f"Checkpoint '{folder}' has {problem} weights for head '{head}'; the model's tasks are "
                f"{', '.join(model.config.task_names)}. Resume with the tasks that it was saved with."
            )


def _head_keys(keys: Iterable[str]) -> set[str]:
    return {key for key in keys if key.startswith("heads.")}


def _keys(folder: Path) -> list[str]:
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        return list(json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))["weight_map"])
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        raise ValueError(f"Checkpoint '{folder}' has no {SAFE_WEIGHTS_NAME}. Name another checkpoint.")
    with safe_open(folder / SAFE_WEIGHTS_NAME, framework="pt") as weights:
        return list(weights.keys())
