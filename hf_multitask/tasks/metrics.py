"""Metrics as :class:`evaluate.Metric` classes that need no Hub. Imported when a metric is first computed."""

import warnings
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, List, Value

_LABELS = Features({"predictions": Value("int64"), "references": Value("int64")})
_NUMBERS = Features({"predictions": List(Value("float64")), "references": List(Value("float64"))})
_SETS = Features({"predictions": List(Value("int64")), "references": List(Value("int64"))})
_TAGS = Features({"predictions": List(Value("string")), "references": List(Value("string"))})


class _Offline(evaluate.Metric):
    """A metric computed in memory, with its features in a class attribute."""

    features: ClassVar[Features]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "", citation="", inputs_description="", features=type(self).features
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Any:
        """As in ``evaluate.Metric``, which would write what it is given to Arrow and read it back first."""
        if predictions is None or references is None or self.writer is not None:
            return super().compute(predictions=predictions, references=references, **kwargs)
        return self._compute(predictions=predictions, references=references, **kwargs)


class Accuracy(_Offline):
    """``accuracy``: the share of right predictions."""

    features = _LABELS

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class BinaryF1(_Offline):
    """``f1`` of class 1."""

    features = _LABELS

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predicted, true = np.asarray(predictions) == 1, np.asarray(references) == 1
        # Written out: scikit-learn takes milliseconds to look at its arguments.
        return {"f1": float(2 * (predicted & true).sum() / max(predicted.sum() + true.sum(), 1))}


class MicroF1(_Offline):
    """``micro_f1`` of label sets."""

    features = _SETS

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from sklearn.metrics import f1_score

        return {
            "micro_f1": float(f1_score(np.array(references), np.array(predictions), average="micro", zero_division=0))
        }


class Correlation(_Offline):
    """``pearson`` and ``spearmanr``, averaged over outputs; 0 where one side is constant."""

    features = _NUMBERS

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr

        predicted, true = np.array(predictions), np.array(references)
        if len(true) < 2:
            return {"pearson": 0.0, "spearmanr": 0.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a constant side gives nan, which becomes 0
            pairs = [(predicted[:, output], true[:, output]) for output in range(true.shape[1])]
            scores = {
                "pearson": np.mean([np.nan_to_num(pearsonr(*pair)[0]) for pair in pairs]),
                "spearmanr": np.mean([np.nan_to_num(spearmanr(*pair)[0]) for pair in pairs]),
            }
        return {name: float(score) for name, score in scores.items()}


class SpanF1(_Offline):
    """``f1``, ``precision`` and ``recall`` of spans by seqeval, in its default mode, and ``accuracy`` of tags."""

    features = _TAGS

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from seqeval import metrics

        scores = {
            "f1": metrics.f1_score(references, predictions, zero_division=0),
            "precision": metrics.precision_score(references, predictions, zero_division=0),
            "recall": metrics.recall_score(references, predictions, zero_division=0),
            "accuracy": metrics.accuracy_score(references, predictions),
        }
        return {name: float(score) for name, score in scores.items()}


__all__ = ["Accuracy", "BinaryF1", "Correlation", "MicroF1", "SpanF1"]
