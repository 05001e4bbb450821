"""The draw of a step: quotas, passes, and what it must not depend on."""

from itertools import pairwise

import numpy as np
import pytest

from hf_multitask import SamplingRates
from hf_multitask.data import StepSampler, build_rates

SIZES = {"a": 70, "b": 41, "c": 5}
SAMPLINGS = {
    "proportional": None,
    "uniform": None,
    "temperature": {"temperature": 3, "cap": 50},
    "annealed": {"end": 0.1},
    "fixed": {"rates": {"a": 1, "b": 0.5, "c": 0}},
}


def sampler(name="proportional", sizes=SIZES, rows=8, **kwargs):
    return StepSampler(sizes, build_rates(name, SAMPLINGS[name]), rows_per_step=rows, **kwargs)


def dataset_of(rows, sizes=SIZES):
    return np.searchsorted(np.cumsum(list(sizes.values())), rows, side="right")


def lengths(sizes=SIZES):
    return {name: np.random.default_rng(7).integers(3, 90, size) for name, size in sizes.items()}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("grouped", [False, True])
def test_quotas_stay_within_one_row_of_the_share_at_every_step_and_in_sum(name, grouped):
    one = sampler(name, lengths=lengths() if grouped else None, window=4, total_steps=45)
    rates = build_rates(name, SAMPLINGS[name])
    drawn, due = np.zeros(3), np.zeros(3)
    for epoch in range(3):
        steps = list(one.steps(epoch))
        assert [len(rows) for rows in steps] == [8] * 14 + [4]
        for step, rows in enumerate(steps):
            shares = rates.rates_at(SIZES, (15 * epoch + step) / 44)
            shares = np.array([shares[key] for key in SIZES]) / sum(shares.values())
            counts = np.bincount(dataset_of(rows), minlength=3)
            assert (np.abs(counts - shares * len(rows)) < 1).all()
            drawn += counts
            due += shares * len(rows)
            assert (np.abs(drawn - due) < 1.5).all()


def test_proportional_epoch_sees_each_row_once():
    for grouped in (None, lengths()):
        one = sampler(lengths=grouped)
        for epoch in range(3):
            rows = np.concatenate(list(one.steps(epoch)))
            assert sorted(rows) == list(range(116))


def test_small_datasets_come_in_whole_passes():
    one = sampler("uniform")
    rows = np.concatenate([row for epoch in range(2) for row in one.steps(epoch)])
    counts = np.bincount(rows, minlength=116)
    assert counts[111:].max() - counts[111:].min() <= 1
    assert one.plan(30)[2].drawn == counts[111:].sum()
    assert one.plan(30)[2].passes == pytest.approx(counts[111:].mean())


def test_plan_adds_up():
    plan = sampler("temperature").plan(20)
    assert sum(line.share for line in plan) == pytest.approx(1)
    assert sum(line.drawn for line in plan) == 14 * 8 + 4 + 5 * 8
    drawn = [row for epoch in range(2) for row in sampler("temperature").steps(epoch)][:20]
    assert [line.drawn for line in plan] == np.bincount(dataset_of(np.concatenate(drawn)), minlength=3).tolist()


def test_annealed_goes_from_proportional_to_uniform():
    one = sampler("annealed", sizes={"a": 900, "b": 100}, rows=10, total_steps=100)
    one.rates.end = 0.0
    counts = np.array([np.bincount(dataset_of(rows, one.sizes), minlength=2) for rows in one.steps(0)])
    assert counts[0].tolist() == [9, 1] and counts[-1].tolist() == [5, 5]
    assert (np.diff(np.convolve(counts[:, 1], np.ones(20), "valid")) >= -1).all()
    # Training that stops in the middle of the annealing has seen the first half of it.
    assert [line.drawn for line in one.plan(50)] == counts[:50].sum(0).tolist()


