"""``label_map`` of a task in a recipe: other names for the labels of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value

from ..modeling.config import close_match
from ..modeling.values import shown
from ..tasks import Task, build_task
from ..tasks import label_sets as sets
from ..tasks import labels as lab
from ..tasks.columns import Cells
from ..tasks.span_labels import spans_of
from .document import Values
from .splits import Splits

KEY = "label_map"
_SPANS = List({"start": Value("int64"), "end": Value("int64"), "label": Value("string")})


@dataclass
class LabelMap:
    """New names for the labels of a task.

    Args:
        task: reads the labels.
        names: by label of the data, its name.
        column: of the labels in the data.

    Attributes:
        found: the labels of the data that have been read.
    """

    task: Task
    names: dict[str, str]
    column: str
    found: dict[str, None] = field(default_factory=dict)

    def apply(self, splits: Splits) -> Splits:
        """The splits of a dataset with the new names, in the column that the task reads.

        Raises:
            ValueError: a number has no name, or the spans of a row are invalid.
        """
        result: dict[str, Any] = dict(splits)
        for split, rows in splits.items():
            if isinstance(rows, IterableDataset):
                result[split] = self._stream(rows, split)
            elif self.column in rows.column_names:
                classes = lab.class_names(rows, self.column)
                cells = rows.with_format(None)[self.column][:]
                named = [self._cell(cell, classes, f"row {row} of the {split} data") for row, cell in enumerate(cells)]
                result[split] = self._with(rows, named)
        return result

    def check(self) -> None:
        """Check that the data have all labels that are renamed.

        Raises:
            ValueError: they do not.
        """
        for label in self.names:
            if label not in self.found:
                known = sorted(self.found)
                told = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
                raise self.task.error(
                    f"`{KEY}` names the label '{label}', and column '{self.column}' has {told or 'none'}."
                    + (close_match(label, known) or " Remove it.")
                )

    def _with(self, rows: Dataset, cells: Cells) -> Dataset:
        target = self.task.target_column
        if target in rows.column_names:
            rows = rows.remove_columns([target])
        return rows.add_column(target, cells)

    def _stream(self, rows: IterableDataset, split: str) -> IterableDataset:
        feature = (rows.features or {}).get(self.column)
        leaf, depth = lab.leaf(feature)
        named: Any = Value("string")
        for _ in range(depth):
            named = List(named)
        target = self.task.target_column
        new = _SPANS if self._reads_spans else named
        features = None if feature is None else Features({**(rows.features or {}), target: new})
        classes = getattr(leaf, "names", None)
        where = f"a row of the {split} data"
        return rows.map(lambda row: {target: self._cell(row.get(self.column), classes, where)}, features=features)

    @property
    def _reads_spans(self) -> bool:
        return getattr(self.task, "spans_column", None) is not None

    def _cell(self, cell: object, classes: list[str] | None, where: str) -> object:
        if self._reads_spans:
            try:
                spans = spans_of(cell)
            except ValueError as problem:
                raise self.task.error(f"{where}, column '{self.column}': {problem} Fix the row.") from None
            if spans is None:
                return None
            return [{"start": start, "end": end, "label": self._label(label, where)} for start, end, label in spans]
        separator = getattr(self.task, "label_separator", None)
        if separator is not None and cell is not None and not isinstance(cell, list):
            parts = sets.split(cell, separator)
            return None if parts is None else separator.join(self._label(part, where) for part in parts) or separator
        return self._labels(cell, classes, where)

    def _labels(self, cell: object, classes: list[str] | None, where: str) -> object:
        if isinstance(cell, list):
            return [self._labels(one, classes, where) for one in cell]
        if cell is None or (classes is not None and cell == -1):
            return None
        return self._label(cell if classes is None else classes[int(str(cell))], where)

    def _label(self, label: object, where: str) -> str:
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        self.found[str(label)] = None
        name = self.names.get(str(label), label)
        if not isinstance(name, str):
            raise self.task.error(
                f"{where} has the label {label!r} in column '{self.column}', which `{KEY}` does not name. Labels that "
                "are numbers need a name each: add it."
            )
        return name


def read_label_maps(given: Mapping[str, Values]) -> dict[str, dict[str, str]]:
    """The new names by task, which are taken out of the arguments of the tasks.

    Raises:
        ValueError: a map has the wrong form.
    """
    maps = {}
    for name, values in given.items():
        names = values.pop(KEY, None)
        if names is None:
            continue
        if (
            not isinstance(names, Mapping)
            or not names
            or not all(isinstance(one, str) and one for one in names.values())
        ):
            raise ValueError(
                f"Task '{name}': `{KEY}` should be a mapping of labels of the data to names, such as {{pos: positive, "
                f"neg: negative}}. Found {shown(names)}. Put names such as 'no' in quotes."
            )
        maps[name] = {str(label): one for label, one in names.items()}
    return maps


def label_maps(tasks: dict[str, Task], maps: Mapping[str, dict[str, str]]) -> dict[str, LabelMap]:
    """The maps of tasks, one for each column of labels.

    A task whose labels another task reads with other names gets a column of its own.

    Args:
        tasks: by name, changed in place.
        maps: the new names by task.

    Raises:
        ValueError: a task has no named labels.
    """
    result: dict[str, LabelMap] = {}
    for name, names in maps.items():
        task = tasks[name]
        if not hasattr(task, "label_names"):
            raise task.error(f"`{KEY}` is for tasks whose labels have names, and {task.type} has none. Remove it.")
        column = task.target_column
        others = (other for key, other in tasks.items() if key != name and other.source == task.source)
        if any(column in other.columns and maps.get(str(other.name)) != names for other in others):
            (own,) = (
                one.name for one in fields(task) if one.name.endswith("_column") and getattr(task, one.name) == column
            )
            task = tasks[name] = build_task(name, {**task.to_dict(), own: f"{column}:{name}"})
        if all(
            (one.task.source, one.task.target_column) != (task.source, task.target_column) for one in result.values()
        ):
            result[name] = LabelMap(task, names, column)
    return result
