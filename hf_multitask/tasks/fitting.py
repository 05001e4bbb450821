"""Options whose values are fitted on validation rows: a temperature for the logits, and thresholds of labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling.fitted import SETS, TUNE, answered, decision_problem, fitted_values, scaled, temperature_of
from . import reports
from .labelled import Labelled
from .measures import Classes, Numbers, Sets, default_names, measured, probabilities, table_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .columns import Cells, Ragged, References

_BINS = 15
_TEMPERATURES = (0.05, 20.0)
_ROUNDS = 50  # at most; a handful suffices
_APART = 1e-5  # of scores with a threshold between them; batches change scores by less


@dataclass(kw_only=True)
class Calibrated(Labelled):
    """A task with classes whose probabilities may be calibrated; see its subclasses for the arguments."""

    calibration: str | None = None
    fitted: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if problem := decision_problem(self.to_dict()):
            raise self.error(problem)

    @property
    def fits(self) -> list[str]:
        """The options whose values are fitted."""
        return [] if self.calibration is None else ["calibration"]

    @property
    def extra_metrics(self) -> list[str]:
        """See :class:`Task`."""
        return [] if self.calibration is None else ["ece", "ece_uncalibrated"]

    def fit(self, logits: Ragged, labels: Ragged) -> None:
        """Fit what is to be fitted to validation rows.

        Args:
            logits: (N, C), or by row those of its labeled tokens.
            labels: (N,), or (N, C) of 0 and 1, or by row those of its tokens; labels that the model does not have come
                after its own.
        """
        if self.calibration is not None:
            temperature = fit_temperature(*decisions(logits, labels))
            self.fitted = {**fitted_values(self.to_dict()), "temperature": temperature}

    def details(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        *,
        unseen: Cells,
        references: References,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> dict[str, Any]:
        """See :class:`Task`: classes and their confusions, and the wrong answers with high scores."""
        calibrated = scaled(self.to_dict(), torch.from_numpy(predictions)).numpy()
        return self.details_of_classes(calibrated, calibrated.argmax(-1), labels, unseen)

    def details_of_classes(
        self, calibrated: np.ndarray, told: np.ndarray, labels: np.ndarray, unseen: Cells
    ) -> dict[str, Any]:
        """The details of answers in classes.

        Args:
            calibrated: logits (N, C).
            told: the answers (N,).
            labels: (N,).
            unseen: labels that the model does not have.
        """
        names = [*(self.label_names or []), *map(str, unseen)]
        found = reports.of_classes(labels, told, names)
        if np.isfinite(calibrated).all() and len(calibrated):
            scores = probabilities(calibrated)[np.arange(len(told)), told]
            found |= {"worst": reports.worst_of_classes(labels, told, scores, names)}
        return found

    def extra_details(self, logits: Ragged, labels: Ragged) -> dict[str, Any]:
        """See :class:`Task`: ``calibration``, after the temperature."""
        logits, labels = decisions(logits, labels)
        if getattr(self, "problem_type", None) == "regression" or logits.ndim < 2:  # or tags alone
            return {}
        calibrated = logits / (temperature_of(self.to_dict()) or 1.0)
        error = calibration_error(calibrated, labels)
        bins = calibration_bins(calibrated, labels)
        return {} if math.isnan(error) else {"calibration": {"ece": error, "bins": bins}}

    def extra(self, logits: Ragged, labels: Ragged) -> dict[str, float]:
        """``ece`` where there is the option ``calibration``, and ``ece_uncalibrated`` of the logits as they are."""
        if self.calibration is None:
            return {}
        logits, labels = decisions(logits, labels)
        calibrated = logits / (temperature_of(self.to_dict()) or 1.0)
        return {"ece": calibration_error(calibrated, labels), "ece_uncalibrated": calibration_error(logits, labels)}


@dataclass(kw_only=True)
class Thresholded(Calibrated):
    """A task on classes, label sets or numbers, with thresholds of labels; see its subclasses for the arguments."""

    problem_type: str | None = None
    threshold: float | str | None = None

    @property
    def fits(self) -> list[str]:
        """See :class:`Calibrated`."""
        return [*super().fits, *(["threshold"] if self.threshold == TUNE else [])]

    def fit(self, logits: Ragged, labels: Ragged) -> None:
        """See :meth:`Calibrated.fit`; thresholds are those of the calibrated probabilities."""
        super().fit(logits, labels)
        logits, labels = decisions(logits, labels)
        if self.threshold != TUNE or not np.isfinite(logits).all():
            return
        task = self.to_dict()
        scores_NC, names = answered(task, torch.from_numpy(logits))[0].double().numpy(), self.label_names or []
        if task.get("problem_type") == SETS:
            whole = (self.metrics or self.metric_names or [""])[0] != "macro_f1"
            found = tuned_thresholds(scores_NC, labels[:, : scores_NC.shape[1]], together=whole)
        else:
            names = names[1:]
            found = tuned_thresholds(scores_NC[:, 1:], labels[:, None] == 1, together=True)
        self.fitted = {**fitted_values(task), "threshold": dict(zip(names, found, strict=True))}

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return default_names(self.problem_type, None if self.label_names is None else len(self.label_names))

    @property
    def possible_metrics(self) -> Collection[str] | None:
        """See :class:`Task`."""
        return table_of(self.problem_type, None if self.label_names is None else len(self.label_names))

    def details(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        *,
        unseen: Cells,
        references: References,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> dict[str, Any]:
        """See :class:`Task`: those of :class:`Calibrated`; for numbers, the sizes of the errors."""
        if self.problem_type == "regression":
            return reports.of_numbers(labels, predictions, self.label_names)
        task, logits = self.to_dict(), torch.from_numpy(predictions)
        calibrated, told = scaled(task, logits).numpy(), answered(task, logits)[1].numpy().astype(int)
        if self.problem_type != SETS:
            return self.details_of_classes(calibrated, told, labels, unseen)
        names = [*(self.label_names or []), *map(str, unseen)]
        return reports.of_sets(labels.astype(int), _widen(told, labels.shape[1]), names)

    def measure(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        unseen: Cells,  # noqa: ARG002
    ) -> dict[str, float]:
        """By default ``accuracy`` and F1 of classes, ``micro_f1`` of sets, ``pearson``, ``spearmanr`` of numbers."""
        given: Numbers | Sets | Classes
        task, logits = self.to_dict(), torch.from_numpy(predictions)
        scores, told = (part.numpy() for part in answered(task, logits))  # as the pipeline answers
        if self.problem_type == "regression":
            given = Numbers(labels, predictions)
        elif self.problem_type == SETS:
            width = labels.shape[1]
            given = Sets(labels.astype(int), _widen(told.astype(int), width), _widen(scores.astype(float), width))
        else:
            given = Classes(labels, told, scores.astype(float))
        table = table_of(self.problem_type, None if self.label_names is None else len(self.label_names))
        return measured(self.measured_names, table, given, self.tell)


def decisions(logits: Ragged, labels: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of rows, or of all labeled tokens of all rows."""
    if isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray):
        return logits, labels
    return np.concatenate(logits), np.concatenate(labels)


