"""The output of a multi-task model."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class MultiTaskOutput(ModelOutput):
    """Output of :class:`MultiTaskModel`.

    Args:
        loss: sum of ``losses``, a scalar, where labels were given.
        losses: by task name, a scalar each.
        logits: by task name; (N, C) for a task on sequences and (N, L, C) for one on tokens, N rows of that task;
            (N, G, ...) where an item has several rows; of language models, (M, V) of the labeled tokens, row by row.
        hidden_states: of the shared backbone, of an encoder-decoder its encoder, (B, L, D) behind the embeddings and
            behind every layer, where ``output_hidden_states=True``.
        attentions: those of every layer, (B, heads, L, L), where ``output_attentions=True``.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
