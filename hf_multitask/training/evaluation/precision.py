"""Evaluation in half precision, which leaves the weights of the model as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def weights_kept(model: torch.nn.Module, *, rounds: bool) -> Iterator[None]:
    """Put the weights back after an evaluation with ``bf16_full_eval`` or ``fp16_full_eval``.

    The Trainer rounds the weights of the model for such an evaluation and leaves them so, and a later save would write
    them. During training, it evaluates in the precision of the training.

    Args:
        model: that is evaluated.
        rounds: whether the Trainer rounds its weights.
    """
    kept = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())] if rounds else []
    try:
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
