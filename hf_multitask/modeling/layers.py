"""Which layer of the backbone a head reads: one of its hidden states, or a learned mix of all.

Legend: N rows, L tokens, D hidden, S states, those of the embeddings and of every layer.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig

from .aliases import Open, Settings
from .config import close_match

MIX = "mix"


class LayerMix(nn.Module):
    r"""A weighted mean of all hidden states, with weights that are learned.

    .. math:: h = \gamma \sum_s \mathrm{softmax}(w)_s h_s

    Deep contextualized word representations (NAACL 2018), section 3.2, https://arxiv.org/abs/1802.05365. The weights
    begin as 0, which is the mean, and the scale as 1.

    Args:
        states: S.
    """

    # By how much the learning rate of these few numbers is larger than that of the head. They are no weights of a
    # pretrained layer, at whose rate they would hardly move; here they have about 1e-3, that of ELMo, beside 5e-5.
    rate: ClassVar[float] = 20.0

    def __init__(self, states: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(states))
        self.scale = nn.Parameter(torch.ones(1))

    def set_fresh(self) -> None:
        """Set what the numbers begin as."""
        nn.init.zeros_(self.weights)
        nn.init.ones_(self.scale)

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """S states (N, L, D) to (N, L, D)."""
        shares_S = self.weights.softmax(0).to(states[0].dtype)
        mixed = shares_S[0] * states[0]
        for share, state in zip(shares_S[1:], states[1:], strict=True):
            mixed = mixed + share * state
        return self.scale.to(mixed.dtype) * mixed


def number_of_layers(config: PreTrainedConfig) -> int:
    """The layers of the part of a backbone that reads: of an encoder-decoder, those of the encoder."""
    count = getattr(config, "encoder_layers", None) if config.is_encoder_decoder else None
    return int(count or getattr(config.get_text_config(), "num_hidden_layers", None) or 0)


def check_layer(layer: object) -> None:
    """Check that an option ``layer`` can be one, whatever the backbone.

    Raises:
        ValueError: it is neither a number from 0 nor ``mix``.
    """
    if layer is None or layer == MIX or (isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0):
        return
    near = close_match(layer, [MIX]) if isinstance(layer, str) else ""
    raise ValueError(
        "`layer` should be the number of a layer, counted from 1 at the bottom, 0 for the embeddings, or 'mix'. Found "
        f"`layer = {layer!r}`.{near}"
    )


def layer_of(task: Settings, config: PreTrainedConfig, *, decodes: bool) -> int | str | None:
    """The layer that the head of a task reads; None if that is the last one.

    Args:
        task: its dict.
        config: of the backbone.
        decodes: whether the head reads what no layer of the encoder has: a decoder, or a language model's last layers.

    Raises:
        ValueError: the backbone has no such layer, or the head reads something else.
    """
    layer, count = task.get("layer"), number_of_layers(config)
    where = f"Task '{task.get('name')}': "
    try:
        check_layer(layer)
    except ValueError as problem:
        raise ValueError(f"{where}{problem}") from None
    if layer is None:
        return None
    if decodes:
        raise ValueError(
            f"{where}`layer` is for heads on the states of a layer, and that of {task['type']} on {config.model_type} "
            f"reads a decoder or a language model. Found `layer = {layer!r}`. Leave it out."
        )
    if layer != MIX and layer > count:
        raise ValueError(
            f"{where}`layer` should be from 0 to {count}, as the backbone has {count} layers, or 'mix'. Found `layer = "
            f"{layer}`."
        )
    return None if layer == count else layer


def drops_layers(config: PreTrainedConfig) -> bool:
    """Whether a backbone leaves out layers at random in training."""
    return any(getattr(config, name, 0) for name in ("layerdrop", "encoder_layerdrop"))


def all_states(found: Sequence[torch.Tensor | None], last: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """The S hidden states of a pass: of the embeddings, of each layer but the last, and what the backbone gives.

    Args:
        found: those that the pass has shown; None where no layer has run.
        last: what the backbone gives, after its last norm.
        count: of layers.

    Raises:
        ValueError: the backbone shows others.
    """
    states = [last if one is None else one for one in found[:count]]
    if len(states) < count or not count:
        raise ValueError(
            f"`layer` reads the hidden states of {count} layers, and this backbone shows {len(states)}. Leave it out, "
            "or choose another backbone."
        )
    return (*(one[:, : last.shape[1]] for one in states), last)  # of families that pad a text to whole windows within


@contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[list[torch.Tensor | None]]:
    """Within it, a pass of this thread leaves what it has read at each layer, in their order.

    A layer that is left out at random has read what the next one reads.
    """
    found: list[torch.Tensor | None] = [None] * len(layers)
    outputs: dict[int, torch.Tensor] = {}
    thread = threading.get_ident()

    def before(number: int, _: nn.Module, args: tuple[Open, ...], kwargs: Settings) -> None:
        if threading.get_ident() == thread:
            found[number] = args[0] if args else kwargs["hidden_states"]

    def after(number: int, _: nn.Module, args: tuple[Open, ...], output: Open) -> None:  # noqa: ARG001
        if threading.get_ident() == thread:
            outputs[number] = output[0] if isinstance(output, tuple) else output

    hooks = []
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(partial(before, number), with_kwargs=True))
        hooks.append(layer.register_forward_hook(partial(after, number)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    seen = [one for one in found if one is not None]
    for number, state in enumerate(found):
        if state is None:
            below = found[number - 1] if number else next(iter(seen), None)
            found[number] = outputs.get(number - 1, below)


def pooled(base: Open, hidden_NLD: torch.Tensor) -> torch.Tensor:
    """What the pooler of a backbone makes of some states, (N, D)."""
    if isinstance(base.pooler, nn.Linear):  # ALBERT's, whose activation is beside it
        return base.pooler_activation(base.pooler(hidden_NLD[:, 0]))
    return base.pooler(hidden_NLD)
