"""Checkpoint folders: whole or torn, the last whole one, and what one must hold to be resumed from."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...modeling import MultiTaskModel
from ...modeling.adapters import adapter_of
from ...modeling.branches import branch_of
from ..plain import State
from .progress import FORMAT, STATE_NAME, state_hash

_STATES = (STATE_NAME, f"{STATE_NAME}.new", TRAINER_STATE_NAME)
_BLOCK = 16 << 20  # bytes that are hashed at a time
_MOST_THREADS = 8


def check_checkpoint(folder: str, model: MultiTaskModel) -> None:
    """Check that a checkpoint has the weights of the model's heads, adapters and branches, and no others.

    The Trainer only warns.

    Raises:
        ValueError: it is torn, a head or an adapter is missing or foreign, a head has other labels, or the folder holds
            no safetensors.
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
            adapter, branch = adapter_of(key), branch_of(key)
            what = f"the branch '{branch}'" if branch else f"the adapter '{adapter}'"
            what = f"head '{key.split('.')[1]}'" if key.startswith("heads.") else what
            raise ValueError(
                f"Checkpoint '{folder}' has {problem} weights for {what}; the model's tasks are "
                f"{', '.join(model.config.task_names)}. Resume with the tasks, adapters and branches that it was saved "
                "with."
            )
    path = Path(folder) / CONFIG_NAME
    then = {task["name"]: task.get("label_names") for task in _tasks_in(path)}
    for task in model.config.tasks:
        labels, before = task.get("label_names"), then.get(task["name"])
        if labels and before and list(labels) != list(before):
            raise ValueError(
                f"Checkpoint '{folder}' has head '{task['name']}' for other labels: {_shown(before)} then, "
                f"{_shown(labels)} now. Resume with those labels, or start a new run from its weights with "
                "MultiTaskModel.from_pretrained."
            )


def _tasks_in(path: Path) -> list[State]:
    """The tasks in a configuration; none if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")).get("tasks") or [] if path.is_file() else []


def _shown(labels: Sequence[str]) -> str:
    return f"{len(labels)} ({', '.join([*(['...'] if len(labels) > 12 else []), *labels[-12:]])})"


def _own_keys(keys: Iterable[str]) -> set[str]:
    return {key for key in keys if key.startswith("heads.") or adapter_of(key) or branch_of(key)}


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


def hashes(folder: Path, *names: str) -> dict[str, list[int | str]]:
    """By name, the bytes and the hash of files of a checkpoint.

    Args:
        folder: the checkpoint.
        names: of files; all that are written before our own state and the Trainer's where there is none.
    """
    paths = [folder / name for name in names] or [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _STATES
    ]
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, file_hash(path)] for path in paths}


def file_hash(path: Path) -> str:
    """The hash of the hashes of a file's blocks, which all cores make: a GB takes a core about a second."""
    status = path.stat()
    return _hash(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)  # every save reads the checkpoints that are kept
def _hash(path: str, size: int, changed: int) -> str:  # noqa: ARG001 - part of the key
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(lambda start: _block_hash(path, start), range(0, max(size, 1), _BLOCK)))
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _block_hash(path: str, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return hashlib.blake2b(file.read(_BLOCK), digest_size=16).digest()


def torn(folder: Path) -> str | None:
    """What keeps a checkpoint from being whole, in words; None where it is whole.

    The Trainer's state is written last, and a JSON file that breaks off is none; our own state knows the size and the
    hash of all other files. A checkpoint without it comes from another trainer, and is whole with the Trainer's state
    and weights.
    """
    if _read(folder / TRAINER_STATE_NAME) is None:
        return f"no whole {TRAINER_STATE_NAME}"
    if not (folder / STATE_NAME).is_file():
        weights = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        return None if any((folder / name).is_file() for name in weights) else f"no {SAFE_WEIGHTS_NAME}"
    state = _read(folder / STATE_NAME)
    if state is None:
        return f"no whole {STATE_NAME}"
    if state.get("format") == FORMAT and state.get("hash") != state_hash(state):
        return f"a damaged {STATE_NAME}"
    files = state.get("files")
    for name, known in (files if isinstance(files, dict) else {}).items():
        if problem := _problem(folder / name, known):
            return f"{problem} {name}"
    return None


def _problem(path: Path, known: int | list[int | str]) -> str | None:
    """What is wrong with a file, of which a size or a size and a hash are known."""
    size, digest = (known, None) if isinstance(known, int) else known
    if not path.is_file():
        return "no whole"
    if digest is not None:
        if path.stat().st_size != size:
            return "no whole"
        return None if file_hash(path) == digest else "a damaged"
    if path.suffix != ".safetensors":
        return None if path.stat().st_size == size else "no whole"
    try:  # its header has its length
        with safe_open(path, framework="pt"):
            return None
    except SafetensorError:
        return "no whole"


def _read(path: Path) -> State | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def last_whole_checkpoint(output_dir: str | Path, log: Callable[[str], object] = lambda _: None) -> str | None:
    """The last checkpoint of a run that was written to its end, and has not changed since.

    Args:
        output_dir: of the run.
        log: is called with a message for every torn one that is skipped.
    """
    for path in checkpoints(output_dir):
        problem = torn(path)
        if problem is None:
            return str(path)
        log(f"{path} is not whole and is skipped: it has {problem}.")
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
