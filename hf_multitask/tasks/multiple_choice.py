"""The correct one of several texts."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from .base import Task
from .constant import entropy
from .losses import check_smoothing
from .registration import register_task

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder
    from .columns import Cells, Columns, Encoding, Labels, References


@dataclass(kw_only=True)
class MultipleChoice(Task):
    """Select the correct one of any number of choices in a row.

    Args:
        question_column: column of the question, or of a text to be continued.
        choices_column: column of the choices, a list of texts per row.
        label_column: column of the index of the correct choice, counted from 0, or a ClassLabel, whose number is used;
            None in a row without a label.
        label_smoothing: the share of a label that is spread over all choices of its row; 0 if None.
        dataset: see :class:`Task`.
        max_length: tokens of a question with one choice; see :class:`Task`.
        language: see :class:`Task`.
        weight_column: see :class:`Task`.
    """

    type: ClassVar[str] = "multiple-choice"
    several: ClassVar[bool] = True
    question_column: str = "question"
    choices_column: str = "choices"
    label_column: str = "label"
    label_smoothing: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_smoothing(self, self.label_smoothing)

    @property
    def text_columns(self) -> tuple[str, str | None]:
        """Columns of the question and of the choices."""
        return self.question_column, self.choices_column

    @property
    def target_column(self) -> str:
        """Column of the correct choice."""
        return self.label_column

    @property
    def reads_numbers(self) -> bool:
        """See :class:`Task`."""
        return True

    @property
    def input_key(self) -> tuple[Hashable, ...]:
        """See :class:`Task`."""
        return (*super().input_key, self.type)

    def encode_inputs(
        self,
        rows: Columns,
        indices: list[int],
        encoder: Encoder,
        split: str,
        *,
        offsets: bool,  # noqa: ARG002
    ) -> tuple[Columns, Encoding, list[bool]]:
        """See :meth:`Task.encode_inputs`: for every row, the question with each of its choices."""
        questions = self.texts(rows[self.question_column], self.question_column, indices, split)
        first: list[str] = []
        second: list[str] = []
        ends = [0]
        for question, choices, index in zip(questions, rows[self.choices_column], indices, strict=True):
            if not isinstance(choices, list) or not choices:
                raise self.row_error(
                    index,
                    split,
                    f"column '{self.choices_column}': a row needs a list of choices. Found {choices!r}. Fix the row.",
                )
            first += [question] * len(choices)
            second += self.texts(choices, self.choices_column, [index] * len(choices), split)
            ends.append(len(second))
        encoding = encoder.encode(first, second)
        cut = encoder.cut_rows(encoding, first, second)
        spans = list(pairwise(ends))
        inputs = {
            name: [values[start:end] for start, end in spans] for name, values in encoder.inputs(encoding).items()
        }
        return inputs, [end - start for start, end in spans], [any(cut[start:end]) for start, end in spans]

    def placeholder(self, row: Columns) -> object:  # noqa: ARG002
        """See :meth:`Task.placeholder`."""
        return 0

    def encode_labels(
        self,
        rows: Columns,
        indices: list[int],
        encoding: list[int],
        unseen: Cells,  # noqa: ARG002
        split: str,
    ) -> Labels:
        """See :meth:`Task.encode_labels`."""
        for label, count, index in zip(rows[self.label_column], encoding, indices, strict=True):
            if label is not None and (not isinstance(label, int) or not 0 <= label < count):
                raise self.row_error(
                    index,
                    split,
                    f"column '{self.label_column}': the correct choice should be a number from 0 to "
                    f"{count - 1}. Found {label!r}. Fix the row.",
                )
        return rows[self.label_column]

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the index of the correct choice."""
        return entropy(labels)

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return ["accuracy"]

    def measure(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        unseen: Cells,  # noqa: ARG002
    ) -> dict[str, float]:
        """``accuracy``."""
        import numpy as np

        from .metrics import Accuracy

        # Evaluation pads batches with fewer choices with -100, and a batch pads its rows with minus infinity.
        best = np.where(predictions == -100, -np.inf, predictions).argmax(-1)
        return Accuracy().compute(predictions=best, references=labels)


register_task(MultipleChoice)
