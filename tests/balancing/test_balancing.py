"""Every balancer agrees with its reference, keeps what it knows of absent tasks, and goes on from its state to the bit."""

import inspect
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchjd import scalarization

from hf_multitask.balancing import BALANCING, FAMO, build_balancer

TASKS = ["a", "b", "c", "d"]
K = len(TASKS)
KWARGS = {"fixed": {"weights": {"a": 0.5, "c": 2.0}}, "dwa": {"interval": 2}}
ALL = torch.ones(K, dtype=torch.bool)


def sequence(steps=12, seed=0):
    """Losses that fall, each task's at a pace of its own and with noise, (steps, K)."""
    draw = np.random.default_rng(seed)
    falling = np.array([3.0, 0.2, 1.0, 40.0]) * np.exp(-np.outer(np.arange(steps), [0.1, 0.01, 0.3, 0.05]))
    return torch.tensor(falling * draw.uniform(0.8, 1.2, falling.shape))


def begin(name, tasks=TASKS, **kwargs):
    balancer = build_balancer(name, {**KWARGS.get(name, {}), **kwargs})
    balancer.begin(tasks, seed=3, constants=dict(zip(TASKS, [0.7, 0.1, 1.0, 30.0])))
    return balancer


def live(balancer, losses_SK, present_SK=None):
    """A run: every hook a step, an evaluation and an epoch every two; the weights of all steps, (steps, K)."""
    weights = []
    for step, losses_K in enumerate(losses_SK):
        present_K = torch.ones(len(losses_K), dtype=torch.bool) if present_SK is None else present_SK[step]
        weights.append(balancer.weights(losses_K, present_K))
        assert torch.equal(balancer.weights(losses_K, present_K), weights[-1])  # to ask changes nothing
        balancer.on_gradients(losses_K.sqrt() + 0.1, present_K)
        balancer.on_step(losses_K, present_K)
        if balancer.exact and balancer.looks_back:
            balancer.after_step(losses_K * 0.9, present_K)
        if step % 2:
            balancer.on_evaluate(losses_K * 1.1, present_K)
            balancer.on_epoch()
    return torch.stack(weights)


def gradient(scalarizer, losses_K):
    values_K = losses_K.clone().requires_grad_()
    return torch.autograd.grad(scalarizer(values_K), values_K)[0]


# The references


@pytest.mark.parametrize(("name", "reference"), [("uncertainty", scalarization.UW), ("imtl_l", scalarization.IMTLL)])
def test_learned_weights_are_those_of_torchjd_and_torchs_adam(name, reference):
    ours, theirs = begin(name, lr=0.1), reference(K).double()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.1)
    for losses_K in sequence():
        torch.testing.assert_close(ours.weights(losses_K, ALL), gradient(theirs, losses_K), rtol=1e-12, atol=0)
        ours.on_step(losses_K, ALL)
        optimizer.zero_grad()
        theirs(losses_K).backward()
        optimizer.step()


@pytest.mark.parametrize("kwargs", [{}, {"lr": 0.2, "weight_decay": 0.0, "min_losses": {"b": 0.01, "d": 2.0}}])
def test_exact_famo_is_torchjds(kwargs):
    given = {**kwargs, "min_losses": torch.tensor([0.0, 0.01, 0.0, 2.0], dtype=torch.float64)} if kwargs else {}
    ours, theirs = begin("famo", exact=True, **kwargs), scalarization.FAMO(K, **given).double()
    for losses_K, after_K in zip(sequence(), sequence(seed=1)):
        torch.testing.assert_close(ours.weights(losses_K, ALL), gradient(theirs, losses_K), rtol=1e-9, atol=1e-12)
        ours.on_step(losses_K, ALL)
        ours.after_step(after_K, ALL)
        theirs.update(after_K)


def test_lagged_famo_takes_the_next_step_for_the_loss_after_the_update():
    ours, theirs, losses_SK = begin("famo"), scalarization.FAMO(K).double(), sequence()
    for before_K, now_K in pairwise(losses_SK):
        ours.on_step(before_K, ALL)
        torch.testing.assert_close(ours.weights(before_K, ALL), gradient(theirs, before_K), rtol=1e-9, atol=1e-12)
        theirs.update(now_K)


@pytest.mark.parametrize("by_epoch", [True, False])
def test_dwa_is_torchjds(by_epoch):
    ours = begin("dwa", temperature=1.5, interval=None if by_epoch else 3)
    theirs = scalarization.DWA(1.5)
    weights = []
    for step, losses_K in enumerate(sequence()):
        weights.append(ours.weights(losses_K, ALL))
        torch.testing.assert_close(weights[-1], gradient(theirs, losses_K), rtol=1e-12, atol=0)
        ours.on_step(losses_K, ALL)
        if step % 3 == 2:
            theirs.step()
            ours.on_epoch()
    assert torch.equal(weights[5], torch.ones(K)) and not torch.allclose(weights[6], torch.ones(K).double())


