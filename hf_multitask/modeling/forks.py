"""Which rows of a pass go through which branch of the backbone.

Legend: B rows of the pass below the branches, U of the one above them, M of one branch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from transformers.cache_utils import Cache

from .adapter_rows import Block, Routing
from .aliases import Open, Settings
from .routing import States


@dataclass(frozen=True)
class Fork:
    """Which rows of a pass each branch reads.

    Above the branches a row has the place that it has below; where several branches read it, the first of them has that
    place, and those of the others come behind all rows.

    Args:
        branches: those that run, in order.
        idle: those that take part with a gradient of zero.
        blocks: by branch that runs, the blocks of its rows with adapters.
        below_M: by branch, its rows below; None where all branches read all rows.
        above_M: by branch, its rows above.
        place_U: where the rows above are in the outputs of the branches, one behind the other.
        rows: B.
        rows_above: U.
        heads: of the attention.
    """

    branches: tuple[str, ...]
    idle: tuple[str, ...] = ()
    blocks: tuple[tuple[Block, ...], ...] = ()
    below_M: tuple[torch.Tensor, ...] | None = None
    above_M: tuple[torch.Tensor, ...] = ()
    place_U: torch.Tensor | None = None
    rows: int = 0
    rows_above: int = 0
    heads: int = 1

    def first(self, states: torch.Tensor) -> torch.Tensor:
        """The states that an idle branch reads: those of a single row."""
        return states[:1]

    def hidden(self, states: torch.Tensor) -> Sequence[torch.Tensor]:
        """The states that each branch reads, of which there is one for every row.

        All are taken at once, as the gradient of each would else be one of all rows.
        """
        below = states.shape[0] == self.rows
        if self.below_M is None:
            count = len(self.branches)
            return [states] * count if below else states.split([self.rows] * count)
        places_M = self.below_M if below else self.above_M
        return states[torch.cat(places_M)].split([len(own_M) for own_M in places_M])

    def part(self, number: int | None, value: Open, length: int) -> Open:
        """What a branch reads of an input of a layer; of ``number`` None, an idle branch, a single row."""
        if isinstance(value, Cache):
            return None  # of rows that other branches read as well; a pass of one branch has it
        if isinstance(value, tuple | list):
            return type(value)(self.part(number, one, length) for one in value)
        if isinstance(value, Mapping):
            return {key: self.part(number, one, length) for key, one in value.items()}
        if not isinstance(value, torch.Tensor) or not has_rows(value, length):
            return value
        for rows, places_M in ((self.rows, self.below_M), (self.rows_above, self.above_M)):
            # Of attention, by row and head. Rows are compared before lengths, for torch.export.
            by_head = value.dim() == 3 and self.heads > 1 and value.shape[0] == rows * self.heads
            if by_head and value.shape[2] == length:
                return self.rows_of_branch(number, value.unflatten(0, (rows, self.heads)), places_M).flatten(0, 1)
            if value.shape[0] == rows:
                return self.rows_of_branch(number, value, places_M)
        return value

    def rows_of_branch(
        self, number: int | None, value: torch.Tensor, places_M: tuple[torch.Tensor, ...] | None
    ) -> torch.Tensor:
        """The entries of a tensor that a branch reads; those of a single row for an idle branch.

        Args:
            number: of the branch; None for an idle one.
            value: with an entry for each row below or above.
            places_M: ``below_M`` or ``above_M``.
        """
        if number is None:
            return value[:1]
        if self.below_M is not None:
            return value[cast("tuple[torch.Tensor, ...]", places_M)[number]]
        return value if places_M is None else value[number * self.rows : (number + 1) * self.rows]

    def above(self, value: Open) -> Open:
        """Something of the rows below for the rows above: (B, ...) to (U, ...)."""
        if isinstance(value, States):
            hidden = value.last_hidden_state
            if hidden is None or hidden.shape[0] == self.rows_above:
                return value
            return States(  # where no layer with branches has run: some speech encoders leave out layers at random
                last_hidden_state=self.above(hidden), pooler_output=self.above(value.pooler_output)
            )
        if value is None or self.rows_above == self.rows:
            return value
        if self.below_M is None:
            return torch.cat([value] * len(self.branches))
        return value[torch.cat(self.below_M)[self.place_U]]

    def joined(self, outputs: Sequence[Open], length: int) -> Open:
        """The outputs of the branches as those of one layer, (U, ...)."""
        first = outputs[0]
        if isinstance(first, tuple):
            return tuple(self.joined(ones, length) for ones in zip(*outputs, strict=True))
        if not isinstance(first, torch.Tensor) or not has_rows(first, length):
            return first
        counts = [self.rows] * len(outputs) if self.below_M is None else [len(own_M) for own_M in self.below_M]
        for heads in (1, self.heads):
            if all(one.shape[0] == count * heads for one, count in zip(outputs, counts, strict=True)):
                whole = torch.cat(list(outputs))
                if self.place_U is None:
                    return whole
                return whole.unflatten(0, (-1, heads))[self.place_U].flatten(0, 1) if heads > 1 else whole[self.place_U]
        return first  # one for all rows, such as the positions of T5


def has_rows(value: torch.Tensor, length: int) -> bool:
    """Whether a tensor may have an entry for every row: (B, L), or of more axes.

    The rotations of some speech encoders, of which the first axis has sines and cosines, (2, L, 1, 1, D), have none.
    """
    if value.dim() == 5 and value.shape[2] == value.shape[3] == 1:
        return False
    return value.dim() > 2 or (value.dim() == 2 and value.shape[1] == length)


@contextmanager
def as_task(routing: Routing, task: str) -> Iterator[None]:
    """A pass over rows of one task only: by its adapter, and through its branch."""
    own = Fork((routing.branches[task],)) if routing.branches else None
    with routing.of(((task, 0, None),) if task in routing.tasks else ()), routing.forked(own):
        yield


def fork(
    routing: Routing,
    inputs: Settings,
    task_rows: Mapping[str, torch.Tensor] | None,
    runs: Sequence[str],
    blocks: tuple[Block, ...],
    *,
    everywhere: bool,
    heads: int = 1,
) -> tuple[Fork, Mapping[str, torch.Tensor] | None]:
    """Divide the rows of a pass between the branches.

    Args:
        routing: with the branch of each task.
        inputs: of the backbone, tensors (B, ...).
        task_rows: rows of the pass by task, as in ``MultiTaskModel.forward``.
        runs: the tasks that run.
        blocks: of the rows with adapters.
        everywhere: whether the other branches take part as well, with a gradient of zero.
        heads: of the attention, whose axis some families have beside that of rows.

    Returns:
        The division, and by task its rows above the branches.
    """
    rows, device = next((one.shape[0], one.device) for one in inputs.values() if isinstance(one, torch.Tensor))
    names = list(dict.fromkeys(routing.branches.values()))
    active = [name for name in names if any(routing.branches[task] == name for task in runs)] or names[:1]
    idle = tuple(name for name in names if name not in active) if everywhere else ()
    if len(active) == 1:
        return Fork((active[0],), idle, rows=rows, rows_above=rows, heads=heads), task_rows
    number = {name: place for place, name in enumerate(active)}
    own = {task: number[routing.branches[task]] for task in runs}
    if task_rows is None:
        every_B = torch.arange(rows, device=device)
        above = {task: every_B + place * rows for task, place in own.items()}
        count = len(active)
        return Fork(tuple(active), idle, ((),) * count, rows=rows, rows_above=rows * count, heads=heads), above
    read_KB = torch.zeros(len(active), rows, dtype=torch.bool, device=device)
    for task, place in own.items():
        table = task_rows[task].to(device)
        read_KB[place, table[table >= 0] if table.dim() > 1 else table] = True
    read_KB[0] |= ~read_KB.any(0)  # a row that no task reads
    again_KB = read_KB & (read_KB.cumsum(0) > 1)
    behind_KB = rows - 1 + again_KB.flatten().cumsum(0).view_as(read_KB)
    above_KB = torch.where(again_KB, behind_KB, torch.arange(rows, device=device))
    reader_U, row_U = read_KB.nonzero().unbind(1)  # the rows of a branch one after the other
    counts = read_KB.sum(1).tolist()
    order_U = above_KB[reader_U, row_U]
    below_M, above_M = row_U.split(counts), order_U.split(counts)
    place_U = torch.empty_like(order_U)
    place_U[order_U] = torch.arange(order_U.shape[0], device=device)
    own_blocks = tuple(_blocks(blocks, own_M) for own_M in below_M)
    found = Fork(tuple(active), idle, own_blocks, below_M, above_M, place_U, rows, order_U.shape[0], heads)
    tables = {}
    for task, place in own.items():
        table = task_rows[task].to(device)
        tables[task] = torch.where(table >= 0, above_KB[place, table.clamp(min=0)], -1)
    return found, tables


def _blocks(blocks: tuple[Block, ...], own_M: torch.Tensor) -> tuple[Block, ...]:
    """The blocks of a pass as those of some of its rows, in rising order."""
    found: list[Block] = []
    end = 0
    for task, start, stop in blocks:
        there = own_M >= start if stop is None else (own_M >= start) & (own_M < stop)
        rows = int(there.sum())
        found.append((task, end, end + rows))
        end += rows
    return tuple(found)
