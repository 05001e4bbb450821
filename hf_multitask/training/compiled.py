"""torch.compile of the backbone, in place of the Trainer's compilation of the whole model.

Every batch has rows of other tasks and other numbers of them, and a graph of the whole model would fit no other batch.
The backbone sees rows and lengths only, so a few graphs fit all batches. Gradients of single tasks, which are separated
layer by layer, and generated texts come from the backbone as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin

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
    if model.config.branches:
        return (
            "branches, as every division of rows between them would be a graph of its own; from_backbone makes none "
            "with branches='none'"
        )
    return None


def compile_backbone(runtime: Runtime) -> None:
    """Compile the backbone, once; nothing happens unless the arguments say so."""
    settings, part = compilation(runtime.args), reading_part(runtime.model.backbone)
    if settings is not None and not runtime.engine and part._compiled_call_impl is None:
        part.compile(**settings)


def release(model: MultiTaskModel) -> None:
    """Have the backbone run as it is again."""
    reading_part(model.backbone)._compiled_call_impl = None


@contextmanager
def uncompiled(model: MultiTaskModel) -> Iterator[None]:
    """Within it, the backbone runs as it is."""
    part = reading_part(model.backbone)
    before, part._compiled_call_impl = part._compiled_call_impl, None
    try:
        yield
    finally:
        part._compiled_call_impl = before
