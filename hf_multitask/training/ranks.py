"""What several processes need beyond what the Trainer does for them."""

from __future__ import annotations

import atexit
import gc
import weakref
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist

if TYPE_CHECKING:
    from transformers import Trainer


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
