"""The two-objective problem of CAGrad and Nash-MTL: which methods reach the front, from which starting points."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def toy():
    spec = importlib.util.spec_from_file_location("toy_conflict", BENCHMARKS / "toy_conflict.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_conflict"] = module
    spec.loader.exec_module(module)
    return module


def test_gradients_by_hand_are_those_of_autograd(toy):
    for first, second in [*toy.STARTS, (0.3, -2.0), (3.0, -8.4)]:
        point = torch.tensor([first, second], dtype=torch.float64, requires_grad=True)
        values = toy.losses(point)
        expected = torch.stack([torch.autograd.grad(value, point, retain_graph=True)[0] for value in values])
        torch.testing.assert_close(toy.gradients(first, second), expected)


# Starting points, by their numbers, from which a method does not reach the front. UPGrad comes within 0.5 of it.
MISSED = {
    "sum": {2},
    "pcgrad": set(),
    "gradvac": set(),
    "cagrad": set(),
    "mgda": set(),
    "imtl_g": set(),
    "nash_mtl": set(),
    "aligned_mtl": set(),
    "fairgrad": set(),
    "upgrad": {2},
    "dualproj": {2},
    "config": set(),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", MISSED)
def test_front_is_reached_from_these_starting_points(method, toy):
    assert set(MISSED) == set(toy.METHODS)
    distances = [toy.distance(toy.descend(method, start, 10_000, 1e-2)[-1]) for start in toy.STARTS]
    assert {number for number, far in enumerate(distances) if far >= toy.FRONT} == MISSED[method], distances