def test_dataset_that_leaves_gives_its_share_to_the_others():
    one, left = sampler("uniform"), sampler("uniform")
    list(left.steps(2))  # what was worked out ahead is worked out again
    left.leave("b", 1)
    for epoch in range(3):
        for ours, theirs in zip(left.steps(epoch), one.steps(epoch), strict=True):
            counts = np.bincount(dataset_of(ours), minlength=3)
            assert counts.sum() == len(theirs)
            if epoch == 0:
                assert ours.tolist() == theirs.tolist()
            else:
                assert counts[1] == 0 and abs(counts[0] - counts[2]) <= 1


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 1), (2, 2), (3, 1), (4, 2)])
def test_ranks_and_micro_batches_share_the_same_steps(world_size, accumulation):
    whole = list(sampler(rows=24, lengths=lengths()).steps(1))
    ranks = []
    for rank in range(world_size):
        one = sampler(rows=24, lengths=lengths(), world_size=world_size, accumulation=accumulation, rank=rank)
        one.set_epoch(1)
        ranks.append(list(one))
        assert len(ranks[-1]) == len(one) == len(whole) * accumulation
    for step, rows in enumerate(whole):
        dealt = [
            row for rank in ranks for batch in rank[step * accumulation : (step + 1) * accumulation] for row in batch
        ]
        assert sorted(row for row in dealt if row >= 0) == sorted(rows)
        assert all(batch for rank in ranks for batch in rank)


def test_ranks_get_equal_tokens_and_micro_batches_similar_lengths():
    sizes = {"a": 900, "b": 900}
    of_row = np.concatenate(list(lengths(sizes).values()))

    def ranks(accumulation):
        return [
            list(
                sampler(
                    sizes=sizes, rows=32, lengths=lengths(sizes), world_size=2, accumulation=accumulation, rank=rank
                )
            )
            for rank in range(2)
        ]

    tokens = np.array([[of_row[batch].sum() for batch in rank] for rank in ranks(1)])
    assert (tokens.max(0) / tokens.mean(0)).max() < 1.1
    for rank in ranks(4):
        for step in range(0, len(rank), 4):
            ends = [(of_row[batch].min(), of_row[batch].max()) for batch in rank[step : step + 4]]
            assert all(one[0] >= other[1] for one, other in pairwise(ends))


def test_last_step_is_filled_with_rows_that_do_not_count():
    one = sampler(sizes={"a": 9}, rows=8, accumulation=4)
    *_, first, second, third, fourth = list(one)
    assert [row >= 0 for batch in (first, second, third, fourth) for row in batch] == [True, False, False, False]


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(list(sampler(lengths=lengths(), seed=seed).steps(epoch))).tolist()

    later = sampler(lengths=lengths())
    list(later.steps(0))
    assert np.concatenate(list(later.steps(2))).tolist() == order(0, 2)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_rows_of_a_step_have_similar_lengths_and_steps_come_in_any_order():
    sizes = {"a": 800, "b": 800}
    of_row = np.concatenate(list(lengths(sizes).values()))
    steps = list(sampler(sizes=sizes, rows=16, lengths=lengths(sizes)).steps(0))
    spread = np.mean([of_row[rows].max() - of_row[rows].min() for rows in steps])
    random = np.mean([of_row[rows].max() - of_row[rows].min() for rows in sampler(sizes=sizes, rows=16).steps(0)])
    assert spread < random / 5
    means = [of_row[rows].mean() for rows in steps]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


class Broken(SamplingRates):
    def __init__(self, **rates):
        self.given = rates

    def rates(self, sizes):
        return self.given


@pytest.mark.parametrize("rates", [{"a": -1, "b": 2}, {"a": float("nan")}, {"a": 0}, {}])
def test_unusable_rates_fail_when_built(rates):
    with pytest.raises(ValueError, match=r"Sampling rates should be 0 or more and sum to more than 0"):
        StepSampler({"a": 3, "b": 3}, Broken(**rates), rows_per_step=2)


def test_own_rates_are_taken():
    one = StepSampler({"a": 30, "b": 30}, Broken(a=3, b=1), rows_per_step=4)
    assert [np.bincount(dataset_of(rows, one.sizes), minlength=2).tolist() for rows in one.steps(0)] == [[3, 1]] * 15
