"""The pipeline in two halves: inputs are read as they come, and those of all clients are answered together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..modeling import MultiTaskPipeline
from ..modeling.aliases import Open, Values
from ..modeling.kinds import reader_of
from ..modeling.readers import Reading


@dataclass(frozen=True)
class Item:
    """An input that was read.

    Args:
        readings: what each task reads of it.
        lengths: tokens of each of its rows, or what costs as much.
        writing: arguments of ``generate``.
        writes: whether a task writes a text.
    """

    readings: dict[str, Reading]
    lengths: tuple[int, ...]
    writing: Values
    writes: bool

    @property
    def group(self) -> str | None:
        """Items of two groups are not answered together; None for those that go with any other."""
        return json.dumps(self.writing, sort_keys=True) if self.writes else None


class ServedPipeline(MultiTaskPipeline):
    """The multi-task pipeline, for inputs of many clients with tasks and parameters of their own.

    Tasks that the pipeline was built with limit those of a request. A request without any is answered by those of them
    that accept its input.
    """

    @property
    def chosen(self) -> list[str] | None:
        """The tasks that it is limited to; None for all of the model."""
        return self._preprocess_params.get("tasks")

    def limit(self, tasks: Sequence[str]) -> None:
        """Serve some tasks only."""
        self._preprocess_params["tasks"] = list(tasks)

    @property
    def served(self) -> list[str]:
        """The tasks that answer, in the order of the model."""
        names = self.model.config.task_names
        return [name for name in names if self.chosen is None or name in self.chosen]

    @property
    def reads_with(self) -> object:
        """The tokenizer, the feature extractor or both."""
        return self._given

    def check(self, asked: Values) -> None:
        """Check the arguments of a call.

        Raises:
            TypeError: one is unknown.
            ValueError: a value cannot be used, or a task is unknown or not served.
        """
        reading, _, _ = self._sanitize_parameters(**asked)
        self._chunking(reading)
        for name in reading.get("tasks", ()):
            if name not in self.served:
                raise ValueError(f"Task '{name}' is not served here. The tasks are {', '.join(self.served)}.")

    def item(self, value: object, asked: Values) -> Item:
        """Read an input.

        Args:
            value: an input of the pipeline.
            asked: the arguments of the call, checked.

        Raises:
            TypeError: the input is of another kind.
            ValueError: the input cannot be used.
        """
        reading, writing, _ = self._sanitize_parameters(**asked)
        defaults = {name: one for name, one in self._preprocess_params.items() if name != "tasks"}
        served = self.served
        found = self.preprocess(value, **(defaults | reading))["readings"]
        readings = {name: one for name, one in found.items() if name in served}
        if not readings:
            self.preprocess(value, tasks=served[:1])  # raises what this task takes
        rows: dict[object, int] = {}
        for name, one in readings.items():
            reader = reader_of(self.model.config.task(name))
            rows.update({key: reader.length(row) for key, row in one.rows})
        writes = any(reader_of(self.model.config.task(name)).writes for name in readings)
        return Item(readings, tuple(rows.values()), self._forward_params | writing, writes)

    def answers(self, items: Sequence[Item]) -> list[Values]:
        """The answers to some inputs of one group, from one pass of the backbone."""
        writing = next((item.writing for item in items if item.writes), {})
        return self.forward({"readings": [item.readings for item in items]}, **writing)["answers"]

    def described(self) -> dict[str, Values]:
        """By task that is served: its type, its labels, what it takes, and an input as an example."""
        found = {}
        for name in self.served:
            task = self.model.config.task(name)
            reader = reader_of(task)
            known = {
                key: task[key] for key in ("label_names", "problem_type", "threshold") if task.get(key) is not None
            }
            keys = list(reader.columns(task))
            found[name] = {"type": task["type"], **known, "takes": reader.takes(task), "keys": keys}
        return found

    @property
    def hears(self) -> list[str]:
        """The keys of inputs that are recordings."""
        readers = [reader_of(self.model.config.task(name)) for name in self.served]
        return list(dict.fromkeys(reader.fields[0] for reader in readers if reader.modality == "audio"))

    @property
    def only_hears(self) -> bool:
        """Whether every task of the model reads recordings."""
        return all(reader_of(task).modality == "audio" for task in self.model.config.tasks)


def characters(value: Open) -> int:
    """Characters of the texts of an input."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list | tuple) else 0
