"""Tasks of a shared model beside models of their own."""

import math

import numpy as np
import pytest

from hf_multitask import MultiTaskConfig
from hf_multitask.hub import Run
from hf_multitask.hub.beside import Beside, beside, beside_in_words, beside_rows, noise
from hf_multitask.hub.history import results

HISTORY = [
    {"eval_ner_loss": 1.0, "eval_ner_f1": 0.6, "eval_a_b_accuracy": 0.9, "eval_average": 0.75, "step": 3},
    {"test_ner_f1": 0.5, "test_a_b_accuracy": 0.8, "test_average": 0.65, "step": 3},
]
ALONE = {"ner": {"eval_ner_f1": 0.7, "test_ner_f1": 0.8, "eval_ner_loss": 0.1}, "a_b": {"eval_a_b_accuracy": 0.85}}
ROWS = {"validation": {"ner": 100, "a_b": 400}, "test": {"ner": 100, "a_b": 100}}


def test_primary_metrics_are_compared_by_split():
    found = beside(results(HISTORY, ["ner", "a_b"]), ALONE, ROWS)
    assert [(one.task, one.split, one.metric, one.shared, one.alone) for one in found] == [
        ("ner", "validation", "f1", 0.6, 0.7),
        ("a_b", "validation", "accuracy", 0.9, 0.85),
        ("ner", "test", "f1", 0.5, 0.8),
    ]
    error = math.sqrt((0.5 * 0.5 + 0.8 * 0.2) / 100)
    assert found[2].error == pytest.approx(error)
    assert found[2].flat() == pytest.approx(
        {"test_ner_f1_single": 0.8, "test_ner_f1_difference": -0.3, "test_ner_f1_standard_error": error}
    )
    assert [one.loses for one in found] == [False, False, True]
    assert beside_rows(found)[3] == ["ner", "test", "f1", "0.5000", "0.8000", "-0.3000", f"{error:.4f}"]


def test_the_last_split_says_who_loses_and_what_to_do():
    found = beside(results(HISTORY, ["ner", "a_b"]), ALONE, ROWS)
    told = beside_in_words(found, ["ner", "a_b"])
    assert "on test" in told
    assert "ner (-0.3000 f1)" in told
    assert "task_lora" in told
    told = beside_in_words(found[:2], ["ner", "a_b", "qa"])
    assert told.startswith("No compared task is below its own model, on validation")
    assert told.endswith("Without a model of its own: qa.")
    assert beside_in_words([], ["ner"]) == ""


def test_every_task_counts_on_the_last_split_that_it_has_rows_of():
    found = beside(results([*HISTORY, {"test_a_b_accuracy": 0.8, "step": 3}], ["ner", "a_b"]), ALONE, ROWS)
    losing = Beside("ner", "validation", "f1", 0.3, 0.8, 0.05)
    other = Beside("a_b", "test", "accuracy", 0.9, 0.9, 0.05)
    told = beside_in_words([losing, other], ["ner", "a_b"])
    assert told.startswith("Sharing the model costs, on test or validation,") and "ner (-0.5000 f1)" in told
    assert "on test or validation" in beside_in_words([found[1], found[2]], ["ner", "a_b"])


def test_the_noise_of_a_correlation_is_that_of_its_distribution():
    draws = np.random.default_rng(0)
    for r in (-0.3, 0.0, 0.1, 0.8):
        pairs = draws.multivariate_normal([0, 0], [[1, r], [r, 1]], size=(4000, 200))
        values = [np.corrcoef(pair.T)[0, 1] for pair in pairs]
        for name in ("pearson", "spearmanr"):
            assert noise(r, 200, name) == pytest.approx(np.std(values), rel=0.06)
    assert noise(0.1, 200) < noise(0.1, 200, "matthews_correlation") < 0.08


def test_the_noise_is_that_of_the_rows_with_a_label():
    config = MultiTaskConfig(tasks=[{"name": "ner", "type": "token-classification", "dataset": "wiki"}])
    history = [{"eval_ner_f1": 0.6, "eval_average": 0.6, "step": 3}]
    given = {"arguments": None, "alone": {"ner": {"eval_ner_f1": 0.7}}, "rows": {"validation": {"wiki": 100}}}
    found = [
        Run(**given, labeled=labeled).beside(config, results(history, ["ner"]))[0].error
        for labeled in ({}, {"validation": {"ner": 25}})
    ]
    assert found[1] == pytest.approx(2 * found[0])


def test_noise_never_vanishes():
    assert noise(1.0, 100) == 0.01
    assert Beside("a", "test", "f1", 0.5, 0.5, 0.1).difference == 0
