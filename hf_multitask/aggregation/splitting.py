"""The row split: per-task gradients from one forward and one backward pass over rows of several tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from .blocks import Blocks
from .layers import Segment, Split, by_row, run_embedding, run_layer_norm, run_linear

__all__ = ["NoRowAxisError", "RowSplit", "Segment"]


class NoRowAxisError(Exception):
    """The input of a shared layer does not have one entry for every row of the batch."""


# By kind of layer, the function that runs it on a split batch; other layers keep their forward method.
_RUN: dict[str, Callable[..., torch.Tensor]] = {
    "linear": run_linear,
    "layer norm": run_layer_norm,
    "embedding": run_embedding,
}


def _kind(layer: nn.Module) -> str | None:
    """How the weight gradients of a layer are separated by task; None if that is not supported."""
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
    """The shared part of a model, whose layers compute gradients separately for the rows of each task.

    Args:
        module: the shared part.
        parameters: those that are shared; layers without any keep their forward method. All of the module where None.

    Attributes:
        unknown: by name, the classes of layers with trainable parameters that are not supported. A model with such
            layers cannot be split.
    """

    def __init__(self, module: nn.Module, parameters: Iterable[nn.Parameter] | None = None) -> None:
        self.layers: list[tuple[str, str, nn.Module]] = []
        self.unknown: dict[str, str] = {}
        shared = {id(one) for one in (module.parameters() if parameters is None else parameters)}
        for name, layer in module.named_modules():
            if any(one.requires_grad and id(one) in shared for one in layer.parameters(recurse=False)):
                kind = _kind(layer)
                if kind is None:
                    self.unknown[name] = type(layer).__name__
                else:
                    self.layers.append((name, kind, layer))

    @contextmanager
    def rows(
        self,
        blocks: Blocks,
        segments: Sequence[Segment],
        segments_of: Callable[[str], Sequence[Segment]] | None = None,
        tokens_of: Callable[[str], Sequence[Segment]] | None = None,
    ) -> Iterator[None]:
        """In this context, forward and backward passes add the gradients of the shared parameters to blocks.

        Args:
            blocks: the destination of the gradients.
            segments: the tasks of the rows of the batch, from the first row to the last.
            segments_of: the same by the name of a layer, where some layers read some rows only.
            tokens_of: by the name of a layer, the tasks of its tokens, where layers read the rows as one stream of
                tokens, (1, T, ...).

        Raises:
            NoRowAxisError: in the forward pass, the input of a layer has no row axis.
        """
        for parameter in blocks.parameters:
            parameter.grad = None
        for name, kind, layer in self.layers:
            own = segments if segments_of is None else segments_of(name)
            tokens = None if tokens_of is None else Split(blocks, tokens_of(name))
            layer.__dict__["forward"] = _patched(name, kind, layer, Split(blocks, own), tokens)
        try:
            yield
        finally:
            for _, _, layer in self.layers:
                del layer.__dict__["forward"]
        for parameter in blocks.parameters:
            if parameter.grad is not None:
                parameter.grad = None
                raise NoRowAxisError("a parameter is used outside of its layer")


def _patched(name: str, kind: str, layer: nn.Module, split: Split, tokens: Split | None) -> Callable[..., torch.Tensor]:
    """The forward method of a layer for a split batch."""
    before: Callable[..., torch.Tensor] = type(layer).forward
    axes = 2 if kind == "embedding" else 3  # of a stream: ids, or states

    def forward(inputs: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if tokens is not None and inputs.shape[0] == 1:
            if inputs.ndim >= axes and inputs.shape[1] == tokens.rows:
                return by_entry(tokens, inputs[0], *args, **kwargs).unsqueeze(0)
            return before(layer, inputs, *args, **kwargs)  # a pooler's, which is of no row and has no gradient
        return by_entry(split, inputs, *args, **kwargs)

    def by_entry(split: Split, inputs: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        shared = kind == "embedding" and inputs.ndim > 1 and inputs.shape[0] == 1
        if inputs.shape[0] != split.rows and not shared:
            raise NoRowAxisError(f"layer '{name}' gets {tuple(inputs.shape)}, but the batch has {split.rows} rows")
        if (run := _RUN.get(kind)) is not None:
            return run(layer, split, inputs)
        layer.__dict__["weight"] = by_row(layer.weight, split, inputs)  # type: ignore[arg-type]
        try:
            return before(layer, inputs, *args, **kwargs)
        finally:
            del layer.__dict__["weight"]

    return forward
