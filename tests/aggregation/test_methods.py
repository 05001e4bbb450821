"""Every method against torchjd on the whole Jacobian, and what is done where a method has no answer."""

import sys

import pytest
import torch
import torchjd.aggregation as torchjd

from hf_multitask.aggregation import AGGREGATORS, Blocks, GramianAggregator, as_aggregator, build_aggregator, combine
from hf_multitask.aggregation.fairness import fair_weights

TASKS = ("a", "b", "c", "d")
# By name: arguments, torchjd's own, and what its answer is multiplied by; "mean" for those whose weights average 1.
REFERENCES = {
    "pcgrad": ({}, lambda: torchjd.PCGrad(), 1),
    "gradvac": ({"beta": 0.5}, lambda: torchjd.GradVac(beta=0.5), 1),
    "cagrad": ({"c": 0.4}, lambda: torchjd.CAGrad(c=0.4), "K"),
    "mgda": ({}, lambda: torchjd.MGDA(), "K"),
    "imtl_g": ({}, lambda: torchjd.IMTLG(), "K"),
    "nash_mtl": ({}, lambda: torchjd.NashMTL(4, max_norm=0.0, optim_niter=200), "direction"),
    "aligned_mtl": ({}, lambda: torchjd.AlignedMTL(), "K"),
    "fairgrad": ({"alpha": 2.0}, lambda: torchjd.FairGrad(alpha=2.0), "direction"),
    "upgrad": ({}, lambda: torchjd.UPGrad(), "K"),
    "dualproj": ({}, lambda: torchjd.DualProj(), "K"),
    "config": ({}, lambda: torchjd.ConFIG(), 1),
    "graddrop": ({"leak": {"b": 0.3}}, lambda: torchjd.GradDrop(leak=torch.tensor([0, 0.3, 0, 0]).double()), 1),
    "pcd": ({"primary": "a"}, lambda: torchjd.PCD(), 1),
    "cr_mogm": (
        {"method": "upgrad", "alpha": 0.7},
        lambda: torchjd.GramianWeightedAggregator(torchjd.CRMOGMWeighting(torchjd.UPGradWeighting(), alpha=0.7)),
        "K",
    ),
    "krum": ({"n_selected": 2}, lambda: torchjd.Krum(n_byzantine=0, n_selected=2), "K"),
    "trimmed_mean": ({"trim_number": 1}, lambda: torchjd.TrimmedMean(1), "K"),
    "constant": ({"weights": {"b": 3.0}}, lambda: torchjd.Constant(torch.tensor([1.0, 3.0, 1.0, 1.0]).double()), 1),
    "random": ({}, lambda: torchjd.Random(), "K"),
    "mean": ({}, lambda: torchjd.Mean(), 1),
    "sum": ({}, lambda: torchjd.Sum(), 1),
}


