"""The per-task gradients of the shared parameters: by rows in one pass, or by one pass per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from transformers.utils import logging

from ...aggregation import Blocks, NoRowAxisError, RowSplit, Segment, collect_task
from ...modeling import Head
from ...modeling.branches import branch_of
from ..compiled import uncompiled
from ..parameters import shared_parameters
from ..runtime import Runtime
from .apart import undone
from .rows import Apart, Batch, Step, only, rows_of, side_by_side

logger = logging.get_logger(__name__)

# Most that a task's gradient of the row split may differ from autograd's, relative to its norm.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5}
_TOLERANCE_LOW = 5e-2
_UNDECIDED = "a task's gradient is not finite, so the next forward is compared"


class TaskGradients:
    """Runs parts of a step so that the gradients of its tasks are separated.

    The model runs unwrapped then: gradients of processes are averaged here.

    Args:
        runtime: where it runs.
        tasks: names of the K tasks of the run.
        updates: whether every update is made of these gradients, else they are measured now and then.

    Attributes:
        fallback: why the row split does not fit the model; None while it does.
    """

    fallback: str | None = None
    _blocks: Blocks | None = None
    _split: RowSplit | None = None
    _checked = False

    def __init__(self, runtime: Runtime, tasks: Sequence[str], *, updates: bool) -> None:
        self.runtime, self.tasks, self.updates = runtime, list(tasks), updates

    def most(self) -> tuple[int, float]:
        """How many gradients of the shared parameters a step may have, and the memory that they take, in MiB."""
        tasks = min(len(self.tasks), self.runtime.rows_per_step)
        size = sum(parameter.numel() * parameter.element_size() for parameter in shared_parameters(self.runtime.model))
        return tasks, size * tasks / 2**20

    def describe(self) -> str:
        """What separates the gradients of the tasks, and the memory that they take."""
        engine = "row split, one forward and one backward for rows of one task each"
        if self.row_split() is None:
            engine = f"per-task pass, one forward and one backward for every task ({self._why_not_split()})"
        tasks, size = self.most()
        parameters = sum(map(torch.numel, shared_parameters(self.runtime.model)))
        return f"{engine}; up to {tasks} gradients of {parameters:,} shared parameters, at most {size:,.0f} MB"

    def row_split(self) -> RowSplit | None:
        """The engine that splits rows, where the model has one."""
        shared = shared_parameters(self.runtime.model)
        if self._blocks is None or list(map(id, self._blocks.parameters)) != list(map(id, shared)):
            self._blocks = Blocks(shared, self._tables())
            self._split = RowSplit(self.runtime.model.backbone, shared)
            self._checked = False
        return None if self._why_not_split() else self._split

    def _tables(self) -> list[torch.nn.Parameter]:
        """The weights of embeddings, of which a step uses some rows."""
        layers = self.runtime.model.backbone.modules()
        return [cast("torch.nn.Parameter", one.weight) for one in layers if isinstance(one, torch.nn.Embedding)]

    def _why_not_split(self) -> str | None:
        if self.fallback:
            return self.fallback
        unknown = {} if self._split is None else self._split.unknown
        for name, kind in unknown.items():
            return f"{kind} '{name}' is a layer whose gradients the row split cannot separate by rows"
        return None

    @property
    def blocks(self) -> Blocks:
        """The gradients of the step at hand."""
        if self._blocks is None:
            raise RuntimeError("A step has not begun.")
        return self._blocks

    def begin(self, step: Step) -> Blocks:
        """Begin to collect the gradients of a step from zero."""
        self.row_split()
        self.blocks.begin(len(step.present), _slots(step) if self.runtime.processes == 1 else None)
        return self.blocks

    def forget(self) -> None:
        """Drop the gradients, and what was found out about the model."""
        self._blocks = None

    def run(self, step: Step, batch: Batch) -> torch.Tensor:
        """Forward and backward of a part of a step, whose gradients are collected; its loss.

        Args:
            step: at hand.
            batch: one of its forwards.
        """
        with uncompiled(self.runtime.model):
            return self._run(step, batch)

    def _run(self, step: Step, batch: Batch) -> torch.Tensor:
        runtime, rows = self.runtime, step.rows(batch)
        number = {name: place for place, name in enumerate(step.present)}
        together, alone = side_by_side(rows, self.mixable())
        total = torch.zeros((), device=step.device)
        if together:  # those with as many rows side by side, and in the order of their slots
            together.sort(key=lambda name: (len(rows[name]), self.blocks.slots[number[name]]))
            mixed, counts = only(batch, together, rows)
            segments = _segments(step, together, counts)
            in_one_pass = not runtime.model.splits_passes(mixed["task_rows"], rows_of(mixed))
            if in_one_pass and self._can_split(step, mixed, segments):
                mixed = runtime.prepare(mixed)
                with self._rows(self.blocks, step, segments, mixed):
                    total = total + runtime.forward_backward(runtime.model, mixed, step.num_items)
            else:
                alone = [*together, *alone]
        for name in alone:
            own, _ = only(batch, [name], rows)
            with collect_task(runtime.model.backbone, self.blocks, number[name]):
                total = total + runtime.forward_backward(runtime.model, runtime.prepare(own), step.num_items)
        return total

    def mixable(self) -> set[str]:
        """Tasks whose heads leave the backbone's decoder and language model alone; none without a row split."""
        if self.row_split() is None:
            return set()
        heads = cast("Mapping[str, Head]", self.runtime.model.heads)
        return {name for name, head in heads.items() if not (head.reads_decoder or head.language_model)}

    def _rows(self, blocks: Blocks, step: Step, segments: list[Segment], batch: Batch) -> AbstractContextManager[None]:
        """A pass over rows of several tasks, whose gradients are separated; a branch reads those of its tasks."""
        branches = self.runtime.model.config.branches or {}

        def by_layer(segments: list[Segment]) -> Callable[[str], list[Segment]]:
            by_branch = {
                name: _of_tasks(segments, {*map(step.present.index, {*own} & {*step.present})})
                for name, own in branches.items()
            }
            return lambda layer: by_branch.get(branch_of(f"{layer}.") or "", segments)

        tokens = by_layer(_of_tokens(segments, batch)) if self.runtime.model.packs else None
        return cast(RowSplit, self._split).rows(blocks, segments, by_layer(segments), tokens)

    # The check of the row split

    def _can_split(self, step: Step, batch: Batch, segments: list[Segment]) -> bool:
        """Whether the row split gives every task of a batch its gradient; compared with autograd's the first time."""
        if not self._checked:
            if not self.updates:
                batch, segments = _fewest(step, batch, segments)
            reason = self._compare(step, batch, segments)
            if reason == _UNDECIDED:
                return False
            self._checked = True
            if reason is not None:
                self.fallback = reason
                log = logger.warning if self.updates else logger.info
                log(
                    f"The row split does not fit this model: {reason}. The gradients come from one pass per task from "
                    "now on, which takes longer."
                )
        return self.row_split() is not None

    def _compare(self, step: Step, batch: Batch, segments: list[Segment]) -> str | None:
        """What is wrong with the row split of a batch, in words; None where nothing is.

        Every run draws the same random numbers, and leaves the model, its gradients and the losses as they were.
        """
        model, shared = self.runtime.model, shared_parameters(self.runtime.model)
        batch = self.runtime.prepare(batch)
        weights = None if step.apart is None else step.apart.weights
        found, wanted = Blocks(shared, self._tables()), Blocks(shared, self._tables())
        found.begin(len(step.present), self.blocks.slots)
        try:
            with undone(model, step.device), step.running(Apart(weights)), self._rows(found, step, segments, batch):
                self.runtime.forward_backward(model, batch, step.num_items)
        except NoRowAxisError as problem:
            return str(problem)
        found.close()
        differences = []
        for segment in segments:
            wanted.begin(1)
            alone = Apart(weights, step.present[segment.task])
            with undone(model, step.device), step.running(alone), collect_task(model.backbone, wanted, 0):
                self.runtime.forward_backward(model, batch, step.num_items)
            wanted.close()
            differences.append(_difference(found, segment.task, wanted))
        worst = float(np.max(differences))  # NaN if one is
        low = self.runtime.mixed_precision != "no"
        tolerance = _TOLERANCE_LOW if low else _TOLERANCE.get(shared[0].dtype, _TOLERANCE_LOW)
        if worst != worst:
            return _UNDECIDED
        if worst <= tolerance:
            return None
        return f"a task's gradient differs from autograd's by {worst:.1e} of its norm, as where a layer mixes rows"


