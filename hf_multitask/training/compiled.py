"""torch.compile of the backbone, in place of the Trainer's compilation of the whole model.

Every batch has rows of other tasks and other numbers of them, and a graph of the whole model would fit no other batch.
The backbone sees rows and lengths only, so a few graphs fit all batches. How rows are divided between branches is
another matter for every batch as well, and there the layers are compiled one by one: those of all branches share their
graphs. Gradients of single tasks, which are separated layer by layer, and generated texts come from the backbone as it
is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import nn

from ..modeling.branches import BranchedLayer, layers_of
from ..modeling.kinds import reader_of
from ..modeling.native import reading_part
from ..modeling.readers import TEXTS
from .plain import State

if TYPE_CHECKING:
    from ..modeling import MultiTaskModel
    from .arguments import MultiTaskTrainingArguments
    from .runtime import Runtime


def compilation(args: MultiTaskTrainingArguments) -> State | None:
    """The arguments of torch.compile that a run sets, or its launcher; None if nothing is compiled."""
    plugin = TorchDynamoPlugin(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    if plugin.backend == DynamoBackend.NO:
        return None
    mode = None if plugin.mode == "default" else plugin.mode
    return {"backend": plugin.backend.value.lower(), "mode": mode, "dynamic": plugin.dynamic}


def take_over(runtime: Runtime, accelerator: Accelerator) -> None:
    """Have the backbone compiled in place of the whole model, unless its parameters are sharded.

    Args:
        runtime: where the model trains.
        accelerator: of the Trainer, which compiles what it prepares.

    Raises:
        ValueError: the backbone cannot be compiled.
    """
    if (settings := compilation(runtime.args)) is None or runtime.engine:
        return
    if settings["mode"] is not None and settings["backend"] != "inductor":
        raise ValueError(
            f"Parameter `torch_compile_mode` is for the backend inductor. Found `torch_compile_mode = "
            f"{settings['mode']!r}` with the backend '{settings['backend']}'. Leave one of them out."
        )
    if reason := _why_not(runtime.model):
        raise ValueError(f"Parameter `torch_compile` does not work with {reason}. Leave it out.")
    accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="no")


def _why_not(model: MultiTaskModel) -> str | None:
    """What a compiled backbone does not go together with, in words; None if there is nothing."""
    if any(reader_of(task).modality != TEXTS for task in model.config.tasks):
        return "recordings, whose layers draw masks and depend on the padding of a batch"
    if model.config.adapters and model.config.adapters["tasks"]:
        return "task_lora, as every number of rows of a task would be a graph of its own"
    return None


def _parts(model: MultiTaskModel) -> list[nn.Module]:
    """What is compiled: the part of the backbone that reads, or its layers where some are of branches."""
    if not model.config.branches:
        return [reading_part(model.backbone)]
    layers = layers_of(model.backbone)
    return [part for one in layers for part in (one.branches.values() if isinstance(one, BranchedLayer) else [one])]


def compile_backbone(runtime: Runtime) -> None:
    """Compile the backbone, once; nothing happens unless the arguments say so."""
    if (settings := compilation(runtime.args)) is None or runtime.engine:
        return
    for part in _parts(runtime.model):
        if part._compiled_call_impl is None:
            compiled = torch.compile(part._call_impl, **settings)
            branched = bool(runtime.model.config.branches)
            part._compiled_call_impl = partial(_at_the_start, compiled) if branched else compiled


def _at_the_start(layer: Callable[..., object], states: torch.Tensor, *args: object, **kwargs: object) -> object:
    """Call a compiled layer with states that begin their memory, and masks of their own, as there would be more graphs.

    Those of a branch may be parts of larger tensors, and those of a batch of one branch are none.

    Args:
        layer: the compiled one.
        states: (B, L, D), those of a branch a part of a larger tensor.
        args: further inputs, such as the mask.
        kwargs: likewise.
    """
    whole = [one.clone() if isinstance(one, torch.Tensor) and one._is_view() else one for one in args]
    return layer(states.clone() if states.storage_offset() else states, *whole, **kwargs)


def release(model: MultiTaskModel) -> None:
    """Have the backbone run as it is again."""
    for part in _parts(model):
        part._compiled_call_impl = None


@contextmanager
def uncompiled(model: MultiTaskModel) -> Iterator[None]:
    """Within it, the backbone runs as it is."""
    before = {part: part._compiled_call_impl for part in _parts(model)}
    release(model)
    try:
        yield
    finally:
        for part, compiled in before.items():
            part._compiled_call_impl = compiled
