"""Heads, adapters and newly initialized weights are float32 beside a frozen backbone in half precision.

An update of a bfloat16 number is lost where it is less than 1/256 of the number, as most updates of fine-tuning are.
"""

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from .adapters import adapter_of, fresh_parameters
from .aliases import Open, Values
from .routing import States
from .shared import SharedModel

HALF = (torch.float16, torch.bfloat16)


def is_mixed(model: SharedModel) -> bool:
    """Whether heads or adapters are float32 on a backbone in half precision."""
    if model.backbone.dtype not in HALF:
        return False
    own = (one for part in beside(model) for one in part.parameters())
    return any(one.dtype == torch.float32 for one in (*own, *_adapters(model)))


def widen(model: SharedModel) -> None:
    """Make what trains beside a backbone in half precision float32, and record that."""
    model.config.float32_heads = model.backbone.dtype in HALF
    if not model.config.float32_heads:
        return
    for part in beside(model):
        part.float()
    for parameter in _adapters(model):
        parameter.data = parameter.data.float()
    first = next(one for one in model.backbone.parameters() if one.dtype in HALF)
    for _, layer in _fresh_layers(model):
        layer.float()
        layer.register_forward_pre_hook(_cast_input)
        layer.register_forward_hook(partial(_cast_output, first))


def narrow(model: SharedModel) -> None:
    """Make heads and adapters of the dtype of the backbone."""
    dtype = model.backbone.dtype
    model.config.float32_heads = False
    for part in beside(model):
        part.to(dtype)
    for parameter in (*_adapters(model), *(one for _, layer in _fresh_layers(model) for one in layer.parameters())):
        parameter.data = parameter.data.to(dtype)


def without_float32(config: object) -> Values:
    """Arguments of ``from_pretrained`` for a model that is of one dtype, whatever it was saved as.

    Args:
        config: the configuration that is given, if any.
    """
    if not isinstance(config, PreTrainedConfig):
        return {"float32_heads": False}
    own: Any = deepcopy(config)
    own.float32_heads = False
    return {"config": own}


def keep_float32(model: SharedModel) -> None:
    """Have ``from_pretrained`` load them as float32, whatever the dtype of the backbone."""
    fresh = {rf"^backbone\.{re.escape(name)}\." for name, _ in _fresh_layers(model)}
    kept = {r"^heads\.", r"^subsampler\.", r"\.lora_[AB]\.", *fresh}
    model._keep_in_fp32_modules_strict = {*(model._keep_in_fp32_modules_strict or ()), *kept}


def fitted(states: States, head: nn.Module) -> States:
    """The shared states in the dtype of a head; as they are within autocast, which casts by itself."""
    hidden: Open = states.last_hidden_state
    dtype = next((one.dtype for one in head.parameters() if one.is_floating_point()), hidden.dtype)
    if dtype == hidden.dtype or torch.is_autocast_enabled(hidden.device.type):
        return states
    pooled = getattr(states, "pooler_output", None)
    return States(last_hidden_state=hidden.to(dtype), pooler_output=None if pooled is None else pooled.to(dtype))


def in_dtype(inputs: Values, dtype: torch.dtype) -> Values:
    """Inputs of a backbone, the numbers among them in its dtype."""
    return {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def beside(model: SharedModel) -> list[nn.Module]:
    """What a model has beside its backbone: heads, and the subsampler if there is one."""
    return [part for part in (model.heads, model.subsampler) if part is not None]


def _adapters(model: SharedModel) -> Iterator[nn.Parameter]:
    return (one for name, one in model.backbone.named_parameters() if adapter_of(name) is not None)


def _fresh_layers(model: SharedModel) -> list[tuple[str, nn.Module]]:
    """The backbone's layers of which its checkpoint had nothing, such as a pooler; those that share no weight."""
    if not model.config.adapters:
        return []
    fresh = {id(one) for one in fresh_parameters(model)}
    owners: dict[int, int] = {}
    for module in model.backbone.modules():
        for one in module._parameters.values():
            owners[id(one)] = owners.get(id(one), 0) + 1
    found = []
    for name, module in model.backbone.named_modules():
        own = [one for one in module._parameters.values() if one is not None]
        if own and not module._modules and all(id(one) in fresh and owners[id(one)] == 1 for one in own):
            found.append((name, module))
    return found


def _cast_input(layer: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    dtype = next(layer.parameters()).dtype
    return tuple(one.to(dtype) if isinstance(one, torch.Tensor) else one for one in inputs)


def _cast_output(
    first: nn.Parameter,
    layer: nn.Module,  # noqa: ARG001 - a hook
    inputs: tuple[object, ...],  # noqa: ARG001
    output: torch.Tensor,
) -> torch.Tensor:
    """The output in the dtype of the backbone's other layers, one of whose weights is given."""
    return output.to(first.dtype)
