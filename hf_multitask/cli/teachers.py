"""``--teachers auto``: a single-task model for every task of a recipe, trained before the shared model."""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from transformers import TrainerCallback, set_seed

from ..modeling import MultiTaskModel
from ..tasks import Task
from ..training import MultiTaskTrainer, MultiTaskTrainingArguments
from ..training.distillation.forms import form_of
from ..training.distillation.teachers import reader_of, stream_error
from ..training.parameters import SHARED_LAYERS
from ..training.preparation.processors import Processing
from ..training.state.checkpoint import last_whole_checkpoint
from ..training.state.resuming import compared
from .arguments import of_tasks
from .document import Values
from .recipe import Recipe
from .source import find_folder
from .splits import Splits
from .subruns import drop_checkpoints, files_of, leave_out, read_state, write_state

FOLDER = "teachers"  # in output_dir
_STATE = "teacher.json"
# Arguments of a mixture, of pushes and of the shared run; a task alone has none of them.
_SHARED = {
    *("sampling", "sampling_kwargs", "balancing", "balancing_kwargs", "aggregation", "aggregation_kwargs"),
    *("distillation", "distillation_kwargs", "gradient_logging_steps", "task_weights", "save_best_by_task"),
    *("resume_from_checkpoint", "push_to_hub", "run_name", "tasks"),
}
_BRANCHES = ("branches", "branch_layers")  # of the model
_ASIDE = ("token", "cache_dir", "device_map", *_BRANCHES)  # of the model, whose weights are compared


@dataclass(frozen=True)
class Apprenticeship:
    """What the single-task runs have in common with the shared one.

    Args:
        recipe: of the shared run.
        values: its training arguments, as given.
        data: its datasets by name and split.
        tasks: its tasks, with resolved labels.
        processing: the tokenizer.
        finish: evaluates and saves a trainer that has trained, on its data.
        begun: records that a training has started; errors before that are mistakes of the user.
    """

    recipe: Recipe
    values: Mapping[str, Any]
    data: Mapping[str, Splits]
    tasks: Mapping[str, Task]
    processing: Processing
    finish: Callable[[MultiTaskTrainer, Mapping[str, Splits], Mapping[str, float]], object]
    begun: TrainerCallback

    def train(self, name: str) -> str:
        """Train a task alone; an unfinished training is resumed, and a finished one reused if nothing has changed.

        Returns:
            The folder of the model.

        Raises:
            ValueError: the task cannot be trained alone.
        """
        task, folder = self.tasks[name], Path(self.values["output_dir"]) / FOLDER / name
        others = [other for other in self.tasks if other != name]
        model = model_alone(self.recipe.model, name, others)
        data = {task.source: self.data[task.source]}
        rows = {split: {task.source: rows} for split, rows in data[task.source].items()}
        try:
            args = MultiTaskTrainingArguments(**alone(self.values, task, others) | {"output_dir": str(folder)})
            set_seed(args.seed)  # so that fresh weights do not depend on what has run before
            trainer = MultiTaskTrainer(
                model=MultiTaskModel.from_backbone(self.recipe.backbone, tasks={name: task}, **model),
                args=args,
                train_dataset=rows["train"],
                eval_dataset=rows.get("validation"),
                processing_class=self.processing,
            )
        except ValueError as problem:
            raise ValueError(
                f"A teacher of task '{name}' cannot be trained with this recipe: {problem} Or name a model of the task "
                "under `teachers`."
            ) from None
        trainer.add_callback(self.begun)
        fingerprint = self._fingerprint(trainer, rows.get("test"), model)
        state = read_state(folder / _STATE)
        trainer.accelerator.wait_for_everyone()  # until all have read it
        tell = print if trainer.is_world_process_zero() else lambda _: None
        if state.get("fingerprint") == fingerprint and state.get("finished"):
            if state.get("files") == files_of(folder):
                tell(f"Teacher of '{name}': {folder} is reused, as nothing has changed.")
                return str(folder)
            tell(f"Teacher of '{name}': files of {folder} have changed since it was trained, and are written again.")
        checkpoint = None
        if state.get("fingerprint") == fingerprint:
            checkpoint = last_whole_checkpoint(str(folder), tell)
        elif trainer.args.should_save:
            drop_checkpoints(folder)
        if trainer.args.should_save:
            leave_out(folder.parent.parent, f"/{FOLDER}/")
            write_state(folder / _STATE, {"fingerprint": fingerprint, "finished": False})
        trainer.accelerator.wait_for_everyone()
        tell(f"Teacher of '{name}': training into {folder}" + (f", resumed from {checkpoint}." if checkpoint else "."))
        try:
            result = trainer.train(resume_from_checkpoint=checkpoint)
        except BaseException:
            tell(
                f"\nThe teacher of '{name}' stopped early. Run the same command again: finished teachers are reused, "
                "and this one resumes from its last checkpoint, if it has one."
            )
            raise
        trainer.save_model(_internal_call=True)
        self.finish(trainer, data, result.metrics)
        if trainer.args.should_save:
            write_state(folder / _STATE, {"fingerprint": fingerprint, "finished": True, "files": files_of(folder)})
        trainer.accelerator.wait_for_everyone()
        return str(folder)

    def _fingerprint(self, trainer: MultiTaskTrainer, test: Splits | None, model: Values) -> str:
        """A hash of rows, task, arguments, those of the model, and backbone."""
        measured = [trainer.eval_dataset, trainer.evaluation_rows(test, "test") if test else None]
        digest = hashlib.blake2b(digest_size=16)
        digests = [None if rows is None else rows.digests for rows in measured]
        described: list[object] = [trainer.plan.row_order(), digests, compared(trainer.args, {})]
        described += [{name: task.to_dict() for name, task in trainer.tasks.items()}]
        described += [{key: value for key, value in model.items() if key not in _ASIDE}]
        digest.update(json.dumps(described, default=str, sort_keys=True).encode())
        for key, value in sorted(trainer.model.backbone.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().double().numpy().tobytes())
        return digest.hexdigest()


