"""Pictures of learning curves, of few tasks and of many."""

import math

import pytest

from hf_multitask.hub.curves import draw
from hf_multitask.hub.history import Result, curves, gradients, primary_metrics, results

pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")


def made(count, metric="accuracy"):
    names = [f"task_{number:02d}" for number in range(count)]
    losses = {name: [(step, (1 + n) / step) for step in range(1, 9)] for n, name in enumerate(names)}
    metrics = {name: (metric, [(4, 0.5 / (1 + n)), (8, 1 / (1 + n))]) for n, name in enumerate(names)}
    return losses, metrics


def size_of(png):
    assert png.startswith(b"\x89PNG") and png.endswith(b"IEND\xaeB`\x82")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.mark.parametrize("count", [1, 2, 18, 50])
def test_both_panels_are_drawn_and_the_same_curves_give_the_same_bytes(count):
    first = draw(*made(count), description="a mark of ours")
    assert size_of(first)[0] > 1500 and b"a mark of ours" in first
    assert draw(*made(count), description="a mark of ours") == first


def test_one_panel_where_there_is_one_thing_to_show():
    losses, metrics = made(3)
    width, height = size_of(draw(losses, metrics))
    for picture in (draw(losses, {}), draw({}, metrics)):
        assert size_of(picture) == (width // 2, height)


def test_what_gradients_say_has_a_row_of_its_own():
    losses, metrics = made(3)
    names = list(losses)
    cosines = {(names[0], names[1]): -0.4, (names[1], names[2]): 1.0}
    width, height = size_of(draw(losses, metrics))
    assert size_of(draw(losses, metrics, norms=losses, cosines=cosines)) == (width, 2 * height)
    assert size_of(draw(losses, metrics, norms=losses)) == (width, 2 * height)
    assert size_of(draw(losses, {}, norms=losses)) == (width, height)
    many, _ = made(30)
    assert draw(many, {}, norms=many) == draw(many, {})


def test_values_that_are_no_numbers_and_names_with_signs_are_drawn():
    losses = {"a": [(1, math.nan), (2, 3.0)], "b": [(1, math.nan)], "c": [(1, 1e-3), (2, 1e3)]}
    size_of(draw(losses, {"a": ("cost_$\\frac$", [(2, 40.0)]), "c": ("f1", [(2, -1.0)])}))
    many, _ = made(30)
    many["task_03"] = [(1, 2.0), (2, math.inf)]
    size_of(draw(many, {}))


HISTORY = [
    {"loss": 3.0, "a_loss": 1.0, "a_share": 1.0, "a_b_loss": 2.0, "step": 1},
    {
        "eval_a_loss": 0.5,
        "eval_a_f1": 0.1,
        "eval_a_recall": 0.3,
        "eval_a_b_accuracy": 0.2,
        "eval_average": 0.15,
        "step": 1,
    },
    {"loss": 2.0, "a_loss": 0.5, "step": 2},
    {
        "eval_a_loss": 0.4,
        "eval_a_f1": 0.4,
        "eval_a_recall": 0.4,
        "eval_a_b_accuracy": 0.1,
        "eval_average": 0.25,
        "step": 2,
    },
    {"train_runtime": 1.0, "train_loss": 2.5, "step": 2},
    {"test_a_f1": 0.35, "test_a_b_accuracy": 0.25, "test_average": 0.3, "step": 2},
]


def test_curves_are_of_the_training_and_go_to_the_task_with_the_longer_name():
    losses, metrics = curves(HISTORY, ["a", "a_b"])
    assert losses == {"a": [(1, 1.0), (2, 0.5)], "a_b": [(1, 2.0)]}
    assert metrics == {"a": ("f1", [(1, 0.1), (2, 0.4)]), "a_b": ("accuracy", [(1, 0.2), (2, 0.1)])}
    again = {"eval_a_f1": 0.1, "eval_a_b_accuracy": 0.2, "eval_average": 0.15, "step": 2}
    assert curves([*HISTORY, again], ["a", "a_b"]) == (losses, metrics)  # of the best model, measured again at the end


def test_gradients_have_their_norms_by_step_and_the_last_cosine_of_every_pair():
    history = [
        {"loss": 3.0, "a_grad_norm": 1.0, "grad_norm": 7.0, "a_b_grad_norm": 2.0, "cosine/a/a_b": 0.5, "step": 1},
        {"loss": 2.0, "a_grad_norm": 0.5, "cosine/a/c": 0.1, "step": 2},
        {"loss": 2.0, "a_loss": 0.5, "step": 3},
        {"train_runtime": 1.0, "step": 3},
        {"loss": 2.0, "a_grad_norm": 9.0, "cosine/a/a_b": 0.9, "step": 4},
    ]
    norms, cosines = gradients(history, ["a", "a_b", "c"])
    assert norms == {"a": [(1, 1.0), (2, 0.5)], "a_b": [(1, 2.0)]}
    assert cosines == {("a", "a_b"): 0.5, ("a", "c"): 0.1}
    assert gradients([{"loss": 1.0, "cosine/mean": 0.1, "cosine/a/c": -0.1}], ["a", "c"]) == ({}, {})


def test_results_are_those_of_the_saved_weights():
    def found(**kwargs):
        return {
            (one.split, one.task, one.metric): (one.value, one.step) for one in results(HISTORY, ["a", "a_b"], **kwargs)
        }

    assert found()["validation", "a", "f1"] == (0.4, 2) and found()["test", None, "average"] == (0.3, 2)
    assert found(best=1)["validation", "a", "f1"] == (0.1, 1) and found(best=1)["test", "a", "f1"] == (0.35, 1)
    assert primary_metrics(results(HISTORY, ["a", "a_b"])) == {"a": "f1", "a_b": "accuracy"}
    assert results(HISTORY, ["a"])[0] == Result("validation", "a", "loss", 0.4, 2)
