"""What a multi-task model gives back."""

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
            (N, G, ...) where an item has several rows; of language models, (M, V) of the labelled tokens, row by row.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: dict[str, torch.Tensor] | None = None
