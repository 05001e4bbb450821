"""A micro-batch as several forward passes of rows of similar length, if that saves more padding than it costs, or if
one pass may not hold all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_FORWARDS = 4


def split_by_length(lengths: Sequence[int], overhead: int, most: int | None = None) -> list[list[int]]:
    """Group rows so that ``sum over groups of (rows x longest row + overhead)`` is minimal.

    The groups are found by dynamic programming over the rows in order of length.

    Args:
        lengths: number of tokens of each row.
        overhead: cost of an additional forward pass, in tokens.
        most: ``rows x longest row`` of a group of several rows at most; no limit if None.

    Returns:
        At most four groups of row indices, or as few as ``most`` allows, the shortest rows first; rows keep their order
        inside a group.
    """
    order = np.argsort(lengths, kind="stable")
    sorted_B = np.asarray(lengths)[order]
    rows = len(order)
    ends_B = np.arange(1, rows + 1)
    sizes_BB = ends_B[:, None] - np.arange(rows)[None, :]  # rows of a group by its last and its first row
    never_BB = sizes_BB < 1
    if most is not None:
        never_BB = never_BB | ((sizes_BB > 1) & (sizes_BB * sorted_B[:, None] > most))
    own_BB = np.where(never_BB, np.inf, sizes_BB * sorted_B[:, None] + overhead)
    # cost_B[i]: cost of the i + 1 shortest rows in g groups; starts[g][i]: the begin of the last of these groups.
    starts = [np.zeros(rows, dtype=np.int64)]
    costs = [own_BB[:, 0]]
    while len(costs) < min(MOST_FORWARDS, rows) or not np.isfinite(costs[-1][-1]):
        table_BB = np.concatenate([[np.inf], costs[-1][:-1]])[None, :] + own_BB
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
