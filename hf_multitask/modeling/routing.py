"""Which rows of a batch belong to which task."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions


@dataclass
class States(BaseModelOutputWithPoolingAndCrossAttentions):
    """What the backbone hands to the heads, with every field that a family's stock head reads of its base model."""

    global_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None


def rows_of(tensor: torch.Tensor | None, rows: torch.Tensor | None) -> torch.Tensor | None:
    """Some rows of a tensor, (B, ...) to (N, ...); all of them where ``rows`` is None."""
    return tensor if tensor is None or rows is None else tensor[rows]


def states_of(states: States, rows: torch.Tensor | None) -> States:
    """The shared states of some rows; of all of them, the same object for all heads, where ``rows`` is None."""
    if rows is None and isinstance(states, States):
        return states
    return States(
        last_hidden_state=rows_of(states.last_hidden_state, rows),
        pooler_output=rows_of(getattr(states, "pooler_output", None), rows),
    )


def with_layers(states: States, hidden: Sequence[torch.Tensor]) -> States:
    """The shared states with those of all layers."""
    pooled = getattr(states, "pooler_output", None)
    return States(last_hidden_state=states.last_hidden_state, pooler_output=pooled, hidden_states=tuple(hidden))


def spread(outputs: torch.Tensor, rows_NG: torch.Tensor, absent: float) -> torch.Tensor:
    """Outputs of rows as those of items of several, (M, ...) to (N, G, ...); ``absent`` where a row is -1."""
    result = outputs.new_full((*rows_NG.shape, *outputs.shape[1:]), absent)
    result[rows_NG >= 0] = outputs
    return result
