"""The split of a micro-batch against every other split."""

from itertools import combinations

import numpy as np
import pytest
import torch

from hf_multitask.data.forwards import Forwards, rounded, split_by_length, widened


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


@pytest.mark.parametrize("seed", range(3))
def test_few_shapes_have_whole_eighths_of_the_rows(seed):
    lengths = np.random.default_rng(seed).integers(2, 60, 24).tolist()
    order = sorted(range(24), key=lambda row: lengths[row])
    allowed = [
        [order[start:end] for start, end in zip((0, *cuts), (*cuts, 24))]
        for parts in range(4)
        for cuts in combinations(range(3, 24, 3), parts)
    ]
    groups = split_by_length(lengths, 32, few=True)
    assert all(len(group) % 3 == 0 for group in groups)
    assert cost(groups, lengths, 32) == min(cost(split, lengths, 32) for split in allowed)


@pytest.mark.parametrize("rows", [1, 3, 7, 9, 17])
def test_few_shapes_hold_all_rows(rows):
    groups = split_by_length([*range(1, rows + 1)], 0, few=True)
    assert sorted(row for group in groups for row in group) == list(range(rows))


def test_lengths_are_few_and_a_little_longer():
    lengths = np.arange(1, 513)
    found = rounded(lengths)
    assert (found >= lengths).all() and (np.diff(found) >= 0).all() and (found % 8 == 0).all()
    assert (found <= np.maximum(1.25 * lengths, lengths + 7)).all()
    assert len(set(found.tolist())) == 20 and (rounded(found) == found).all()


def test_lengths_end_where_the_backbone_does():
    forwards = Forwards(64, rounded=True, longest=130)
    assert [forwards.length(length) for length in (3, 65, 129, 130, 200)] == [8, 80, 130, 130, 200]
    assert Forwards(64, longest=130).length(65) == 65


def test_widened_inputs_have_the_answers_of_the_plain_ones(build_model, tokenizer):
    model = build_model().eval()
    inputs = dict(tokenizer(["A fine place.", "No."], padding=True, return_tensors="pt"))
    wide = widened(inputs, 24, tokenizer)
    assert {value.shape for value in wide.values()} == {(2, 24)}
    assert bool((wide["input_ids"][:, -1] == tokenizer.pad_token_id).all()) and not wide["attention_mask"][:, -1].any()
    with torch.no_grad():
        plain, padded = (model(**given).logits for given in (inputs, wide))
    torch.testing.assert_close(padded["sentiment"], plain["sentiment"], rtol=0, atol=1e-6)
    length = inputs["input_ids"].shape[1]
    torch.testing.assert_close(padded["ner"][:, :length], plain["ner"], rtol=0, atol=1e-6)
