"""The gradients of K tasks with respect to the shared parameters, by parameter.

Legend: K tasks of a step, P entries of a parameter, or of all parameters of a type, U rows of an embedding that any
task uses, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

# Number of entries in one product: small enough for the cache and for the precision of the sum.
_CHUNK = 8192
_ALIGNED = 64  # entries to a multiple of which a parameter begins, for kernels that read several at a time

Average = Callable[[torch.Tensor], None]  # replaces a tensor by its mean over ranks, in place


Products = Sequence[Sequence[float]]  # inner products of K gradients, (K, K)
Kind = tuple[torch.device, torch.dtype, int]  # the last number is that of a parameter with a buffer of its own, or -1


@dataclass(frozen=True)
class _Span:
    """The place of a parameter in a buffer."""

    kind: Kind
    start: int
    stop: int


@dataclass(frozen=True)
class _Rows:
    """Gradients of some rows of an embedding: tasks and rows, of shapes that broadcast, and values (..., D)."""

    slots: torch.Tensor
    rows: torch.Tensor
    values: torch.Tensor


class Blocks:
    """K gradients of every shared parameter.

    Dense gradients are stored in one buffer (K, P) for all parameters of a type, which is kept during training: memory
    of this size takes as long to allocate as to fill, and inner products and sums of all parameters are one operation.
    Of an embedding whose gradients come by rows, only the rows in use are kept.

    Args:
        parameters: the trainable shared parameters.
        by_rows: those of them whose gradients are expected to come by rows. If they do not, they have a buffer each.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], by_rows: Iterable[nn.Parameter] = ()) -> None:
        self.parameters, self._by_rows = list(parameters), set(by_rows)
        self.release()

    def release(self) -> None:
        """Release the memory until the next step."""
        self._buffers: dict[Kind, torch.Tensor] = {}
        self._kinds: list[Kind] = []
        self._spans: dict[nn.Parameter, _Span] = {}
        self._written: set[nn.Parameter] = set()  # whose entries of a buffer are not zero
        self.begin(0)

    def begin(self, tasks: int, slots: Sequence[int] | None = None) -> None:
        """Discard the gradients of the last step, and prepare for those of a number of tasks.

        Args:
            tasks: K.
            slots: of each task, its row of the buffers; the order of the tasks if None. Gradients of tasks in
                neighboring rows are computed together. The same on all ranks.
        """
        self.tasks = tasks
        self.slots = list(range(tasks)) if slots is None else list(slots)
        self._filled: dict[nn.Parameter, set[int]] = {}  # the slots that contain a gradient
        self._rows: dict[nn.Parameter, list[_Rows]] = {}
        self._touched: dict[nn.Parameter, torch.Tensor] = {}
        self._compact: dict[nn.Parameter, torch.Tensor] = {}
        self._tables: list[torch.Tensor] = []
        if tasks:
            self._lay_out()

    def _lay_out(self) -> None:
        """Find the places of the parameters in the buffers, which change only if the model moves."""
        kinds = [
            (one.device, one.dtype, number if one in self._by_rows else -1)
            for number, one in enumerate(self.parameters)
        ]
        if kinds == self._kinds:
            return
        self._kinds, self._buffers, self._written, ends = kinds, {}, set(), dict.fromkeys(kinds, 0)
        for parameter, kind in zip(self.parameters, kinds, strict=True):
            start = -(-ends[kind] // _ALIGNED) * _ALIGNED
            ends[kind] = start + parameter.numel()
            self._spans[parameter] = _Span(kind, start, ends[kind])
        self._sizes = {kind: -(-end // _CHUNK) * _CHUNK for kind, end in ends.items()}

    def _views(self, parameter: nn.Parameter) -> torch.Tensor:
        """The gradients of a parameter by slot, (K, ...)."""
        span = self._spans[parameter]
        buffer = self._buffers.get(span.kind)
        if buffer is None or len(buffer) < self.tasks:  # before any gradient of the step
            device, dtype, _ = span.kind
            buffer = torch.zeros(self.tasks, self._sizes[span.kind], dtype=dtype, device=device)
            self._buffers[span.kind] = buffer
            self._written.difference_update([one for one, its in self._spans.items() if its.kind == span.kind])
        return buffer[: self.tasks, span.start : span.stop].unflatten(1, parameter.shape or (1,))

    # Gradients that are added

    def targets(self, parameter: nn.Parameter, tasks: Sequence[int]) -> tuple[torch.Tensor, bool] | None:
        """The memory for the gradients of a parameter for some tasks, (N, ...), and whether it contains some to add to.

        The caller must fill it. None if these tasks have no neighboring slots in this order, or only some of them have
        gradients already.
        """
        slots = [self.slots[task] for task in tasks]
        filled = self._filled.setdefault(parameter, set())
        known = filled.intersection(slots)
        if slots != list(range(slots[0], slots[0] + len(slots))) or len(known) not in (0, len(slots)):
            return None
        views = self._views(parameter)
        filled.update(slots)
        self._written.add(parameter)
        return views[slots[0] : slots[0] + len(slots)], bool(known)

    def add(self, parameter: nn.Parameter, task: int, gradient: torch.Tensor) -> None:
        """Add to a task's gradient of a parameter; a sparse gradient is added by rows."""
        if gradient.is_sparse:
            self.add_rows(parameter, task, gradient._indices()[0], gradient._values())
        else:
            self.add_several(parameter, [task], gradient.unsqueeze(0))

    def add_several(self, parameter: nn.Parameter, tasks: Sequence[int], gradients: torch.Tensor) -> None:
        """Add to the gradients of a parameter for some tasks, (N, ...)."""
        place = self.targets(parameter, tasks)
        if place is None:
            self._zero_missing(parameter, tasks)
            self._written.add(parameter)
            slots_N = torch.tensor([self.slots[task] for task in tasks], device=gradients.device)
            self._views(parameter).index_add_(0, slots_N, gradients.to(parameter.dtype))
        elif place[1]:
            place[0].add_(gradients)
        else:
            place[0].copy_(gradients)

    def add_rows(
        self, parameter: nn.Parameter, task: int | torch.Tensor, rows: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Add to some rows of the gradients of a parameter; a row may occur several times.

        Args:
            parameter: of an embedding, (V, D).
            task: whose gradients they are, or by entry the slots of the tasks, of a shape that broadcasts to ``rows``.
            rows: their numbers, (...).
            values: to add, (..., D).
        """
        slots = task if isinstance(task, torch.Tensor) else torch.full_like(rows[:1], self.slots[task])
        self._rows.setdefault(parameter, []).append(_Rows(slots, rows, values))

    def _zero_missing(self, parameter: nn.Parameter, tasks: Iterable[int]) -> None:
        """Set the gradients of a parameter to zero for those of some tasks that have none."""
        filled = self._filled.setdefault(parameter, set())
        missing = {self.slots[task] for task in tasks} - filled
        views = self._views(parameter)
        if parameter in self._written:
            for slot in missing:
                views[slot].zero_()
        filled.update(missing)

    # The end of the backward passes

    def close(self, average: Average | None = None) -> None:
        """Complete the gradients, so that every parameter has K gradients, zero if a task has none, or no gradient.

        Args:
            average: replaces a tensor by its mean over ranks, in place, if there are several.
        """
        used = [(parameter in self._filled, parameter in self._rows) for parameter in self.parameters]
        if average is not None:
            found = torch.tensor(used, dtype=torch.float32, device=self.parameters[0].device)
            average(found)
            used = [(dense, sparse) for dense, sparse in (found > 0).tolist()]
        for parameter, (dense, _) in zip(self.parameters, used, strict=True):
            if dense:
                self._zero_missing(parameter, range(self.tasks))
                for entry in self._rows.pop(parameter, ()):
                    self._written.add(parameter)
                    _put(self._views(parameter), entry.slots, entry.rows, entry.values)
            elif parameter in self._written:
                span = self._spans[parameter]
                self._buffers[span.kind][:, span.start : span.stop].zero_()
                self._written.discard(parameter)
        if average is not None:
            for kind in dict.fromkeys(self._kinds):  # in the same order on all ranks
                if kind in self._buffers:
                    average(self._buffers[kind][: self.tasks])
        self._close_rows(
            [one for one, (dense, rows) in zip(self.parameters, used, strict=True) if rows and not dense], average
        )

    def _close_rows(self, parameters: Sequence[nn.Parameter], average: Average | None) -> None:
        """Collect the gradients that came by rows, in one buffer for all embeddings of a type."""
        sizes: dict[nn.Parameter, int] = {}
        places: dict[nn.Parameter, list[torch.Tensor]] = {}
        for parameter in parameters:
            sizes[parameter], places[parameter] = self._compacted(parameter, average)
        for kind in dict.fromkeys((parameter.device, parameter.dtype) for parameter in parameters):
            own = [parameter for parameter in parameters if (parameter.device, parameter.dtype) == kind]
            ends = [0]
            for parameter in own:
                ends.append(ends[-1] + sizes[parameter] * parameter[0].numel())
            buffer = torch.zeros(self.tasks, -(-ends[-1] // _CHUNK) * _CHUNK, dtype=kind[1], device=kind[0])
            self._tables.append(buffer)
            for parameter, start, stop in zip(own, ends, ends[1:], strict=False):
                table_KUD = buffer[:, start:stop].unflatten(1, (sizes[parameter], *parameter.shape[1:]))
                for entry, place in zip(self._rows.pop(parameter, ()), places[parameter], strict=True):
                    _put(table_KUD, entry.slots, place, entry.values)
                self._compact[parameter] = table_KUD
            if average is not None:
                average(buffer)

    def _compacted(self, parameter: nn.Parameter, average: Average | None) -> tuple[int, list[torch.Tensor]]:
        """How many rows of an embedding are kept, and the places of those that came among them.

        One rank knows how many rows are in use at most, and does not ask a device how many there are: the last places
        may be empty, with zeros that are added to row 0. Several have to agree.
        """
        entries, count = self._rows.get(parameter, []), len(parameter)
        most = sum(entry.rows.numel() for entry in entries) + 1
        if average is None and most >= count:  # all of them
            return count, [entry.rows for entry in entries]
        used_V = torch.zeros(count, dtype=torch.long if average is None else torch.float32, device=parameter.device)
        for entry in entries:
            used_V.index_fill_(0, entry.rows.flatten(), 1)
        if average is not None:
            average(used_V)
            touched_U = used_V.nonzero().squeeze(1)
            self._touched[parameter] = touched_U
            return len(touched_U), [torch.searchsorted(touched_U, entry.rows.contiguous()) for entry in entries]
        places_V = used_V.cumsum(0)  # from 1: place 0 is empty
        places = [places_V[entry.rows] for entry in entries]
        touched_U = torch.zeros(most, dtype=torch.long, device=parameter.device)
        for entry, place in zip(entries, places, strict=True):
            touched_U[place] = entry.rows
        self._touched[parameter] = touched_U
        return most, places

    # Closed gradients

    def matrices(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """Every parameter with gradients, and those of the K tasks by slot, (K, P); after :meth:`close`."""
        for parameter in self.parameters:
            if parameter in self._compact:
                yield parameter, self._compact[parameter].flatten(1)
            elif parameter in self._filled:
                yield parameter, self._views(parameter).flatten(1)

    def products(self) -> torch.Tensor:
        """Inner products of the K gradients over all parameters, by slot, (K, K), float64 on their device."""
        parts = [buffer[: self.tasks] for buffer in (*self._buffers.values(), *self._tables)]
        if not parts:
            return torch.zeros(self.tasks, self.tasks, dtype=torch.float64)
        total_KK = _gramian(parts[0])
        for part in parts[1:]:
            total_KK = total_KK + _gramian(part).to(total_KK.device)
        return total_KK

    def by_task(self, products: Products) -> list[list[float]]:
        """Inner products by slot, as those by task."""
        return [[products[one][other] for other in self.slots] for one in self.slots]

    def gramian(self) -> torch.Tensor:
        """Inner products of the K gradients over all parameters, (K, K), float64 on the CPU."""
        rows = self.by_task(self.products().tolist())
        return torch.tensor(rows, dtype=torch.float64).reshape(self.tasks, self.tasks)

    def write(self, combined: Callable[[torch.Tensor, Callable[[], torch.Tensor]], torch.Tensor]) -> None:
        """Set the gradients of the parameters with a function of the per-task gradients, (K, P) by slot to (P,).

        Args:
            combined: also receives a function that returns a random number between 0 and 1 for each of the P entries.
        """
        for parameter, matrix_KP in self.matrices():
            self._set(parameter, combined(matrix_KP, partial(self._draw, parameter)).to(parameter.dtype))

    def write_sum(self, weights: Sequence[float]) -> None:
        """Set the gradients of the parameters to the sum of the per-task gradients with a weight for each task."""
        by_slot = [0.0] * self.tasks
        for slot, weight in zip(self.slots, weights, strict=True):
            by_slot[slot] = weight
        sums = {
            kind: torch.tensor(by_slot, dtype=kind[1], device=kind[0]) @ buffer[: self.tasks]
            for kind, buffer in self._buffers.items()
        }
        for parameter in self.parameters:
            if parameter in self._compact:
                table_KP = self._compact[parameter].flatten(1)
                self._set(parameter, torch.tensor(by_slot, dtype=table_KP.dtype, device=table_KP.device) @ table_KP)
            elif parameter in self._filled:
                span = self._spans[parameter]
                parameter.grad = sums[span.kind][span.start : span.stop].view(parameter.shape)

    def _set(self, parameter: nn.Parameter, entries: torch.Tensor) -> None:
        if parameter in self._touched:
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad.index_add_(0, self._touched[parameter], entries.view(-1, *parameter.shape[1:]))
        else:
            parameter.grad = entries.view(parameter.shape)

    def _draw(self, parameter: nn.Parameter) -> torch.Tensor:
        """Random numbers for the entries of a parameter, sampled for all rows even if only some are needed."""
        drawn = torch.rand(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        return (drawn[self._touched[parameter]] if parameter in self._touched else drawn).flatten()

    def gradient(self, parameter: nn.Parameter, task: int) -> torch.Tensor | None:
        """The whole gradient of a parameter for one task, None if no task has one; after :meth:`close`."""
        slot = self.slots[task]
        if parameter in self._touched:
            whole = torch.zeros_like(parameter)
            return whole.index_add_(0, self._touched[parameter], self._compact[parameter][slot])
        if parameter in self._compact:
            return self._compact[parameter][slot]
        return self._views(parameter)[slot].view(parameter.shape) if parameter in self._filled else None


def _put(table_KVD: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """Add values (..., D) to rows of the tables of some tasks."""
    table_KVD.index_put_((slots, rows), values.to(table_KVD.dtype), accumulate=True)


def _gramian(matrix_KP: torch.Tensor) -> torch.Tensor:
    """Inner products of the rows, (K, K), in float64: float32 would have an error of 1e-3 for millions of entries.

    P is a multiple of the entries of a product.
    """
    parts_CKP = matrix_KP.unflatten(1, (-1, _CHUNK)).transpose(0, 1)
    parts_CKP = parts_CKP.to(torch.float64 if matrix_KP.dtype == torch.float64 else torch.float32)
    return torch.bmm(parts_CKP, parts_CKP.transpose(1, 2)).double().sum(0)