def test_weights_without_memory_are_torchjds():
    losses_K = sequence()[0]
    stch = {"mu": 0.3, "weights": {"a": 2.0, "d": 0.5}, "reference": {"d": 10.0}}
    preference_K = torch.tensor([2.0, 1.0, 1.0, 0.5], dtype=torch.float64) / 4.5
    reference_K = torch.tensor([0.0, 0.0, 0.0, 10.0], dtype=torch.float64)
    for ours, theirs in (
        (begin("uniform"), scalarization.Sum()),
        (begin("fixed"), scalarization.Constant(torch.tensor([0.5, 1.0, 2.0, 1.0], dtype=torch.float64))),
        (begin("scale"), scalarization.Constant(1 / torch.tensor([0.7, 0.1, 1.0, 30.0], dtype=torch.float64))),
        (begin("geometric_mean", exact=True), scalarization.GeometricMean()),
        (begin("stch", **stch), scalarization.STCH(0.3, preference_K, reference_K)),
    ):
        torch.testing.assert_close(ours.weights(losses_K, ALL), gradient(theirs, losses_K), rtol=1e-12, atol=0)
    # By hand: the geometric mean of 8 and 2 is 4, so 4 / (2 * 8) and 4 / (2 * 2).
    pair = begin("geometric_mean", ["a", "b"]).weights(torch.tensor([8.0, 2.0], dtype=torch.float64), ALL[:2])
    torch.testing.assert_close(pair, torch.tensor([0.25, 1.0], dtype=torch.float64))


