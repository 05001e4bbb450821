"""What several processes need beyond what the Trainer does for them."""

from __future__ import annotations

import atexit
import gc
import os
import weakref
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist

if TYPE_CHECKING:
    from transformers import Trainer


def check_world_size(world_size: int) -> None:
    """See that the processes that a launcher started know of each other; else each would train by itself.

    Raises:
        ValueError: they do not.
    """
    launched = os.environ.get("WORLD_SIZE", "")
    if launched.isdigit() and int(launched) != world_size:
        raise ValueError(
            f"The launcher started {launched} processes (WORLD_SIZE), and training would use {world_size}, so each "
            "would train by itself. Start them with torchrun; for processes on the CPU under accelerate launch "
            "--multi_gpu, set ACCELERATE_USE_CPU=true."
        )


def release_group_at_exit(trainer: Trainer) -> None:
    """Let go of the process group before the interpreter does.

    A thread of gloo may hold the tensors of the last collective for a moment after it is done. Where it drops them
    while the interpreter is being torn down, the process aborts. The threads end with the last reference to their
    group, and the wrapper that the Trainer puts around the model has one.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        atexit.register(_release, weakref.ref(trainer))


def _release(reference: weakref.ref[Trainer]) -> None:
    trainer = reference()
    if trainer is not None:
        trainer.model_wrapped = cast(Any, trainer.model)
        trainer.accelerator.free_memory()
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
