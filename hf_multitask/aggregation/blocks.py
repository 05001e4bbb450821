"""The gradients of K tasks for the shared parameters, parameter by parameter.

Legend: K tasks of a step, P entries of a parameter, U rows of an embedding that any task touched, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import nn

# Entries of a parameter that are multiplied at once: few enough to stay in a cache, and to sum up exactly enough.
_CHUNK = 8192


class Blocks:
    """K gradients of every shared parameter.

    Dense gradients of a parameter lie one below the other in a buffer (K, ...) that lives as long as training: fresh
    memory of that size would cost as much as filling it. Of an embedding only the touched rows are kept.

    Args:
        parameters: the shared ones, those that train.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._buffers: dict[nn.Parameter, torch.Tensor] = {}
        self.begin(0)

    def begin(self, tasks: int) -> None:
        """Forget the gradients of the last step, and make ready for those of so many tasks."""
        self.tasks = tasks
        self._filled: dict[nn.Parameter, set[int]] = {}
        self._rows: dict[nn.Parameter, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}
        self._touched: dict[nn.Parameter, torch.Tensor] = {}
        self._compact: dict[nn.Parameter, torch.Tensor] = {}

    def release(self) -> None:
        """Give the memory back, until the next step."""
        self._buffers = {}
        self.begin(0)

    def target(self, parameter: nn.Parameter, task: int) -> tuple[torch.Tensor, bool]:
        """Where a task's gradient of a parameter belongs, and whether there is one already that it is to be added to.

        The caller has to fill it.
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
        """Add to a task's gradient of a parameter; a sparse gradient counts by its rows."""
        if gradient.is_sparse:
            self.add_rows(parameter, task, gradient._indices()[0], gradient._values())
            return
        target, adds = self.target(parameter, task)
        if adds:
            target += gradient
        else:
            target.copy_(gradient)

    def add_rows(self, parameter: nn.Parameter, task: int, rows_M: torch.Tensor, values_MD: torch.Tensor) -> None:
        """Add to some rows of a task's gradient of a parameter; a row may come several times."""
        self._rows.setdefault(parameter, []).append((task, rows_M, values_MD))

    def close(self, average: Callable[[torch.Tensor], None] | None = None) -> None:
        """See that every parameter has K gradients, zero where a task has none; or none at all.

        Args:
            average: replaces a tensor by its mean over ranks, in place, where there are several.
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
        """Every parameter that has gradients, with those of the K tasks, (K, P); after :meth:`close`."""
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
        """Set the gradients of the parameters to what a function makes of those of the tasks, (K, P) to (P,).

        Args:
            combined: also gets a function that draws a number between 0 and 1 for each of the P entries.
        """
        for parameter, matrix_KP in self.matrices():
            entries = combined(matrix_KP, partial(self._draw, parameter)).to(parameter.dtype)
            if parameter in self._compact:
                parameter.grad = torch.zeros_like(parameter)
                parameter.grad[self._touched[parameter]] = entries.view(-1, *parameter.shape[1:])
            else:
                parameter.grad = entries.view(parameter.shape)

    def _draw(self, parameter: nn.Parameter) -> torch.Tensor:
        """Numbers for the entries of a parameter, for all of it even where some rows are wanted only."""
        drawn = torch.rand(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        return (drawn[self._touched[parameter]] if parameter in self._compact else drawn).flatten()

    def gradient(self, parameter: nn.Parameter, task: int) -> torch.Tensor | None:
        """One task's whole gradient of a parameter, None where no task has one; after :meth:`close`."""
        if parameter in self._compact:
            whole = torch.zeros_like(parameter)
            whole[self._touched[parameter]] = self._compact[parameter][task]
            return whole
        return self._buffers[parameter][task] if parameter in self._filled else None


def _gramian(matrix_KP: torch.Tensor) -> torch.Tensor:
    """Inner products of the rows, (K, K), in float64: over millions of entries float32 would be off by 1e-3."""
    tasks, entries = matrix_KP.shape
    whole = entries // _CHUNK * _CHUNK
    exact = torch.promote_types(matrix_KP.dtype, torch.float32)
    rest_KR = matrix_KP[:, whole:].to(exact)
    total_KK = (rest_KR @ rest_KR.T).double()
    if whole:
        parts_CKP = matrix_KP[:, :whole].reshape(tasks, -1, _CHUNK).transpose(0, 1).to(exact)
        total_KK += torch.bmm(parts_CKP, parts_CKP.transpose(1, 2)).double().sum(0)
    return total_KK
