"""What a run has seen of its tasks: rows, and since the last log losses, weights and steps without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..plain import Saved, State
from ..runtime import Figure
from .rows import Step


class Tally:
    """Counts of a training.

    Rows are counted on the device and read when they are logged or saved.

    Args:
        tasks: names of the K tasks.
        datasets: names of the D datasets.
        device: of the process.
        weighed: whether the weights of the tasks change, and are logged.
    """

    def __init__(
        self, tasks: Sequence[str], datasets: Sequence[str], device: torch.device, *, weighed: bool = False
    ) -> None:
        self.tasks, self.datasets, self.weighed = list(tasks), list(datasets), weighed
        self._rows, self._seen = dict.fromkeys(tasks, 0), dict.fromkeys(datasets, 0)
        self._new_rows_K = torch.zeros(len(self.tasks), dtype=torch.long, device=device)
        self._new_seen_D = torch.zeros(len(self.datasets), dtype=torch.long, device=device)
        self._since_log_K = torch.zeros_like(self._new_rows_K)
        self.begin_log()

    def begin_log(self) -> None:
        """Reset the counts that the next log reports."""
        self._since_log_K = torch.zeros_like(self._since_log_K)
        self._sums: dict[str, list[float]] = {name: [0.0, 0.0, 0] for name in self.tasks}
        self._left_out: dict[str, int] = {}

    def count(self, rows_K: torch.Tensor, seen_D: torch.Tensor) -> None:
        """Add the rows of a step: those with a label of each task, and those of each dataset."""
        self._since_log_K += rows_K
        self._new_rows_K += rows_K
        self._new_seen_D += seen_D

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
        for name, rows in zip(self.tasks, self._new_rows_K.tolist(), strict=True):
            self._rows[name] += rows
        self._new_rows_K.zero_()
        return self._rows

    @property
    def seen(self) -> dict[str, int]:
        """By dataset, rows that training has seen."""
        for name, rows in zip(self.datasets, self._new_seen_D.tolist(), strict=True):
            self._seen[name] += rows
        self._new_seen_D.zero_()
        return self._seen

    def rows_since_log(self) -> dict[str, int]:
        """By task, rows since the last log."""
        return dict(zip(self.tasks, self._since_log_K.tolist(), strict=True))

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
        return {"rows": self._since_log_K.tolist(), "tasks": self._sums, "left_out": self._left_out}

    def continue_log(self, saved: Saved) -> None:
        """Continue to count from :meth:`since_log` of a checkpoint."""
        self._since_log_K += torch.tensor(saved["rows"], device=self._since_log_K.device)
        self._sums = {name: list(saved["tasks"][name]) for name in self.tasks}
        self._left_out = dict(saved["left_out"])
