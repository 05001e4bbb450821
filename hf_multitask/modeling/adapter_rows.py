"""Which rows of a pass go through which task's adapter: blocks of rows, one behind the other; and through which branch.

Legend: B rows of the batch, R rows of the pass, N rows of one task, G rows of an item.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch

from .aliases import Function, Open, Settings, Values

# A task, None for rows that have no adapter of a task, and where its rows begin and end.
Block = tuple[str | None, int, int | None]


class Pass(threading.local):
    """Blocks and fork of the pass that runs in this thread; other threads, and copies of the model, have theirs.

    A pass begins and ends in one thread, so this is the call's own, as a ``ContextVar`` would be, which
    ``torch.compile`` cannot trace.
    """

    blocks: tuple[Block, ...] = ()
    fork: Open = None

    def __reduce__(self) -> tuple[type["Pass"], tuple[()]]:
        """A copy, or what is loaded from a file, is in no pass."""
        return type(self), ()


class LoraLayer(Protocol):
    """What a LoRA layer of PEFT has, by the name of an adapter, and what :func:`inject` adds to it."""

    routing: "Routing"
    routing_name: str
    lora_A: Mapping[str | None, torch.nn.Linear]
    lora_B: Mapping[str | None, torch.nn.Linear]
    lora_dropout: Mapping[str | None, torch.nn.Module]
    scaling: Mapping[str | None, float]


class Routing:
    """The tasks that have an adapter of their own and the branch of each, with the rows of both in the running pass,
    which all LoRA layers and branches look up.

    Args:
        tasks: those with an adapter of their own.
        branches: by task, its branch; empty without branches.
    """

    def __init__(self, tasks: Iterable[str] = (), branches: Mapping[str, str] | None = None) -> None:
        self.tasks = set(tasks)
        self.branches = dict(branches or {})
        self._pass = Pass()

    @property
    def fork(self) -> Open:
        """How the pass that runs in this thread is divided between branches; None outside of a pass."""
        return self._pass.fork

    @contextmanager
    def forked(self, fork: Open) -> Iterator[None]:
        """A pass, in this thread, that is divided in this way."""
        before, self._pass.fork = self._pass.fork, fork
        try:
            yield
        finally:
            self._pass.fork = before

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Those of the pass that runs in this thread; none outside of a pass."""
        return self._pass.blocks

    @contextmanager
    def of(self, blocks: tuple[Block, ...]) -> Iterator[None]:
        """A pass, in this thread, whose rows are in these blocks."""
        before, self._pass.blocks = self._pass.blocks, blocks
        try:
            yield
        finally:
            self._pass.blocks = before

    def split(
        self,
        inputs: Settings,
        task_rows: Mapping[str, torch.Tensor] | None,
        runs: list[str],
        *,
        everywhere: bool,
    ) -> tuple[Values, dict[str, torch.Tensor], tuple[Block, ...]]:
        """Inputs with a row for every task that reads it by an adapter of its own, and one for all other tasks.

        Args:
            inputs: of the backbone, tensors (B, ...).
            task_rows: as in ``MultiTaskModel.forward``.
            runs: the tasks that run.
            everywhere: whether the adapters of other tasks take part as well, over no row, so that they get a
                gradient of zero.

        Returns:
            Inputs (R, ...), where each task finds its rows in them, and the blocks of the pass, for :meth:`of`.
        """
        # Not len(), which torch.export takes for a number that never changes.
        rows, device = next((one.shape[0], one.device) for one in inputs.values() if isinstance(one, torch.Tensor))
        every_B = torch.arange(rows, device=device)
        of_task = {name: every_B if task_rows is None else task_rows[name].to(device) for name in runs}
        numbers: dict[str, torch.Tensor] = {}
        pieces: list[torch.Tensor] = []
        blocks: list[Block] = []
        end = 0
        if together := [name for name in runs if name not in self.tasks]:
            read_R = torch.cat([of_task[name].flatten() for name in together])
            read_R = every_B if task_rows is None else read_R[read_R >= 0].unique()
            place_B = torch.zeros_like(every_B)
            place_B[read_R] = torch.arange(read_R.shape[0], device=device)
            for name in together:
                there = of_task[name] >= 0
                numbers[name] = torch.where(there, place_B[of_task[name].clamp(min=0)], -1)
            pieces.append(read_R)
            end = read_R.shape[0]
            blocks.append((None, 0, end))
        for name in runs:
            if name in self.tasks:
                own = of_task[name]
                read_N = own if own.dim() == 1 else own[own >= 0]
                new_N = torch.arange(end, end + read_N.shape[0], device=device)
                numbers[name] = new_N if own.dim() == 1 else torch.full_like(own, -1).masked_scatter(own >= 0, new_N)
                pieces.append(read_N)
                blocks.append((name, end, end + read_N.shape[0]))
                end = end + read_N.shape[0]  # not in place: it is a tensor of the blocks where a run is recorded
        if not end:  # a batch of filler: one row, so that there is a pass
            pieces, blocks, end, everywhere = [every_B[:1]], [(None, 0, 1)], 1, True
        if everywhere:
            blocks += [(name, end, end) for name in sorted(self.tasks.difference(runs))]
        index_R = torch.cat(pieces)
        spread = {
            key: value[index_R] if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == rows else value
            for key, value in inputs.items()
        }
        return spread, numbers, tuple(blocks)

    def checkpointed(self, checkpoint: Function) -> Function:
        """A checkpointing function whose second run of a layer, in the backward pass, has the blocks of the first.

        The backward pass may run in another thread, to which the blocks are handed.
        """
        return partial(_checkpoint, checkpoint, self)


def _checkpoint(checkpoint: Function, routing: Routing, function: Function, *args: object, **kwargs: object) -> object:
    if blocks := routing.blocks:
        function = partial(_run, routing, blocks, function)
    return checkpoint(function, *args, **kwargs)


def _run(routing: Routing, blocks: tuple[Block, ...], function: Function, *args: object, **kwargs: object) -> object:
    with routing.of(blocks):
        return function(*args, **kwargs)


def add_own_parts(layer: LoraLayer, inputs: tuple[torch.Tensor], output_R: torch.Tensor) -> torch.Tensor | None:
    r"""Add to the output of a LoRA layer, for each task's rows, :math:`s_t B_t A_t x`; a forward hook.

    What PEFT's layer has computed is :math:`W x`, with :math:`s_0 B_0 A_0 x` where all tasks share an adapter.

    Raises:
        ValueError: the layer's input has no axis of rows, which tasks could share.
    """
    blocks = layer.routing.blocks
    if not any(task in layer.lora_A for task, _, _ in blocks):
        return None
    (input_R,) = inputs
    rows, fork = blocks[-1][2], layer.routing.fork
    if fork is not None and rows is not None and input_R.shape[0] == fork.rows_above > rows:
        blocks = (*blocks, (None, rows, fork.rows_above))  # rows that several branches read, and no task by itself
        rows = fork.rows_above
    if rows is not None and input_R.shape[0] != rows:
        raise ValueError(
            f"A task's adapter needs layers that keep one row per text, and '{layer.routing_name}' was given "
            f"{input_R.shape[0]} for {rows}. Name other target_modules in task_lora."
        )
    parts = []
    for task, start, end in blocks:
        part = output_R[start:end]
        if task in layer.lora_A:
            down, up = layer.lora_A[task], layer.lora_B[task]
            own = layer.lora_dropout[task](input_R[start:end].to(down.weight.dtype))
            part = part + up(down(own)) * layer.scaling[task]
        parts.append(part.to(output_R.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
