"""A micro-batch as several forward passes with rows of similar length, if that saves more padding than it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_FORWARDS = 4


def split_by_length(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Group rows so that ``sum over groups of (rows x longest row + overhead)`` is minimal.

    The groups are found by dynamic programming over the rows in order of length.

    Args:
        lengths: number of tokens of each row.
        overhead: cost of an additional forward pass, in tokens.

    Returns:
        At most four groups of row indices, the shortest rows first; rows keep their order inside a group.
    """
    order = np.argsort(lengths, kind="stable")
    sorted_B = np.asarray(lengths)[order]
    rows = len(order)
    ends_B = np.arange(1, rows + 1)
    # cost_B[i]: cost of the i + 1 shortest rows in g groups; starts[g][i]: the begin of the last of these groups.
    cost_B = ends_B * sorted_B + overhead
    starts = [np.zeros(rows, dtype=np.int64)]
    costs = [cost_B]
    for _ in range(1, min(MOST_FORWARDS, rows)):
        before_B = np.concatenate([[np.inf], costs[-1][:-1]])
        table_BB = before_B[None, :] + (ends_B[:, None] - np.arange(rows)[None, :]) * sorted_B[:, None] + overhead
        table_BB[np.arange(rows)[None, :] > np.arange(rows)[:, None]] = np.inf
        starts.append(table_BB.argmin(1))
        costs.append(table_BB.min(1))
    best = int(np.argmin([cost[-1] for cost in costs]))
    groups: list[list[int]] = []
    end = rows
    for group in range(best, -1, -1):
        start = int(starts[group][end - 1])
        groups.append(sorted(order[start:end].tolist()))
        end = start
    return groups[::-1]
