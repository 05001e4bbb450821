"""Measuring one task: the order of its rows, its exact loss, its metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import EvalPrediction

from ..data import Encoded, feature
from ..data.encoding import label_column
from ..data.mixture import Feature
from ..tasks import Task

Metric = Callable[[EvalPrediction], Mapping[str, float]]


class TaskRows(Dataset[Feature]):
    """The rows of one task with a label, in the order of their length, so that batches hold little padding.

    Args:
        encoded: the features.
        task: name of the task.
    """

    def __init__(self, encoded: Encoded, task: str) -> None:
        self.task = task
        self.unseen = encoded.unseen[task]
        self.rows = encoded.labelled(task)
        self.order = np.argsort(Encoded(encoded.name, self.rows).lengths(), kind="stable")

    def digest(self) -> str:
        """A hash of tokens and labels."""
        return Encoded(self.task, self.rows, {self.task: []}).digest()

    def __len__(self) -> int:
        """Rows with a label."""
        return len(self.rows)

    def __getitem__(self, place: int) -> Feature:
        """A row as features of this task only."""
        row = int(self.order[place])
        return {**feature(self.rows[row], [self.task]), "draw": (0, row)}

    def references(self) -> Sequence[Any]:
        """The labels as encoded, in the order of the dataset."""
        return self.rows[label_column(self.task)]

    def restore(self, predictions: np.ndarray) -> np.ndarray:
        """Put predictions that follow this order back into the order of the dataset."""
        restored = np.empty_like(predictions)
        restored[self.order] = predictions
        return restored


@dataclass(frozen=True)
class Scores:
    """Logits, labels and metrics of one task, and the name and value of its primary metric."""

    logits: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    primary: tuple[str, float]


def score(
    rows: TaskRows, task: Task, outputs: Any, labels: np.ndarray, metric: Metric | None, tokenizer: Any
) -> Scores:
    """Metrics of a finished evaluation of one task.

    The loss is the sum of all items' losses over their number, so it does not depend on batches or ranks.

    Args:
        rows: what was evaluated.
        task: which task it was.
        outputs: logits, the summed loss of each row, and its number of items.
        labels: what the collator made of the labels.
        metric: the user's own metrics in place of the task's.
        tokenizer: the backbone's.
    """
    logits, losses, items = (rows.restore(output) for output in outputs)
    labels = rows.restore(labels)
    loss = float(losses.sum() / max(items.sum(), 1))
    if metric is None:
        references = rows.references()
        values = task.score(logits, labels, unseen=rows.unseen, references=references, loss=loss, tokenizer=tokenizer)
    else:
        values = dict(metric(EvalPrediction(predictions=logits, label_ids=labels)))
    values = {name: float(value) for name, value in values.items()}
    primary = next(iter(values.items()), ("none", 0.0))
    return Scores(logits, labels, {"loss": loss, **values}, primary)


def prefixed(metrics: Mapping[str, float], *prefix: str) -> Iterator[tuple[str, float]]:
    """Metrics under names such as ``eval_ner_f1``."""
    return (("_".join([*prefix, name]), value) for name, value in metrics.items())
