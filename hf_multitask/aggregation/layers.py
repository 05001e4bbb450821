"""Layers whose weight gradients are computed separately for the rows of each task.

A linear layer with the input X and the gradient D of its output has the weight gradient :math:`D^T X`, a sum over rows.
The part of task t is :math:`D_t^T X_t` over its own rows: the same arithmetic, in K pieces. The functions here run a
layer as usual, and add the pieces to ``Blocks`` instead of the sum that autograd would compute. Pieces of tasks with as
many rows each are one batched product.

Legend: G tasks with as many rows each, B rows of the batch, M = rows x tokens, I inputs, O outputs, D width of an
embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import FunctionCtx

from .blocks import Blocks


@dataclass(frozen=True)
class Segment:
    """The rows ``start`` to ``stop`` of a batch, all of one task.

    Args:
        task: its index in :class:`Blocks`.
        start: first row.
        stop: row after the last.
    """

    task: int
    start: int
    stop: int


@dataclass(frozen=True)
class Run:
    """Neighboring segments with as many rows each.

    Args:
        tasks: their G tasks.
        start: first row.
        stop: row after the last.
    """

    tasks: list[int]
    start: int
    stop: int

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The part of its rows, (B, ..., D) to (G, M, D)."""
        return values[self.start : self.stop].reshape(len(self.tasks), -1, values.shape[-1])


