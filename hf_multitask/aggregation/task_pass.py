"""The per-task pass: one forward and one backward pass for every task over its rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .blocks import Blocks

# Number of entries from which on an embedding computes a sparse gradient.
_LARGE = 100_000


@contextmanager
def collect_task(module: nn.Module, blocks: Blocks, task: int) -> Iterator[None]:
    """In this context, the gradients that a backward pass adds to the shared parameters are collected for one task.

    Args:
        module: the shared part of the model; its parameters end without a gradient.
        blocks: the destination of the gradients.
        task: index of the task.
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
