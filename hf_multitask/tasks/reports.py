"""Details of an evaluation beside its metrics: classes, confusions, calibration and the sizes of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Details = dict[str, Any]
DENSE = 200  # classes up to which all confusions are reported; of more classes, the most frequent ones
NO_ANSWER = "(no answer)"  # of a word without a token
_PAIRS = 200
_WORST = 20
_QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)
_VALUES = ("precision", "recall", "f1", "support")


def of_classes(true: np.ndarray, told: np.ndarray, names: Sequence[str]) -> Details:
    """``classes``, with precision, recall, F1 and support of each, and ``confusion_matrix``, true classes as rows.

    Args:
        true: numbers of the classes (N,).
        told: the answers (N,).
        names: of the classes; the last ones may occur on one side only.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    numbers = np.arange(len(names))
    values = precision_recall_fscore_support(true, told, labels=numbers, zero_division=0)
    found: Details = {"classes": _by_class(names, values)}
    if len(names) <= DENSE:
        matrix = confusion_matrix(true, told, labels=numbers)
        return found | {"confusion_matrix": {"labels": list(names), "rows": matrix.tolist()}}
    pairs, counts = np.unique(np.stack([true, told], 1)[true != told], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_PAIRS]
    confusions = [[names[pairs[one, 0]], names[pairs[one, 1]], int(counts[one])] for one in order]
    return found | {"most_frequent_confusions": confusions}


def of_sets(true: np.ndarray, told: np.ndarray, names: Sequence[str]) -> Details:
    """The same for label sets (N, C); the matrix of a label counts the rows without it and with it.

    Args:
        true: 0 and 1 by label.
        told: the answers.
        names: of the labels.
    """
    from sklearn.metrics import multilabel_confusion_matrix, precision_recall_fscore_support

    values = precision_recall_fscore_support(true, told, average=None, zero_division=0)
    matrices = multilabel_confusion_matrix(true, told)
    by_label = {name: matrix.tolist() for name, matrix in zip(names, matrices, strict=True)}
    return {"classes": _by_class(names, values), "confusion_matrices": by_label}


def _by_class(names: Sequence[str], values: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    columns = [array.tolist() for array in values]
    return {
        name: dict(zip(_VALUES, row, strict=True)) for name, row in zip(names, zip(*columns, strict=True), strict=True)
    }


def of_spans(true: Sequence[Sequence[str]], told: Sequence[Sequence[str]]) -> Details:
    """``classes``: precision, recall, F1 and support of the labels of spans, by seqeval.

    Args:
        true: tags of every row, in BIO.
        told: the answers.
    """
    from seqeval.metrics import classification_report

    found: Mapping[str, Any] = classification_report(true, told, output_dict=True, zero_division=0)
    averages = ("micro avg", "macro avg", "weighted avg")
    keys = {"f1": "f1-score"}
    return {
        "classes": {
            kind: {value: float(own[keys.get(value, value)]) for value in _VALUES} | {"support": int(own["support"])}
            for kind, own in found.items()
            if kind not in averages
        }
    }


def of_numbers(true: np.ndarray, told: np.ndarray, names: Sequence[str] | None = None) -> Details:
    """``errors`` by output: their mean, and quantiles of their absolute values.

    Args:
        true: numbers (N, outputs).
        told: the answers.
        names: of the outputs.
    """
    errors = told.astype(np.float64) - true
    labels = names if names and len(names) == errors.shape[1] else [f"output {one}" for one in range(errors.shape[1])]
    found = {}
    for label, own in zip(labels, errors.T, strict=True):
        sizes = np.quantile(np.abs(own), _QUANTILES, method="higher").tolist()
        quantiles = {f"{share:g}": size for share, size in zip(_QUANTILES, sizes, strict=True)}
        found[label] = {"mean": float(own.mean()), "absolute_quantiles": quantiles}
    sizes = np.abs(errors).max(1)
    worst = np.argsort(-sizes, kind="stable")[:_WORST]
    cells = [
        {"place": int(one), "true": _one(true[one]), "answer": _one(told[one]), "score": None}
        for one in worst
        if sizes[one] > 0
    ]
    return {"errors": found, "worst": cells}


def _one(values: np.ndarray) -> object:
    return values.item() if len(values) == 1 else values.tolist()


def worst_of_classes(
    true: np.ndarray, told: np.ndarray, scores: np.ndarray, names: Sequence[str]
) -> list[dict[str, object]]:
    """The wrong answers with the highest scores, 20 at most.

    Args:
        true: numbers of the classes (N,).
        told: the answers (N,).
        scores: of the answers (N,).
        names: of the classes.
    """
    wrong = np.flatnonzero(true != told)
    worst = wrong[np.argsort(-scores[wrong], kind="stable")][:_WORST]
    return [
        {"place": int(one), "true": names[true[one]], "answer": names[told[one]], "score": float(scores[one])}
        for one in worst
    ]
