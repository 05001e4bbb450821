"""Tasks whose labels come from a list of names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from . import labels as lab
from .base import Task

if TYPE_CHECKING:
    from datasets import Dataset

    from .columns import Cells

Self = TypeVar("Self", bound="Labelled")
MANY = 1_000  # classes; more classes need at least as many labels
UNSEEN = ("count_wrong", "error")


@dataclass(kw_only=True)
class Labelled(Task):
    """A task with named labels; see its subclasses for the arguments."""

    label_names: list[str] | None = None
    unseen_labels: str = "count_wrong"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unseen_labels not in UNSEEN:
            raise self.error(
                f"`unseen_labels` should be one of {', '.join(UNSEEN)}. Found {self.unseen_labels!r}."
                + lab.close(self.unseen_labels, UNSEEN)
            )
        if self.label_names is None:
            return
        if isinstance(self.label_names, str) or not all(isinstance(name, str) for name in self.label_names):
            raise self.error(f"`label_names` should be a list of strings. Found {self.label_names!r}.")
        self.label_names = list(self.label_names)
        if not self.label_names or len(set(self.label_names)) < len(self.label_names):
            raise self.error(f"`label_names` should be different names, one or more. Found {self.label_names!r}.")

    def labels_of(self, dataset: Dataset) -> Cells:
        """The different labels of a dataset, as read by the task, sorted."""
        return lab.values(dataset, self.target_column)

    def class_names_of(self, dataset: Dataset) -> list[str] | None:
        """The names of a ClassLabel column, in their order; None for other columns."""
        return lab.class_names(dataset, self.target_column)

    def with_names_of(self: Self, data: Sequence[Dataset]) -> Self:
        """A copy with the label names in the data, those of the training data first.

        Raises:
            ValueError: there are fewer than two labels, too many for classes, or both names and numbers.
        """
        names = self.class_names_of(data[0])
        found = [self.labels_of(dataset) for dataset in data]
        if names is None:
            self._check_numbers(found, data[0])
            names = lab.label_names(found)
        return self.named(names)

    def named(self: Self, names: list[str]) -> Self:
        """A copy with the label names found in the data.

        Raises:
            ValueError: there are fewer than two.
        """
        if len(names) < 2:
            raise self.error(
                f"column '{self.target_column}' has {len(names)} different label(s), but at least two are needed. "
                "Check the column, or set label_names."
            )
        return replace(self, label_names=names)

    def _check_numbers(self, found: list[Cells], train: Dataset) -> None:
        """Check that the numbers in a column can be class indices."""
        column, labels = f"column '{self.target_column}'", [value for split in found for value in split]
        numbers = [value for value in labels if isinstance(value, int)]
        names = [value for value in labels if not isinstance(value, int)]
        if numbers and names:
            raise self.error(
                f"{column} contains the number {numbers[0]!r} and the name {names[0]!r}. Use the same kind of labels "
                "in all splits, or set label_names."
            )
        if min(numbers, default=0) < 0:
            raise self.error(f"{column} contains negative numbers. Number the labels from 0.")
        classes, labelled = max(numbers, default=0) + 1, len(lab.entries(train, self.target_column))
        if classes > max(MANY, labelled):
            raise self.error(
                f"{column} contains whole numbers up to {classes - 1}, which makes {classes} classes, but the "
                f"training data have {labelled} labels. They look like ids or timestamps. Set another column, number "
                "the classes from 0, or set label_names."
            )

    def unseen(self, dataset: Dataset) -> Cells:
        """See :meth:`Task.unseen`."""
        return lab.unseen_labels(self.labels_of(dataset), self.label_names or [])

    def unknown_label(self, value: object, where: str) -> ValueError:
        """The error for a label that is not one of the names."""
        names = self.label_names or []
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        return self.error(
            f"{where} has the label {value!r} in column '{self.target_column}', which is not in label_names ({shown})."
            + self.fix_of_label(value)
        )

    def fix_of_label(self, value: object) -> str:
        """How to fix an unknown label, as the end of a message."""
        names = self.label_names or []
        if isinstance(value, int) and str(value) in names:
            return " A number is the index of a name, counted from 0. Write the label as text to use its name."
        return lab.close(str(value), names) or " Fix the row, or add the label."
