"""Which weights of a shared backbone some heads read."""

from collections.abc import Iterable, Iterator

from torch import nn
from transformers import PreTrainedModel

from .branches import layers_of
from .heads import Head
from .layers import MIX
from .native import reading_part


def parameters_below(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a module in no order, as often as they occur in it.

    ``module.parameters()`` makes the name of each, which takes as long as a small forward with a thousand heads.
    """
    parts = [module]
    for part in parts:
        for child in part._modules.values():
            if child is not None:
                parts.append(child)
        for parameter in part._parameters.values():
            if parameter is not None:
                yield parameter


def unread_backbone(backbone: PreTrainedModel, heads: Iterable[Head]) -> Iterator[nn.Parameter]:
    """What none of some heads reads of a backbone: its pooler, its decoder, the language model's last layers."""
    heads = list(heads)
    pooler = getattr(backbone.base_model, "pooler", None)
    if pooler is not None and not any(head.needs_pooler for head in heads):
        yield from pooler.parameters()
    read = {id(parameter) for parameter in parameters_below(reading_part(backbone))}
    decoder: list[nn.Parameter] = []
    if backbone.config.is_encoder_decoder:
        decoder = [one for one in backbone.get_decoder().parameters() if id(one) not in read]
        if not any(head.reads_decoder for head in heads):
            yield from decoder
    if not any(head.language_model for head in heads):
        read |= {id(parameter) for parameter in decoder}
        yield from (parameter for parameter in parameters_below(backbone) if id(parameter) not in read)


def unread_layers(backbone: PreTrainedModel, heads: Iterable[Head]) -> Iterator[nn.Parameter]:
    """The layers of a backbone above the highest one that any of some heads reads."""
    read = [head.layer for head in heads]
    if not read or None in read or MIX in read:
        return
    try:
        layers = layers_of(backbone)
    except ValueError:  # of ALBERT, whose layers are one
        return
    for layer in list(layers)[max(one for one in read if isinstance(one, int)) :]:
        yield from layer.parameters()
