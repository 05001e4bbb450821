"""One answer to a text or a pair of texts: labels, label sets or numbers."""

from typing import ClassVar

import torch

from .aliases import Open, TaskDict
from .examples import TEXT
from .fitted import answered, thresholds_of
from .readers import Reader, Row, TokenWords


class SequenceReader(Reader):
    """A text or a pair of texts, of which a long text is cut, or read in windows where the task has a stride."""

    reads_words: ClassVar[bool] = False

    def reads_whole(self, task: Row) -> str:
        """See :class:`Reader`."""
        return ", and its stride has long texts read whole" if "stride" in task else ""

    def stock_example(self, task: Row, tokenizer: Open) -> tuple[str, str]:  # noqa: ARG002
        """See :class:`Reader`."""
        return TEXT, ", top_k=None" if task.get("problem_type") == "multi_label_classification" else ""


def decode_sequence(task: TaskDict, logits: torch.Tensor, _: str, __: TokenWords) -> Open:
    """As ``text-classification``: the best label and its score; all labels of a label set, the likeliest first.

    With a threshold, the labels of a set that reach it, and the second of two classes where it does. A regression's
    score is the number itself, and a list of numbers where the task has several.
    """
    names = task.get("label_names") or ["LABEL_0"]
    if task.get("problem_type") == "regression":
        values = [{"label": name, "score": value} for name, value in zip(names, logits.tolist(), strict=True)]
        return values[0] if len(values) == 1 else values
    scores, told = (values[0] for values in answered(task, logits.unsqueeze(0)))
    if task.get("problem_type") == "multi_label_classification":
        every = thresholds_of(task) is None
        found = zip(names, scores.tolist(), told.tolist(), strict=True)
        values = [{"label": name, "score": score} for name, score, there in found if every or there]
        return sorted(values, key=lambda value: -value["score"])
    return {"label": names[int(told)], "score": float(scores[int(told)])}