def _slots(step: Step) -> list[int]:
    """An order of the tasks of a step in which those with as many rows in its first forward are side by side."""
    rows = step.rows(step.forwards[0]) if step.forwards else {}
    ordered = sorted(step.present, key=lambda name: len(rows.get(name, ())))
    places = {name: place for place, name in enumerate(ordered)}
    return [places[name] for name in step.present]


def _segments(step: Step, names: Sequence[str], counts: Sequence[int]) -> list[Segment]:
    """The rows of tasks that come one after the other, so many of each."""
    ends = list(accumulate(counts))
    return [
        Segment(step.present.index(name), end - rows, end) for name, rows, end in zip(names, counts, ends, strict=True)
    ]


def _of_tokens(segments: Sequence[Segment], batch: Batch) -> list[Segment]:
    """The tokens of tasks, where the rows of a batch are one stream."""
    ids_BL = batch["input_ids"]
    ends = [0, *batch.get("attention_mask", torch.ones_like(ids_BL)).bool().sum(1).cumsum(0).tolist()]
    return [Segment(one.task, ends[one.start], ends[one.stop]) for one in segments]


def _of_tasks(segments: Sequence[Segment], tasks: set[int]) -> list[Segment]:
    """The rows of some tasks, where the others are left out."""
    own = [segment for segment in segments if segment.task in tasks]
    ends = list(accumulate(segment.stop - segment.start for segment in own))
    return [Segment(one.task, end - one.stop + one.start, end) for one, end in zip(own, ends, strict=True)]


def _fewest(step: Step, batch: Batch, segments: list[Segment]) -> tuple[Batch, list[Segment]]:
    """The two tasks of a batch with the fewest rows: for figures it is enough to compare these."""
    fewest = sorted(segments, key=lambda segment: segment.stop - segment.start)[:2]
    names = [step.present[segment.task] for segment in fewest]
    part, counts = only(batch, names)
    return part, _segments(step, names, counts)


def average_over(runtime: Runtime) -> Callable[[torch.Tensor], None] | None:
    """What averages gradients over processes; None where there is one."""
    return average if runtime.processes > 1 else None


def average(tensor: torch.Tensor) -> None:
    """Replace a tensor by its mean over processes."""
    dist.all_reduce(tensor)
    tensor /= dist.get_world_size()


def _difference(found: Blocks, task: int, wanted: Blocks) -> float:
    """Norm of the difference between a task's gradient and the one that it should be, relative to its norm."""
    difference, size = 0.0, 0.0
    for parameter in wanted.parameters:
        one, other = found.gradient(parameter, task), wanted.gradient(parameter, 0)
        if one is None and other is None:
            continue
        one = torch.zeros_like(parameter) if one is None else one
        other = torch.zeros_like(parameter) if other is None else other
        difference += float((one.double() - other.double()).square().sum())
        size += float(other.double().square().sum())
    return (difference / size) ** 0.5 if size else float(difference > 0)
