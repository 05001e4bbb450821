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


@pytest.mark.parametrize("most", [20, 60, 100, 150])
@pytest.mark.parametrize("seed", range(5))
def test_bounded_split_is_the_cheapest_that_keeps_the_bound(most, seed):
    lengths = np.random.default_rng(seed).integers(2, 60, 9).tolist()
    order = sorted(range(9), key=lambda row: lengths[row])
    allowed = [
        split
        for parts in range(9)
        for cuts in combinations(range(1, 9), parts)
        for split in [[order[start:end] for start, end in zip((0, *cuts), (*cuts, 9))]]
        if all(len(group) == 1 or len(group) * max(lengths[row] for row in group) <= most for group in split)
    ]
    fewest = min(map(len, allowed))
    allowed = [split for split in allowed if len(split) <= max(4, fewest)]
    groups = split_by_length(lengths, 8, most)
    assert sorted(row for group in groups for row in group) == list(range(9))
    assert cost(groups, lengths, 8) == min(cost(split, lengths, 8) for split in allowed)
    assert all(len(group) == 1 or len(group) * max(lengths[row] for row in group) <= most for group in groups)


def test_a_row_beyond_the_bound_is_alone():
    assert split_by_length([5, 900, 5, 5], 10_000, 20) == [[0, 2, 3], [1]]
    assert split_by_length([50] * 6, 0, 50) == [[0], [1], [2], [3], [4], [5]]


def test_equal_rows_stay_together():
    assert split_by_length([7, 7, 7], 1) == [[0, 1, 2]]
    assert split_by_length([5], 1) == [[0]]
