"""What several processes need beyond what the Trainer does for them."""

from __future__ import annotations

import atexit
import gc
import os
import weakref
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout
from transformers.utils import is_torch_xla_available

from .plain import Saved, State

if TYPE_CHECKING:
    from transformers import Trainer


def _launched() -> int | None:
    """How many processes a launcher has started; None without one."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdigit() else None


def only_cpus() -> bool:
    """Whether there are several processes of a launcher, on a machine without accelerators.

    Transformers connects such processes only with ``use_cpu``.
    """
    return (_launched() or 1) > 1 and not torch.accelerator.is_available() and not is_torch_xla_available()


def check_world_size(world_size: int) -> None:
    """Check that the processes of a launcher form one group; otherwise each would train by itself.

    Raises:
        ValueError: they do not.
    """
    if _launched() not in (None, world_size):
        raise ValueError(
            f"The launcher started {_launched()} processes (WORLD_SIZE), and training would use {world_size}, so each "
            "would train by itself. To train on the CPU of a machine with an accelerator set use_cpu=True (--use_cpu); "
            "otherwise start the processes with torchrun."
        )


def set_timeout(timeout: timedelta) -> None:
    """Let collectives of the CPU end after so long as well; with ``use_cpu`` Transformers leaves them half an hour."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        _set_pg_timeout(timeout)


def check_alike(facts: Saved) -> None:
    """Check that all ranks have the same data, tasks and arguments.

    Args:
        facts: of this rank, by their names in errors.

    Raises:
        ValueError: something differs; the same sentence on every rank says what, and between which ranks.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    given: list[State] = [{}] * dist.get_world_size()
    dist.all_gather_object(given, dict(facts))
    for rank, theirs in enumerate(given):
        if theirs != given[0]:
            name, one, other = _first_difference(given[0], theirs)
            raise ValueError(
                f"The {name} differ between ranks: {one} on rank 0, {other} on rank {rank}. "
                "Give all ranks the same data, tasks and arguments."
            )


def _first_difference(one: Saved, other: Saved) -> tuple[str, object, object]:
    for key in [*one, *(key for key in other if key not in one)]:
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping) and left != right:
            name, left, right = _first_difference(left, right)
            return f"{key} ({name})", left, right
        if left != right:
            return key, left, right
    return "facts", one, other


def release_group_at_exit(trainer: Trainer) -> None:
    """Release the process group before the interpreter exits.

    A thread of gloo may hold the tensors of the last collective for a moment after it is done. Where it drops them
    while the interpreter is being torn down, the process aborts. The threads end with the last reference to their
    group, and the wrapper that the Trainer puts around the model has one.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        atexit.register(_release, weakref.ref(trainer))


def _release(reference: weakref.ref[Trainer]) -> None:
    trainer = reference()
    if trainer is not None:
        trainer.model_wrapped = trainer.model  # type: ignore[assignment]
        trainer.accelerator.free_memory()
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
