"""The gradients that tasks have for the shared parameters, told apart: by rows in one pass, or by one pass per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from ...aggregation import Aggregator, Blocks, NoRowAxisError, RowSplit, Segment, collect_task
from ..parameters import shared_parameters
from .engine import SteppingTrainer
from .rows import Batch, only, rows_of, side_by_side

logger = logging.get_logger(__name__)

# Most that a task's gradient of the row split may differ from autograd's, relative to its norm.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5}
_TOLERANCE_LOW = 5e-2
_UNDECIDED = "a task's gradient is not finite, so the next forward is compared"


class GradientsTrainer(SteppingTrainer):
    """The Trainer, which can run parts of a step so that the gradients of its tasks come apart.

    The model runs unwrapped then: gradients of ranks are averaged here.
    """

    aggregator: Aggregator | None = None
    _blocks: Blocks | None = None
    _split: RowSplit | None = None
    _checked = False

    def _most_gradients(self) -> tuple[int, float]:
        """How many gradients of the shared parameters a step may have, and the memory that they take, MiB."""
        rows = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        tasks = min(len(self.tasks), rows)
        size = sum(parameter.numel() * parameter.element_size() for parameter in shared_parameters(self.model))
        return tasks, size * tasks / 2**20

    def _describe_engine(self) -> str:
        """What tells the gradients of the tasks apart, and the memory that they take."""
        engine = "row split, one forward and one backward for rows of one task each"
        if self._row_split() is None:
            engine = f"per-task pass, one forward and one backward for every task ({self._why_not_split()})"
        tasks, size = self._most_gradients()
        parameters = sum(map(torch.numel, shared_parameters(self.model)))
        return f"{engine}; up to {tasks} gradients of {parameters:,} shared parameters, at most {size:,.0f} MB"

    def _row_split(self) -> RowSplit | None:
        """The engine that splits rows, where the model has one."""
        shared = shared_parameters(self.model)
        if self._blocks is None or list(map(id, self._blocks.parameters)) != list(map(id, shared)):
            self._blocks = Blocks(shared)
            self._split = RowSplit(self.model.backbone)
            self._checked = False
        return None if self._why_not_split() else self._split

    def _why_not_split(self) -> str | None:
        if self.progress.aggregation.get("fallback"):
            return self.progress.aggregation["fallback"]
        unknown = {} if self._split is None else self._split.unknown
        for name, kind in unknown.items():
            return f"{kind} '{name}' is a layer whose gradients nobody knows how to tell apart by rows"
        return None

    def _opened(self) -> Blocks:
        if self._blocks is None:
            raise RuntimeError("A step has not begun.")
        return self._blocks

    def _run_rows(self, batch: Batch, num_items: Any) -> torch.Tensor:
        return Trainer.training_step(self, self.model, batch, num_items)

    def _run_part(self, batch: Batch, num_items: Any) -> torch.Tensor:
        blocks, number = self._opened(), {name: place for place, name in enumerate(self._present)}
        together, alone = side_by_side(batch, self._present, self._mixable())
        total = torch.zeros((), device=self.args.device)
        if together:
            mixed, counts = only(batch, together)
            segments = self._segments(together, counts)
            in_one_pass = not self.model.splits_passes(mixed["task_rows"], rows_of(mixed))
            if in_one_pass and self._can_split(mixed, segments, num_items):
                with self._split.rows(blocks, segments):  # type: ignore[union-attr]
                    total += self._run_rows(mixed, num_items)
            else:
                alone = [*together, *alone]
        for name in alone:
            own, _ = only(batch, [name])
            with collect_task(self.model.backbone, blocks, number[name]):
                total += self._run_rows(own, num_items)
        return total

    def _segments(self, names: Sequence[str], counts: Sequence[int]) -> list[Segment]:
        """The rows of tasks that come one after the other, so many of each."""
        ends = list(accumulate(counts))
        return [
            Segment(self._present.index(name), end - rows, end)
            for name, rows, end in zip(names, counts, ends, strict=True)
        ]

    def _mixable(self) -> set[str]:
        """Tasks whose heads leave the backbone's decoder and language model alone; none without a row split."""
        if self._row_split() is None:
            return set()
        heads: Any = self.model.heads
        return {name for name, head in heads.items() if not (head.reads_decoder or head.language_model)}

    # The check of the row split

    def _can_split(self, batch: Batch, segments: list[Segment], num_items: Any) -> bool:
        """Whether the row split gives every task of a batch its gradient; compared with autograd's the first time."""
        if not self._checked:
            if self.aggregator is None:
                batch, segments = self._fewest(batch, segments)
            reason = self._compare(batch, segments, num_items)
            if reason == _UNDECIDED:
                return False
            self._checked = True
            if reason is not None:
                self.progress.aggregation["fallback"] = reason
                tell = logger.info if self.aggregator is None else logger.warning  # of what is run now and then only
                tell(
                    f"The row split does not fit this model: {reason}. The gradients come from one pass per task from "
                    "now on, which takes longer."
                )
        return self._row_split() is not None

    def _fewest(self, batch: Batch, segments: list[Segment]) -> tuple[Batch, list[Segment]]:
        """The two tasks of a batch with the fewest rows: for figures it is enough that these are told apart."""
        fewest = sorted(segments, key=lambda segment: segment.stop - segment.start)[:2]
        names = [self._present[segment.task] for segment in fewest]
        part, counts = only(batch, names)
        return part, self._segments(names, counts)

    def _compare(self, batch: Batch, segments: list[Segment], num_items: Any) -> str | None:
        """What is wrong with the row split of a batch, in words; None where nothing is.

        Every run draws the same random numbers, and leaves the model, its gradients and the losses as they were.
        """
        split, shared = self._split, shared_parameters(self.model)
        found, wanted = Blocks(shared), Blocks(shared)
        found.begin(len(self._present))
        try:
            with self._undone(), split.rows(found, segments):  # type: ignore[union-attr]
                self._run_rows(batch, num_items)
        except NoRowAxisError as problem:
            return str(problem)
        names = [self._present[segment.task] for segment in segments]
        found.close()
        differences = []
        for segment, name in zip(segments, names, strict=True):
            wanted.begin(1)
            weights = {other: float(other == name) for other in names}
            with self._undone(), self._weighing(weights), collect_task(self.model.backbone, wanted, 0):
                self._run_rows(batch, num_items)
            wanted.close()
            differences.append(_difference(found, segment.task, wanted))
        worst = float(np.max(differences))  # NaN if one is
        tolerance = _TOLERANCE_LOW if self._low_precision else _TOLERANCE.get(shared[0].dtype, _TOLERANCE_LOW)
        if worst != worst:
            return _UNDECIDED
        if worst <= tolerance:
            return None
        return f"a task's gradient differs from autograd's by {worst:.1e} of its norm, as where a layer mixes rows"

    @property
    def _low_precision(self) -> bool:
        return self.accelerator.mixed_precision != "no"

    @contextmanager
    def _weighing(self, weights: dict[str, float]) -> Iterator[None]:
        """Within it, the losses of some tasks count for nothing."""
        self._kept = weights
        try:
            yield
        finally:
            self._kept = None

    _kept: dict[str, float] | None = None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See :class:`SteppingTrainer`."""
        if self._kept is not None:
            kept = {name: labels for name, labels in inputs["labels"].items() if self._kept[name]}
            inputs = {**inputs, "labels": kept}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def average(tensor: torch.Tensor) -> None:
    """Replace a tensor by its mean over ranks."""
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
