"""The confusion matrices of an evaluation as pictures in TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...hub.classes import matrices
from ...hub.history import split_of
from ...hub.records import prefix_of
from .console import MANY
from .picture import draw_cells, writers

if TYPE_CHECKING:
    from ..trainer import MultiTaskTrainer


def draw_confusions(labels: list[str], counts: list[list[int]]) -> np.ndarray:
    """The counts of answers (columns) by label (rows), colored by their share of the label, (height, width, 3)."""

    def cell(row: int, column: int) -> tuple[float | None, str]:
        return counts[row][column] / max(sum(counts[row]), 1), f"{counts[row][column]:,}"

    return draw_cells(labels, cell)


class ConfusionsCallback(TrainerCallback):
    """Shows the confusion matrices of an evaluation in TensorBoard, where the tasks are not many.

    Args:
        trainer: whose evaluations they are of.
    """

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        metrics: dict[str, float] | None = None,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Draw them."""
        prefix = prefix_of(metrics or {})
        into = writers(self.trainer) if state.is_world_process_zero and len(self.trainer.tasks) <= MANY else []
        if prefix is None or not into:
            return
        reports = self.trainer.evaluator.reports.of(split_of(prefix) or prefix)
        for name, found in matrices(reports).items():
            picture = draw_confusions(found["labels"], found["rows"])
            for writer in into:
                writer.add_image(f"{prefix}/{name}_confusions", picture, state.global_step, dataformats="HWC")
                writer.flush()
