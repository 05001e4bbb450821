"""The best tree for some scores, against all trees."""

from itertools import product

import numpy as np
import pytest

from hf_multitask.modeling.trees import best_tree, find_cycle


def trees(count):
    """All trees of words with one root."""
    every = product(range(count + 1), repeat=count)
    return [heads for heads in every if heads.count(0) == 1 and not find_cycle(heads)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_it_is_the_best_of_all_trees(count):
    every = trees(count)
    assert len(every) == count ** (count - 1)  # Cayley's formula, times the choice of the root
    draw = np.random.default_rng(count)
    greedy = 0
    for _ in range(60):
        scores = draw.standard_normal((count, count + 1)) * draw.choice([0.01, 1, 30])
        scores[:, 0] += draw.choice([-5, 0, 5])  # which makes no word a root, or every one
        best = max(every, key=lambda heads: sum(scores[word, head] for word, head in enumerate(heads)))
        assert best_tree(scores) == list(best)
        np.fill_diagonal(scores[:, 1:], -np.inf)
        greedy += tuple(scores.argmax(1)) == best
    assert count == 1 or 0 < greedy < 60


def test_long_sentences_and_equal_scores_have_trees():
    draw = np.random.default_rng(0)
    for scores in (draw.standard_normal((150, 151)), np.zeros((150, 151)), np.full((3, 4), np.nan)):
        heads = best_tree(scores)
        assert heads.count(0) == 1 and not find_cycle(heads)
    assert best_tree(np.zeros((0, 1))) == []


@pytest.mark.parametrize(
    ("heads", "cycle"),
    [
        ([], []),
        ([0, 1, 2], []),
        ([2, 0, 2], []),
        ([1, 0], [1]),
        ([2, 1, 0], [1, 2]),
        ([0, 3, 4, 2], [2, 3, 4]),
        ([2, 3, 4, 3], [3, 4]),
    ],
)
def test_cycles_are_found(heads, cycle):
    assert find_cycle(heads) == cycle
