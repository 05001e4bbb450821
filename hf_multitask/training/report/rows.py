"""Warnings about the encoded rows of a dataset: which were cut, have no label, or an unknown one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers.utils import logging

from ...data import Encoded
from ...data.encoding import label_column
from ...modeling.readers import TEXTS
from ...tasks import Task

logger = logging.get_logger(__name__)


def report_rows(name: str, encoded: Encoded, tasks: Sequence[Task], split: str) -> None:
    """Log what of a dataset's rows, targets and labels is cut, missing, unknown, or has no token.

    Args:
        name: of the dataset.
        encoded: its rows.
        tasks: that read it.
        split: for messages.
    """
    report_cut(name, encoded, tasks, split)
    for task in tasks:
        labelled, count = encoded.labelled_rows(str(task.name)), len(encoded.rows)
        if 0 < labelled < count:
            logger.warning(f"Task '{task.name}': {count - labelled} of {count} rows of the {split} data have no label.")
        if encoded.unseen[str(task.name)]:
            logger.warning(_unseen_message(task, encoded, split))


def report_cut(name: str, encoded: Encoded, tasks: Sequence[Task], split: str) -> None:
    """Log how many rows and targets were cut, and how many labels no token carries."""
    rows = len(encoded.rows)
    if cut := encoded.cut_rows():
        cutting = [task for task in tasks if task.windows_key is None]
        unit = tasks[0].reader.unit
        windows = any(hasattr(task, "stride") and task.reader.modality == TEXTS for task in cutting)
        logger.warning(
            f"{cut} of {rows} rows of '{name}' ({split}) are longer than {encoded.limit} {unit} and were cut. The "
            f"max_length of the task sets the limit{', and its stride has long texts read whole' if windows else ''}."
        )
    for kind, what in tasks[0].remarks.items():
        if found := encoded.total(kind, str(tasks[0].name)):
            logger.warning(f"{found} of {rows} rows of '{name}' ({split}) {what}.")
    for task in tasks:
        if cut := encoded.total("cut", str(task.name)):
            logger.warning(
                f"Task '{task.name}': {cut} of {rows} targets ({split}) are longer than its max_target_length and were "
                "cut."
            )
        for kind, what in task.unreachable.items():
            if lost := encoded.total(kind, str(task.name)):
                logger.warning(
                    f"Task '{task.name}': {lost} labels ({split}) {what}. "
                    + ("They do not train." if split == "train" else "They count as gold, and as not found.")
                )
        if wrong := encoded.total("impossible", str(task.name)):
            logger.warning(
                f"Task '{task.name}': {wrong} of {rows} rows ({split}) have tags in an order that its scheme does not "
                "allow, so they are never answered. Fix the rows, or set the scheme that they have."
            )


def _unseen_message(task: Task, encoded: Encoded, split: str) -> str:
    """The warning about labels that are not in a task's ``label_names``."""
    name, unseen, names = str(task.name), encoded.unseen[str(task.name)], getattr(task, "label_names", None) or []
    shown, known = (", ".join(map(str, some[:12])) + (", ..." if len(some) > 12 else "") for some in (unseen, names))
    if _known_labels(encoded, task) - ({"O"} if task.aligns_words else set()):
        return f"Task '{name}': {split} labels [{shown}] are none of label_names and count as wrong."
    return (
        f"Task '{name}': no label of the {split} data is known, so none of its answers can be right. Column "
        f"'{task.target_column}' holds {shown}, and label_names are {known}. Check the column, or the names."
    )


def _known_labels(encoded: Encoded, task: Task) -> set[str]:
    """Those of a task's ``label_names`` that the rows of a dataset carry."""
    names: list[str] = getattr(task, "label_names", None) or []
    labels = encoded.column(label_column(str(task.name))).drop_null()
    width = len(names) + len(encoded.unseen[str(task.name)])
    found = task.class_numbers(labels)
    if getattr(task, "problem_type", None) == "multi_label_classification":
        found = np.flatnonzero(found.reshape(-1, width).any(0))
    return {names[number] for number in np.unique(found).tolist() if 0 <= number < len(names)}