def test_random_weights_are_torchjds_and_leave_its_generator_alone():
    state = torch.get_rng_state()
    weights_SK = live(begin("random"), sequence(400))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(weights_SK.sum(1), torch.ones(400).double())
    assert (weights_SK > 0).all() and torch.allclose(weights_SK.mean(0), torch.full((K,), 0.25).double(), atol=0.03)
    assert torch.equal(weights_SK, live(begin("random"), sequence(400)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3 * 1_000_003)
        torch.testing.assert_close(gradient(scalarization.Random(), sequence()[0]), weights_SK[0])


def test_gradnorm_is_the_papers_algorithm():
    alpha, lr = 0.8, 0.05
    ours, weights_K = begin("gradnorm", alpha=alpha, lr=lr), torch.ones(K, dtype=torch.float64, requires_grad=True)
    optimizer, losses_SK = torch.optim.Adam([weights_K], lr=lr), sequence()
    for losses_K, norms_K in zip(losses_SK, sequence(seed=5)):
        torch.testing.assert_close(ours.weights(losses_K, ALL), weights_K.detach(), rtol=1e-12, atol=0)
        ours.on_gradients(norms_K, ALL)
        ours.on_step(losses_K, ALL)
        ratio_K = losses_K / losses_SK[0]
        weighted_K = weights_K * norms_K
        target_K = (weighted_K.mean() * (ratio_K / ratio_K.mean()) ** alpha).detach()
        optimizer.zero_grad()
        (weighted_K - target_K).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            weights_K.mul_(K / weights_K.sum())
    # By hand: norms of 2 and 1 and equal rates want 1.5 of both, so Adam's first step moves the weights by lr.
    two = begin("gradnorm", ["a", "b"])
    two.on_gradients(torch.tensor([2.0, 1.0], dtype=torch.float64), ALL[:2])
    two.on_step(torch.ones(2).double(), ALL[:2])
    torch.testing.assert_close(two.weights(torch.ones(2), ALL[:2]), torch.tensor([0.975, 1.025], dtype=torch.float64))


def test_coba_is_the_papers_formula():
    losses_SK, history, tau = sequence(), 4, 5.0
    ours = begin("coba", history=history, tau=tau)
    ratios = (losses_SK / losses_SK[0]).numpy()
    slopes, largest, factors = [], [], []

    def softmax(values):
        exponentials = np.exp(values - np.max(values))
        return exponentials / exponentials.sum()

    for evaluation, losses_K in enumerate(losses_SK):
        ours.on_evaluate(losses_K, ALL)
        weights_K = ours.weights(losses_K, ALL).numpy()
        if evaluation == 0:
            assert weights_K == pytest.approx([0.25] * K)
            continue
        window = ratios[max(0, evaluation - history + 1) : evaluation + 1]
        slopes.append(np.array([np.polyfit(np.arange(len(window)), window[:, task], 1)[0] for task in range(K)]))
        largest.append(slopes[-1].max())
        recent = np.array(slopes[-history:])
        relative = softmax(K * slopes[-1] / np.abs(slopes[-1]).sum())
        absolute = softmax(-len(recent) * slopes[-1] / np.abs(recent).sum(0))
        count = len(largest)
        factors.append(min(count * softmax(-tau * count * np.array(largest) / np.abs(largest).sum())[-1], 1))
        assert weights_K == pytest.approx(factors[-1] * relative + (1 - factors[-1]) * absolute, rel=1e-9)
    assert min(factors) < 0.9 and max(factors) == 1  # both scores have had their say


def test_coba_by_hand():
    """Two tasks, two evaluations: slopes of 0 and -0.5, and no past but this, so the relative score alone."""
    ours = begin("coba", ["a", "b"])
    ours.on_evaluate(torch.tensor([1.0, 2.0], dtype=torch.float64), ALL[:2])
    ours.on_evaluate(torch.tensor([1.0, 1.0], dtype=torch.float64), ALL[:2])
    faster = np.exp(-2) / (1 + np.exp(-2))  # softmax of (2 * 0 / 0.5, 2 * -0.5 / 0.5)
    assert ours.weights(torch.ones(2), ALL[:2]).tolist() == pytest.approx([1 - faster, faster])


# What all have in common


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", BALANCING)
def test_weights_are_as_finite_as_the_losses(name, exact):
    draw = np.random.default_rng(1)
    losses_SK = torch.tensor(10.0 ** draw.uniform(-35, 38, (40, K)))
    losses_SK[3], losses_SK[7, 2], losses_SK[8:12, 1] = 0.0, 0.0, 3e38
    weights_SK = live(begin(name, exact=exact), losses_SK)
    assert weights_SK.isfinite().all() and (weights_SK >= 0).all() and (weights_SK.sum(1) > 0).all()


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l"])
def test_the_weight_of_a_task_that_is_done_does_not_grow_for_ever(name):
    losses_SK = torch.tensor([[0.0, 1.0, 1.0, 1.0]]).double().repeat(1000, 1)
    assert live(begin(name, lr=0.1), losses_SK).max() < 1e10  # a hundred e-folds would be more than float32 holds


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", [name for name in BALANCING if name != "random"])
def test_the_order_of_tasks_does_not_matter(name, exact):
    order = [2, 0, 3, 1]
    one = live(begin(name, exact=exact), sequence())
    other = live(begin(name, [TASKS[place] for place in order], exact=exact), sequence()[:, order])
    torch.testing.assert_close(one[:, order], other, rtol=1e-9, atol=1e-12)


def of_task(state, task):
    """What a state says of one task: its place in every list of K."""
    if isinstance(state, dict):
        return {key: found for key, value in state.items() if (found := of_task(value, task)) is not None}
    return state[task] if isinstance(state, list) and len(state) == K and not isinstance(state[0], list) else None


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", [name for name in BALANCING if name != "coba"])
def test_absent_tasks_keep_their_state(name, exact):
    balancer, losses_SK = begin(name, exact=exact), sequence()
    live(balancer, losses_SK[:5])
    before = balancer.state_dict()
    without_c = torch.tensor([True, True, False, True]).expand(4, K)
    weights_SK = live(balancer, losses_SK[5:9], without_c)
    assert (weights_SK[:, 2] == 0).all() and (weights_SK[:, [0, 1, 3]] > 0).all()
    if name == "dwa":  # two epochs rolled over what the steps before had begun to count
        return
    assert of_task(balancer.state_dict(), 2) == of_task(before, 2)
    if balancer.remembered and name != "random":
        assert of_task(balancer.state_dict(), 1) != of_task(before, 1)


def test_a_task_that_an_epoch_does_not_have_keeps_its_averages():
    balancer, losses_SK = begin("dwa", interval=None), sequence()
    without_c = torch.tensor([True, True, False, True]).expand(2, K)
    for first in (0, 2):
        live(balancer, losses_SK[first : first + 2])
    before = of_task(balancer.state_dict(), 2)
    live(balancer, losses_SK[4:6], without_c)
    assert of_task(balancer.state_dict(), 2) == before


def test_a_task_that_is_not_evaluated_keeps_its_slope():
    balancer, losses_SK = begin("coba"), sequence()
    for losses_K in losses_SK[:6]:
        balancer.on_evaluate(losses_K, ALL)
    balancer.on_evaluate(losses_SK[6], torch.tensor([True, True, False, True]))
    assert balancer.ratios_SK[-1, 2] == balancer.ratios_SK[-2, 2] and balancer.first_K[2] == losses_SK[0, 2]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", BALANCING)
def test_a_run_goes_on_from_its_state_to_the_bit(name, exact):
    for stop in (0, 1, 5, 6):
        losses_SK = sequence()
        present_SK = torch.tensor(np.random.default_rng(2).random((12, K)) < 0.7)
        alone, stopped = begin(name, exact=exact), begin(name, exact=exact)
        expected = live(alone, losses_SK, present_SK)
        if stop:
            assert torch.equal(live(stopped, losses_SK[:stop], present_SK[:stop]), expected[:stop])
        saved = json.loads(json.dumps(stopped.state_dict(), allow_nan=False))
        resumed = begin(name, exact=exact)
        live(resumed, sequence(3, seed=9))
        resumed.begin(TASKS, seed=3, constants=dict(zip(TASKS, [0.7, 0.1, 1.0, 30.0])))  # forgets that
        resumed.load_state_dict(saved)
        # Steps of the run are told odd from even by their number, so begin at an even one.
        if stop % 2:
            continue
        assert torch.equal(live(resumed, losses_SK[stop:], present_SK[stop:]), expected[stop:])
        assert resumed.state_dict() == alone.state_dict()


def test_history_that_torchjd_leaves_out_of_its_state_is_in_ours():
    """The reason for building the scalarizers anew from a state of our own."""
    theirs = scalarization.DWA()
    for losses_K in sequence(4):
        theirs(losses_K)
        theirs.step()
    assert theirs.state_dict() == {}
    famo = scalarization.FAMO(K).double()
    famo(sequence()[0])
    famo.update(sequence()[1])
    assert set(famo.state_dict()) == {"_w", "min_losses"}  # neither Adam's means nor the losses before
    assert set(begin("dwa").state_dict()) >= {"older_K", "newer_K", "sum_K", "count_K"}
    assert set(begin("famo").state_dict()) == {"logits_K", "adam", "before_K", "known_K"}


@pytest.mark.parametrize("name", BALANCING)
def test_one_task_alone_keeps_its_direction(name):
    balancer = build_balancer(name, {"weights": {"a": 2.0}} if name == "fixed" else {})
    balancer.begin(["a"], constants={"a": 0.5})
    weights_SK = live(balancer, sequence()[:, :1])
    assert (weights_SK > 0).all() and weights_SK.isfinite().all()


@pytest.mark.parametrize("name", BALANCING)
def test_docstrings_cite_the_paper_and_every_argument(name):
    kind = BALANCING[name]
    text = inspect.getdoc(kind)
    assert re.search(r"https://|not from a paper", text) and ":math:" in text
    assert re.search(r"Weights (come from|do not depend on)", " ".join(text.split()))
    for argument in inspect.signature(kind).parameters:
        assert re.search(rf"^    {argument}: ", text, flags=re.MULTILINE), argument


# Mistakes


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("uncertainity", {}, r"should be one of none, uniform, .* Did you mean 'uncertainty'\?"),
        ("uw", {}, r"Did you mean 'uncertainty'\?"),
        ("GLS", {}, r"Did you mean 'geometric_mean'\?"),
        ("none", {"exact": True}, r"needs a balancing. Set one, or remove it."),
        (
            "dwa",
            {"temprature": 2},
            r"The arguments of balancing 'dwa' are temperature, interval, exact. .* Did you mean 'temperature'\?",
        ),
        ("dwa", {"temperature": 0}, r"`temperature` should be a number above 0. Found `temperature = 0`."),
        ("dwa", {"interval": 0}, r"`interval` should be a whole number of steps, 1 or more."),
        ("fixed", {}, r"needs `weights` by task. Add them to balancing_kwargs."),
        ("fixed", {"weights": {"a": -1}}, r"`weights\['a'\]` should be a number of 0 or more."),
        ("fixed", {"weights": 2}, r"`weights` should be a mapping from tasks to numbers."),
        ("stch", {"mu": float("nan")}, r"`mu` should be a number above 0."),
        ("famo", {"lr": "fast"}, r"`lr` should be a number of 0 or more."),
        ("coba", {"history": 1}, r"`history` should be a whole number of evaluations, 2 or more."),
        ("scale", {"losses": {"a": 0}}, r"`losses\['a'\]` should be a number above 0."),
        ("random", {"exact": 1}, r"`exact` should be true or false."),
    ],
)
def test_mistakes_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_balancer(name, kwargs)


def test_foreign_tasks_and_states_are_named():
    with pytest.raises(ValueError, match=r"names 'sentimant', which is not a task. Did you mean 'sentiment'\?"):
        build_balancer("fixed", {"weights": {"sentimant": 1}}).begin(["sentiment", "ner"])
    with pytest.raises(ValueError, match=r"names '1', which is not a task. The tasks are sentiment, ner."):
        build_balancer("fixed", {"weights": {1: 1}}).begin(["sentiment", "ner"])
    with pytest.raises(ValueError, match=r"Task 'b': balancing 'scale' needs the loss of its best constant answer"):
        build_balancer("scale", {"losses": {"a": 1}}).begin(["a", "b"], constants={"b": 0.0})
    with pytest.raises(ValueError, match=r"The state of FAMO should contain logits_K, .* Found drawn."):
        begin("famo").load_state_dict({"drawn": 3})
    assert FAMO().tasks == []
