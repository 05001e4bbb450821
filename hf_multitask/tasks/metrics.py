"""Metrics as :class:`evaluate.Metric` classes that do not need the Hub; imported when a metric is first computed."""

import importlib
import re
import string
import warnings
from collections import Counter
from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

import evaluate
import numpy as np
from datasets import Features, List, Value
from numpy.typing import ArrayLike

_LABELS = Features({"predictions": Value("int64"), "references": Value("int64")})
_NUMBERS = Features({"predictions": List(Value("float64")), "references": List(Value("float64"))})
_SETS = Features({"predictions": List(Value("int64")), "references": List(Value("int64"))})
_TEXTS = Features({"predictions": Value("string"), "references": Value("string")})
_TAGS = Features({"predictions": List(Value("string")), "references": List(Value("string"))})


class _Offline(evaluate.Metric):
    """A metric that is computed in memory, with its features in a class attribute."""

    features: ClassVar[Features]

    def __init__(self, **kwargs: object) -> None:
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "", citation="", inputs_description="", features=type(self).features
        )

    def compute(self, *, predictions: object = None, references: object = None, **kwargs: object) -> dict[str, float]:
        """As in ``evaluate.Metric``, but without writing the arguments to Arrow and reading them back."""
        if predictions is None or references is None or self.writer is not None:
            return super().compute(predictions=predictions, references=references, **kwargs)
        return self._compute(predictions=predictions, references=references, **kwargs)


class Accuracy(_Offline):
    """``accuracy``: the share of correct predictions; 0 if there are none."""

    features = _LABELS

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        hits = np.asarray(predictions) == np.asarray(references)
        return {"accuracy": float(hits.mean()) if hits.size else 0.0}


class BinaryF1(_Offline):
    """``f1`` of class 1."""

    features = _LABELS

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        predicted, true = np.asarray(predictions) == 1, np.asarray(references) == 1
        # Computed here, because scikit-learn takes milliseconds to validate its arguments.
        return {"f1": float(2 * (predicted & true).sum() / max(predicted.sum() + true.sum(), 1))}


class MicroF1(_Offline):
    """``micro_f1`` of label sets."""

    features = _SETS

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        from sklearn.metrics import f1_score

        return {
            "micro_f1": float(f1_score(np.array(references), np.array(predictions), average="micro", zero_division=0))
        }


class Correlation(_Offline):
    """``pearson`` and ``spearmanr``, averaged over outputs; 0 if one side is constant."""

    features = _NUMBERS

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
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

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        from seqeval import metrics

        scores = {
            "f1": metrics.f1_score(references, predictions, zero_division=0),
            "precision": metrics.precision_score(references, predictions, zero_division=0),
            "recall": metrics.recall_score(references, predictions, zero_division=0),
            "accuracy": metrics.accuracy_score(references, predictions) if any(map(len, references)) else 0.0,
        }
        return {name: float(score) for name, score in scores.items()}


class Squad(_Offline):
    """``f1`` and ``exact_match`` of SQuAD: the best of each answer over its references, after normalization.

    SQuAD: 100,000+ Questions for Machine Comprehension of Text (EMNLP 2016), section 6.1,
    https://arxiv.org/abs/1606.05250; without an answer, both are 1 for an empty prediction and otherwise 0 (SQuAD 2.0).
    """

    features = Features({"predictions": Value("string"), "references": List(Value("string"))})

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        pairs = [
            [(_words(predicted), _words(true)) for true in wanted]
            for predicted, wanted in zip(predictions, references, strict=True)
        ]
        return {
            "f1": float(np.mean([max(_overlap(*pair) for pair in of_row) for of_row in pairs])),
            "exact_match": float(np.mean([any(got == true for got, true in of_row) for of_row in pairs])),
        }


class Rouge(_Offline):
    """``rougeL``, ``rouge1`` and ``rouge2``: F-measures of rouge-score with stemming."""

    features = _TEXTS

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        rouge_scorer = need("rouge_score.rouge_scorer", "rougeL", "generation")
        names = ["rougeL", "rouge1", "rouge2"]
        scorer = rouge_scorer.RougeScorer(names, use_stemmer=True)
        scores = [scorer.score(true, got) for got, true in zip(predictions, references, strict=True)]
        return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}


class Translations(_Offline):
    """``chrf`` and ``bleu`` of a corpus by sacrebleu in its default settings, divided by 100."""

    features = _TEXTS

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        sacrebleu = need("sacrebleu", "chrf", "generation")
        chrf = sacrebleu.corpus_chrf(predictions, [references]).score
        return {"chrf": chrf / 100, "bleu": sacrebleu.corpus_bleu(predictions, [references]).score / 100}


class WordErrors(_Offline):
    """``word_accuracy``, which is 1 - ``wer`` or 0, and ``wer`` and ``cer`` of a corpus by jiwer.

    A rate is the number of substitutions, deletions and insertions over the number of words, or characters, of the
    references.
    """

    features = _TEXTS

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        jiwer = need("jiwer", "word_accuracy", "speech")
        wer, cer = (float(rate(list(references), list(predictions))) for rate in (jiwer.wer, jiwer.cer))
        return {"word_accuracy": max(0.0, 1 - wer), "wer": wer, "cer": cer}


def need(module: str, metric: str, extra: str) -> ModuleType:
    """A module that is installed with an extra.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ValueError(
            f"The metric '{metric}' needs the package '{package}', which is not installed. "
            f"Run: pip install 'hf_multitask[{extra}]'"
        ) from None


def _words(text: str) -> list[str]:
    """Words in lower case, without punctuation and English articles."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _overlap(predicted: list[str], true: list[str]) -> float:
    if not predicted or not true:
        return float(predicted == true)
    common = sum((Counter(predicted) & Counter(true)).values())
    return 2 * common / (len(predicted) + len(true))


__all__ = [
    "Accuracy",
    "BinaryF1",
    "Correlation",
    "MicroF1",
    "Rouge",
    "SpanF1",
    "Squad",
    "Translations",
    "WordErrors",
    "need",
]
