"""What a finished sweep says of a task: its answers in the order of the dataset, its exact loss and its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ...hub.records import slice_metric
from ...tasks import Task
from ...tasks.slicing import quoted
from .results import check_results
from .rows import EvaluationRows, Metric
from .slices import Slice, logged, slices_by_column

# Of a batch: the places of its items among a task's rows, the number of predictions of each, or nothing if it is one,
# their predictions, summed losses, numbers of items, labels, and answers, or nothing if they follow from predictions.
Part = tuple[np.ndarray, ...]
Answers = np.ndarray | list[np.ndarray]  # a row each
_PAD = -100


class Ordered(NamedTuple):
    """Of one task: predictions, summed losses, numbers of items, labels, and answers, a row each."""

    predictions: Answers
    losses: np.ndarray
    items: np.ndarray
    labels: Answers
    answers: Answers | None = None


@dataclass(frozen=True)
class Scores:
    """Predictions, labels and metrics of one task, the name and value of its primary metric, and metrics of slices;
    what computes them, and why some are missing.

    Predictions and labels are those of :func:`in_order`; of tokens, padded with -100 to the most that a row has.
    """

    predictions: Answers
    labels: Answers
    metrics: dict[str, float]
    primary: tuple[str, float]
    slices: dict[str, float] = field(default_factory=dict)
    measure: Measure | None = None
    told: Sequence[str] = ()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and labels as arrays, a row each."""
        return as_array(self.predictions), as_array(self.labels)


def in_order(parts: Sequence[Part], numbers: np.ndarray) -> Ordered:
    """Predictions, losses, items and labels of a task in the order of the dataset.

    Where a row has several predictions, as one for each labeled token, they are a list of arrays, a row each. Rows of
    different length are padded with -100 otherwise.

    Args:
        parts: of all batches and ranks.
        numbers: of the task's rows, in the order of the dataset.
    """
    places = np.searchsorted(numbers, np.concatenate([part[0] for part in parts]))
    several = any(part[1].size for part in parts)
    predictions, losses, items, labels, answers = list(zip(*parts, strict=True))[2:]
    sums, counts = (_dense(arrays, places, len(numbers)) for arrays in (losses, items))
    if not several:
        return Ordered(_dense(predictions, places, len(numbers)), sums, counts, _dense(labels, places, len(numbers)))
    ends = np.cumsum(np.concatenate([part[1] for part in parts]))
    ordered = []
    decided = any(array.size for array in answers)
    for arrays in (predictions, labels, *([answers] if decided else [])):
        pieces = np.split(np.concatenate(arrays), ends[:-1])
        ordered.append([pieces[place] for place in np.argsort(places, kind="stable")])
    return Ordered(ordered[0], sums, counts, ordered[1], ordered[2] if decided else None)


def _dense(arrays: Sequence[np.ndarray], places: np.ndarray, rows: int) -> np.ndarray:
    widest = np.max([array.shape[1:] for array in arrays], axis=0).astype(int)
    whole = np.full((rows, *widest), _PAD, dtype=arrays[0].dtype)
    start = 0
    for array in arrays:
        place: tuple[slice | np.ndarray, ...] = (
            places[start : start + len(array)],
            *(slice(size) for size in array.shape[1:]),
        )
        whole[place] = array
        start += len(array)
    return whole


def as_array(rows: Answers) -> np.ndarray:
    """Arrays of rows of different length as one, padded with -100; an array as it is."""
    if isinstance(rows, np.ndarray):
        return rows
    whole = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), _PAD, dtype=rows[0].dtype)
    for row, values in enumerate(rows):
        whole[row, : len(values)] = values
    return whole


