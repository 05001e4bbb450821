"""The gradients of K tasks with respect to the shared parameters, by parameter.

Legend: K tasks of a step, P entries of a parameter, U rows of an embedding that any task uses, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import nn

# Number of entries of a parameter in one product: small enough for the cache and for the precision of the sum.
_CHUNK = 8192


class Blocks:
    """K gradients of every shared parameter.

    Dense gradients of a parameter are stored in a buffer (K, ...) that is kept during training, because allocating
    memory of this size takes as long as filling it. Of an embedding, only the rows in use are kept.

    Args:
        parameters: the trainable shared parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._buffers: dict[nn.Parameter, torch.Tensor] = {}
        self.begin(0)

    def begin(self, tasks: int) -> None:
        """Discard the gradients of the last step, and prepare for those of a number of tasks."""
        self.tasks = tasks
        self._filled: dict[nn.Parameter, set[int]] = {}
        self._rows: dict[nn.Parameter, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}
        self._touched: dict[nn.Parameter, torch.Tensor] = {}
        self._compact: dict[nn.Parameter, torch.Tensor] = {}

    def release(self) -> None:
        """Release the memory until the next step."""
        self._buffers = {}
        self.begin(0)

    def target(self, parameter: nn.Parameter, task: int) -> tuple[torch.Tensor, bool]:
        """The memory for a task's gradient of a parameter, and whether it contains a gradient to add to.

        The caller must fill it.
        """
        buffer = self._buffers.get(parameter)
        if buffer is None or len(buffer) < self.tasks:
            grown = torch.empty((self.tasks, *parameter.shape), dtype=parameter.dtype, device=parameter.device)
            if buffer is not None:
                grown[: len(buffer)] = buffer
            buffer = self._buffers[parameter] = grown
        filled = self._filled.setdefault(parameter, set())
        adds = task in filled
        filled.add(task)
        return buffer[task], adds

    def add(self, parameter: nn.Parameter, task: int, gradient: torch.Tensor) -> None:
        """Add to a task's gradient of a parameter; a sparse gradient is added by rows."""
        if gradient.is_sparse:
            self.add_rows(parameter, task, gradient._indices()[0], gradient._values())
            return
        target, adds = self.target(parameter, task)
        if adds:
            target += gradient
        else:
            target.copy_(gradient)

    def add_rows(self, parameter: nn.Parameter, task: int, rows_M: torch.Tensor, values_MD: torch.Tensor) -> None:
        """Add to some rows of a task's gradient of a parameter; a row may occur several times."""
        self._rows.setdefault(parameter, []).append((task, rows_M, values_MD))

    def close(self, average: Callable[[torch.Tensor], None] | None = None) -> None:
        """Complete the gradients, so that every parameter has K gradients, zero if a task has none, or no gradient.

        Args:
            average: replaces a tensor by its mean over ranks, in place, if there are several.
        """
        used = torch.tensor(
            [[parameter in self._filled, parameter in self._rows] for parameter in self.parameters],
            dtype=torch.float32,
            device=self.parameters[0].device,
        )
        if average is not None:
            average(used)
        for parameter, (dense, sparse) in zip(self.parameters, (used > 0).tolist(), strict=True):
            if dense:
                for task in range(self.tasks):
                    if task not in self._filled.get(parameter, ()):
                        self.target(parameter, task)[0].zero_()
                for task, rows_M, values_MD in self._rows.pop(parameter, ()):
                    self._buffers[parameter][task].index_add_(0, rows_M, values_MD.to(parameter.dtype))
                if average is not None:
                    average(self._buffers[parameter][: self.tasks])
            elif sparse:
                self._close_rows(parameter, average)

    def _close_rows(self, parameter: nn.Parameter, average: Callable[[torch.Tensor], None] | None) -> None:
        entries = self._rows.pop(parameter, [])
        if average is None:
            every_M = torch.cat([rows_M for _, rows_M, _ in entries])
            touched_U, place_M = torch.unique(every_M, return_inverse=True)
            places = place_M.split([len(rows_M) for _, rows_M, _ in entries])
        else:
            mask_V = torch.zeros(len(parameter), device=parameter.device)
            for _, rows_M, _ in entries:
                mask_V[rows_M] = 1
            average(mask_V)
            touched_U = mask_V.nonzero().squeeze(1)
            places = tuple(torch.searchsorted(touched_U, rows_M) for _, rows_M, _ in entries)
        shape = (self.tasks, len(touched_U), *parameter.shape[1:])
        compact_KUD = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        for (task, _, values_MD), place_M in zip(entries, places, strict=True):
            compact_KUD[task].index_add_(0, place_M, values_MD.to(parameter.dtype))
        if average is not None:
            average(compact_KUD)
        self._touched[parameter], self._compact[parameter] = touched_U, compact_KUD

    def matrices(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """Every parameter with gradients, and those of the K tasks, (K, P); after :meth:`close`."""
        for parameter in self.parameters:
            if parameter in self._compact:
                yield parameter, self._compact[parameter].flatten(1)
            elif parameter in self._filled:
                yield parameter, self._buffers[parameter][: self.tasks].flatten(1)

    def gramian(self) -> torch.Tensor:
        """Inner products of the K gradients over all parameters, (K, K), float64 on the CPU."""
        total_KK: torch.Tensor | None = None
        for _, matrix_KP in self.matrices():
            part_KK = _gramian(matrix_KP)
            total_KK = part_KK if total_KK is None else total_KK + part_KK
        return torch.zeros(self.tasks, self.tasks, dtype=torch.float64) if total_KK is None else total_KK.cpu()

    def write(self, combined: Callable[[torch.Tensor, Callable[[], torch.Tensor]], torch.Tensor]) -> None:
        """Set the gradients of the parameters with a function of the per-task gradients, (K, P) to (P,).

        Args:
            combined: also receives a function that returns a random number between 0 and 1 for each of the P entries.
        """
        for parameter, matrix_KP in self.matrices():
            entries = combined(matrix_KP, partial(self._draw, parameter)).to(parameter.dtype)
            if parameter in self._compact:
                parameter.grad = torch.zeros_like(parameter)
                parameter.grad[self._touched[parameter]] = entries.view(-1, *parameter.shape[1:])
            else:
                parameter.grad = entries.view(parameter.shape)

    def _draw(self, parameter: nn.Parameter) -> torch.Tensor:
        """Random numbers for the entries of a parameter, sampled for all rows even if only some are needed."""
        drawn = torch.rand(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        return (drawn[self._touched[parameter]] if parameter in self._compact else drawn).flatten()

    def gradient(self, parameter: nn.Parameter, task: int) -> torch.Tensor | None:
        """The whole gradient of a parameter for one task, None if no task has one; after :meth:`close`."""
        if parameter in self._compact:
            whole = torch.zeros_like(parameter)
            whole[self._touched[parameter]] = self._compact[parameter][task]
            return whole
        return self._buffers[parameter][task] if parameter in self._filled else None


def _gramian(matrix_KP: torch.Tensor) -> torch.Tensor:
    """Inner products of the rows, (K, K), in float64: float32 would have an error of 1e-3 for millions of entries."""
    tasks, entries = matrix_KP.shape
    whole = entries // _CHUNK * _CHUNK
    exact = torch.promote_types(matrix_KP.dtype, torch.float32)
    rest_KR = matrix_KP[:, whole:].to(exact)
    total_KK = (rest_KR @ rest_KR.T).double()
    if whole:
        parts_CKP = matrix_KP[:, :whole].reshape(tasks, -1, _CHUNK).transpose(0, 1).to(exact)
        total_KK += torch.bmm(parts_CKP, parts_CKP.transpose(1, 2)).double().sum(0)
    return total_KK
