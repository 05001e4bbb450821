"""A class, a set of classes or numbers for a text or a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from transformers.utils import logging

from ..modeling.heads import PROBLEM_TYPES
from . import labels as lab
from .base import Task
from .constant import entropy, variance
from .labelled import Labelled

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import BatchEncoding, PreTrainedTokenizerBase

logger = logging.get_logger(__name__)


@dataclass(kw_only=True)
class SequenceClassification(Labelled):
    """Classify a text, or a pair of texts; or put numbers on it.

    The label column holds a name, a number or a ClassLabel for ``single_label_classification``; a list of names or of
    numbers, or one float per class (0 or 1), for ``multi_label_classification``; a float, or a list of them, for
    ``regression``. None stands for a missing label.

    Args:
        text_column: column of the text, a string or a list of words.
        text_pair_column: column of the second text, for tasks on pairs.
        label_column: column of the label.
        label_names: names of the classes, in the order of their numbers; read from the data where None.
        problem_type: as in Transformers; read from the kind of the label column where None.
        unseen_labels: what a label outside ``label_names`` is in evaluation: ``"count_wrong"`` or ``"error"``.
        stride: read long texts in windows of ``max_length`` tokens that overlap by so many, whose logits are averaged;
            long texts are cut where None.
        dataset: see :class:`Task`.
        max_length: see :class:`Task`.

    Example::

        SequenceClassification(label_names=["negative", "positive"], text_column="text", label_column="label")
    """

    type: ClassVar[str] = "sequence-classification"
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    problem_type: str | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise self.error(
                f"`problem_type` should be one of {', '.join(PROBLEM_TYPES)}. Found {self.problem_type!r}."
                + lab.close(self.problem_type, PROBLEM_TYPES)
            )
        if self.problem_type == "single_label_classification" and self.label_names and len(self.label_names) < 2:
            raise self.error("a classification needs two label_names or more. Add one, or make it a regression.")
        self.check_number("stride", 0)
        if self.stride is not None and self.text_pair_column is not None:
            raise self.error(
                "`stride` is for single texts, and pairs are read. Leave `stride` or `text_pair_column` out."
            )

    @property
    def windows_key(self) -> Any:
        """See :class:`Task`."""
        return self.stride

    def stride_of(self, limit: int | None) -> int | None:  # noqa: ARG002
        """See :class:`Task`."""
        return self.stride

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See :meth:`Task.check_tokenizer`."""
        super().check_tokenizer(tokenizer)
        if self.stride is not None and not tokenizer.is_fast:
            raise self.error("`stride` needs a fast tokenizer. Give one, or leave `stride` out.")

    @property
    def target_column(self) -> str:
        """Column of the labels."""
        return self.label_column

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`."""
        data = [dataset for dataset in (train, *others) if dataset is not None]
        problem_type = self.problem_type or _problem_type(*lab.kind(data[0], self.label_column))
        if self.problem_type is None and lab.are_numbers_with_gaps(data[0], self.label_column):
            logger.warning(
                f"Task '{self.name}': column '{self.label_column}' holds floats, so it is a regression. If they are "
                "numbers of classes, some of which are missing, set problem_type to single_label_classification."
            )
        task = replace(self, problem_type=problem_type)
        for dataset in data:
            task.check_kind(dataset)
        if problem_type == "regression" or task.label_names is not None:
            return task
        return task.with_names_of(data)

    def check_kind(self, dataset: Dataset) -> None:
        """See that the label column holds what the problem type wants.

        Raises:
            ValueError: it does not.
        """
        found, depth = lab.kind(dataset, self.label_column)
        fits = {
            "single_label_classification": depth == 0
            and (found in ("name", "number") or (found == "float" and self._are_whole(dataset))),
            "multi_label_classification": depth == 1,
            "regression": found in ("float", "number") and depth <= 1,
        }
        if found != "nothing" and not fits[str(self.problem_type)]:
            wants = {
                "single_label_classification": "one name or whole number a row",
                "multi_label_classification": "a list a row",
                "regression": "a number a row",
            }[str(self.problem_type)]
            raise self.error(
                f"column '{self.label_column}' holds {lab.describe(found, depth)}, and "
                f"{self.problem_type} wants {wants}. "
                "Name another label_column or problem_type."
            )

    def _are_whole(self, dataset: Dataset) -> bool:
        return all(isinstance(value, int) for value in lab.values(dataset, self.label_column))

    def unseen(self, dataset: Dataset) -> list[Any]:
        """See :meth:`Task.unseen`."""
        if self.problem_type == "regression" or lab.kind(dataset, self.label_column) == ("float", 1):
            return []
        return super().unseen(dataset)

    def encode_labels(
        self,
        rows: dict[str, list[Any]],
        indices: list[int],
        encoding: BatchEncoding,  # noqa: ARG002
        unseen: list[Any],
        split: str,
    ) -> list[Any]:
        """See :meth:`Task.encode_labels`."""
        table = lab.numbering(self.label_names or [], unseen)
        encode = {
            "single_label_classification": self._one,
            "multi_label_classification": self._set,
            "regression": self._numbers,
        }[str(self.problem_type)]
        where = [f"row {index} of the {split} data" for index in indices]
        return [
            None if value is None else encode(value, table, place)
            for value, place in zip(rows[self.label_column], where, strict=True)
        ]

    def _one(self, value: Any, table: dict[Any, int], where: str) -> int:
        if value not in table:
            raise self.unknown_label(value, where)
        return table[value]

    def _set(self, value: list[Any], table: dict[Any, int], where: str) -> list[float]:
        width = max(table.values(), default=-1) + 1
        if any(isinstance(entry, float) for entry in value):
            if len(value) != len(self.label_names or []) or any(entry not in (0.0, 1.0) for entry in value):
                raise self.error(
                    f"{where} should hold {len(self.label_names or [])} values of 0 or 1. Found {value!r}. Mend it."
                )
            return [float(entry) for entry in value] + [0.0] * (width - len(value))
        hot = [0.0] * width
        for entry in value:
            number = self._one(entry, table, where)
            if hot[number] and not isinstance(entry, str):  # a name may be there twice; 0 and 1 are likely no numbers
                raise self.error(
                    f"{where} holds the number {entry!r} twice. Number the labels, or give floats of 0 and 1."
                )
            hot[number] = 1.0
        return hot

    def _numbers(self, value: Any, _: dict[Any, int], where: str) -> list[float]:
        numbers = [float(entry) for entry in (value if isinstance(value, list) else [value])]
        outputs = len(self.label_names or [0])
        if len(numbers) != outputs or not all(math.isfinite(number) for number in numbers):
            raise self.error(
                f"{where} should hold {outputs} finite number(s). Found {value!r}. Mend the row or drop it."
            )
        return numbers

    def collate(self, labels: list[Any], length: int, padding_side: str) -> torch.Tensor:  # noqa: ARG002
        """Numbers (N,) for single labels, (N, C) otherwise."""
        import torch

        return torch.tensor(labels, dtype=None if self.problem_type == "single_label_classification" else torch.float32)

    def constant_loss(
        self,
        labels: Sequence[Any],
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the classes, its mean over those of sets, variance of numbers."""
        if self.problem_type == "single_label_classification":
            return entropy(labels)
        if self.problem_type == "regression":
            return variance(labels)
        classes = list(zip(*labels, strict=True))
        return sum(map(entropy, classes)) / len(classes)

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        if self.problem_type == "regression":
            return ["pearson", "spearmanr"]
        if self.problem_type == "multi_label_classification":
            return ["micro_f1"]
        if self.problem_type is None or self.label_names is None:
            return None
        return ["accuracy", "f1"] if len(self.label_names) == 2 else ["accuracy"]

    def metrics(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        unseen: list[Any],  # noqa: ARG002
    ) -> dict[str, float]:
        """``accuracy``, and ``f1`` for two classes; ``micro_f1`` of sets; ``pearson``, ``spearmanr`` of numbers."""
        from .metrics import Accuracy, BinaryF1, Correlation, MicroF1

        if self.problem_type == "regression":
            return Correlation().compute(predictions=predictions, references=labels)
        if self.problem_type == "multi_label_classification":
            hits = (predictions > 0).astype(int)
            return MicroF1().compute(predictions=_widen(hits, labels.shape[1]), references=labels.astype(int))
        best = predictions.argmax(-1)
        result = Accuracy().compute(predictions=best, references=labels)
        if len(self.label_names or []) == 2:
            result |= BinaryF1().compute(predictions=best, references=labels)
        return result


def _widen(array: np.ndarray, width: int) -> np.ndarray:
    import numpy as np

    return np.pad(array, ((0, 0), (0, width - array.shape[1])))


def _problem_type(found: str, depth: int) -> str:
    if depth:
        return "multi_label_classification"
    return "regression" if found == "float" else "single_label_classification"
