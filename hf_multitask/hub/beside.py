"""The tasks of a shared model beside models of their own: what sharing gains and loses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .history import SPLITS, Result, primary_metrics
from .records import Log, key_of

_CORRELATIONS = ("pearson", "spearmanr", "matthews_correlation", "cohen_kappa")  # from -1 to 1, 0 by chance
SURE = 2.0  # standard errors from which on a difference counts


@dataclass(frozen=True)
class Beside:
    """The primary metric of a task in the shared model and in a model of its own.

    Args:
        task: its name.
        split: whose rows were measured.
        metric: the name of the metric.
        shared: its value in the shared model.
        alone: that of the single-task model on the same rows.
        error: standard error of the difference, as if both were measured on different rows: on the same rows it is
            smaller.
    """

    task: str
    split: str
    metric: str
    shared: float
    alone: float
    error: float

    @property
    def difference(self) -> float:
        """What the task gains by sharing."""
        return self.shared - self.alone

    @property
    def loses(self) -> bool:
        """Whether it loses by more than chance explains."""
        return self.difference < -SURE * self.error

    def flat(self) -> dict[str, float]:
        """The comparison under flat keys: ``eval_ner_f1_single``, ``..._difference`` and ``..._standard_error``."""
        prefix = next(prefix for prefix, split in SPLITS.items() if split == self.split)
        key = key_of(self.task, self.metric, prefix)
        return {
            f"{key}_single": self.alone,
            f"{key}_difference": self.difference,
            f"{key}_standard_error": self.error,
        }


def noise(metric: float, rows: int, name: str = "accuracy") -> float:
    """The standard error of a metric over so many rows: of shares of right answers and correlations, of others a guess.

    Args:
        metric: its value.
        rows: that have a label of the task.
        name: of the metric.
    """
    if name in _CORRELATIONS:
        variance = (1 - min(metric * metric, 1.0)) ** 2
    else:
        share = min(max(metric, 0.0), 1.0)
        variance = share * (1 - share)
    return math.sqrt(max(variance, 1 / rows) / rows)


def beside(found: Sequence[Result], alone: Mapping[str, Log], rows: Mapping[str, Mapping[str, int]]) -> list[Beside]:
    """The tasks of which both are known, by split.

    Args:
        found: the results of the shared model.
        alone: by task, the flat results of its single-task run.
        rows: by split, the rows of each task that were measured, which have a label of it.
    """
    primary, compared = primary_metrics(found), []
    there = {result.split for result in found}
    for prefix, split in SPLITS.items():
        if split not in there:
            continue
        for result in found:
            task = str(result.task)
            count = rows.get(split, {}).get(task)
            if result.split != split or task not in alone or primary.get(task) != result.metric or not count:
                continue
            other = alone[task].get(key_of(task, result.metric, prefix))
            if isinstance(other, int | float):
                error = math.hypot(*(noise(value, count, result.metric) for value in (result.value, other)))
                compared.append(Beside(task, split, result.metric, result.value, float(other), error))
    return compared


def beside_rows(compared: Sequence[Beside]) -> list[list[str]]:
    """The comparison as rows of a table, with a header."""
    return [
        ["task", "split", "metric", "shared", "alone", "difference", "standard error"],
        *(
            [
                *(one.task, one.split, one.metric, f"{one.shared:.4f}", f"{one.alone:.4f}"),
                *(f"{one.difference:+.4f}", f"{one.error:.4f}"),
            ]
            for one in compared
        ),
    ]


def beside_in_words(compared: Sequence[Beside], tasks: Sequence[str]) -> str:
    """Which of the tasks lose by sharing, and what to do; and which have no model of their own to compare with.

    Every task counts on the last split that it has rows of.
    """
    last = {one.task: one for one in compared}.values()  # by split in their order
    if not last:
        return ""
    losing = [one for one in last if one.loses]
    splits = [split for split in reversed(SPLITS.values()) if any(one.split == split for one in last)]
    where = f"on {' or '.join(splits)}"
    without = [name for name in tasks if name not in {one.task for one in compared}]
    rest = f" Without a model of its own: {', '.join(without)}." if without else ""
    if not losing:
        return f"No compared task is below its own model, {where}, by more than {SURE:.0f} standard errors.{rest}"
    named = ", ".join(f"{one.task} ({one.difference:+.4f} {one.metric})" for one in losing)
    return (
        f"Sharing the model costs, {where}, more than {SURE:.0f} standard errors: {named}. Give these tasks a branch "
        "(`branches`) or an adapter of their own (`task_lora`), let them learn from teachers, or leave them out of the "
        f"shared model.{rest}"
    )
