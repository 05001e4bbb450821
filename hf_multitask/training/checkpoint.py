"""Checkpoint folders: whole or torn, the last whole one, and what one must hold to be resumed from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..modeling import MultiTaskModel
from ..modeling.adapters import adapter_of
from .progress import STATE_NAME


def check_checkpoint(folder: str, model: MultiTaskModel) -> None:
    """See that a checkpoint has the weights of the model's heads and adapters and of no other; the Trainer only warns.

    Raises:
        ValueError: it is torn, a head or an adapter is missing or foreign, or the folder holds no safetensors.
    """
    if isinstance(model, MultiTaskModel):
        saved = _own_keys(_keys(Path(folder)))
    if problem := torn(Path(folder)):
        raise ValueError(
            f"Checkpoint '{folder}' is not whole: it has {problem}. Name another one, or let resume_from_checkpoint "
            "be true for the last whole one."
        )
    if not isinstance(model, MultiTaskModel):  # PEFT's wrapper, which saves in a format of its own
        return
    own = _own_keys(model.state_dict())
    for problem, keys in (("no", own - saved), ("foreign", saved - own)):
        if keys:
            key = min(keys)
            adapter = adapter_of(key)
            what = f"head '{key.split('.')[1]}'" if adapter is None else f"the adapter '{adapter}'"
            raise ValueError(
                f"Checkpoint '{folder}' has {problem} weights for {what}; the model's tasks are "
                f"{', '.join(model.config.task_names)}. Resume with the tasks and adapters that it was saved with."
            )


def _own_keys(keys: Iterable[str]) -> set[str]:
    return {key for key in keys if key.startswith("heads.") or adapter_of(key)}


def _keys(folder: Path) -> list[str]:
    try:
        if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
            return list(json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))["weight_map"])
        if not (folder / SAFE_WEIGHTS_NAME).is_file():
            raise ValueError(f"Checkpoint '{folder}' has no {SAFE_WEIGHTS_NAME}. Name another checkpoint.")
        with safe_open(folder / SAFE_WEIGHTS_NAME, framework="pt") as weights:
            return list(weights.keys())
    except (SafetensorError, json.JSONDecodeError):
        raise ValueError(f"Checkpoint '{folder}' has torn weights. Name another checkpoint.") from None


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, the last first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = {
        int(path.name.removeprefix(prefix)): path
        for path in Path(output_dir).glob(f"{prefix}*")
        if path.name.removeprefix(prefix).isdigit() and path.is_dir()
    }
    return [found[step] for step in sorted(found, reverse=True)]


def sizes(folder: Path) -> dict[str, int]:
    """By name, the bytes of the files of a checkpoint that are written before its Trainer state, the last of all."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (STATE_NAME, TRAINER_STATE_NAME)
    }


def torn(folder: Path) -> str | None:
    """What keeps a checkpoint from being whole, in words; None where it is whole.

    The Trainer's state is written last, and a JSON file that breaks off is none; our own state knows the size of all
    other files. A checkpoint without it comes from another trainer, and is whole with the Trainer's state and weights.
    """
    if _read(folder / TRAINER_STATE_NAME) is None:
        return f"no whole {TRAINER_STATE_NAME}"
    if not (folder / STATE_NAME).is_file():
        weights = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        return None if any((folder / name).is_file() for name in weights) else f"no {SAFE_WEIGHTS_NAME}"
    state = _read(folder / STATE_NAME)
    if state is None:
        return f"no whole {STATE_NAME}"
    for name, size in state.get("files", {}).items():
        if not _whole(folder / name, size):
            return f"no whole {name}"
    return None


def _whole(path: Path, size: int) -> bool:
    """Whether a file is there in full. One that knows its own length may have been written anew: that is not torn."""
    if not path.is_file() or path.suffix != ".safetensors":
        return path.is_file() and path.stat().st_size == size
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def last_whole_checkpoint(output_dir: str | Path, tell: Callable[[str], Any] = lambda _: None) -> str | None:
    """The last checkpoint of a run that was written to its end.

    Args:
        output_dir: of the run.
        tell: is given a sentence for every torn one that is passed over.
    """
    for path in checkpoints(output_dir):
        problem = torn(path)
        if problem is None:
            return str(path)
        tell(f"{path} is not whole and is passed over: it has {problem}.")
    return None


def drop_torn(output_dir: str | Path) -> list[str]:
    """Remove the torn checkpoints of a run, so that those which are kept count whole ones only.

    Returns:
        What was removed.
    """
    dropped = [path for path in checkpoints(output_dir) if torn(path)]
    for path in dropped:
        shutil.rmtree(path)
    return [str(path) for path in dropped]
