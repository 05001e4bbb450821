"""Which way metrics go: whether a better model has more of one, or less."""

from __future__ import annotations

import re

# Words of names: metrics of the package, and those that people know by these names.
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
# Words that turn a falling metric into a rising one, as in scikit-learn's neg_mean_squared_error.
_TURNING = frozenset({"neg", "negative", "negated", "minus", "inverse", "inverted"})
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z]{2}|[A-Z][a-z])")
_WORD = re.compile(r"[a-z]+[0-9]?")


def rises(metric: str) -> bool | None:
    """Whether a better model has more of a metric, as its name says; None where it says nothing.

    The last word that is known decides: ``ner_f1`` and ``error_f1`` rise, ``lm_perplexity``, ``val_loss`` and
    ``error_rate`` fall, and ``neg_mse`` and ``1-wer`` rise again.

    Args:
        metric: its name, with or without ``eval_`` and a task's name before it.
    """
    if metric.removeprefix("eval_") == "average":  # of primary metrics, which all rise
        return True
    words = _WORD.findall(_CAMEL.sub("_", metric).lower())
    for word in reversed(words):
        for known in (word, word.rstrip("0123456789")):
            if known in RISING:
                return True
            if known in FALLING or known.endswith("loss"):
                return bool(_TURNING & set(words)) or "1-" in metric.replace(" ", "")
    return None
