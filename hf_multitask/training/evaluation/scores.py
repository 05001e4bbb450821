"""What a finished sweep says of a task: its answers in the order of the dataset, its exact loss and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ...tasks import Task
from .results import check_results
from .rows import EvaluationRows, Metric

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
    """Predictions, labels and metrics of one task, and the name and value of its primary metric.

    Predictions and labels are those of :func:`in_order`; of tokens, padded with -100 to the most that a row has.
    """

    predictions: Answers
    labels: Answers
    metrics: dict[str, float]
    primary: tuple[str, float]

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

    The loss is the sum of all items' losses over their number or weight, so it does not depend on batches or ranks.

    Args:
        rows: what was evaluated.
        task: which task it was.
        parts: what batches gave for it.
        metric: the user's own metrics in place of the task's.
        tokenizer: the backbone's.
        fits: whether the task fits its thresholds and its temperature to these rows first.
    """
    name = str(task.name)
    predictions, losses, items, labels, answers = in_order(parts, rows.by_task[name])
    if name in rows.unlabeled:
        return Scores(predictions, labels, {}, ("none", 0.0))
    loss = float(losses.sum() / (items.sum() or 1))
    if fits:
        task.fit(predictions, labels)
    values: Mapping[str, float]
    if metric is None:
        values = task.score(
            # or a list, for tasks that predict several times in a row
            cast(np.ndarray, predictions if answers is None else answers),
            cast(np.ndarray, labels),
            unseen=rows.unseen[name],
            references=rows.references(name),
            loss=loss,
            tokenizer=tokenizer,
        )
        values = {**values, **task.extra(predictions, labels)}
    else:
        values = metric(EvalPrediction(predictions=as_array(predictions), label_ids=as_array(labels)))
    values = check_results(task, values if metric is not None else task.chosen(values), own=metric is not None)
    primary = next(iter(values.items()), ("none", 0.0))
    return Scores(predictions, labels, {"loss": loss, **values}, primary)
