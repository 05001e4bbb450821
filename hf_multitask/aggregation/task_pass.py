"""The per-task pass: one forward and one backward for every task, over its rows only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .blocks import Blocks

# Entries from which on an embedding is asked for the rows that it touched, in place of a gradient for all of it.
_LARGE = 100_000


@contextmanager
def collect_task(module: nn.Module, blocks: Blocks, task: int) -> Iterator[None]:
    """Within it, what a backward pass adds to the gradients of the shared parameters counts as one task's.

    Args:
        module: the shared part of the model; its parameters end without a gradient.
        blocks: where the gradients go.
        task: whose they are.
    """
    embeddings = [
        one
        for one in module.modules()
        if isinstance(one, nn.Embedding) and not one.sparse and one.weight.numel() >= _LARGE
    ]
    for parameter in blocks.parameters:
        parameter.grad = None
    for embedding in embeddings:
        embedding.sparse = True
    try:
        yield
    finally:
        for embedding in embeddings:
            embedding.sparse = False
    for parameter in blocks.parameters:
        if parameter.grad is not None:
            blocks.add(parameter, task, parameter.grad)
            parameter.grad = None
