"""The teachers of a run: which tasks have one, and the soft labels that they add to the training data."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from ...data import Encoded, Stream, digest_of, group_tasks
from ...tasks import Task
from ..preparation.named import check_names
from ..preparation.processors import Processing
from ..preparation.tasks import Datasets
from ..runtime import Runtime
from ..state.best import BEST_FOLDER
from ..step.distill import describe
from .answers import answered
from .forms import form_of, input_kind
from .teacher import Given, Teacher, load_teacher, source_of

if TYPE_CHECKING:
    from datasets import Dataset

RESULTS = "all_results.json"
_WRITTEN = re.compile(rf"checkpoint-\d+$|{BEST_FOLDER}$|stage-\d+$")  # folders in output_dir


class Teachers:
    """Single-task models that teach tasks of the shared model.

    Args:
        runtime: where the run is.
        tasks: of the run, by name, with resolved labels.
        given: by task, a model, its folder or its id on the Hub.
        processing: the trainer's tokenizer.

    Attributes:
        forms: by task with a teacher, the form of its outputs.
        digests: by task with a teacher that has answered, a hash of it.
        results: by task with a teacher, the metrics of the task that its own run left in its folder, by flat key.

    Raises:
        ValueError: a task does not exist, or its outputs are not taught.
        TypeError: the teachers are not by task.
    """

    def __init__(
        self, runtime: Runtime, tasks: Mapping[str, Task], given: Mapping[str, Given] | None, processing: Processing
    ) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(
                f"`teachers` should be a dict of models or folders by task. Found {type(given).__name__}. Name the "
                "task of each."
            )
        check_names("teachers", given, tasks)
        self._runtime, self._tasks, self._given, self._processing = runtime, dict(tasks), dict(given or {}), processing
        self.forms = {name: form_of(tasks[name]) for name in self._given}
        self.digests: dict[str, str] = {}
        self.results = {name: _results(given, name) for name, given in self._given.items()}

    @property
    def _everything(self) -> bool:
        kwargs = cast("dict[str, object]", self._runtime.args.distillation_kwargs or {})
        return kwargs.get("rows") == "all"

    def teach(self, encoded: Sequence[Encoded | Stream], raw: Datasets) -> list[Encoded | Stream]:
        """The training data with the answers of all teachers, each of which is loaded and freed in turn.

        Args:
            encoded: the training data.
            raw: the rows that they were made of, by dataset.

        Raises:
            ValueError: a teacher does not load or fit its task, gives NaN or would be overwritten, the rows of its task
                are a stream, or arguments are set for teachers and there are none.
        """
        args, result = self._runtime.args, list(encoded)
        if not self._given and (args.distillation_kwargs or args.distillation != "annealed"):
            name = "distillation_kwargs" if args.distillation_kwargs else "distillation"
            raise ValueError(
                f"Parameter `{name}` is for runs with teachers. Found `{name} = {getattr(args, name)!r}` and no "
                "teacher. Give `teachers`, or leave it out."
            )
        check_folders(self._given, str(args.output_dir))
        groups = group_tasks({name: task for name, task in self._tasks.items() if task.source in raw})
        for name, given in self._given.items():
            task = self._tasks[name]
            every = self._everything
            readers = {place: reader_of(task, groups[rows.name], every=every) for place, rows in enumerate(result)}
            if not any(reader is task for reader in readers.values()):
                raise task.error(f"it has a teacher and no training data. Add '{task.source}' to the training data.")
            for place, reader in readers.items():
                if reader is not None and isinstance(result[place], Stream):
                    raise stream_error(task, reader)
            teacher = load_teacher(task, given, self._processing, self._runtime.device)
            self._check_tags(task, teacher)
            self.digests[name] = teacher.digest
            for place, reader in readers.items():
                if reader is not None:
                    result[place] = answered(
                        cast(Encoded, result[place]),
                        cast("Dataset", raw[reader.source]),
                        reader,
                        teacher,
                        everything=self._everything,
                        processing=self._processing,
                        config=self._runtime.model.config.backbone_config,
                        device=self._runtime.device,
                    )
            del teacher
            if isinstance(given, str | Path):
                gc.collect()
            if self._runtime.device.type == "cuda":
                torch.cuda.empty_cache()
        return result

    def _check_tags(self, task: Task, teacher: Teacher) -> None:
        """See that tags of running text are those of the same tokens."""
        if getattr(task, "spans_column", None) is None:
            return
        mine, theirs = (digest_of(task.reader.processor(one)) for one in (self._processing, teacher.tokenizer))
        if mine != theirs:
            raise task.error(
                f"a teacher of spans of running text should have the tokenizer of the shared model. Found another of "
                f"{teacher.source}. Give another teacher, or train on words (tokens_column and tags_column)."
            )

    def describe(self) -> str | None:
        """Which teachers there are and how they teach, in words; None without one."""
        if not self._given:
            return None
        told = ", ".join(f"{name} {_short(source_of(given))}" for name, given in self._given.items())
        return f"Teachers: {told}; {describe(self._runtime.args)}"


def reader_of(task: Task, members: Sequence[Task], *, every: bool) -> Task | None:
    """The task by whose columns a teacher reads a dataset: its own, or another with the same kind of input.

    Args:
        task: that is taught.
        members: the tasks of the dataset.
        every: whether the rows of all tasks are answered.
    """
    own = next((member for member in members if member.name == task.name), None)
    if own is not None or not every or (kind := input_kind(task)) is None:
        return own
    return next((member for member in members if input_kind(member) == kind), None)


def stream_error(task: Task, reader: Task) -> ValueError:
    """What is wrong where a teacher would answer the rows of a stream."""
    other = "" if reader.name == task.name else ", or set rows='own' in distillation_kwargs"
    return task.error(
        f"its teacher answers every row once, before training, and dataset '{reader.source}' is a stream. Use an "
        f"ordinary dataset, or leave the teacher out{other}."
    )


def check_folders(teachers: Mapping[str, Given], output_dir: str) -> None:
    """Check that a run does not overwrite a teacher.

    Raises:
        ValueError: it would.
    """
    output = Path(output_dir).resolve()
    for name, given in teachers.items():
        if not isinstance(given, str | Path) or not Path(given).is_dir():
            continue
        inside = Path(given).resolve()
        if inside == output:
            raise ValueError(
                f"Task '{name}': its teacher and `output_dir` are the same folder, '{given}', so that the run would "
                "overwrite it. Set another output_dir."
            )
        if inside.is_relative_to(output) and _WRITTEN.match(inside.relative_to(output).parts[0]):
            raise ValueError(
                f"Task '{name}': its teacher '{given}' is in `output_dir`, where the run writes its own checkpoints "
                "and models, so that it would overwrite or remove it. Set another output_dir."
            )


def _results(given: Given, name: str) -> dict[str, float]:
    """What the run of a teacher measured of its task, if its folder has that."""
    try:
        found = json.loads((Path(given) / RESULTS).read_text(encoding="utf-8"))  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError):
        return {}
    starts = tuple(f"{prefix}_{name}_" for prefix in ("eval", "test"))
    return {key: value for key, value in found.items() if key.startswith(starts)} if isinstance(found, dict) else {}


def _short(source: str) -> str:
    """A folder relative to where the run is, if it is inside."""
    path, here = source.strip("'"), str(Path.cwd())
    return path.removeprefix(f"{here}/") if path.startswith(f"{here}/") else source
