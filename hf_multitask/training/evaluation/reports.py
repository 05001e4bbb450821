"""Reports of evaluations, by split and task: what ``eval_report.json``, the model card and pages show."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...hub.history import split_of
from .scores import Measure, reasons
from .slices import Slice, slices_by_column

FILE_NAME = "eval_report.json"
Report = dict[str, Any]  # of a task


def reporting(measure: Measure, values: Mapping[str, float], told: Sequence[str]) -> Callable[[], Report]:
    """What makes the report of a task when it is read; at once, where the user's metrics keep whole logits.

    For the arguments, see :func:`report_of`.
    """
    if not measure.owned:
        return partial(report_of, measure, values, told)
    made = report_of(measure, values, told)
    return lambda: made


def report_of(measure: Measure, values: Mapping[str, float], told: Sequence[str]) -> Report:
    """What an evaluation says of a task, as JSON has it; numbers that are not finite are None.

    Args:
        measure: of its metrics.
        values: its metrics, the loss first.
        told: why some of them are missing.
    """
    metrics = {name: value for name, value in values.items() if name != "loss"}
    slices = {
        column: {part.text: _slice(measure, part, list(metrics)) for part in of_column}
        for column, of_column in slices_by_column(measure.rows, measure.task).items()
    }
    return plain(
        {
            "type": measure.task.type,
            "rows": len(measure.found.labels),
            "loss": values["loss"],
            "metrics": metrics,
            "missing": reasons(metrics, told),
            **_details(measure),
            **({"slices": slices} if slices else {}),
        }
    )


def _details(measure: Measure) -> Report:
    """The details of the task; its wrong answers have the ``row`` of their dataset."""
    found = measure.details()
    numbers = measure.rows.rows_of(str(measure.task.name))
    for one in found.get("worst", ()):
        one["row"] = numbers[one.pop("place")]
    return found


def _slice(measure: Measure, part: Slice, names: Sequence[str]) -> Report:
    values, missing = measure.sliced(part, names)
    loss = None if part.within is not None else measure.loss(part)
    return {"rows": part.rows, "loss": loss, "metrics": values, "missing": missing}


def plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A value as JSON has it: numbers that are not finite are None, arrays are lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Reports:
    """The reports of the last evaluation of every split, made when they are read."""

    def __init__(self) -> None:
        self._makers: dict[str, dict[str, Callable[[], Report]]] = {}
        self._made: dict[str, dict[str, Report]] = {}
        self._prefixes: dict[str, str] = {}

    def add(self, prefix: str, makers: Mapping[str, Callable[[], Report]]) -> None:
        """Add an evaluation.

        Args:
            prefix: of the names of its metrics, such as ``eval``.
            makers: by task, what makes its report.
        """
        split = split_of(prefix) or prefix
        self._prefixes[prefix] = split
        self._makers[split] = dict(makers)
        self._made.pop(split, None)

    @property
    def splits(self) -> list[str]:
        """The splits that were evaluated."""
        return list(self._makers)

    def of(self, split: str) -> dict[str, Report]:
        """The reports of a split by task; none if it was not evaluated."""
        if split not in self._made and split in self._makers:
            self._made[split] = {name: make() for name, make in self._makers[split].items()}
        return self._made.get(split, {})

    def save(self, folder: Path, prefix: str) -> None:
        """Write the reports of a split and its further sets into ``eval_report.json``, which keeps those of others.

        Args:
            folder: where the file is; a damaged one is replaced.
            prefix: of the names of the metrics of the split.
        """
        splits = [split for one, split in self._prefixes.items() if f"{one}_".startswith(f"{prefix}_")]
        if not splits:
            return
        path = folder / FILE_NAME
        try:
            before: object = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError:
            before = {}
        # The wrong answers name rows by their numbers in this evaluation, which may be of a part of the data.
        own = {
            split: {
                name: {key: part for key, part in one.items() if key != "worst"} for name, one in self.of(split).items()
            }
            for split in splits
        }
        folder.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f"{FILE_NAME}.new")
        known = before if isinstance(before, dict) else {}
        written.write_text(json.dumps({**known, **own}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(written, path)
