"""Quantized backbones, which are frozen: adapters and heads are trained beside them, and saved without them."""

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from .aliases import Settings, Values
from .config import close_match
from .finite import is_plain
from .values import shown

_KEY, _SET = "quantization_config", "_is_hf_initialized"
_BITSANDBYTES = {"load_in_4bit": "bitsandbytes_4bit", "load_in_8bit": "bitsandbytes_8bit"}


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether the weights of a backbone are quantized."""
    return bool(getattr(model, "is_quantized", False))


def check_quantization(kwargs: Values, config: PreTrainedConfig, *, adapted: bool) -> None:
    """Check how a backbone is quantized, and turn the dict of a recipe into a configuration.

    Args:
        kwargs: of ``from_pretrained``.
        config: of the backbone, which may be quantized already.
        adapted: whether there are adapters.

    Raises:
        ValueError: there is nothing beside it that trains, or the configuration is not usable.
    """
    given = kwargs.get(_KEY)
    if given is None:
        kwargs.pop(_KEY, None)
    elif not isinstance(given, Mapping | QuantizationConfigMixin):
        raise ValueError(
            f"`{_KEY}` should be a mapping such as {{load_in_4bit: true}}, or a configuration of Transformers. Found "
            f"{shown(given)}."
        )
    if (given is not None or hasattr(config, _KEY)) and not adapted:
        raise ValueError(
            "A quantized backbone cannot be trained itself. Train adapters beside it, such as lora={'r': 8}, or leave "
            f"out `{_KEY}`."
        )
    if isinstance(given, Mapping):
        kwargs[_KEY] = quantization(given)


def quantization(given: Settings) -> QuantizationConfigMixin:
    """The configuration of a dict.

    Raises:
        ValueError: a key is unknown, or a value is not usable.
    """
    method = str(given.get("quant_method", ""))
    if method in ("", "bitsandbytes"):
        method = next((name for key, name in _BITSANDBYTES.items() if given.get(key)), "")
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        known = sorted({one.partition("_")[0] for one in AUTO_QUANTIZATION_CONFIG_MAPPING})
        raise ValueError(
            f"`{_KEY}` should have load_in_4bit: true or load_in_8bit: true, or a `quant_method`, one of "
            f"{', '.join(known)}. Found {shown(dict(given))}."
        )
    kind: Any = AUTO_QUANTIZATION_CONFIG_MAPPING[method]
    names = [*inspect.signature(kind.__init__).parameters, "quant_method", *kind.__init__.__code__.co_varnames]
    known = [name for name in names if name not in ("self", "kwargs")]
    for name in given:
        if name not in known and not name.startswith("_"):
            raise ValueError(f"`{_KEY}` has the unknown key '{name}'." + close_match(name, known))
    try:
        return AutoQuantizationConfig.from_dict(dict(given))
    except (TypeError, ValueError, AttributeError) as problem:
        said = " ".join(str(problem).split())
        raise ValueError(f"`{_KEY}` is not usable: {said.rstrip('.')}. Found {shown(dict(given))}.") from None


def check_fresh(backbone: PreTrainedModel, fresh: list[str]) -> None:
    """Check that weights that the checkpoint does not have are not quantized, as they are trained.

    Raises:
        ValueError: one is.
    """
    weights = dict(backbone.named_parameters())
    for name in fresh:
        weight = weights.get(name)
        if weight is not None and not (weight.is_floating_point() and is_plain(weight)):
            module = name.rpartition(".")[0]
            raise ValueError(
                f"The backbone's checkpoint has no '{name}', which is therefore trained and cannot be quantized. Leave "
                f"it out of the quantization, as by llm_int8_skip_modules=['{module.partition('.')[0]}']."
            )


def refuse_quantized(model: PreTrainedModel, what: str) -> None:
    """Refuse what needs the weights of the backbone as numbers.

    Args:
        model: a backbone.
        what: cannot be done, at the beginning of the message.

    Raises:
        ValueError: it is quantized.
    """
    if is_quantized(model):
        raise ValueError(
            f"{what}: the backbone is quantized, and an adapter that is added to such weights loses most of its "
            "precision. Train it on a backbone that is not quantized."
        )


def take_out(backbone: PreTrainedModel) -> Values:
    """Take the quantization out of the configuration of a backbone, and return it as a dict.

    Transformers would quantize the heads and adapters of a saved model by it as well.
    """
    given: Any = getattr(backbone.config, _KEY)
    delattr(backbone.config, _KEY)
    return dict(given) if isinstance(given, Mapping) else given.to_dict()


def loading_of(config: PreTrainedConfig, path: str, hub: Settings, given: Settings) -> tuple[PreTrainedConfig, Values]:
    """A configuration and the arguments with which a quantized backbone is loaded.

    Args:
        config: of the backbone in a saved model.
        path: of its checkpoint, which may be quantized already.
        hub: arguments of ``from_pretrained``.
        given: how it was quantized.
    """
    config = deepcopy(config)
    own = getattr(AutoConfig.from_pretrained(path, **hub), _KEY, None)
    if own is None:
        return config, {_KEY: AutoQuantizationConfig.from_dict(dict(given))}
    setattr(config, _KEY, own)
    return config, {}


def settle(backbone: PreTrainedModel) -> None:
    """Mark the weights of a loaded quantized backbone as set, and keep bitsandbytes from packing them for inference.

    On some CPUs it packs 4-bit weights in the first evaluation, and a packed weight has no gradient for its inputs.
    """
    for module in backbone.modules():
        vars(module)[_SET] = True  # which is lost where a weight is replaced
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
