"""Losses of constant answers: the frequencies of classes, or the mean of numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


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