def jacobian(seed=0, tasks=4, entries=60):
    """Gradients that pull apart, and are of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    matrix_KP = torch.randn(tasks, entries, generator=generator, dtype=torch.float64)
    matrix_KP[1] -= matrix_KP[0]
    matrix_KP[2:3] *= 3
    return matrix_KP


def combined(aggregator, matrix_KP, tasks=TASKS, seed=5):
    """One gradient of those of the rows of a matrix, for one parameter, and what came of the step."""
    parameter = torch.nn.Parameter(matrix_KP[0].clone())
    blocks = Blocks([parameter])
    blocks.begin(len(matrix_KP))
    for number, gradient in enumerate(matrix_KP):
        blocks.add(parameter, number, gradient)
    blocks.close()
    outcome = combine(aggregator, blocks, tasks, seed=seed)
    return parameter.grad, outcome


def test_every_method_has_a_reference():
    assert set(REFERENCES) == set(AGGREGATORS)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP")
@pytest.mark.parametrize("name", REFERENCES)
def test_method_agrees_with_torchjd_on_the_whole_jacobian(name, record_property):
    kwargs, reference, factor = REFERENCES[name]
    ours, theirs = build_aggregator(name, kwargs), reference()
    for step in range(3):
        matrix_KP = jacobian(step)
        with torch.random.fork_rng():
            torch.manual_seed(step)
            expected = theirs(matrix_KP)
        found, outcome = combined(ours, matrix_KP, seed=step)
        assert outcome.problem is None
        if factor == "direction":
            expected = expected * found.norm() / expected.norm()
            assert outcome.weights.mean() == pytest.approx(1)
        else:
            expected = expected * (4 if factor == "K" else factor)
        difference = float((found - expected).norm() / expected.norm())
        record_property(f"{name}, step {step}, relative norm", difference)
        assert difference < 1e-5


@pytest.mark.parametrize(
    "name", [name for name in REFERENCES if name not in ("constant", "random", "mean", "krum", "cagrad")]
)
def test_gradients_that_are_alike_sum_as_in_the_plain_loss(name):
    matrix_KP = jacobian()[:1].repeat(4, 1)
    found, outcome = combined(build_aggregator(name, REFERENCES[name][0]), matrix_KP)
    if name == "pcd":  # as long as the primary gradient
        matrix_KP = matrix_KP[:1]
    assert outcome.problem is None
    torch.testing.assert_close(found, matrix_KP.sum(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", REFERENCES)
def test_size_of_all_losses_together_changes_nothing(name):
    kwargs = REFERENCES[name][0] | ({"eps": 0.0} if name == "pcd" else {})
    found, _ = combined(build_aggregator(name, kwargs), jacobian())
    for scale in (1e-6, 1e5):
        scaled, outcome = combined(build_aggregator(name, kwargs), jacobian() * scale)
        assert outcome.problem is None
        torch.testing.assert_close(scaled / scale, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad"])
def test_losses_in_the_thousands_beside_small_ones_do_not_stall(name):
    matrix_KP = jacobian()
    matrix_KP[3] *= 1e4
    found, outcome = combined(build_aggregator(name), matrix_KP)
    assert outcome.problem is None
    assert (outcome.weights > 0).all() and outcome.weights.mean() == pytest.approx(1)
    assert (matrix_KP @ found > 0).all()  # a descent direction of every task
    power = 1.0 if name == "nash_mtl" else 2.0
    weights_K = outcome.weights
    residual_K = (outcome.gramian @ weights_K) * weights_K ** (1 / power)
    assert float(residual_K.std() / residual_K.mean()) < 1e-8  # G w = w^(-1/alpha), up to the common factor


@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
def test_short_gradient_beside_a_long_one_is_protected_as_far_as_the_regularisation_lets(name):
    matrix_KP = jacobian()
    matrix_KP[0] *= 300
    lowest = {}
    for reg_eps in (1e-4, 1e-10):
        found, outcome = combined(build_aggregator(name, {"reg_eps": reg_eps}), matrix_KP)
        assert outcome.problem is None
        lowest[reg_eps] = float((matrix_KP @ found / matrix_KP.norm(dim=1) / found.norm()).min())
    assert lowest[1e-4] < -0.1 and lowest[1e-10] > -1e-4


@pytest.mark.parametrize("name", REFERENCES)
def test_task_without_a_gradient_takes_no_part(name):
    kwargs = dict(REFERENCES[name][0])
    matrix_KP = jacobian()
    matrix_KP[1] = 0
    if name == "krum":
        kwargs["n_selected"] = 1
    found, outcome = combined(build_aggregator(name, kwargs), matrix_KP)
    rest, _ = combined(build_aggregator(name, kwargs), matrix_KP[[0, 2, 3]], ("a", "c", "d"))
    assert outcome.problem is None
    torch.testing.assert_close(found, rest)


@pytest.mark.parametrize("name", REFERENCES)
def test_one_task_keeps_its_plain_gradient(name):
    found, outcome = combined(build_aggregator(name, REFERENCES[name][0]), jacobian()[:1], ("a",))
    assert outcome.problem is None
    assert torch.equal(found, jacobian()[0])


@pytest.mark.parametrize("name", [name for name in REFERENCES if name not in ("krum", "trimmed_mean")])
def test_more_tasks_than_dimensions_are_combined(name):
    tasks = [*TASKS, *(f"e{number}" for number in range(6))]
    matrix_KP = jacobian(2, 10, 3)
    matrix_KP[:, 0] = matrix_KP[:, 0].abs() + 0.5  # all of them have a direction in common
    found, outcome = combined(build_aggregator(name, REFERENCES[name][0]), matrix_KP, tasks)
    assert found.isfinite().all() and found.norm() > 0
    assert outcome.problem is None


def test_gradients_that_cancel_take_the_plain_sum_and_say_so():
    matrix_KP = torch.stack([jacobian()[0], -jacobian()[0]])
    found, outcome = combined(build_aggregator("nash_mtl"), matrix_KP, ("a", "b"))
    assert "no fair weights" in outcome.problem
    assert outcome.weights.tolist() == [1, 1]
    assert torch.equal(found, matrix_KP.sum(0))


def test_gradient_that_is_not_finite_is_named_and_asks_no_method():
    matrix_KP = jacobian()
    matrix_KP[2, 7] = float("nan")
    _, outcome = combined(build_aggregator("gradvac"), matrix_KP)
    assert outcome.problem == "the gradient of c is not finite"


class Failing(GramianAggregator):
    """A solver that gives up."""

    def weights(self, gramian_KK, tasks):
        raise ArithmeticError("solver gave up after 7 iterations.")


def test_method_that_fails_takes_the_plain_sum_and_says_why():
    found, outcome = combined(Failing(), jacobian())
    assert outcome.problem == "solver gave up after 7 iterations"
    torch.testing.assert_close(found, jacobian().sum(0))


@pytest.mark.parametrize("name", ["gradvac", "pcd", "cr_mogm"])
def test_state_goes_on_and_absent_tasks_keep_theirs(name):
    kwargs = REFERENCES[name][0]
    whole, first = build_aggregator(name, kwargs), build_aggregator(name, kwargs)
    for step in range(4):
        if step == 2:
            second = build_aggregator(name, kwargs)
            second.load_state_dict(first.state_dict())
            first = second
        present = [0, 1, 3] if step == 1 else [0, 1, 2, 3]
        names = tuple(TASKS[number] for number in present)
        one, _ = combined(whole, jacobian(step)[present], names)
        other, _ = combined(first, jacobian(step)[present], names)
        assert torch.equal(one, other)
    before = str(whole.state_dict())
    combined(whole, jacobian(9)[[0, 1]], ("a", "b"))
    after = whole.state_dict()
    kept = {"gradvac": lambda state: state["targets"]["c"], "pcd": lambda state: state["averages"]["c"]}
    kept["cr_mogm"] = lambda state: state["smoothed"]["c"]
    assert str(kept[name](after)) in before


def test_draws_come_from_the_seed_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, _ = combined(build_aggregator("pcgrad"), jacobian(), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, _ = combined(build_aggregator("pcgrad"), jacobian(), seed=4)
    other, _ = combined(build_aggregator("pcgrad"), jacobian(), seed=5)
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_fair_weights_solve_the_equation_of_the_paper():
    gramian_KK = jacobian() @ jacobian().T
    for alpha in (0.5, 1.0, 2.0, 10.0):
        weights_K = fair_weights(gramian_KK, alpha)
        torch.testing.assert_close(gramian_KK @ weights_K, weights_K ** (-1 / alpha), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("pcgrd", {}, "should be one of none, pcgrad.*Did you mean 'pcgrad'"),
        ("modo", {}, "'modo' is not supported: it needs gradients of two or three independent parts"),
        ("none", {"c": 1}, "needs an aggregation"),
        ("cagrad", {"cc": 1}, "has no argument `cc`.*arguments are c, norm_eps.*Did you mean 'c'"),
        ("pcgrad", {"c": 1}, "has no argument `c` for aggregation_kwargs; it has no arguments"),
        ("cagrad", {"c": -1}, "cannot use aggregation_kwargs.*`c` should be a number of 0 or more"),
        ("pcd", {}, "'pcd' needs `primary`"),
        ("cr_mogm", {"method": "graddrop"}, "'graddrop' has none"),
        ("fairgrad", {"alpha": 0}, "`alpha` should be a number above 0"),
        ("fairgrad", {"alpha": float("inf")}, "`alpha` should be a number above 0"),
        ("cagrad", {"c": float("nan")}, "`c` should be a number of 0 or more. Found `c = nan`"),
        ("mgda", {"max_iters": 1.5}, "`max_iters` should be a whole number of 1 or more"),
        ("krum", {"n_byzantine": 1.5}, "`n_byzantine` should be a whole number of 0 or more"),
        ("trimmed_mean", {"trim_number": float("nan")}, "`trim_number` should be a whole number of 0 or more"),
        ("constant", {"weights": {"a": "2"}}, r"`weights\['a'\]` should be a number. Found"),
        ("constant", {"weights": None}, "`weights` should be a mapping from tasks to numbers. Found None"),
        ("upgrad", {"reg_eps": "small"}, "`reg_eps` should be a number of 0 or more"),
    ],
)
def test_unusable_arguments_are_named(name, kwargs, words):
    with pytest.raises(ValueError, match=words):
        build_aggregator(name, kwargs)


@pytest.mark.parametrize(("name", "module"), [("cagrad", "cvxpy"), ("upgrad", "qpsolvers"), ("mgda", "torchjd")])
def test_missing_solver_is_named_with_the_line_that_installs_it(name, module, monkeypatch):
    for loaded in [other for other in sys.modules if other.split(".")[0] in (module, "torchjd")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    if module != "torchjd":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else True)
    with pytest.raises(ImportError, match=rf"'{name}' needs .*{module}.*pip install 'hf_multitask\[aggregation\]'"):
        build_aggregator(name)


def test_weighting_of_torchjd_is_taken_as_it_is():
    for given in (torchjd.UPGradWeighting(), torchjd.UPGrad()):
        found, _ = combined(as_aggregator(given), jacobian())
        torch.testing.assert_close(found, torchjd.UPGrad()(jacobian()))
    found, _ = combined(as_aggregator(torchjd.Mean()), jacobian())
    torch.testing.assert_close(found, jacobian().mean(0))


def test_object_that_cannot_save_what_it_remembers_is_refused():
    with pytest.raises(TypeError, match=r"GradVac\w* of torchjd has a state.*Set its name"):
        as_aggregator(torchjd.GradVac())
    with pytest.raises(TypeError, match=r"`aggregator` should be a GramianAggregator.*Found str"):
        as_aggregator("upgrad")