class Measure:
    """The metrics of a finished evaluation of one task, of all rows or of some.

    Args:
        rows: what was evaluated.
        task: which task it was, with what it has fitted.
        found: what batches gave for it.
        metric: the user's own metrics in place of the task's.
        tokenizer: the backbone's.
    """

    def __init__(
        self,
        rows: EvaluationRows,
        task: Task,
        found: Ordered,
        metric: Metric | None,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.task, self.found, self._metric, self._tokenizer = task, found, metric, tokenizer
        self.rows, self._name = rows, str(task.name)

    def loss(self, part: Slice | None = None) -> float:
        """The sum of the losses of all items over their number or weight, whatever the batches and ranks."""
        losses, items = (
            array if part is None else array[part.places] for array in (self.found.losses, self.found.items)
        )
        return float(losses.sum() / (items.sum() or 1))

    def values(self, part: Slice | None = None) -> Mapping[str, object]:
        """The metrics as the task or the user computes them."""
        answers, labels = self.answers(part)
        if self._metric is not None:
            return self._metric(EvalPrediction(predictions=as_array(answers), label_ids=as_array(labels)))
        values = self.task.score(
            cast(np.ndarray, answers),  # or a list, for tasks that predict several times in a row
            cast(np.ndarray, labels),
            unseen=self.unseen,
            references=self.references(part),
            loss=self.loss(part),
            tokenizer=self._tokenizer,
        )
        return {**values, **self.task.extra(self.predictions(part), labels)}

    def predictions(self, part: Slice | None = None) -> Answers:
        """The predictions, from which answers may have been decoded."""
        return self.found.predictions if part is None else _some(self.found.predictions, part.places)

    @property
    def owned(self) -> bool:
        """Whether the metrics are the user's."""
        return self._metric is not None

    @property
    def unseen(self) -> list[object]:
        """The labels that are numbered after the known ones."""
        return self.rows.unseen[self._name]

    def answers(self, part: Slice | None = None) -> tuple[Answers, Answers]:
        """What the metrics are computed from, and the labels."""
        found = self.found
        answers = found.predictions if found.answers is None or self._metric is not None else found.answers
        if part is None:
            return answers, found.labels
        own, labels = _some(answers, part.places), _some(found.labels, part.places)
        if part.within is not None and isinstance(labels, np.ndarray):
            labels = labels.copy()
            labels[:, : part.within.shape[1]][~part.within] = _PAD
        return own, labels

    def references(self, part: Slice | None = None) -> Sequence[object]:
        """What the answers are compared with."""
        if part is None:
            return self.rows.references(self._name)
        return [self._every_reference[place] for place in part.places.tolist()]

    @cached_property
    def _every_reference(self) -> Sequence[object]:
        return self.rows.references(self._name)[:]

    def details(self) -> dict[str, Any]:
        """What the type of the task reports beside metrics; nothing where the user computes these."""
        if self._metric is not None:
            return {}
        answers, labels = self.answers()
        found = self.task.details(
            cast(np.ndarray, answers),
            cast(np.ndarray, labels),
            unseen=self.unseen,
            references=self.references(),
            tokenizer=self._tokenizer,
        )
        return {**found, **self.task.extra_details(self.predictions(), labels)}

    def sliced(self, part: Slice, names: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
        """The metrics of a slice, and why those that are NaN are missing; nothing is logged.

        Args:
            part: the slice.
            names: of the metrics of all rows.
        """
        with self.task.listening() as told:
            try:
                values = self.values(part)
                values = values if self._metric is not None else self.task.chosen(cast("Mapping[str, float]", values))
            except (ValueError, ArithmeticError) as problem:  # of a function of the user's, of one class for example
                if self._metric is None:
                    raise
                values, said = {}, " ".join(str(problem).split()) or type(problem).__name__
                told += [f"'{name}': {said}" for name in names]
        found = {name: float(cast(float, values.get(name, math.nan))) for name in names}
        return found, reasons(found, told)


def reasons(values: Mapping[str, float], told: Sequence[str]) -> dict[str, str]:
    """By metric that is not finite, the reason, from the sentences of a task."""
    found = {}
    for name, value in values.items():
        if not math.isfinite(value):
            said = [sentence for sentence in told if sentence.startswith(f"'{name}'")]
            found[name] = said[0].partition(": ")[2].rstrip(".") if said else f"it is {value}"
    return found


def _some(rows: Answers, places: np.ndarray) -> Answers:
    return rows[places] if isinstance(rows, np.ndarray) else [rows[int(place)] for place in places]


def score(
    rows: EvaluationRows,
    task: Task,
    parts: Sequence[Part],
    metric: Metric | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    fits: bool = False,
) -> Scores:
    """Metrics of a finished evaluation of one task.

    Args:
        rows: what was evaluated.
        task: which task it was.
        parts: what batches gave for it.
        metric: the user's own metrics in place of the task's.
        tokenizer: the backbone's.
        fits: whether the task fits its thresholds and its temperature to these rows first.
    """
    name = str(task.name)
    found = in_order(parts, rows.by_task[name])
    if name in rows.unlabeled:
        return Scores(found.predictions, found.labels, {}, ("none", 0.0))
    if fits:
        task.fit(found.predictions, found.labels)
    # With the values fitted by now: a later evaluation may fit others.
    measure = Measure(rows, copy(task), found, metric, tokenizer)
    with measure.task.listening() as told:
        given = measure.values()
    for sentence in told:
        task.tell(sentence)
    values = check_results(
        task,
        given if metric is not None else task.chosen(cast("Mapping[str, float]", given)),
        own=metric is not None,
    )
    slices = {
        slice_metric(one, quoted(part.column), part.value): value
        for of_column in slices_by_column(rows, task).values()
        for part in logged(task, of_column)
        for one, value in measure.sliced(part, list(values))[0].items()
    }
    primary = next(iter(values.items()), ("none", 0.0))
    all_of_it = {"loss": measure.loss(), **values}
    return Scores(found.predictions, found.labels, all_of_it, primary, slices, measure, told)
