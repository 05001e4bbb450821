"""Classification of a text or a pair of texts into one class or a set of classes, and regression."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from transformers.utils import logging

from ..modeling.heads import PROBLEM_TYPES
from ..modeling.losses import loss_options
from . import label_sets
from . import labels as lab
from .base import Task
from .constant import of_classes, of_numbers, of_sets
from .losses import SoftLabels
from .ranking import RankedLabels
from .registration import register_task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from .columns import Cells, Columns, Labels, References, Table

logger = logging.get_logger(__name__)


@dataclass(kw_only=True)
class SequenceClassification(SoftLabels, RankedLabels):
    """Classify a text or a pair of texts, or predict numbers for it.

    The label column contains a name, a number or a ClassLabel for ``single_label_classification``; a list of names or
    of numbers, one 0 or 1 per class, or text with separators for ``multi_label_classification``; a float, or a list of
    floats, for ``regression``. None is a missing label.

    Args:
        text_column: column of the text, a string or a list of words; or a list of columns, whose texts are joined by a
            space.
        text_pair_column: column of the second text, for tasks on pairs.
        label_column: column of the label.
        label_names: names of the classes, in the order of their numbers; read from the data if None.
        problem_type: as in Transformers; determined by the type of the label column if None.
        label_separator: the separator between the labels of a set in a cell of text, such as ``";"`` in
            ``"joy; fear"``. Spaces around labels are ignored. An empty cell is a missing label; a cell with the
            separator only is an empty set.
        label_format: the format of the lists of a label column: ``"vector"``, one 0 or 1 per class, or ``"set"``, names
            or numbers of the classes that apply; determined by the whole column if None.
        unseen_labels: how evaluation treats a label outside ``label_names``: ``"count_wrong"`` or ``"error"``.
        stride: read long texts in windows of ``max_length`` tokens that overlap by this number of tokens, and average
            their logits; long texts are truncated if None.
        class_weights, label_smoothing, loss, loss_kwargs: see :class:`hf_multitask.tasks.losses.LabelLoss`.
        soft_labels: see :class:`hf_multitask.tasks.losses.SoftLabels`.
        dataset, max_length, weight_column, metrics: see :class:`Task`.
        threshold: the probability from which a label of a set is answered, or the second of two classes; ``"tune"``
            chooses it at every evaluation of the validation data, for every label of a set. Without it, a label is
            answered if it is more probable than not.
        calibration: ``"temperature"`` divides logits by a number that is fitted likewise, before all probabilities.
        fitted: what was fitted; set by the trainer.
        group_column: see :class:`hf_multitask.tasks.ranking.Ranked`; rows are ranked by the second of two classes, or
            by the number.

    Example::

        SequenceClassification(label_names=["negative", "positive"], text_column="text", label_column="label")
    """

    type: ClassVar[str] = "sequence-classification"
    joins_texts: ClassVar[bool] = True
    text_column: str | list[str] = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    label_separator: str | None = None
    label_format: str | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise self.error(
                f"`problem_type` should be one of {', '.join(PROBLEM_TYPES)}. Found {self.problem_type!r}."
                + lab.close(self.problem_type, PROBLEM_TYPES)
            )
        separator, form = self.label_separator, self.label_format
        if separator is not None and (not isinstance(separator, str) or not separator):
            raise self.error(f"`label_separator` should be text, such as ';'. Found {separator!r}.")
        if form is not None and form not in label_sets.FORMATS:
            raise self.error(
                f"`label_format` should be one of {', '.join(label_sets.FORMATS)}. Found {form!r}."
                + lab.close(str(form), label_sets.FORMATS)
            )
        if separator is not None or form is not None:
            self.problem_type = self.problem_type or "multi_label_classification"
            if self.problem_type != "multi_label_classification":
                raise self.error(
                    f"`{'label_format' if separator is None else 'label_separator'}` applies to sets of labels, but "
                    f"problem_type is {self.problem_type}. Remove one of them."
                )
        self._check_loss()
        if self.problem_type == "single_label_classification" and self.label_names and len(self.label_names) < 2:
            raise self.error("a classification needs at least two label_names. Add one, or use a regression.")
        self.check_metrics()
        self.check_number("stride", 0)
        if self.stride is not None and self.text_pair_column is not None:
            raise self.error(
                "`stride` applies to single texts, but pairs are read. Remove `stride` or `text_pair_column`."
            )

    @property
    def windows_key(self) -> Hashable:
        """See :class:`Task`."""
        return self.stride

    def stride_of(self, limit: int | None) -> int | None:  # noqa: ARG002
        """See :class:`Task`."""
        return self.stride

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See :meth:`Task.check_tokenizer`."""
        super().check_tokenizer(tokenizer)
        if self.stride is not None and not tokenizer.is_fast:
            raise self.error("`stride` needs a fast tokenizer. Use one, or remove `stride`.")

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
                f"Task '{self.name}': column '{self.label_column}' contains floats, so the task is a regression. If "
                "they are class numbers some of which are missing, set problem_type to single_label_classification."
            )
        task = replace(self, problem_type=problem_type).reading(data)
        if self.soft_labels and task.label_names is None:
            return task._with_names_of_soft(data, self.label_column)
        if problem_type == "regression" or self.soft_labels:
            return task
        if task.label_names is None:
            task = task._with_names_of_vectors(data) if task.label_format == "vector" else task.with_names_of(data)
        task._warn_of_labels(data)
        return task

    def check_kind(self, dataset: Dataset) -> None:
        """Check that the label column matches the problem type.

        Raises:
            ValueError: it does not.
        """
        found, depth = lab.kind(dataset, self.label_column)
        empty = found == "nothing"
        single = not depth and (empty or found in ("name", "number") or (found == "float" and self._are_whole(dataset)))
        cells = single and (empty or self.label_separator is not None)
        fits = {
            "single_label_classification": single,
            "multi_label_classification": cells or (depth == 1 and (empty or found in ("name", "number", "float"))),
            "regression": depth <= 1 and (empty or found in ("float", "number")),
        }
        if not fits[str(self.problem_type)]:
            wants = {
                "single_label_classification": "one name or whole number per row",
                "multi_label_classification": "a list per row, or text and a label_separator",
                "regression": "a number per row",
            }[str(self.problem_type)]
            raise self.error(
                f"column '{self.label_column}' contains {lab.describe(found, depth)}, but "
                f"{self.problem_type} needs {wants}. "
                "Set another label_column or problem_type."
            )

    def _are_whole(self, dataset: Dataset) -> bool:
        return all(isinstance(value, int) for value in lab.values(dataset, self.label_column))

    def reading(self, data: Sequence[Dataset]) -> SequenceClassification:
        """See :meth:`Task.reading`: vectors or sets.

        Raises:
            ValueError: a label column does not match the problem type.
        """
        if self.problem_type is None:
            raise self.error("its problem_type is unknown. Set it, or pass the trainer a dataset that determines it.")
        if self.soft_labels:
            self._check_soft(data, self.label_column)
            return self
        for dataset in data:
            self.check_kind(dataset)
        if self.problem_type != "multi_label_classification" or self.label_format is not None:
            return self
        return replace(self, label_format=self._format_of(data))

    def _format_of(self, data: Sequence[Dataset]) -> str:
        found = label_sets.format_of(data, self.label_column, self.label_names)
        lists = label_sets.lists_of(data, self.label_column)
        names = lab.class_names(lists[0], self.label_column) if lists else None
        lengths = label_sets.lengths(lists, self.label_column) if names and len(names) == 2 else []
        if found == "set" and self.label_names is None and len(lengths) == 1 and lengths[0] > 2:
            raise self.error(
                f"column '{self.label_column}' contains lists of {lengths[0]} ClassLabels each, with the names "
                f"{', '.join(names or [])}, so they may be vectors of {lengths[0]} classes, or sets of two. Set "
                "label_names, or label_format."
            )
        return found

    def _with_names_of_vectors(self, data: Sequence[Dataset]) -> SequenceClassification:
        lists = label_sets.lists_of(data, self.label_column)
        found = label_sets.lengths(lists, self.label_column)
        if len(found) > 1:
            raise self.error(
                f"column '{self.label_column}' contains vectors of different lengths ({', '.join(map(str, found))}), "
                "but each should have one 0 or 1 per class. Fix the rows; if label_names is set, an error names them."
            )
        length = found[0] if found else 0
        classes = [lab.class_names(dataset, self.label_column) or [] for dataset in lists]
        names = next((own for own in classes if len(own) == length), None)
        return self.named(names or [f"LABEL_{number}" for number in range(length)])

    def _warn_of_labels(self, data: Sequence[Dataset]) -> None:
        """Warn about labels that look different from how they are read."""
        column, kinds = self.label_column, [lab.kind(dataset, self.label_column) for dataset in data]
        name = lab.misplaced(self.label_names or [])
        as_numbers = self.label_format != "vector" and any(
            kind in ("number", "float") and (depth or not self.label_separator) for kind, depth in kinds
        )
        if name is not None and as_numbers:
            logger.warning(
                f"Task '{self.name}': column '{column}' contains numbers, which are indices of label_names, counted "
                f"from 0; the name '{name}' has the index {(self.label_names or []).index(name)}. Write the labels as "
                "text to use their names."
            )
        if self.problem_type == "single_label_classification":
            separator = label_sets.separator_in(list({label for dataset in data for label in self.labels_of(dataset)}))
            if separator is not None:
                logger.warning(
                    f"Task '{self.name}': labels in column '{column}' look like sets, separated by '{separator}', but "
                    f"each of them is a separate class. To read them as sets, set label_separator: '{separator}'."
                )

    def placeholder(self, row: Columns) -> object:  # noqa: ARG002
        """See :meth:`Task.placeholder`."""
        names = self.label_names or ["LABEL_0"]
        if self.problem_type == "single_label_classification":
            return names[0]
        zeros = self.problem_type == "regression" or self.label_format == "vector"
        return [0.0] * len(names) if zeros else []

    @property
    def reads_numbers(self) -> bool:
        """See :class:`Task`: for vectors."""
        return self.label_format == "vector"

    def labels_of(self, dataset: Dataset) -> Cells:
        """See :meth:`Labelled.labels_of`: the labels inside of cells of text, if there is a separator."""
        found = super().labels_of(dataset)
        if not self._has_cells(dataset):
            return found
        return sorted({part for cell in found for part in label_sets.split(cell, str(self.label_separator)) or ()})

    def class_names_of(self, dataset: Dataset) -> list[str] | None:
        """See :meth:`Labelled.class_names_of`: none if there is a separator."""
        return None if self._has_cells(dataset) else super().class_names_of(dataset)

    def _has_cells(self, dataset: Dataset) -> bool:
        return self.label_separator is not None and not lab.kind(dataset, self.label_column)[1]

    def unseen(self, dataset: Dataset) -> Cells:
        """See :meth:`Task.unseen`."""
        in_lists, strings = lab.kind(dataset, self.label_column)[1] > 0, lab.holds_strings(dataset, self.label_column)
        if self.problem_type == "regression" or self.soft_labels or (self.reads_numbers and in_lists and not strings):
            return []
        return super().unseen(dataset)

    def fix_of_label(self, value: object) -> str:
        """See :meth:`Labelled.fix_of_label`: names with a separator are a set."""
        for separator in label_sets.SEPARATORS if isinstance(value, str) and self.label_separator is None else ():
            parts = label_sets.split(value, separator) or []
            if len(parts) > 1 and set(parts) <= set(self.label_names or []):
                return f" To read it as a set, set label_separator: '{separator}'."
        return super().fix_of_label(value)

    def encode_labels(
        self,
        rows: Columns,
        indices: list[int],
        encoding: BatchEncoding,  # noqa: ARG002
        unseen: Cells,
        split: str,
    ) -> Labels:
        """See :meth:`Task.encode_labels`."""
        table = lab.numbering(self.label_names or [], unseen)
        encode = {
            "single_label_classification": self._soft if self.soft_labels else self._one,
            "multi_label_classification": self._set,
            "regression": self._numbers,
        }[str(self.problem_type)]
        where = [f"row {index} of the {split} data" for index in indices]
        return [
            None if value is None else encode(value, table, place)
            for value, place in zip(rows[self.label_column], where, strict=True)
        ]

    def _one(self, value: object, table: Table, where: str) -> int:
        if value not in table:
            raise self.unknown_label(value, where)
        return table[value]

    def _set(self, value: object, table: Table, where: str) -> list[float] | None:
        width = max(table.values(), default=-1) + 1
        if not isinstance(value, list):
            value = label_sets.split(value, self.label_separator or "")
        elif self.reads_numbers and not any(isinstance(entry, str) for entry in value):
            return self._vector(value, where) + [0.0] * (width - len(value))
        if value is None:
            return None
        hot = [0.0] * width
        for entry in value:
            number = self._one(entry, table, where)
            if hot[number] and not isinstance(entry, str):  # a name may occur twice; 0 and 1 are probably not indices
                raise self.error(
                    f"{where} contains the number {entry!r} twice in column '{self.label_column}'. Use indices of the "
                    f"labels, or vectors with one 0 or 1 for each of the {len(self.label_names or [])} label_names in "
                    "every row."
                )
            hot[number] = 1.0
        return hot

    def _vector(self, value: Cells, where: str) -> list[float]:
        classes = len(self.label_names or [])
        if len(value) != classes or any(entry not in (0, 1) for entry in value):
            raise self.error(
                f"{where} should have {classes} values of 0 or 1 in column '{self.label_column}', one for each of "
                f"label_names. Found {value!r}. Fix the row, or set label_format: set for lists of labels."
            )
        return [float(entry) for entry in value]

    def _numbers(self, value: object, _: Table, where: str) -> list[float]:
        given: Cells = value if isinstance(value, list) else [value]
        numbers = [math.nan if entry is None else float(entry) for entry in given]
        outputs = len(self.label_names or [0])
        if len(numbers) != outputs or not all(math.isfinite(number) for number in numbers):
            raise self.error(f"{where} should have {outputs} finite number(s). Found {value!r}. Fix or remove the row.")
        return numbers

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:  # noqa: ARG002
        """Numbers (N,) for single labels, (N, C) otherwise."""
        return torch.tensor(labels, dtype=None if self.problem_type == "single_label_classification" else torch.float32)

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of classes, its mean over classes for sets, variance of numbers."""
        options = loss_options(self.to_dict())
        if self.problem_type == "single_label_classification":
            return of_classes(labels, options)
        return (of_numbers if self.problem_type == "regression" else of_sets)(labels, options)


def _problem_type(found: str, depth: int) -> str:
    if depth:
        return "multi_label_classification"
    return "regression" if found == "float" else "single_label_classification"


register_task(SequenceClassification)