class Split:
    """The tasks of the rows of a batch, and the destination of their gradients.

    Args:
        blocks: the destination.
        segments: the tasks, from the first row to the last.
    """

    def __init__(self, blocks: Blocks, segments: Sequence[Segment]) -> None:
        self.blocks, self.segments = blocks, list(segments)
        self.rows = self.segments[-1].stop if self.segments else 0  # B
        self.runs: list[Run] = []
        for _, own in groupby(self.segments, lambda segment: segment.stop - segment.start):
            alike = list(own)
            self.runs.append(Run([segment.task for segment in alike], alike[0].start, alike[-1].stop))

    @cached_property
    def slots(self) -> torch.Tensor:
        """The row of the buffers in which the gradients of every row of the batch belong, (B,)."""
        slots = [self.blocks.slots[one.task] for one in self.segments for _ in range(one.start, one.stop)]
        return torch.tensor(slots, dtype=torch.long, device=self.blocks.parameters[0].device)

    def add(self, parameter: nn.Parameter | None, values: torch.Tensor) -> None:
        """Add the sum of values (B, ..., D) over the rows of each task to the gradients of a vector."""
        if parameter is None or not parameter.requires_grad:
            return
        for run in self.runs:
            place = self.blocks.targets(parameter, run.tasks)
            if place is None or place[1]:
                sums_GD = run.of(values).sum(1, dtype=parameter.dtype)
                if place is None:
                    self.blocks.add_several(parameter, run.tasks, sums_GD)
                else:
                    place[0].add_(sums_GD)
            else:
                torch.sum(run.of(values), 1, dtype=parameter.dtype, out=place[0])

    def add_products(self, parameter: nn.Parameter, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add the products of (B, ..., O) and (B, ..., I) over the rows of each task to the gradients of a matrix."""
        if not parameter.requires_grad:
            return
        for run in self.runs:
            left_GOM, right_GMI = run.of(left).transpose(1, 2), run.of(right)
            place = self.blocks.targets(parameter, run.tasks)
            if place is None:
                self.blocks.add_several(parameter, run.tasks, torch.bmm(left_GOM, right_GMI))
            elif left.dtype != parameter.dtype:
                product = torch.bmm(left_GOM, right_GMI)
                place[0].add_(product) if place[1] else place[0].copy_(product)
            elif place[1]:
                place[0].baddbmm_(left_GOM, right_GMI)
            else:
                torch.bmm(left_GOM, right_GMI, out=place[0])


def _computing_dtype(inputs: torch.Tensor) -> torch.dtype:
    """The dtype in which autocast would compute a matrix product."""
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind) and inputs.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return inputs.dtype


# By argument of a function, the gradient that autograd passes on; None for those that are added to blocks.
Gradients = tuple[torch.Tensor | None, ...]


class _Weighted(Protocol):
    """A linear layer of any class."""

    weight: nn.Parameter
    bias: nn.Parameter | None


class _Context(FunctionCtx):
    """What the functions here leave for their backward pass."""

    saved_tensors: tuple[torch.Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    weight: nn.Parameter
    bias: nn.Parameter | None
    parameter: nn.Parameter
    padding_idx: int | None
    turned: bool
    split: Split
    dtype: torch.dtype


class _Linear(torch.autograd.Function):
    """``inputs @ weight.T + bias``, or ``inputs @ weight + bias`` if the weight is (I, O)."""

    @staticmethod
    def forward(
        ctx: _Context, inputs: torch.Tensor, weight: nn.Parameter, bias: nn.Parameter | None, turned: bool, split: Split
    ) -> torch.Tensor:
        dtype = _computing_dtype(inputs)
        given, matrix = inputs.to(dtype), weight.to(dtype)
        ctx.save_for_backward(given, matrix)
        ctx.weight, ctx.bias, ctx.turned, ctx.split, ctx.dtype = weight, bias, turned, split, inputs.dtype
        with torch.autocast(inputs.device.type, enabled=False):
            return F.linear(given, matrix.T if turned else matrix, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: _Context, *gradients: torch.Tensor) -> Gradients:
        given, matrix = ctx.saved_tensors
        outer, split = gradients[0], ctx.split
        split.add_products(ctx.weight, given, outer) if ctx.turned else split.add_products(ctx.weight, outer, given)
        split.add(ctx.bias, outer)
        inner = None
        if ctx.needs_input_grad[0]:
            inner = (outer @ (matrix.T if ctx.turned else matrix)).to(ctx.dtype)
        return inner, None, None, None, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, inputs: torch.Tensor, weight: nn.Parameter, bias: nn.Parameter | None, eps: float, split: Split
    ) -> torch.Tensor:
        shape = weight.shape
        outputs, mean, deviation = torch.native_layer_norm(inputs, shape, weight, bias, eps)
        ctx.save_for_backward(inputs, mean, deviation)
        ctx.weight, ctx.bias, ctx.split = weight, bias, split
        return outputs

    @staticmethod
    def backward(ctx: _Context, *gradients: torch.Tensor) -> Gradients:
        inputs, mean, deviation = ctx.saved_tensors
        outer, weight, bias, split = gradients[0].contiguous(), ctx.weight, ctx.bias, ctx.split
        if weight.requires_grad:
            split.add(weight, (inputs - mean) * deviation * outer)
        split.add(bias, outer)
        inner = torch.ops.aten.native_layer_norm_backward(
            outer, inputs, weight.shape, mean, deviation, weight, bias, [True, False, False]
        )[0]
        return inner, None, None, None, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, ids: torch.Tensor, weight: nn.Parameter, padding_idx: int | None, split: Split
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding_idx, ctx.split = weight, padding_idx, split
        return F.embedding(ids, weight, padding_idx)

    @staticmethod
    def backward(ctx: _Context, *gradients: torch.Tensor) -> Gradients:
        (ids,) = ctx.saved_tensors
        values = gradients[0]
        if ctx.padding_idx is not None:
            values = values * (ids != ctx.padding_idx).unsqueeze(-1)
        ctx.split.blocks.add_rows(ctx.weight, ctx.split.slots.view(-1, *[1] * (ids.ndim - 1)), ids, values)
        return None, None, None, None


class _ByRow(torch.autograd.Function):
    """A parameter (D,) as (B, 1, ..., D), for layers that multiply or add it."""

    @staticmethod
    def forward(ctx: _Context, parameter: nn.Parameter, axes: int, split: Split) -> torch.Tensor:
        ctx.parameter, ctx.split = parameter, split
        return parameter.view(*[1] * (axes - 1), -1).expand(split.rows, *[-1] * (axes - 1)).clone()

    @staticmethod
    def backward(ctx: _Context, *gradients: torch.Tensor) -> Gradients:
        ctx.split.add(ctx.parameter, gradients[0])
        return None, None, None


def run_linear(layer: _Weighted, split: Split, inputs: torch.Tensor) -> torch.Tensor:
    """``nn.Linear``, or GPT-2's ``Conv1D``, whose weight is transposed."""
    turned = not isinstance(layer, nn.Linear)
    return _Linear.apply(inputs, layer.weight, layer.bias, turned, split)


def run_layer_norm(layer: nn.LayerNorm, split: Split, inputs: torch.Tensor) -> torch.Tensor:
    """``nn.LayerNorm``."""
    if inputs.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        inputs = inputs.float()  # as autocast does on CUDA
    return _LayerNorm.apply(inputs, layer.weight, layer.bias, layer.eps, split)


def run_embedding(layer: nn.Embedding, split: Split, ids: torch.Tensor) -> torch.Tensor:
    """``nn.Embedding``; ids of shape (1, L), such as positions of all rows, are expanded to (B, L)."""
    if ids.ndim > 1 and ids.shape[0] == 1:
        ids = ids.expand(split.rows, *ids.shape[1:])
    return _Embedding.apply(ids, layer.weight, layer.padding_idx, split)


def by_row(parameter: nn.Parameter, split: Split, inputs: torch.Tensor) -> torch.Tensor:
    """A parameter (D,) for layers that multiply inputs (B, ..., D) by it, expanded for every row."""
    return _ByRow.apply(parameter, inputs.ndim, split)
