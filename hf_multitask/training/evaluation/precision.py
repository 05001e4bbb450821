"""Evaluation in half precision, which leaves the weights of the model as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from transformers import Trainer


@contextmanager
def weights_kept(trainer: Trainer) -> Iterator[None]:
    """Put the weights back after an evaluation with ``bf16_full_eval`` or ``fp16_full_eval``.

    The Trainer rounds the weights of the model for such an evaluation and leaves them so, and a later save would write
    them. During training, it evaluates in the precision of the training.

    Args:
        trainer: that evaluates.
    """
    rounds = trainer.args.bf16_full_eval or trainer.args.fp16_full_eval
    if not rounds or trainer.is_in_train:
        yield
        return
    model = cast(torch.nn.Module, trainer.model)
    kept = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