def alone(values: Mapping[str, Any], task: Task, others: Sequence[str]) -> Values:
    """The training arguments of a recipe for one of its tasks alone, without those that concern the others."""
    name = str(task.name)
    own = {key: value for key, value in values.items() if key not in _SHARED and not key.startswith("hub_")}
    for key in ("learning_rates", "weight_decays"):  # one task has no branches, and shares no layers
        if isinstance(given := own.get(key), Mapping):
            own[key] = {part: value for part, value in given.items() if part != SHARED_LAYERS}
    if given := own.get("freeze"):
        parts = [part for part in ([given] if isinstance(given, str) else given) if part != SHARED_LAYERS]
        own["freeze"] = parts or None
    return of_tasks(own, {name: task}, others)


def model_alone(values: Mapping[str, Any], name: str, others: Sequence[str]) -> Values:
    """The arguments of the shared model for one of its tasks alone, without branches and the adapters of the others."""
    own = {key: value for key, value in values.items() if key not in _BRANCHES}
    given = own.get("task_lora")
    if isinstance(given, Mapping) and given and {name, *others}.issuperset(given):  # by task
        own["task_lora"] = {name: given[name]} if name in given else None
    return own


def given_teachers(recipe: Recipe) -> dict[str, str]:
    """The teachers that a recipe names, by task.

    Raises:
        ValueError: one is a path without a model.
    """
    found = {}
    for name, given in recipe.teachers.items():
        local = find_folder(given, recipe.path.resolve().parent, f"Key 'teachers', task '{name}',")
        found[name] = given if local is None else str(local)
        if local is not None and not (local / "config.json").is_file():
            raise ValueError(
                f"Key 'teachers', task '{name}', names the folder '{local}', which has no model: there is no "
                "config.json. Name the output_dir of a run."
            )
    return found


def missing_teachers(
    tasks: Mapping[str, Task],
    given: Mapping[str, str],
    *,
    frozen: str | Sequence[str] | None = None,
    streams: Collection[str] = (),
) -> tuple[list[str], list[str]]:
    """The tasks whose teachers are to be trained, and sentences on tasks that cannot have one.

    Args:
        tasks: with resolved labels.
        given: the teachers that there are.
        frozen: what does not train.
        streams: the datasets that are read once.
    """
    rest = [frozen] if isinstance(frozen, str) else frozen or ()
    wanted, told = [], []
    for name, task in tasks.items():
        if name in given:
            continue
        if name in rest:
            told.append(f"Task '{name}' is frozen and gets no teacher.")
        elif task.source in streams:
            told.append(f"Task '{name}' reads a stream, whose rows a teacher cannot answer in advance.")
        else:
            try:
                form_of(task)
            except ValueError as problem:
                told.append(f"{problem}".split(" Leave it out")[0])
            else:
                wanted.append(name)
    return wanted, told


def auto_teachers(
    lesson: Apprenticeship, given: Mapping[str, str], names: Collection[str] | None, namespace: argparse.Namespace
) -> dict[str, str]:
    """All teachers of a run; those that are missing are trained.

    Args:
        lesson: what the runs have in common.
        given: the teachers that the recipe names.
        names: of the tasks that train; all where None.
        namespace: of the command; what fails before the next model trains is a mistake of the user again.
    """
    streams = {name for name, rows in lesson.data.items() if isinstance(rows["train"], IterableDataset)}
    tasks = {name: task for name, task in lesson.tasks.items() if names is None or name in names}
    wanted, told = missing_teachers(tasks, given, frozen=lesson.values.get("freeze"), streams=streams)
    for sentence in told:
        print(sentence)
    every = (lesson.values.get("distillation_kwargs") or {}).get("rows") == "all"
    for name in wanted:  # what the shared run would refuse, before any of them trains
        for stream in sorted(streams):
            members = [task for task in tasks.values() if task.source == stream]
            if (reader := reader_of(tasks[name], members, every=every)) is not None:
                raise stream_error(tasks[name], reader)
    found = dict(given)
    for name in wanted:
        found[name] = lesson.train(name)
        namespace.prepared = False
        gc.collect()
    return {name: found[name] for name in lesson.tasks if name in found}