def _widen(array: np.ndarray, width: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])))


def _log_probabilities(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the true classes (N,), or of the truth about every label (N, C); classes of no output are left out."""
    logits = logits.astype(np.float64)
    if labels.ndim == 2:
        return -np.logaddexp(0.0, np.where(labels[:, : logits.shape[1]] > 0, -logits, logits))
    known = labels < logits.shape[1]
    logits, labels = logits[known], labels[known]
    return logits[np.arange(len(labels)), labels] - np.logaddexp.reduce(logits, axis=1)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature between 0.05 and 20 that maximizes the likelihood of labels.

    On Calibration of Modern Neural Networks (ICML 2017), section 4.2, https://arxiv.org/abs/1706.04599.

    Args:
        logits: (N, C).
        labels: see :meth:`Calibrated.fit`.
    """
    from scipy.optimize import minimize_scalar

    if not np.isfinite(logits).all() or not _log_probabilities(logits, labels).size:
        return 1.0
    found = minimize_scalar(
        lambda power: -_log_probabilities(logits / math.exp(power), labels).mean(),
        bounds=[math.log(bound) for bound in _TEMPERATURES],
        method="bounded",
        options={"xatol": 1e-9},  # by default 1e-5, which is more than batches change logits by
    )
    return math.exp(found.x)


def calibration_bins(logits: np.ndarray, labels: np.ndarray) -> list[dict[str, float]]:
    """Decisions in 15 bins of equal width by confidence: their number, mean confidence and share of right ones.

    A decision is the most probable class of a row, or every label of a set, whose confidence is its probability.
    """
    logits = logits.astype(np.float64)
    if labels.ndim == 2:
        confidence, right = 1 / (1 + np.exp(-logits)), labels[:, : logits.shape[1]] > 0
    else:
        confidence = np.exp(logits.max(1) - np.logaddexp.reduce(logits, axis=1))
        right = logits.argmax(1) == labels
    place = np.clip(np.ceil(confidence.ravel() * _BINS).astype(int) - 1, 0, _BINS - 1)
    bins = []
    for number in range(_BINS):
        own = place == number
        values = {"rows": int(own.sum()), "confidence": 0.0, "right": 0.0}
        if own.any():
            values |= {"confidence": float(confidence.ravel()[own].mean()), "right": float(right.ravel()[own].mean())}
        bins.append({"from": number / _BINS, "to": (number + 1) / _BINS, **values})
    return bins


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error: the mean distance of confidence and share of right decisions over the bins."""
    if not np.isfinite(logits).all() or not len(logits):
        return math.nan
    bins = calibration_bins(logits, labels)
    total = sum(own["rows"] for own in bins)
    return sum(own["rows"] * abs(own["confidence"] - own["right"]) for own in bins) / total


def tuned_thresholds(scores: np.ndarray, true: np.ndarray, *, together: bool) -> list[float]:
    """The thresholds of labels with the highest F1.

    A threshold lies between two neighboring scores that are not almost equal, and of equally good ones it is the one
    that is closest to 0.5. A label that no row has keeps 0.5.

    The micro-F1 of all labels is a ratio, ``2 hits / (answers + true labels)``. Its maximum is found exactly by
    Dinkelbach's method (On Nonlinear Fractional Programming, Management Science 13, 1967,
    https://doi.org/10.1287/mnsc.13.7.492): for a ratio ``r``, every label has the threshold with the highest
    ``2 hits - r answers``, and ``r`` becomes the ratio of these, until it is constant.

    Args:
        scores: probabilities (N, C).
        true: (N, C) of 0 and 1.
        together: whether the micro-F1 of all labels counts; else each label's own F1.
    """
    labels = [_cuts(*column) for column in zip(scores.T, true.T > 0, strict=True)]
    counts = [int(column.sum()) for column in true.T > 0]
    if together:
        return _best(labels, sum(counts))
    return [_best([label], count)[0] for label, count in zip(labels, counts, strict=True)]


Cuts = tuple[np.ndarray, np.ndarray, np.ndarray]  # of every threshold: itself, hits, answers


def _cuts(scores: np.ndarray, true: np.ndarray) -> Cuts:
    if not true.any():
        return np.array([0.5]), np.array([0]), np.array([int((scores >= 0.5).sum())])
    order = np.argsort(-scores, kind="stable")
    edges = np.concatenate([[1.0], scores[order], [0.0]])
    hits, answers = np.concatenate([[0], np.cumsum(true[order])]), np.arange(len(scores) + 1)
    apart = edges[:-1] - edges[1:] > _APART
    return ((edges[:-1] + edges[1:]) / 2)[apart], hits[apart], answers[apart]


def _best(labels: Sequence[Cuts], positives: int) -> list[float]:
    ratio, chosen = -1.0, [0] * len(labels)
    for _ in range(_ROUNDS):
        chosen = []
        for thresholds, hits, answers in labels:
            gains = 2 * hits - max(ratio, 0.0) * answers
            near = np.where(gains >= gains.max() - 1e-9, np.abs(thresholds - 0.5), np.inf)
            chosen.append(int(near.argmin()))
        found = sum(int(label[1][place]) for label, place in zip(labels, chosen, strict=True))
        told = sum(int(label[2][place]) for label, place in zip(labels, chosen, strict=True))
        last, ratio = ratio, 2 * found / max(told + positives, 1)
        if ratio <= last:
            break
    return [float(label[0][place]) for label, place in zip(labels, chosen, strict=True)]
