"""Groups of tasks from affinities: by hand, by brute force, and what is suggested of them."""

import numpy as np
import pytest

from hf_multitask.training.diagnosis.findings import suggested_in_words
from hf_multitask.training.diagnosis.grouping import (
    best_groups,
    group,
    jackknife_error,
    mean_affinity,
    partitions,
    suggest,
)

STIRLING = {(4, 2): 7, (5, 3): 25, (6, 3): 90, (8, 4): 1701, (5, 5): 1, (5, 1): 1}
# Tasks 0 and 1 help each other, 2 harms both and is harmed.
HARM = np.array([[9.0, 4.0, -2.0], [3.0, 9.0, -2.0], [-1.0, -3.0, 9.0]])
HELP = np.array([[9.0, 4.0, 1.0], [3.0, 9.0, 1.0], [0.5, 0.5, 9.0]])


def noisy(mean_KK, steps, spread, seed=0):
    return mean_KK + np.random.default_rng(seed).normal(0, spread, (steps, *mean_KK.shape))


@pytest.mark.parametrize(("count", "groups"), STIRLING)
def test_partitions_are_all_there_are_and_each_once(count, groups):
    found = list(partitions(count, groups))
    assert len(found) == STIRLING[count, groups]
    assert len({frozenset(map(frozenset, one)) for one in found}) == len(found)
    assert all(
        sorted(task for members in one for task in members) == list(range(count)) and len(one) == groups
        for one in found
    )


def test_the_affinity_onto_a_task_is_the_mean_over_the_others_of_its_group():
    # onto 0: (3 - 1) / 2, onto 1: (4 - 3) / 2, onto 2: (-2 - 2) / 2
    assert mean_affinity([[0, 1, 2]], HARM) == pytest.approx((1 + 0.5 - 2) / 3)
    assert mean_affinity([[0, 1], [2]], HARM) == pytest.approx((3 + 4 + 0) / 3)


def test_the_best_groups_are_those_of_a_search_by_hand():
    affinity_KK = np.random.default_rng(1).normal(size=(5, 5))
    found = best_groups(affinity_KK)
    assert list(found) == [1, 2, 3, 4, 5]
    for labels in np.ndindex(*(5,) * 5):
        groups = [[task for task in range(5) if labels[task] == one] for one in sorted(set(labels))]
        value = np.mean(
            [
                np.mean([affinity_KK[other, task] for other in members if other != task]) if len(members) > 1 else 0.0
                for members in groups
                for task in members
            ]
        )
        assert value <= mean_affinity(found[len(groups)], affinity_KK) + 1e-12


def test_many_tasks_are_merged_into_the_groups_that_are_plainly_there():
    affinity_KK = np.full((12, 12), -1.0)
    for first in (0, 4, 8):
        affinity_KK[first : first + 4, first : first + 4] = 2.0
    found = best_groups(affinity_KK)
    assert list(found) == list(range(1, 13))
    assert found[3] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_task_that_is_harmed_gets_a_model_of_its_own():
    affinity_SKK = noisy(HARM, 20, 0.5)
    groupings = group(affinity_SKK)
    assert [len(one.groups) for one in groupings] == [1, 2, 3]
    assert groupings[0].gain == groupings[0].error == 0
    found = suggest(affinity_SKK, groupings)
    assert found.grouping.groups == [[0, 1], [2]] and found.harmed == [2]
    words = suggested_in_words(found, ["a", "b", "c"], 20)
    assert words.startswith("Train 2 models, [a, b] and [c]: in one model") and "raise the loss of c" in words
    assert words.endswith("keep them apart: model: {branches: {group_1: [a, b], group_2: [c]}}.")
    words = suggested_in_words(found, ["a", "b", "c"], 20, "x (a); y (b, c)", 3)
    assert "group_2: [c]}, branch_layers: 3}. The measured model has branches of 3 layers, x (a); y (b, c): " in words


@pytest.mark.parametrize(
    ("mean_KK", "spread", "words"),
    [
        (HARM, 40.0, "none loses by the steps of the others beyond the noise of 20 measured steps."),
        (np.full((3, 3), 2.0), 0.1, "none loses by the steps of the others"),
        (HELP, 0.1, "If there is room for 2 models, [a, b] and [c] would gain most"),
    ],
    ids=["noise", "help", "help, more of it in groups"],
)
def test_one_model_is_suggested_where_nobody_is_harmed_beyond_the_noise(mean_KK, spread, words):
    affinity_SKK = noisy(mean_KK, 20, spread)
    found = suggest(affinity_SKK, group(affinity_SKK))
    assert found.grouping.groups == [[0, 1, 2]] and found.harmed == []
    assert words in suggested_in_words(found, ["a", "b", "c"], 20)


def test_the_noise_of_a_gain_is_the_standard_error_over_the_steps():
    affinity_SKK = noisy(HARM, 15, 1.0)
    two = group(affinity_SKK)[1]
    gains_S = [mean_affinity(two.groups, one) - mean_affinity([[0, 1, 2]], one) for one in affinity_SKK]
    assert two.gain == pytest.approx(np.mean(gains_S))
    assert two.error == pytest.approx(np.std(gains_S, ddof=1) / np.sqrt(15))
    assert jackknife_error(np.array([2.0, 2.0, 2.0])) == 0


def test_steps_that_lack_a_task_count_for_the_other_pairs():
    affinity_SKK = noisy(HARM, 10, 0.1)
    affinity_SKK[3, :, 2] = affinity_SKK[3, 2, :] = np.nan
    assert suggest(affinity_SKK, group(affinity_SKK)).grouping.groups == [[0, 1], [2]]


def test_pairs_that_hardly_met_are_refused():
    affinity_SKK = noisy(HARM, 10, 0.1)
    affinity_SKK[1:, 0, 2] = np.nan
    with pytest.raises(ValueError, match="fewer than two measured steps together"):
        group(affinity_SKK)
