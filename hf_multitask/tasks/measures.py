"""Metrics by name for classes, label sets, numbers and spans, by scikit-learn, scipy and seqeval."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Given = TypeVar("Given")


class Missing(Exception):
    """A metric that some rows do not define; the message is the reason."""


@dataclass(frozen=True)
class Classes:
    """Answers in classes.

    Args:
        true: the class of every row, (N,); those that the model does not have come after its own.
        told: the answers, (N,).
        scores: the probabilities of the model's classes, (N, C); None if only the answers are known.
    """

    true: np.ndarray
    told: np.ndarray
    scores: np.ndarray | None = None

    def split(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """By class of a ranking metric, which rows have it, and its scores: of the second of two, else of each."""
        scores = np.zeros((0, 0)) if self.scores is None else self.scores
        of = [1] if scores.shape[1] == 2 else range(scores.shape[1])
        return [(self.true == one, scores[:, one]) for one in of]


@dataclass(frozen=True)
class Sets:
    """Answers in label sets, as in :class:`Classes`: (N, C) of 0 and 1."""

    true: np.ndarray
    told: np.ndarray
    scores: np.ndarray

    def split(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`Classes.split`: of each label."""
        return list(zip(self.true.T == 1, self.scores.T, strict=True))


@dataclass(frozen=True)
class Numbers:
    """Predicted and true numbers, (N, outputs)."""

    true: np.ndarray
    told: np.ndarray


@dataclass(frozen=True)
class Spans:
    """Predicted and true tags of rows, in BIO."""

    true: Sequence[Sequence[str]]
    told: Sequence[Sequence[str]]


def _by_sklearn(name: str, **kwargs: object) -> Callable[[Classes | Sets], float]:
    def measure(given: Classes | Sets) -> float:
        import sklearn.metrics

        value = float(getattr(sklearn.metrics, name)(given.true, given.told, **kwargs))
        if np.isnan(value):
            raise Missing("all rows and all answers are of one class")
        return value

    return measure


def _ranking(name: str) -> Callable[[Classes | Sets], float]:
    """The mean of a metric of scores over the classes that have rows with and without them."""

    def measure(given: Classes | Sets) -> float:
        import sklearn.metrics

        if given.scores is None or not np.isfinite(given.scores).all():
            raise Missing("the outputs of the model are not finite")
        pairs = [(true, scores) for true, scores in given.split() if true.any() and not true.all()]
        if not pairs:
            raise Missing("it needs rows with and rows without a class, and the split has no class with both")
        function = getattr(sklearn.metrics, name)
        return float(np.mean([function(true, scores) for true, scores in pairs]))

    return measure


def _of_numbers(name: str) -> Callable[[Numbers], float]:
    def measure(given: Numbers) -> float:
        import sklearn.metrics

        if not np.isfinite(given.told).all():
            raise Missing("the outputs of the model are not finite")
        if name == "r2_score" and len(given.true) < 2:
            raise Missing("it needs two rows")
        return float(getattr(sklearn.metrics, name)(given.true, given.told))

    return measure


def _own(kind: str, name: str) -> Callable[[Classes | Sets | Numbers], float]:
    """A metric of :mod:`metrics`, whose import takes long."""

    def measure(given: Classes | Sets | Numbers) -> float:
        from . import metrics

        return getattr(metrics, kind)().compute(predictions=given.told, references=given.true)[name]

    return measure


def _of_spans(name: str, average: str = "micro") -> Callable[[Spans], float]:
    def measure(given: Spans) -> float:
        from seqeval import metrics

        if not any(tag != "O" for tags in (*given.true, *given.told) for tag in tags):
            return 0.0  # as the micro average; the macro average of seqeval is NaN
        return float(getattr(metrics, name)(given.true, given.told, average=average, zero_division=0))

    return measure


def macro_f1(given: Classes) -> float:
    """The mean of the F1 of the classes that rows or answers have."""
    # Computed here, as BinaryF1: this metric is a default.
    size = int(max(given.true.max(initial=-1), given.told.max(initial=-1))) + 1
    true, told = (np.bincount(side, minlength=size) for side in (given.true, given.told))
    hits = np.bincount(given.true[given.true == given.told], minlength=size)
    there = true + told > 0
    return float((2 * hits[there] / (true + told)[there]).mean()) if there.any() else 0.0


def _averages(of: Sequence[str]) -> dict[str, Callable[[Classes | Sets], float]]:
    """Averages of precision, recall and F1."""
    functions = {"f1": "f1_score", "precision": "precision_score", "recall": "recall_score"}
    return {
        name: _by_sklearn(functions[name.partition("_")[2]], average=name.partition("_")[0], zero_division=0)
        for name in of
    }


