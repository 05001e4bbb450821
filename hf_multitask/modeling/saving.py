"""Files that take their place together, once all of them are written."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from .aliases import Settings, Values

STAGE = "_saving"  # what begins with an underscore is pushed nowhere

_SHARD = re.compile(r"-\d{5}-of-\d{5}")
# Errors of a storage that is full, over its quota, or broken.
_STORAGE = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}
_HUB = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")


def storage_failure(problem: Exception) -> str | None:
    """The reason for an error of a full storage, in words; None for any other error.

    safetensors and torch do not raise OSError for it.
    """
    code = problem.errno if isinstance(problem, OSError) else None
    if isinstance(problem, SafetensorError) and (found := re.search(r"\(os error (\d+)\)", str(problem))):
        code = int(found[1])
    if code is not None and code in _STORAGE:
        return os.strerror(code).lower()
    writer = ("inline_container.cc", "PytorchStreamWriter", "iostream error")  # of torch.save
    if isinstance(problem, RuntimeError) and any(word in str(problem) for word in writer):
        return "torch could not write a file to its end"
    return None


@contextlib.contextmanager
def whole(save_directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write files into; they move to ``save_directory`` when all are there.

    Weights of an earlier save that the new ones do not replace, such as its shards, are removed then.

    Raises:
        OSError: the storage is full, and what was in ``save_directory`` is still there.
    """
    target = Path(save_directory)
    stage = target / STAGE
    made = not target.exists()
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        yield stage
        new = [path.relative_to(stage) for path in sorted(stage.rglob("*")) if path.is_file()]
        for path in new:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / path, target / path)
        names = {_weights(path.name) for path in new if path.suffix == ".safetensors"}
        for old in target.iterdir():
            if _weights(old.name) in names and Path(old.name) not in new:
                old.unlink()
    except Exception as problem:
        reason = storage_failure(problem)
        if reason is None or isinstance(problem, StorageFullError):
            raise
        kept = "" if made else " The files of the save before are still complete."
        raise StorageFullError(
            problem.errno if isinstance(problem, OSError) else errno.ENOSPC,
            f"Nothing could be saved in '{target}' ({reason}).{kept} Free some space, and save again.",
        ) from problem
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                target.rmdir()  # of a save that failed: it is empty


def _weights(name: str) -> str:
    """Which weights a file is a shard or the index of, such as ``model.safetensors``."""
    return _SHARD.sub("", name).removesuffix(".index.json")


class StorageFullError(OSError):
    """The storage is full."""

    def __str__(self) -> str:
        return str(self.args[1])


def without_hub(kwargs: Settings) -> Values:
    """The arguments of ``save_pretrained`` that are not of ``push_to_hub``."""
    return {key: value for key, value in kwargs.items() if key not in _HUB}


def hub_arguments(save_directory: str | os.PathLike[str], kwargs: Settings) -> Values:
    """Those that are; a repository is named for its folder unless it has a name."""
    given = {key: value for key, value in kwargs.items() if key in (*_HUB, "token", "max_shard_size")}
    return {"repo_id": Path(save_directory).name, **given}
