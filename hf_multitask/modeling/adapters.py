r"""LoRA on the shared backbone: an adapter that all tasks share, one of each task, or both.

.. math:: y_t = g_t(f(x; W + s_0 B_0 A_0 + s_t B_t A_t))

LoRA: Low-Rank Adaptation of Large Language Models (ICLR 2022), https://arxiv.org/abs/2106.09685. The layers, their
configuration, how they start and how they are merged are PEFT's; which rows go through which is ``adapter_rows``'.
"""

import dataclasses
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from types import ModuleType
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .adapter_rows import add_own_parts
from .aliases import Values
from .branches import branch_parameters, unbranched
from .config import SHARED, close_match
from .heads import Head
from .reach import unread_backbone, unread_layers
from .shared import SharedModel, adapter_settings

_ADAPTER = re.compile(r"\.lora_[AB]\.([^.]+)\.")
# What of PEFT's configuration keeps the backbone as it is, has one form for all rows, and merges.
_TAKEN = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "init_lora_weights",
    "fan_in_fan_out",
}
_ALWAYS = {"r", "lora_alpha", "lora_dropout", "use_rslora"}  # written down, should PEFT's defaults change
_IGNORED = {"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_version"}
_STARTS = (True, False, "gaussian", "orthogonal")


class _Lora(Protocol):
    """What is read of a ``peft.LoraConfig``."""

    __dataclass_fields__: ClassVar[Values]
    target_modules: str | Iterable[str] | None


def require_peft() -> ModuleType:
    """PEFT, which only adapters need.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise ImportError("Adapters need PEFT, which is not installed. Run: pip install 'hf_multitask[peft]'") from None


def adapter_of(parameter: str) -> str | None:
    """The task whose adapter a parameter belongs to, ``_shared`` for the one of all tasks, None for other weights."""
    found = _ADAPTER.search(parameter)
    return found[1] if found else None


def lora_layers(backbone: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of a backbone's LoRA layers."""
    return ((name, module) for name, module in backbone.named_modules() if is_lora_layer(module))


def is_lora_layer(module: nn.Module) -> bool:
    """Whether a module is a linear layer with adapters; asked of its class, as its parts are named for tasks."""
    return hasattr(type(module), "get_delta_weight")


