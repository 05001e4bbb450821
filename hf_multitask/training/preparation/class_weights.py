"""Class weights that are computed from the training rows."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow.compute as pc

from ...data import Encoded, Stream
from ...data.encoding import label_column
from ...modeling.losses import BALANCED
from ...tasks import Task
from ...tasks.losses import LabelLoss, balanced_weights

if TYPE_CHECKING:
    from ...modeling import MultiTaskModel
    from ...modeling.config import MultiTaskConfig

_SHOWN = 12


def _balanced(tasks: Mapping[str, Task]) -> dict[str, LabelLoss]:
    return {
        name: task for name, task in tasks.items() if isinstance(task, LabelLoss) and task.class_weights == BALANCED
    }


def check_balanced(tasks: Mapping[str, Task], train: Mapping[str, object] | None, config: MultiTaskConfig) -> None:
    """Check that balanced class weights can be computed; without training data, use those of the model.

    Args:
        tasks: by name.
        train: raw training rows by dataset.
        config: of the model.

    Raises:
        ValueError: they cannot.
    """
    for name, task in _balanced(tasks).items():
        rows = (train or {}).get(task.source)
        if isinstance(rows, datasets.IterableDataset):
            raise task.error(
                f"`class_weights` counts the labels of all training rows, and dataset '{task.source}' is a stream. "
                f"Found `class_weights = '{BALANCED}'`. Give a weight for each label."
            )
        if rows is None:
            known = config.task(name).get("class_weights")
            if not isinstance(known, Mapping):
                raise task.error(
                    f"`class_weights` counts the labels of training rows, and there are none. Found `class_weights = "
                    f"'{BALANCED}'`. Add '{task.source}' to train_dataset, or give a weight for each label."
                )
            task.class_weights = dict(known)


def balance(tasks: Mapping[str, Task], encoded: Iterable[Encoded | Stream], model: MultiTaskModel) -> None:
    """Compute balanced class weights from the encoded training rows, and write them into tasks and model.

    Args:
        tasks: by name.
        encoded: the training data.
        model: that trains.
    """
    wanted = _balanced(tasks)
    for rows in encoded:
        for name in [name for name in rows.tasks if name in wanted]:
            task = wanted[name]
            task.class_weights = dict(zip(task.label_names or [], _weights(rows, task), strict=True))  # type: ignore[arg-type]
            model.set_task(name, task.to_dict())


def _weights(encoded: Encoded, task: LabelLoss) -> list[float]:
    """The weights of the classes by their frequencies in a dataset: in labels, tags of tokens, vectors."""
    labels = encoded.column(label_column(str(task.name))).drop_null()
    rows, classes = len(labels), len(task.label_names or [])
    while hasattr(labels.type, "value_type"):
        labels = pc.list_flatten(labels)
    found = labels.to_numpy()
    if found.dtype.kind == "f":
        sets = getattr(task, "problem_type", None) == "multi_label_classification"
        return balanced_weights(found.reshape(-1, classes).sum(0, dtype=np.float64).tolist(), rows, sets=sets)
    counts = np.bincount(found[found >= 0], minlength=classes)
    return balanced_weights(counts.tolist(), int(counts.sum()))


def describe_class_weights(tasks: Mapping[str, Task], trained: Container[str]) -> str:
    """The class weights of tasks that train, a line each; empty without any."""
    lines = []
    for name, task in tasks.items():
        weights = getattr(task, "class_weights", None)
        if name in trained and isinstance(weights, Mapping):
            shown = ", ".join(f"{label} {weight:.4g}" for label, weight in list(weights.items())[:_SHOWN])
            more = f", and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else ""
            lines.append(f"\nClass weights of {name}: {shown}{more}")
    return "".join(lines)
