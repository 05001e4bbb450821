"""A micro-batch as several forward passes of rows of similar length, if that saves more padding than it costs, or if
one pass may not hold all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..modeling.aliases import Open

MOST_FORWARDS = 4
_SIZES = 8  # of a pass that does not hold the whole micro-batch, where shapes are few
_GRAIN = 8  # shortest length, and step between short ones, where lengths are rounded

# Cost of an additional forward pass, in tokens. On a CPU it is mostly the accumulation of gradients in the backward
# pass: for the 23 million parameters of MiniLM, as long as 53 to 60 tokens. So few tokens do not fill an accelerator,
# for which it is measured, or assumed if that is not possible.
COST_CPU, COST_ACCELERATOR = 64, 2048


@dataclass
class Forwards:
    """How micro-batches are divided into forward passes, and of which shapes these are.

    Args:
        cost: of an additional forward pass, in tokens; rows of a modality stay together if None.
        rounded: whether passes have few shapes: texts of few lengths, see :func:`rounded`, and few numbers of rows.
        longest: maximum length of a text; None if there is no limit.
    """

    cost: int | None
    rounded: bool = False
    longest: int | None = None

    def length(self, length: int) -> int:
        """The length of a pass whose longest text has a given length."""
        if not self.rounded:
            return length
        allowed = int(rounded(np.array([length]))[0])
        return allowed if self.longest is None else max(length, min(allowed, self.longest))

    def split(self, lengths: Sequence[int], most: int | None = None) -> list[list[int]]:
        """The passes of rows of one modality; see :func:`split_by_length`."""
        if self.cost is None:
            return [list(range(len(lengths)))]
        return split_by_length(lengths, self.cost, most, few=self.rounded)


def rounded(lengths: np.ndarray) -> np.ndarray:
    """Lengths rounded up to multiples of 8 up to 64, and to four lengths in every doubling above: 80, 96, 112, 128, ...

    Up to 512 tokens, these are 20 lengths. The longest text of a pass becomes longer by at most a quarter.
    """
    steps = 2.0 ** (np.ceil(np.log2(np.maximum(lengths, 1))) - 3)
    steps = np.maximum(steps, _GRAIN)
    return (np.ceil(np.maximum(lengths, 1) / steps) * steps).astype(np.int64)


def widened(inputs: Mapping[str, torch.Tensor], length: int, tokenizer: Open) -> dict[str, torch.Tensor]:
    """Inputs of texts (B, L), padded on the right to a length of at least ``length``.

    Args:
        inputs: by name.
        length: of the result.
        tokenizer: of the texts.
    """
    if all(value.shape[1] >= length for value in inputs.values()):
        return dict(inputs)
    fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
    return {
        name: F.pad(value, (0, max(length - value.shape[1], 0)), value=fill.get(name, 0))
        for name, value in inputs.items()
    }


def split_by_length(
    lengths: Sequence[int], overhead: int, most: int | None = None, *, few: bool = False
) -> list[list[int]]:
    """Group rows so that ``sum over groups of (rows x longest row + overhead)`` is minimal.

    The groups are found by dynamic programming over the rows in order of length.

    Args:
        lengths: number of tokens of each row.
        overhead: cost of an additional forward pass, in tokens.
        most: ``rows x longest row`` of a group of several rows at most; no limit if None.
        few: whether groups contain whole eighths of the rows, so that there are few shapes; not with ``most``.

    Returns:
        At most four groups of row indices, or as few as ``most`` allows, the shortest rows first; rows keep their order
        inside a group.
    """
    order = np.argsort(lengths, kind="stable")
    sorted_B = np.asarray(lengths)[order]
    rows = len(order)
    ends_B = np.arange(1, rows + 1)
    starts_B = np.arange(rows)
    sizes_BB = ends_B[:, None] - starts_B[None, :]  # rows of a group by its last and its first row
    never_BB = sizes_BB < 1
    if most is not None:
        never_BB = never_BB | ((sizes_BB > 1) & (sizes_BB * sorted_B[:, None] > most))
    elif few:
        never_BB = never_BB | (starts_B % -(-rows // _SIZES) > 0)[None, :]
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