def adapter_parameters(backbone: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """The parameters of one adapter."""
    for _, layer in lora_layers(backbone):
        if name in layer.lora_A:
            yield from (*layer.lora_A[name].parameters(), *layer.lora_B[name].parameters())


def task_settings(task_lora: object, tasks: list[str]) -> Values:
    """By task, in their order, the LoRA that it gets: one for all tasks, or those of some by name."""
    if isinstance(task_lora, Mapping) and task_lora and all(name in tasks for name in task_lora):
        return {name: task_lora[name] for name in tasks if name in task_lora}
    return dict.fromkeys(tasks, task_lora)


def lora_settings(given: object, what: str, backbone: PreTrainedModel) -> Values:
    """A LoRA's configuration as a dict that JSON can hold, without what is PEFT's default and decides nothing later.

    Args:
        given: a ``peft.LoraConfig``, or a dict of its arguments.
        what: the parameter's name.
        backbone: what it is for, which decides the layers where none are named.

    Raises:
        TypeError: it is neither.
        ValueError: an argument is unknown, not usable, or not supported beside other adapters.
    """
    peft = require_peft()
    fields = {field.name: field for field in dataclasses.fields(peft.LoraConfig)}
    if isinstance(given, Mapping):
        for key in given:
            if key not in fields:
                raise ValueError(
                    f"Parameter `{what}` has the unknown argument '{key}' of peft.LoraConfig."
                    + close_match(str(key), list(fields))
                )
        try:
            config = peft.LoraConfig(**given)
        except (TypeError, ValueError) as problem:
            raise ValueError(f"Parameter `{what}`: {problem}") from None
    elif not isinstance(given, peft.LoraConfig):
        raise TypeError(f"Parameter `{what}` should be a peft.LoraConfig or a dict of its arguments. Found {given!r}.")
    else:
        config = given
    plain = peft.LoraConfig()
    values = {
        name: getattr(config, name)
        for name, field in fields.items()
        if field.init and name not in _IGNORED and getattr(config, name) != getattr(plain, name)
    }
    values |= {name: getattr(config, name) for name in _ALWAYS}
    for name in values:
        if name not in _TAKEN:
            raise ValueError(
                f"Parameter `{what}` sets '{name}', which is not supported: adapters here are plain LoRA on linear "
                "layers, and heads always train. Leave it out, or use peft.get_peft_model."
            )
    if not isinstance(config.r, int) or isinstance(config.r, bool) or config.r < 1:
        raise ValueError(f"Parameter `{what}.r` should be a whole number of 1 or more. Found `r = {config.r!r}`.")
    if not 0 <= config.lora_dropout < 1:
        raise ValueError(
            f"Parameter `{what}.lora_dropout` should be at least 0 and less than 1. Found {config.lora_dropout!r}."
        )
    if config.init_lora_weights not in _STARTS:
        raise ValueError(
            f"Parameter `{what}.init_lora_weights` should be true, false, 'gaussian' or 'orthogonal', which leave the "
            f"backbone as it is. Found {config.init_lora_weights!r}."
        )
    values["target_modules"] = _targets(config, what, backbone)
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def _targets(config: _Lora, what: str, backbone: PreTrainedModel) -> str | set[str]:
    """The layers that a LoRA is for: those named, or PEFT's choice for the family, or all linear ones.

    Raises:
        ValueError: no layer has that name, or one is not linear.
    """
    utils = importlib.import_module("peft.utils")
    tuners = importlib.import_module("peft.tuners.tuners_utils")
    family = backbone.config.model_type
    named = config.target_modules
    if named is None:
        named = utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(family, "all-linear")
    if isinstance(named, str) and named.lower() == "all-linear":
        return "all-linear"
    layers = named if isinstance(named, str) else set(named)
    config = dataclasses.replace(config, target_modules=layers)
    words = {getattr(backbone, part)() for part in ("get_input_embeddings", "get_output_embeddings")}
    found = False
    for name, module in backbone.named_modules():
        if name and ".lora_" not in name and tuners.check_target_module_exists(config, name):
            layer = module.get_base_layer() if is_lora_layer(module) else module
            if not isinstance(layer, nn.Linear | Conv1D) or layer in words:
                raise ValueError(
                    f"Parameter `{what}.target_modules` names '{name}', a {type(layer).__name__} that cannot have an "
                    "adapter here: it should be a linear layer, and not the embeddings of words. Name other layers."
                )
            found = True
    if not found:
        raise ValueError(
            f"Parameter `{what}.target_modules` names no layer of the backbone '{family}'. "
            f"Found {config.target_modules!r}; leave it out for the family's usual ones, or take 'all-linear'."
        )
    return layers


def inject(model: SharedModel, names: list[str]) -> None:
    """Put the layers of some adapters, which the configuration has already, into a model's backbone.

    Backbone weights lose their gradient, as in ``peft.get_peft_model``; those that its checkpoint did not have keep it.
    """
    peft = require_peft()
    backbone, adapters = model.backbone, adapter_settings(model)
    settings = {SHARED: adapters["shared"], **adapters["tasks"]}
    turned = any(isinstance(module, Conv1D) for module in backbone.modules())  # their weight is transposed
    configs = {
        name: peft.LoraConfig(**{"fan_in_fan_out": turned, **settings[name]})
        for name in {**backbone.__dict__.get("peft_config", {}), **dict.fromkeys(names)}
    }
    backbone.__dict__.pop("peft_config", None)
    tuner = None
    for name in names:
        if tuner is None:
            tuner = peft.LoraModel(backbone, configs, name)
        else:
            tuner.inject_adapter(backbone, name)
    routing = model.routing
    routing.tasks = set(adapters["tasks"])
    for name, layer in lora_layers(backbone):
        layer.set_adapter([SHARED] if adapters["shared"] is not None else [])
        if not hasattr(layer, "routing"):
            layer.register_forward_hook(add_own_parts)
        layer.routing, layer.routing_name = routing, name
        for module in (*layer.lora_A.modules(), *layer.lora_B.modules()):
            module._is_hf_initialized = True  # by PEFT; Transformers would initialize B again, and not with zeros
    set_trained(model)


def set_trained(model: SharedModel) -> None:
    """Let the adapters train, and the weights of the backbone that its checkpoint did not have."""
    model.unfreeze_parameters()
    fresh = {id(parameter) for parameter in fresh_parameters(model)}
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(adapter_of(name) is not None or id(parameter) in fresh)
    for parameter in unread_adapters(model):
        parameter.requires_grad_(False)


def fresh_parameters(model: SharedModel) -> Iterator[nn.Parameter]:
    """The backbone's weights that its checkpoint did not have, which therefore train with the adapters."""
    fresh = set((adapter_settings(model)["source"] or {}).get("fresh", ()))
    return (parameter for name, parameter in model.backbone.named_parameters() if plain_name(name) in fresh)


def follow_backbone(model: SharedModel, old: PreTrainedModel, fresh: set[int]) -> None:
    """Take over the adapters of a backbone into the one that has taken its place, with parts of its own.

    It is no longer what its checkpoint holds, so that it is saved with the adapters.

    Args:
        model: with the new backbone, whose new parts are on the meta device.
        old: the backbone before.
        fresh: the parameters of :func:`fresh_parameters` before, by ``id``.
    """
    if "peft_config" in old.__dict__:
        model.backbone.__dict__["peft_config"] = old.__dict__["peft_config"]
    names = [plain_name(name) for name, one in model.backbone.named_parameters() if one.is_meta or id(one) in fresh]
    source = {"name": None, "revision": None, "fresh": names}
    model.config.adapters = {**adapter_settings(model), "source": source, "only": False}


def unread_adapters(model: SharedModel) -> Iterator[nn.Parameter]:
    """What of a task's adapter its own head does not read: in a decoder, a pooler, a language model, layers above."""
    unread: dict[tuple[object, ...], set[int]] = {}
    heads = {name: cast(Head, head) for name, head in model.heads.items() if name in adapter_settings(model)["tasks"]}
    for name, head in heads.items():
        kind = (bool(head.reads_decoder), bool(head.language_model), bool(head.needs_pooler), head.layer)
        if kind not in unread:
            parts = (unread_backbone(model.backbone, [head]), unread_layers(model.backbone, [head]))
            unread[kind] = {id(one) for part in parts for one in part}
        elsewhere = {
            id(one)
            for branch in (model.config.branches or {})
            if branch != model.routing.branches[name]
            for one in branch_parameters(model.backbone, branch)
        }
        yield from (one for one in adapter_parameters(model.backbone, name) if id(one) in unread[kind] | elsewhere)


def plain_name(parameter: str) -> str:
    """The name that a weight has in a backbone without LoRA layers and branches."""
    return unbranched(parameter.replace(".base_layer.", "."))


def merged(backbone: PreTrainedModel, names: list[str], dtype: torch.dtype) -> PreTrainedModel:
    """A copy of a backbone without LoRA layers, some adapters added to its weights, which are of a dtype then."""
    backbone = deepcopy(backbone)
    if backbone.dtype != dtype:
        backbone.to(dtype)  # type: ignore[arg-type]
    fold(backbone, names)
    unwrap(backbone)
    return backbone


def fold(backbone: nn.Module, names: list[str]) -> None:
    """Add adapters to a backbone's weights and remove them; the other adapters stay."""
    for _, layer in lora_layers(backbone):
        if own := [name for name in names if name in layer.lora_A]:
            layer.merge(safe_merge=True, adapter_names=own)
            layer.merged_adapters.clear()
    drop(backbone, names)


def drop(backbone: nn.Module, names: list[str]) -> None:
    """Remove adapters."""
    for _, layer in lora_layers(backbone):
        layer.set_adapter([name for name in layer.active_adapters if name not in names])
        for name in names:
            layer.delete_adapter(name)
    for name in names:
        backbone.__dict__["peft_config"].pop(name, None)


def rename(backbone: nn.Module, old: str, new: str) -> None:
    """Give an adapter another name."""
    for _, layer in lora_layers(backbone):
        for part in (*layer.adapter_layer_names, *layer.other_param_names):
            if old in (named := getattr(layer, part)):
                named[new] = named.pop(old)
    configs = backbone.__dict__["peft_config"]
    configs[new] = configs.pop(old)


def unwrap(backbone: nn.Module) -> None:
    """Replace LoRA layers by the layers that they wrap."""
    for name, layer in list(lora_layers(backbone)):
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, layer.get_base_layer())
    backbone.__dict__.pop("peft_config", None)
