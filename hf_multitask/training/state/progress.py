"""The progress of a mixture: rows seen, tasks that are finished, the best checkpoint of each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..plain import Saved, State

STATE_NAME = "multitask_state.json"
FORMAT = 2  # 1 had sizes in the place of hashes, and no arguments


@dataclass
class Progress:
    """The part of a checkpoint that the Trainer does not save.

    Args:
        seen: by dataset, rows that training has seen.
        rows: by task, rows with a label of it that training has seen.
        metrics: by task, the names of its metrics in the order of its last evaluation, in which the primary one is the
            first that is not ``loss``.
        best: by task, and for ``average``: ``metric``, its ``value`` in the best evaluation, and the ``step`` of that.
        waited: by task, evaluations in a row without a better value.
        finished: by task that has stopped training, the step at which it stopped.
        left: by dataset that no unfinished task reads, the epoch from which it draws no rows.
        anchors: by stream, from where on it is read again; see :class:`hf_multitask.data.Stream`.
        forwards: the division of micro-batches into forward passes; see :class:`hf_multitask.training.plan.Plan`.
        aggregation: the aggregator's ``state``, and why the row split is not used, ``fallback``, where it did not fit.
        gradients: what was measured since the last log; see :class:`hf_multitask.training.step.probe.Means`.
        loss: sums of the training loss, of the whole run and since the last log, and of what that log reports by task;
            see :class:`hf_multitask.training.state.loss.RunningLoss`.
        data: what the order of the rows depends on; see :meth:`check_data`.
        non_finite: by task whose loss was NaN or infinite, in how many ``steps``, and how many of them ``in_a_row``.
        balancing: what the balancer remembers; see :class:`hf_multitask.training.step.weights.TaskWeights`.
        ranks: that wrote the checkpoint.
        arguments: of the run that matter to its course; see :mod:`hf_multitask.training.state.resuming`.
        optimizer: what its state in the checkpoint fits; see there.
        files: by name, the bytes of the checkpoint's other files and a hash of them.
    """

    seen: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, list[str]] = field(default_factory=dict)
    best: dict[str, State] = field(default_factory=dict)
    waited: dict[str, int] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    anchors: dict[str, State] = field(default_factory=dict)
    forwards: State = field(default_factory=dict)
    aggregation: State = field(default_factory=dict)
    gradients: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    loss: State = field(default_factory=dict)
    data: State = field(default_factory=dict)
    non_finite: dict[str, dict[str, int]] = field(default_factory=dict)
    balancing: State = field(default_factory=dict)
    ranks: int = 0
    arguments: State = field(default_factory=dict)
    optimizer: State = field(default_factory=dict)
    files: State = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write the state into a checkpoint."""
        path = Path(folder) / STATE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"format": FORMAT, **asdict(self)}
        written = path.with_name(f"{STATE_NAME}.new")
        written.write_text(json.dumps({**values, "hash": state_hash(values)}, indent=2) + "\n", encoding="utf-8")
        written.replace(path)

    @classmethod
    def load(cls, folder: str | Path) -> Progress:
        """Read the state of a checkpoint.

        Raises:
            ValueError: there is none, or it has a newer format.
        """
        path = Path(folder) / STATE_NAME
        if not path.is_file():
            raise ValueError(
                f"Checkpoint '{folder}' has no {STATE_NAME}, so no MultiTaskTrainer wrote it. Name another checkpoint."
            )
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") > FORMAT:
            raise ValueError(f"Checkpoint '{folder}' comes from a newer hf_multitask. Upgrade hf_multitask.")
        values.pop("hash", None)
        return cls(**values)

    def check_data(self, data: Saved, folder: str | Path) -> None:
        """Check that a resumed run would have the row order of the checkpoint.

        Raises:
            ValueError: something that the order depends on has changed; the sentence says what.
        """
        for key, value in data.items():
            if key in self.data and self.data[key] != value:
                raise ValueError(
                    f"The {key} of this run and of checkpoint '{folder}' differ: {value} now, {self.data[key]} then. "
                    "Put it back, or set ignore_data_skip=True to continue with other rows."
                )


def state_hash(values: Saved) -> str:
    """A hash of a state, its own left out, however its JSON is set."""
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key != "hash"}))
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()
