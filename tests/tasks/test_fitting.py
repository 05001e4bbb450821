"""Thresholds and temperatures, against a search over all of them, and the calibration error worked by hand."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from hf_multitask import SequenceClassification
from hf_multitask.modeling.fitted import answered
from hf_multitask.tasks import build_task
from hf_multitask.tasks.fitting import calibration_error, fit_temperature, tuned_thresholds

DRAW = np.random.default_rng(0)
SETS = {"label_names": ["x", "y", "z"], "problem_type": "multi_label_classification"}
PAIR = {"label_names": ["no", "yes"], "problem_type": "single_label_classification"}


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_tuned_thresholds_are_the_best_of_all(average):
    true = DRAW.integers(0, 2, (6, 3))
    scores = np.clip(0.3 * true + DRAW.random((6, 3)) * 0.6, 0, 1)
    found = tuned_thresholds(scores, true, together=average == "micro")
    every = [np.concatenate([[0], np.sort(column) + 1e-9]) for column in scores.T]
    best = max(f1_score(true, scores >= one, average=average, zero_division=0) for one in product(*every))
    assert f1_score(true, scores >= found, average=average, zero_division=0) == pytest.approx(best)


def test_a_threshold_lies_between_scores_near_a_half_and_a_label_without_rows_keeps_a_half():
    scores = np.array([[0.9, 0.7], [0.4, 0.2], [0.1, 0.6]])
    assert tuned_thresholds(scores, np.array([[1, 0], [1, 0], [0, 0]]), together=False) == [pytest.approx(0.25), 0.5]
    assert tuned_thresholds(scores, np.array([[1, 0], [0, 0], [0, 0]]), together=False) == [pytest.approx(0.65), 0.5]


def test_no_threshold_lies_between_scores_that_are_almost_equal():
    scores = np.array([[0.6], [0.3 + 1e-7], [0.3], [0.1]])  # as of a text that is in two batches
    true = np.array([[1], [1], [0], [0]])
    assert tuned_thresholds(scores, true, together=False) == [pytest.approx(0.2)]


@pytest.mark.parametrize("kind", ["classes", "sets"])
def test_the_temperature_maximizes_the_likelihood(kind):
    logits = DRAW.normal(size=(400, 3))
    if kind == "classes":
        true = np.array([DRAW.choice(3, p=row) for row in torch.tensor(logits).softmax(-1).numpy()])
        loss = torch.nn.CrossEntropyLoss()
    else:
        true = (DRAW.random((400, 3)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        loss = torch.nn.BCEWithLogitsLoss()
    given, labels = torch.tensor(3 * logits), torch.tensor(true).double() if kind == "sets" else torch.tensor(true)
    found = minimize(lambda value: loss(given / float(value[0]), labels).item(), [2.0], method="Nelder-Mead").x[0]
    assert fit_temperature(3 * logits, true) == pytest.approx(found, rel=1e-3)
    assert 2 < found < 4  # the logits are those of the labels, times 3
    unknown = np.concatenate([true, true[:5] * 0 + 3]) if kind == "classes" else np.pad(true, ((0, 5), (0, 1)))
    rows = np.concatenate([3 * logits, np.zeros((5, 3))])
    assert fit_temperature(rows, unknown) == pytest.approx(found, rel=2e-2)


def test_calibration_error_by_hand():
    # Two rows of confidence 0.6, of which one is right, and two of 0.9, both right: the mean of 0.1 and 0.1.
    one, other = np.log([[0.6, 0.4]]), np.log([[0.1, 0.9]])
    logits = np.concatenate([one, one, other, other])
    assert calibration_error(logits, np.array([0, 1, 1, 1])) == pytest.approx(0.1)
    assert calibration_error(logits[:2], np.array([2, 2])) == pytest.approx(0.6)  # a class that the model does not have
    # Every label of a set is a decision: probabilities 0.8 and 0.2 of one row.
    assert calibration_error(np.log([[4, 0.25]]), np.array([[1, 0]])) == pytest.approx(0.2)


def test_a_label_is_answered_from_its_threshold_on():
    logits = torch.tensor([[0.3, -0.2, 0.0]])
    assert answered(SETS, logits)[1].tolist() == [[True, False, False]]
    assert answered({**SETS, "threshold": 0.45}, logits)[1].tolist() == [[True, True, True]]
    fitted = {"threshold": {"x": 0.7, "z": 0.4}, "temperature": 2.0}
    task = {**SETS, "threshold": "tune", "calibration": "temperature", "fitted": fitted}
    scores, told = answered(task, logits)
    torch.testing.assert_close(scores, (logits / 2).sigmoid())
    assert told.tolist() == [[False, False, True]]  # y, which has none yet, from a half on
    assert answered({**task, "threshold": 0.5}, logits)[1].tolist() == [[True, False, True]]
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert answered({**PAIR, "threshold": 0.2}, logits)[1].tolist() == [1, 1]
    assert answered({**PAIR, "threshold": "tune"}, logits)[1].tolist() == [0, 1]


@pytest.mark.parametrize("sets", [False, True])
def test_rankings_are_those_of_the_scores_that_are_answered(sets):
    """In float32 all scores of sure answers are 1, and a ranking by their logits would be another."""
    positive = 18 + np.arange(6, dtype=np.float32)[:, None] / 8
    logits, true = (
        (positive, np.array([[0], [1], [0], [1], [0], [1]]))
        if sets
        else (np.concatenate([np.zeros_like(positive), positive], 1), np.array([0, 1, 0, 1, 0, 1]))
    )
    kind = {"problem_type": "multi_label_classification", "label_names": ["x"]} if sets else PAIR
    task = SequenceClassification(metrics=["average_precision" if sets else "roc_auc"], **kind)
    scores = answered(task.to_dict(), torch.from_numpy(logits))[0][:, -1].numpy()
    wanted = (average_precision_score if sets else roc_auc_score)(true.ravel(), scores)
    assert list(task.measure(logits, true, []).values()) == [pytest.approx(wanted)] and len(set(scores)) < 6


def test_fit_keeps_what_it_found_by_label():
    logits, true = np.array([[1.0, 0.0], [1.0, 0.5], [0.0, 2.0]]), np.array([0, 1, 1])
    task = SequenceClassification(threshold="tune", calibration="temperature", **PAIR)
    assert task.fits == ["calibration", "threshold"] and task.reported_metrics[-2:] == ["ece", "ece_uncalibrated"]
    task.fit(logits, true)
    assert list(task.fitted["threshold"]) == ["yes"] and task.fitted["temperature"] > 0
    assert task.measure(logits, true, [])["f1"] == 1.0
    assert list(task.extra(logits, true)) == ["ece", "ece_uncalibrated"]
    assert SequenceClassification(threshold=0.4, **PAIR).fits == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"threshold": 1.2},
            r"`threshold` should be a probability between 0 and 1, or 'tune'. Found `threshold = 1.2`",
        ),
        ({"threshold": 0}, "`threshold` should be a probability"),
        ({"threshold": "tuned"}, "Did you mean 'tune'"),
        ({"threshold": True}, "`threshold` should be a number or a string"),
        ({"fitted": {"temperature": 0}}, "`fitted` should have a temperature above 0"),
        ({"calibration": "temprature"}, "`calibration` should be 'temperature'.* Did you mean 'temperature'"),
        ({"threshold": 0.4, "problem_type": "regression"}, "`threshold` is for classes.* Remove `threshold`"),
        ({"calibration": "temperature", "problem_type": "regression"}, "`calibration` is for classes"),
        ({**PAIR, "label_names": ["a", "b", "c"], "threshold": "tune"}, "and there are 3 classes. Remove `threshold`"),
    ],
)
def test_options_that_do_not_fit_fail_when_built(values, message):
    with pytest.raises(ValueError, match=f"Task 't': .*{message}"):
        build_task("t", {"type": "sequence-classification", **values})


def test_the_tags_of_a_chain_cannot_be_calibrated():
    values = {"type": "token-classification", "calibration": "temperature", "label_names": ["O", "B-X", "I-X"]}
    assert build_task("t", {**values, "decoding": "constrained"}).fits == ["calibration"]
    with pytest.raises(
        ValueError, match=r"Task 't': `calibration` divides the logits .* set `decoding = 'constrained'`"
    ):
        build_task("t", {**values, "decoding": "crf"})
