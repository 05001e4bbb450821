"""What metrics give: numbers, the first of which grows to 1, or a sentence that names task and metric."""

import math

import numpy as np
import pytest
import torch

from hf_multitask import MultiTaskTrainer
from hf_multitask.hub.records import ranked
from hf_multitask.tasks import build_task
from hf_multitask.training.evaluation.results import check_results
from hf_multitask.training.state.best import Best

TASK = build_task("s", {"type": "sequence-classification"})


@pytest.mark.parametrize(
    "value", [{"x": {"f1": 0.5}}, np.eye(2), [0.5], np.array([0.5]), torch.ones(2), "0.5", np.str_("1"), None, 1j]
)
@pytest.mark.parametrize("place", ["first", "second"])
def test_what_is_no_number_is_refused_with_task_and_metric(value, place):
    found = {"report": value, "accuracy": 0.5} if place == "first" else {"accuracy": 0.5, "report": value}
    with pytest.raises(ValueError, match=r"Task 's': its compute_metrics should return one number .* Found 'report': "):
        check_results(TASK, found, own=True)


def test_numbers_of_every_kind_are_taken():
    found = {
        "accuracy": np.float32(0.5),
        "one": torch.tensor(1.0),
        "two": np.array(2),
        "three": 3,
        "true": np.bool_(True),
        "half": torch.tensor(0.5, dtype=torch.bfloat16),
        "nan": math.nan,
    }
    values = check_results(TASK, found, own=True)
    assert list(values) == list(found) and {type(value) for value in values.values()} == {float}
    assert list(values.values())[:6] == [0.5, 1, 2, 3, 1, 0.5]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"perplexity": 0.5}, "'perplexity' first, .* grows when the model gets better. Put another one first"),
        ({"eval_loss": 0.1, "accuracy": 1.0}, "returns 'eval_loss' first"),
        ({"error_rate": 0.1}, "or 1 - error_rate under a name such as 'one_minus_error_rate'"),
        ({"speech_wer": 0.1}, "'speech_wer' first"),
        ({"accuracy": 87.5}, r"at most 1. Found accuracy = 87.5. Divide it by .* \(100 for percentages\), or put"),
        ({"score": math.inf}, "Found score = inf"),
        ({}, r"should return a dict of numbers, the primary one first. Found {}"),
        (0.5, "should return a dict of numbers, the primary one first. Found 0.5"),
        ({1: 0.5}, "one number for each name. Found 1: 0.5"),
    ],
)
def test_primary_metrics_that_do_not_grow_to_1_are_refused(found, message):
    with pytest.raises(ValueError, match=rf"Task 's': its compute_metrics .*{message}"):
        check_results(TASK, found, own=True)


def test_primary_metrics_below_0_are_fine_and_so_is_whatever_comes_second():
    for name in ("pearson", "matthews_correlation", "one_minus_wer", "neg_mse", "negative_f1"):
        assert check_results(TASK, {name: -0.5, "loss_of_words": 3.0, "wer": 40.0}, own=True)[name] == -0.5
    assert check_results(TASK, {"f1": 1.0000001}, own=False)["f1"] > 1


def test_nan_is_never_the_best():
    best = Best()
    assert not best.record({"a": ("f1", math.nan)}, 1) and best.waited == {"a": 1}
    assert best.record({"a": ("f1", -0.5)}, 2)
    assert not best.record({"a": ("f1", math.nan)}, 3)
    assert best.best == {"a": {"metric": "f1", "value": -0.5, "step": 2}} and best.waited == {"a": 1}
    best = Best()
    best.waited["a"] = 2
    assert best.finish({"a": 2}, 7) == ["Task 'a' stops at step 7: no finite metric in 2 evaluations."]
    measured = {"a": {"loss": 1.0, "f1": 0.1}, "b": {"loss": 1.0, "f1": math.nan}, "c": {"loss": 1.0, "f1": 0.0}}
    assert [task for task, _ in ranked(measured)[1]] == ["b", "c", "a"]
    assert [task for task, _ in ranked({task: {"loss": found["f1"]} for task, found in measured.items()})[1]] == [
        "b",
        "a",
        "c",
    ]


def test_own_metrics_are_checked_in_the_evaluation(build_model, data, arguments, tokenizer, caplog):
    given = {}

    def metrics(_):
        return given

    rows = data(8, 4, "validation")
    trainer = MultiTaskTrainer(
        build_model(),
        arguments(),
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics={"sentiment": metrics},
    )
    for wrong, message in [
        ({"accuracy": 0.5, "report": {"x": 1.0}}, r"Task 'sentiment': .* Found 'report': {'x': 1.0}"),
        ({"val_loss": 0.5}, r"Task 'sentiment': its compute_metrics returns 'val_loss' first"),
        ({"accuracy": 50.0}, r"Task 'sentiment': .* Found accuracy = 50"),
    ]:
        given = wrong
        with pytest.raises(ValueError, match=message):
            trainer.evaluate()
    given = {"auc": math.nan, "second": 0.5}
    found = trainer.evaluate()
    assert math.isnan(found["eval_sentiment_auc"]) and found["eval_average"] == found["eval_ner_f1"] / 2
    assert "Task 'sentiment': its primary metric 'auc' is nan. It counts as 0 in the average" in caplog.text
