"""The direction of metrics: whether a better model has a higher or a lower value."""

from __future__ import annotations

import re

# Words in names of metrics of the package and of other well-known metrics.
_FALLING = """
loss losses logloss entropy crossentropy nll perplexity ppl bpc bpb deviance divergence kl distance error errors err
mae mse rmse msle rmsle mape smape mad wer cer mer ter eer fpr fnr ece mce brier
"""
_RISING = """
accuracy acc correct f1 f2 fbeta fmeasure precision recall sensitivity specificity auc auroc auprc roc ap map
pearson pearsonr spearman spearmanr kendall kendalltau correlation corr r2 matthews mcc kappa
rouge rougel bleu sacrebleu chrf meteor bertscore match em las uas ndcg mrr hit hits success iou dice jaccard similarity
reduction improvement gain
"""
FALLING, RISING = frozenset(_FALLING.split()), frozenset(_RISING.split())
# Words that negate a metric, as in scikit-learn's neg_mean_squared_error.
_TURNING = frozenset({"neg", "negative", "negated", "minus", "inverse", "inverted"})
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z]{2}|[A-Z][a-z])")
_WORD = re.compile(r"[a-z]+[0-9]?")


def rises(metric: str) -> bool | None:
    """Whether a better model has a higher value of a metric, according to its name; None if the name is unknown.

    The last known word determines the direction: ``ner_f1`` and ``error_f1`` increase, ``lm_perplexity``, ``val_loss``
    and ``error_rate`` decrease, and ``neg_mse`` and ``1-wer`` increase.

    Args:
        metric: its name, with or without ``eval_`` and the name of a task as prefix.
    """
    if metric.removeprefix("eval_") == "average":  # of primary metrics, which all increase
        return True
    words = _WORD.findall(_CAMEL.sub("_", metric).lower())
    for word in reversed(words):
        for known in (word, word.rstrip("0123456789")):
            if known in RISING:
                return True
            if known in FALLING or known.endswith("loss"):
                return bool(_TURNING & set(words)) or "1-" in metric.replace(" ", "")
    return None
