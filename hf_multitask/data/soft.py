"""Soft labels: what a teacher answers for a row, as columns of an encoded dataset and as tensors of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling.inputs import WINDOWS

if TYPE_CHECKING:
    from ..modeling.readers import Row
    from ..tasks import Task

SOFT = "soft"  # the numbers of a row, flat
PLACES = "places"  # of tags, the tokens of a row that have numbers


def soft_column(task: str) -> str:
    """The feature column with the soft labels of a task: logits, numbers, or cosines."""
    return f"{SOFT}:{task}"


def places_column(task: str) -> str:
    """The feature column with the places of the tokens that the soft labels of a task on tokens are for."""
    return f"{PLACES}:{task}"


def soft_of(values: Row) -> dict[str, Any]:
    """By task, the soft labels of a row of an encoded dataset: numbers, and with them places for a task on tokens."""
    found: dict[str, Any] = {}
    for column, numbers in values.items():
        kind, _, task = column.partition(":")
        if kind == SOFT and numbers is not None:
            found[task] = (numbers, values[places_column(task)]) if places_column(task) in values else numbers
    return found


def collate_soft(
    task: Task, features: Sequence[Mapping[str, Any]], length: int, most: int | None = None
) -> torch.Tensor:
    """The soft labels of N rows as one tensor.

    Args:
        task: whose they are.
        features: of the rows.
        length: L, the width of the batch in tokens.
        most: G, the windows of a row, if the rows of a task on tokens have windows.

    Returns:
        (N, C), filled up with minus infinity; of a task on tokens (N, L, C), or (N, G, L, C), NaN where a token has
        none.
    """
    values = [feature["soft"][str(task.name)] for feature in features]
    if not task.labels_tokens:
        rows_NC = np.full((len(values), max(map(len, values))), -np.inf, dtype=np.float32)
        for row, numbers in zip(rows_NC, values, strict=True):
            row[: len(numbers)] = numbers
        return torch.from_numpy(rows_NC)
    classes = len(getattr(task, "label_names", None) or ())
    dense_NGLC = np.full((len(values), most or 1, length, classes), np.nan, dtype=np.float32)
    for windows_GLC, (numbers, places), feature in zip(dense_NGLC, values, features, strict=True):
        table = np.asarray(numbers, dtype=np.float32).reshape(-1, classes)
        lengths = feature["inputs"].get(WINDOWS) or [length]
        for place, line in zip(_located(places, lengths), table, strict=True):
            windows_GLC[place] = line
    return torch.from_numpy(dense_NGLC if most is not None else dense_NGLC[:, 0])


def _located(places: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The window of each place among the tokens of all windows of a row, and the place in that window."""
    ends = np.cumsum(lengths)
    for place in places:
        window = int(np.searchsorted(ends, place, side="right"))
        yield window, place - int(ends[window] - lengths[window])
