"""What an additional forward pass costs, in tokens: set by an argument, measured when a training begins, or a constant.

A pass of n tokens takes about :math:`f + s n` seconds, forward and backward: f does not depend on the number of tokens,
such as the time in which kernels are launched. So a pass more costs as much as :math:`f / s` tokens of padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from ..data.forwards import COST_ACCELERATOR, COST_CPU
from ..modeling.forks import as_task
from ..modeling.keywords import parameter_names
from ..modeling.native import reading_part
from .compiled import uncompiled
from .runtime import Inputs, Runtime
from .step.apart import aliased, undone

GIVEN, CPU, MEASURED, ASSUMED = "forward_cost_tokens", "a constant on CPUs", "measured", "assumed"
_MOST = 2**16  # more than a micro-batch has, so that it is never divided
_SMALL = (1, 8)  # rows and length of a pass that takes no longer than its fixed cost
_WARM_UP, _REPEATS, _SECONDS = 2, 5, 0.5


def cost_of(runtime: Runtime, longest: int) -> tuple[int, str]:
    """The cost of an additional forward pass in tokens, the same in all processes, and where it comes from.

    Args:
        runtime: where training is about to begin.
        longest: length of the longest text.
    """
    given = runtime.args.forward_cost_tokens
    if given is not None:
        return given, GIVEN
    if not runtime.is_accelerator:
        return COST_CPU, CPU
    seconds = measure(runtime, longest) if runtime.rank == 0 else {}
    tokens = runtime.gather(in_tokens(seconds))[0]
    return (COST_ACCELERATOR, ASSUMED) if tokens is None else (tokens, MEASURED)


def in_tokens(seconds: Mapping[int, float]) -> int | None:
    """The fixed cost of a pass divided by the cost of a token, rounded to a power of two.

    Args:
        seconds: by number of tokens, how long a pass takes.

    Returns:
        At least 1, and 65,536 if the time hardly depends on the tokens; None with fewer than two measurements.
    """
    if len(seconds) < 2:
        return None
    slope, fixed = np.polyfit(list(seconds), list(seconds.values()), 1)
    if fixed <= 0:
        return 1
    if slope <= 0:
        return _MOST
    return int(min(max(2 ** round(math.log2(fixed / slope)), 1), _MOST))


def measure(runtime: Runtime, longest: int) -> dict[int, float]:
    """How long passes of the backbone take, by their number of tokens: a small one, and one of a whole micro-batch.

    Passes are forward and backward, in the precision of the run, over made-up tokens. They leave no trace in training.

    Args:
        runtime: where they run.
        longest: length of the longest text.

    Returns:
        Nothing if the backbone reads no texts, is distributed over processes, or has too little memory.
    """
    from torch.distributed.tensor import DTensor

    model, args = runtime.model, runtime.args
    part = reading_part(model.backbone)
    distributed = any(isinstance(one, DTensor) for one in model.parameters())
    if distributed or "input_ids" not in parameter_names(part.forward):
        return {}
    rows = runtime.rows_per_step // (args.gradient_accumulation_steps * runtime.processes)
    modes = [(module, module.training) for module in part.modules()]
    with uncompiled(model), undone(model, runtime.device), aliased(model, {}):
        try:
            part.train()
            return {
                shape[0] * shape[1]: _seconds(runtime, _tokens(runtime, *shape)) for shape in (_SMALL, (rows, longest))
            }
        except torch.OutOfMemoryError:
            return {}
        finally:
            for module, training in modes:
                module.training = training


def _tokens(runtime: Runtime, rows: int, length: int) -> Inputs:
    vocabulary = getattr(runtime.model.config.backbone_config.get_text_config(), "vocab_size", 50)
    ids_BL = torch.arange(rows * length).view(rows, length) % vocabulary
    return runtime.prepare({"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)})


def _seconds(runtime: Runtime, inputs: Inputs) -> float:
    """The shortest time of some passes."""
    found: list[float] = []
    for repeat in range(_WARM_UP + _REPEATS):
        start = runtime.clock()
        _forward_backward(runtime, inputs)
        taken = runtime.clock() - start
        if repeat >= _WARM_UP:
            found.append(taken)
        if found and taken * (len(found) + 1) > _SECONDS:
            break
    return min(found)


def _forward_backward(runtime: Runtime, inputs: Inputs) -> None:
    model, precision = runtime.model, runtime.mixed_precision
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    precise = torch.autocast(runtime.device.type, dtype, enabled=precision != "no")
    with precise, as_task(model.routing, model.config.task_names[0]):
        hidden_BLD = reading_part(model.backbone)(**inputs).last_hidden_state
    if hidden_BLD.requires_grad:
        hidden_BLD.sum().backward()
