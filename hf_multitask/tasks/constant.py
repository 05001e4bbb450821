"""Losses of constant answers: the frequencies of classes, or the mean of numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from statistics import median
from typing import Any

from ..modeling.losses import LossOptions


def entropy(values: Iterable[Hashable]) -> float:
    """The entropy of the frequencies of values, in nats; 0 if there are none."""
    counts = Counter(values)
    total = sum(counts.values())
    return 0.0 - sum(count / total * math.log(count / total) for count in counts.values())


def variance(rows: Sequence[Sequence[float]]) -> float:
    """The mean over columns of the mean squared distance from the mean of the column."""
    columns = list(zip(*rows, strict=True))
    means = [math.fsum(column) / len(column) for column in columns]
    spread = [
        math.fsum((value - mean) ** 2 for value in column) / len(column)
        for column, mean in zip(columns, means, strict=True)
    ]
    return math.fsum(spread) / max(len(spread), 1)


def of_classes(labels: Sequence[Any], options: LossOptions) -> float:
    """The loss of the probabilities that minimize the cross-entropy of class numbers or of soft labels.

    Weights of rows are not counted.
    """
    if options in (LossOptions(options.task), LossOptions(options.task, loss="cross_entropy")):
        return entropy(labels)
    if options.soft:
        counts = [math.fsum(column) for column in zip(*labels, strict=True)]
    else:
        found = Counter(labels)
        counts = [found[number] for number in range(max((*found, len(options.class_weights or ()) - 1)) + 1)]
    weights = options.class_weights or [1.0] * len(counts)
    spread = options.smoothing * sum(counts) / max(len(counts), 1)
    wanted = [
        weight * ((1 - options.smoothing) * count + spread) for weight, count in zip(weights, counts, strict=True)
    ]
    total = sum(weight * count for weight, count in zip(weights, counts, strict=True))
    return _cross_entropy(wanted, options) / (total or 1.0)


def of_sets(labels: Sequence[Sequence[float]], options: LossOptions) -> float:
    """The same for sets of labels, the mean over classes."""
    columns = list(zip(*labels, strict=True))
    if options.class_weights is None and options.loss != "focal":
        return sum(map(entropy, columns)) / len(columns)
    weights = options.class_weights or [1.0] * len(columns)
    losses = [
        _cross_entropy([weight * sum(column), len(column) - sum(column)], options) / len(column)
        for weight, column in zip(weights, columns, strict=True)
    ]
    return sum(losses) / len(losses)


def of_decisions(counts: Iterable[int], total: int) -> float:
    """The entropies of decisions for or against each of several labels, summed.

    Args:
        counts: for how many of the items each label is decided.
        total: number of items.
    """
    shares = [share for count in counts for share in (count / total, 1 - count / total)]
    return 0.0 - math.fsum(share * math.log(share) for share in shares if share)


def _cross_entropy(wanted: Sequence[float], options: LossOptions) -> float:
    """The cross-entropy, or focal loss, of weights of classes and their shares."""
    gamma, total = options.gamma if options.loss == "focal" else 0.0, sum(wanted)
    shares = [(one, one / total) for one in wanted if one]
    return 0.0 - math.fsum(one * (1 - share) ** gamma * math.log(share) for one, share in shares)


def of_numbers(rows: Sequence[Sequence[float]], options: LossOptions) -> float:
    """The loss of the best constant numbers, the mean over outputs."""
    if options.loss in (None, "mse"):
        return variance(rows)
    columns = list(zip(*rows, strict=True))
    return math.fsum(_of_column(column, options) for column in columns) / max(len(columns), 1)


def _of_column(values: Sequence[float], options: LossOptions) -> float:
    if options.loss == "mae":
        middle = median(values)
        return math.fsum(abs(value - middle) for value in values) / len(values)
    low, high, delta = min(values), max(values), options.delta
    for _ in range(60):  # the slope of the loss grows with the constant
        middle = (low + high) / 2
        slope = math.fsum(max(-delta, min(delta, middle - value)) for value in values)
        low, high = (low, middle) if slope > 0 else (middle, high)
    errors = [abs(value - low) for value in values]
    return math.fsum(error**2 / 2 if error <= delta else delta * (error - delta / 2) for error in errors) / len(values)
