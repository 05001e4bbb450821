"""The split of a micro-batch against every other split."""

from itertools import combinations

import numpy as np
import pytest

from hf_multitask.data.forwards import split_by_length


def cost(groups, lengths, overhead):
    return sum(len(group) * max(lengths[row] for row in group) + overhead for group in groups)


@pytest.mark.parametrize("overhead", [0, 8, 32, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_split_is_the_cheapest_there_is(overhead, seed):
    lengths = np.random.default_rng(seed).integers(2, 60, 9).tolist()
    order = sorted(range(9), key=lambda row: lengths[row])
    every = [
        [order[start:end] for start, end in zip((0, *cuts), (*cuts, 9))]
        for parts in range(4)
        for cuts in combinations(range(1, 9), parts)
    ]
    groups = split_by_length(lengths, overhead)
    assert sorted(row for group in groups for row in group) == list(range(9))
    assert cost(groups, lengths, overhead) == min(cost(split, lengths, overhead) for split in every)


def test_equal_rows_stay_together():
    assert split_by_length([7, 7, 7], 1) == [[0, 1, 2]]
    assert split_by_length([5], 1) == [[0]]
