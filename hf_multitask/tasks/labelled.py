"""Tasks whose labels come from a list of names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from . import labels as lab
from .base import Task

if TYPE_CHECKING:
    from datasets import Dataset

Self = TypeVar("Self", bound="Labelled")
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

    def with_names_of(self: Self, data: Sequence[Dataset]) -> Self:
        """A copy with the label names that the data hold.

        Raises:
            ValueError: there are too few to learn from.
        """
        names = lab.class_names(data[0], self.target_column)
        found = [lab.values(dataset, self.target_column) for dataset in data]
        if names is None:
            if any(isinstance(value, int) and value < 0 for split in found for value in split):
                raise self.error(f"column '{self.target_column}' holds negative numbers. Number the labels from 0.")
            names = lab.label_names(found)
        if len(names) < 2:
            raise self.error(
                f"column '{self.target_column}' holds {len(names)} different label(s), and two or more are needed. "
                "Check the column, or give label_names."
            )
        return replace(self, label_names=names)

    def unseen(self, dataset: Dataset) -> list[Any]:
        """See :meth:`Task.unseen`."""
        return lab.unseen_labels(lab.values(dataset, self.target_column), self.label_names or [])

    def unknown_label(self, value: object, where: str) -> ValueError:
        """The error for a label that is none of the names."""
        names = self.label_names or []
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        return self.error(
            f"{where} has the label {value!r} in column '{self.target_column}', which is none of label_names ({shown})."
            + (lab.close(str(value), names) or " Mend the row, or add the label.")
        )
