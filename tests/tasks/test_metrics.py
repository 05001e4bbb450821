"""Metrics on numbers worked by hand."""

import numpy as np
import pytest

from hf_multitask.tasks.metrics import Accuracy, BinaryF1, Correlation, MicroF1, SpanF1


def test_accuracy_and_f1():
    # Three of five right; class 1: 2 hits, 1 false alarm, 1 miss.
    given = {"predictions": [1, 1, 1, 0, 0], "references": [1, 1, 0, 1, 0]}
    assert Accuracy().compute(**given) == {"accuracy": pytest.approx(3 / 5)}
    assert BinaryF1().compute(**given) == {"f1": pytest.approx(2 / 3)}


def test_nothing_to_measure_is_0():
    none = np.array([], dtype=int)
    assert Accuracy().compute(predictions=none, references=none) == {"accuracy": 0.0}
    assert set(SpanF1().compute(predictions=[[]], references=[[]]).values()) == {0.0}


def test_unseen_class_is_a_miss_of_no_class():
    given = {"predictions": [1, 0, 1], "references": [1, 2, 2]}
    assert Accuracy().compute(**given) == {"accuracy": pytest.approx(1 / 3)}
    assert BinaryF1().compute(**given) == {"f1": pytest.approx(2 / 3)}


def test_micro_f1_counts_over_all_classes():
    # 2 hits, 1 false alarm, 2 misses.
    given = {"predictions": np.array([[1, 0, 0], [1, 1, 0]]), "references": np.array([[1, 1, 0], [1, 0, 1]])}
    assert MicroF1().compute(**given) == {"micro_f1": pytest.approx(4 / 7)}


def test_correlations():
    given = {"predictions": np.array([[1.0], [2.0], [4.0]]), "references": np.array([[1.0], [3.0], [2.0]])}
    result = Correlation().compute(**given)
    assert result["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 2])[0, 1])
    assert result["spearmanr"] == pytest.approx(0.5)
    constant = {"predictions": np.array([[1.0], [1.0]]), "references": np.array([[1.0], [3.0]])}
    assert Correlation().compute(**constant) == {"pearson": 0.0, "spearmanr": 0.0}


def test_spans_must_match_whole():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    guess = [["B-PER", "O", "O", "B-LOC"], ["O", "O"]]  # one hit, one false alarm, two misses
    result = SpanF1().compute(predictions=guess, references=true)
    assert result == {
        "f1": pytest.approx(0.4),
        "precision": pytest.approx(1 / 2),
        "recall": pytest.approx(1 / 3),
        "accuracy": pytest.approx(4 / 6),
    }
