"""The gradients that the tasks of a step have for one matrix of the backbone, by which GradNorm weighs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from .rows import Batch, Rows, rows_of, rows_of_tasks

Tensors = Mapping[str, torch.Tensor]  # by task


class MatrixGradients:
    """K gradients of a matrix, summed over the forwards of a step.

    Where every row of a forward is one task's, its own backward pass gives them: with the layer's input X and the
    gradient D of its output, task t's is :math:`D_t^T X_t` over its rows. Otherwise each loss goes backward to the
    matrix once more.

    Args:
        model: that the matrix is of.
        matrix: the weight of one of its layers.
        tasks: names of the K tasks.
    """

    def __init__(self, model: nn.Module, matrix: nn.Parameter, tasks: Sequence[str]) -> None:
        self.matrix, self.tasks = matrix, list(tasks)
        layers = (one for one in model.modules() if any(own is matrix for own in one._parameters.values()))
        self._layer = next(layers)
        self._turned = type(self._layer).__name__ == "Conv1D"  # GPT-2's, which keeps its weight the other way round
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.begin()

    def begin(self) -> None:
        """Forget the last step."""
        self._total: torch.Tensor | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it, a forward pass shows what the layer sees."""
        self._seen = []
        hook = self._layer.register_forward_hook(
            lambda _, inputs, output: self._seen.append((inputs[0].detach(), output))
        )
        try:
            yield
        finally:
            hook.remove()

    def take_in(self, losses: Tensors, weights: Mapping[str, float], batch: Batch) -> None:
        """Add a forward pass, before the backward pass of the weighted sum of its losses.

        Args:
            losses: of its tasks.
            weights: of the tasks in that sum.
            batch: the model's inputs.

        Raises:
            ValueError: the losses do not lead back to the matrix.
        """
        seen, self._seen = self._seen, []
        if seen and not seen[-1][1].requires_grad and any(loss.requires_grad for loss in losses.values()):
            raise ValueError(
                "The balancing reads gradients of the backbone's top layer, which reentrant activation checkpointing "
                "hides. Set use_reentrant to false in activation_checkpointing_kwargs."
            )
        rows = {name: own for name, own in rows_of_tasks(batch).items() if name in losses}
        if len(seen) == 1 and all(weights.get(name) for name in losses) and self._tells_apart(*seen[0], rows, batch):
            self._split(*seen[0], losses, rows)
            return
        for name, loss in losses.items():
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, self.matrix, retain_graph=True, allow_unused=True)
                if gradient is not None:
                    self._of(name).add_(gradient)

    def _tells_apart(self, inputs: torch.Tensor, outputs: torch.Tensor, rows: Rows, batch: Batch) -> bool:
        """Whether the layer sees the rows of the batch one by one, and each of them is of one task at most."""
        every = [row for own in rows.values() for row in own]
        return (
            (self._turned or type(self._layer).forward is nn.Linear.forward)
            and outputs.requires_grad
            and inputs.ndim > 2
            and len(inputs) == rows_of(batch)
            and len(every) == len(set(every))
        )

    def _split(self, inputs: torch.Tensor, outputs: torch.Tensor, losses: Tensors, rows: Rows) -> None:
        """Have the backward pass add the tasks' gradients, each divided by what its loss is multiplied by there."""
        factors: dict[str, torch.Tensor] = {}
        for name in rows:
            if losses[name].requires_grad:
                losses[name].register_hook(partial(factors.__setitem__, name))

        def add(gradient: torch.Tensor) -> None:
            for name, factor in factors.items():
                total = self._of(name)
                outer = gradient[rows[name]].flatten(0, -2).to(total.dtype) / factor
                inner = inputs[rows[name]].flatten(0, -2).to(total.dtype)
                left, right = (inner, outer) if self._turned else (outer, inner)
                total.addmm_(left.T, right)

        outputs.register_hook(add)

    def _of(self, name: str) -> torch.Tensor:
        """A task's gradient so far."""
        return self.gradients()[self.tasks.index(name)]

    def gradients(self) -> torch.Tensor:
        """The K gradients of the step, (K, *shape of the matrix), zero where a task had none."""
        if self._total is None:
            dtype = torch.promote_types(self.matrix.dtype, torch.float32)
            self._total = torch.zeros(len(self.tasks), *self.matrix.shape, dtype=dtype, device=self.matrix.device)
        return self._total
