"""What a run has seen of its tasks: rows, and since the last log losses, weights and steps without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..plain import Saved, State
from ..runtime import Figure
from .rows import Step


class Tally:
    """Counts of a training.

    Args:
        tasks: names of the K tasks.
        datasets: names of the D datasets.
        weighed: whether the weights of the tasks change, and are logged.
    """

    def __init__(self, tasks: Sequence[str], datasets: Sequence[str], *, weighed: bool = False) -> None:
        self.tasks, self.datasets, self.weighed = list(tasks), list(datasets), weighed
        self._rows, self._seen = dict.fromkeys(tasks, 0), dict.fromkeys(datasets, 0)
        self.begin_log()

    def begin_log(self) -> None:
        """Reset the counts that the next log reports."""
        self._since_log = dict.fromkeys(self.tasks, 0)
        self._sums: dict[str, list[float]] = {name: [0.0, 0.0, 0] for name in self.tasks}
        self._left_out: dict[str, int] = {}

    def count(self, rows_K: Sequence[float], seen_D: Sequence[float]) -> None:
        """Add the rows of a step: those with a label of each task, and those of each dataset."""
        for name, rows in zip(self.tasks, rows_K, strict=True):
            if rows:
                self._since_log[name] += int(rows)
                self._rows[name] += int(rows)
        for name, rows in zip(self.datasets, seen_D, strict=True):
            if rows:
                self._seen[name] += int(rows)

    def add(self, step: Step) -> None:
        """Add the losses and weights of a step that is over."""
        weights = step.weights or {}
        for name, loss in step.losses.items():
            new = (loss, weights.get(name, 0.0), 1)
            self._sums[name] = [total + one for total, one in zip(self._sums[name], new, strict=True)]

    def leave_out(self, name: str) -> None:
        """Count a step without a task."""
        self._left_out[name] = self._left_out.get(name, 0) + 1

    @property
    def rows(self) -> dict[str, int]:
        """By task, rows with a label of it that training has seen."""
        return self._rows

    @property
    def seen(self) -> dict[str, int]:
        """By dataset, rows that training has seen."""
        return self._seen

    def rows_since_log(self) -> dict[str, int]:
        """By task, rows since the last log."""
        return dict(self._since_log)

    def figures(self) -> Iterator[Figure]:
        """What a log reports since the last one; the next log then starts from zero."""
        since, rows = self.rows_since_log(), self.rows
        for name in self.tasks:
            loss, weight, steps = self._sums[name]
            if steps:
                yield name, "loss", loss / steps
            yield name, "share", since[name] / max(sum(since.values()), 1)
            yield name, "rows", rows[name]
            if steps and self.weighed:
                yield name, "weight", weight / steps
            if name in self._left_out:
                yield name, "left_out", self._left_out[name]
        self.begin_log()

    # Checkpoints

    def state_dict(self) -> State:
        """The keys ``seen`` and ``rows`` of the state of a checkpoint."""
        return {"seen": dict(self.seen), "rows": dict(self.rows)}

    def load_state_dict(self, state: Saved) -> None:
        """Continue the counts of a checkpoint."""
        self._rows |= state["rows"]
        self._seen |= state["seen"]

    def since_log(self) -> State:
        """What has been counted since the last log, as plain values."""
        return {"rows": list(self._since_log.values()), "tasks": self._sums, "left_out": self._left_out}

    def continue_log(self, saved: Saved) -> None:
        """Continue to count from :meth:`since_log` of a checkpoint."""
        for name, rows in zip(self.tasks, saved["rows"], strict=True):
            self._since_log[name] += rows
        self._sums = {name: list(saved["tasks"][name]) for name in self.tasks}
        self._left_out = dict(saved["left_out"])
