"""The row split: one forward and one backward over rows of several tasks, with their gradients told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .blocks import Blocks
from .layers import Segment, Split, by_row, run_embedding, run_layer_norm, run_linear

__all__ = ["NoRowAxisError", "RowSplit", "Segment"]


class NoRowAxisError(Exception):
    """A layer of the shared part saw something else than one entry for every row of the batch."""


# By kind of layer, what runs it on a split batch; the others keep their own forward.
_RUN: dict[str, Any] = {"linear": run_linear, "layer norm": run_layer_norm, "embedding": run_embedding}


def _kind(layer: nn.Module) -> str | None:
    """How a layer's weight gradients are told apart; None where nobody knows."""
    own = dict(layer.named_parameters(recurse=False))
    if "forward" in layer.__dict__:  # another library has replaced it
        return None
    if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
        return "linear"
    if type(layer).__name__ == "Conv1D" and set(own) == {"weight", "bias"} and own["weight"].ndim == 2:
        return "linear"
    if type(layer) is nn.LayerNorm and layer.weight is not None and layer.weight.ndim == 1:
        return "layer norm"
    if type(layer) is nn.Embedding and layer.max_norm is None and not layer.scale_grad_by_freq:
        return "embedding"
    if type(layer) is not nn.RMSNorm and type(layer).__name__.endswith(("RMSNorm", "LayerNorm")):
        return "by row" if set(own) == {"weight"} and own["weight"].ndim == 1 else None
    return None


class RowSplit:
    """The shared part of a model, whose layers tell the rows of a batch apart.

    Args:
        module: the shared part.

    Attributes:
        unknown: by name, kinds of layers with parameters that train and that nobody knows how to tell apart. A model
            that has any cannot be split.
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers: list[tuple[str, str, nn.Module]] = []
        self.unknown: dict[str, str] = {}
        for name, layer in module.named_modules():
            if any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
                kind = _kind(layer)
                if kind is None:
                    self.unknown[name] = type(layer).__name__
                else:
                    self.layers.append((name, kind, layer))

    @contextmanager
    def rows(self, blocks: Blocks, segments: Sequence[Segment]) -> Iterator[None]:
        """Within it, forward and backward passes put the gradients of the shared parameters into blocks.

        Args:
            blocks: where they go.
            segments: whose the rows of the batch are, from the first row to the last.

        Raises:
            NoRowAxisError: by the forward pass, a layer does not see the rows one by one.
        """
        split = Split(blocks, segments)
        for parameter in blocks.parameters:
            parameter.grad = None
        for name, kind, layer in self.layers:
            layer.__dict__["forward"] = _patched(name, kind, layer, split)
        try:
            yield
        finally:
            for _, _, layer in self.layers:
                del layer.__dict__["forward"]
        for parameter in blocks.parameters:
            if parameter.grad is not None:
                parameter.grad = None
                raise NoRowAxisError("a parameter is used by something else than its layer")


def _patched(name: str, kind: str, layer: nn.Module, split: Split) -> Callable[..., torch.Tensor]:
    """The forward of a layer for a batch whose rows are told apart."""
    before: Any = type(layer).forward
    run: Any = _RUN.get(kind)

    def forward(inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shared = kind == "embedding" and inputs.ndim > 1 and inputs.shape[0] == 1
        if inputs.shape[0] != split.rows and not shared:
            raise NoRowAxisError(f"layer '{name}' sees {tuple(inputs.shape)}, and the batch has {split.rows} rows")
        if run is not None:
            return run(layer, split, inputs)
        layer.__dict__["weight"] = by_row(layer.weight, split, inputs)  # type: ignore[arg-type]
        try:
            return before(layer, inputs, *args, **kwargs)
        finally:
            del layer.__dict__["weight"]

    return forward