_RANKING: dict[str, Callable[[Classes | Sets], float]] = {
    "roc_auc": _ranking("roc_auc_score"),
    "average_precision": _ranking("average_precision_score"),
}
TAGS: dict[str, Callable[[Classes], float]] = {
    "accuracy": _own("Accuracy", "accuracy"),
    "balanced_accuracy": _by_sklearn("balanced_accuracy_score"),
    "macro_f1": macro_f1,
    **_averages(["micro_f1", "weighted_f1", "macro_precision", "macro_recall"]),
    "matthews_correlation": _by_sklearn("matthews_corrcoef"),
    "cohen_kappa": _by_sklearn("cohen_kappa_score"),
}
MANY_CLASSES: dict[str, Callable[[Classes], float]] = {**TAGS, **_RANKING}
_ONE = {"labels": [1], "average": "micro", "zero_division": 0}  # of the second class, with more in the data or not
_SECOND: dict[str, Callable[[Classes], float]] = {
    "f1": _own("BinaryF1", "f1"),
    "precision": _by_sklearn("precision_score", **_ONE),
    "recall": _by_sklearn("recall_score", **_ONE),
}
TWO_CLASSES: dict[str, Callable[[Classes], float]] = {**MANY_CLASSES, **_SECOND}
LABEL_SETS: dict[str, Callable[[Sets], float]] = {
    "accuracy": _by_sklearn("accuracy_score"),
    "micro_f1": _own("MicroF1", "micro_f1"),
    **_averages(["macro_f1", "weighted_f1", "macro_precision", "macro_recall"]),
    **_RANKING,
}
NUMBERS: dict[str, Callable[[Numbers], float]] = {
    "pearson": _own("Correlation", "pearson"),
    "spearmanr": _own("Correlation", "spearmanr"),
    "r2": _of_numbers("r2_score"),
    "mae": _of_numbers("mean_absolute_error"),
    "mse": _of_numbers("mean_squared_error"),
    "rmse": _of_numbers("root_mean_squared_error"),
}
SPANS: dict[str, Callable[[Spans], float]] = {
    "micro_f1": _of_spans("f1_score"),
    "macro_f1": _of_spans("f1_score", "macro"),
    "weighted_f1": _of_spans("f1_score", "weighted"),
    "macro_precision": _of_spans("precision_score", "macro"),
    "macro_recall": _of_spans("recall_score", "macro"),
}
# The metrics of a type that has label names and a problem type.
_TABLES: dict[str | None, Mapping[str, Callable[..., float]]] = {
    "single_label_classification": TWO_CLASSES,
    "multi_label_classification": LABEL_SETS,
    "regression": NUMBERS,
    None: {**TWO_CLASSES, **NUMBERS},
}
_DEFAULTS = {"multi_label_classification": ["micro_f1"], "regression": ["pearson", "spearmanr"]}
# What a type may have that does not have a metric, in place of it.
INSTEAD = {"f1": "macro_f1", "precision": "macro_precision", "recall": "macro_recall"}


def table_of(problem_type: str | None, classes: int | None) -> Mapping[str, Callable[..., float]]:
    """The metrics of a problem type with a number of classes, each None if it is not known yet."""
    if problem_type == "single_label_classification" and classes is not None and classes != 2:
        return MANY_CLASSES
    return _TABLES.get(problem_type, {})


def table_of_tags(tags: int) -> Mapping[str, Callable[[Classes], float]]:
    """The metrics of a number of tags that mark no spans."""
    return {**TAGS, **_SECOND} if tags == 2 else TAGS


def default_names(problem_type: str | None, classes: int | None) -> list[str] | None:
    """The metrics of a problem type without the option ``metrics``, the primary one first; None if not known yet."""
    if problem_type in _DEFAULTS:
        return _DEFAULTS[problem_type]
    if problem_type is None or classes is None:
        return None
    return ["accuracy", "macro_f1", "f1"] if classes == 2 else ["accuracy", "macro_f1"]


def measured(
    names: Sequence[str], table: Mapping[str, Callable[[Given], float]], given: Given, tell: Callable[[str], object]
) -> dict[str, float]:
    """Metrics by name; NaN, and a sentence of the reason, for one that the rows do not define.

    Args:
        names: of the metrics.
        table: all metrics of the kind of answers.
        given: the answers.
        tell: takes the sentence.
    """
    values = {}
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes without rows, which count as 0
                values[name] = table[name](given)
        except Missing as reason:
            tell(f"'{name}' is missing (NaN) in this evaluation: {reason}.")
            values[name] = float("nan")
    return values


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax of logits (N, C), in their precision, as the pipeline answers: so the same scores are equal."""
    return torch.from_numpy(logits).softmax(-1).double().numpy()
