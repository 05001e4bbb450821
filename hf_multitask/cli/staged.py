"""Training in stages: a run in ``output_dir/stage-<n>`` for each, which starts from what the one before has saved."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from ..hub.records import key_of, prefix_of
from ..modeling import MultiTaskModel
from ..tasks import Task
from ..training import MultiTaskTrainer, MultiTaskTrainingArguments
from ..training.distillation.teachers import check_folders
from ..training.preparation.named import check_arguments_by_name, check_metrics
from ..training.preparation.processors import Processing
from ..training.report.console import table
from ..training.state.checkpoint import last_whole_checkpoint
from ..training.state.resuming import compared
from .arguments import Resume, of_tasks, typed
from .document import Values
from .dry import show_plan
from .recipe import Recipe
from .splits import Splits, evaluation_data
from .stages import Stage, changed, facts_of, teachers_of
from .start import build_model, freeze_unnamed, tell_unnamed, unnamed
from .subruns import STAGES, drop_checkpoints, drop_results, leave_out, read_state, write_state
from .teachers import given_teachers
from .train import (
    Begun,
    conclude,
    data_of,
    finish,
    load_tokenizer,
    read_data,
    splits,
    training_arguments,
)

FOLDER = "stage-"  # and a number, in output_dir
_STATE = "stage.json"
_LOADING = ("attn_implementation", "token", "cache_dir", "device_map")  # of the model, in no configuration


def run_stages(recipe: Recipe, namespace: argparse.Namespace, overrides: Values) -> None:
    """Train all stages of a recipe, or those that are left, then evaluate, save and print as ``train`` does.

    Raises:
        ValueError: something does not fit, before anything is trained.
    """
    if namespace.teachers == "auto":
        raise ValueError(
            "--teachers auto does not go together with 'stages'. Train the teachers with a recipe without stages, and "
            "name their folders under 'teachers'."
        )
    args, resume = training_arguments(recipe, overrides)
    if args.tasks is not None:
        raise ValueError(
            f"`tasks` is for a run without stages. Found `tasks = {args.tasks!r}`. Name the tasks of each stage in "
            "'stages', or leave it out."
        )
    data, tasks = read_data(recipe, args)
    check_arguments_by_name(args, tasks, unnamed(recipe))  # before what concerns other tasks is left out by stage
    freeze_unnamed(recipe, args)
    teachers = given_teachers(recipe)
    check_folders(teachers, str(args.output_dir))
    run = StagedRun(recipe, overrides, args, data, tasks, teachers, load_tokenizer(recipe), namespace)
    first, checkpoint = run.place(resume)
    if namespace.dry_run:
        for stage, trainer in run.trainers(run.stages[first:]):
            run.tell(f"\nStage {stage.number} of {len(run.stages)}: {', '.join(stage.tasks)}")
            show_plan(trainer)
        return
    run.train(first, checkpoint)
    run.close()


@dataclass(frozen=True)
class StagedRun:
    """What the stages of a run have in common.

    Args:
        recipe: with stages.
        overrides: training arguments of the command line, which hold in all stages.
        args: those of the whole run.
        data: the datasets by name and split.
        tasks: with resolved labels.
        teachers: by task, their folders.
        processing: the tokenizer.
        namespace: of the command.
    """

    recipe: Recipe
    overrides: Values
    args: MultiTaskTrainingArguments
    data: Mapping[str, Splits]
    tasks: Mapping[str, Task]
    teachers: Mapping[str, str]
    processing: Processing
    namespace: argparse.Namespace

    @property
    def stages(self) -> list[Stage]:
        """Those of the recipe."""
        return self.recipe.stages

    @property
    def _output(self) -> Path:
        return Path(str(self.args.output_dir))

    def folder(self, stage: Stage) -> Path:
        """Where a stage writes."""
        return self._output / f"{FOLDER}{stage.number}"

    def tell(self, text: str) -> None:
        """Print in the first process."""
        if self.args.process_index == 0:
            print(text)

    # Arguments, models and trainers

    def arguments(self, stage: Stage, names: Sequence[str] | None = None) -> MultiTaskTrainingArguments:
        """The training arguments of a stage: its own, over those of the recipe; those of the command line win.

        Args:
            stage: of the recipe.
            names: tasks in place of its own.

        Raises:
            ValueError: one is unknown or not usable.
        """
        names = stage.tasks if names is None else names
        kept = {name: self.tasks[name] for name in names}
        others = [name for name in self.tasks if name not in kept]
        general, overrides = (of_tasks(one, kept, others) for one in (typed(self.recipe.training), self.overrides))
        if self.teachers and self.teachers.keys().isdisjoint(names):  # those of other stages
            general, overrides = (
                {key: value for key, value in one.items() if not key.startswith("distillation")}
                for one in (general, overrides)
            )
        values = {
            **general,
            **typed(stage.training, f"Stage {stage.number}"),
            **overrides,
            "output_dir": str(self.folder(stage)),
            "tasks": list(names) if others else None,
            "push_to_hub": False,
        }
        values.pop("resume_from_checkpoint", None)
        try:
            args = MultiTaskTrainingArguments(**values)
            check_metrics(args, kept, (), measured=args.eval_strategy != "no")  # which fills in what a trainer would
        except ValueError as problem:
            raise ValueError(f"Stage {stage.number}: {problem}") from None
        freeze_unnamed(self.recipe, args)
        return args

    def trainer(self, stage: Stage, model: MultiTaskModel) -> MultiTaskTrainer:
        """The trainer of a stage, whose data and arguments are checked.

        Raises:
            ValueError: something does not fit.
        """
        data, args = data_of(self.data, self.tasks, stage.tasks), self.arguments(stage)
        try:
            trainer = MultiTaskTrainer(
                model=model,
                args=args,
                train_dataset=splits(data, "train"),
                eval_dataset=evaluation_data(data) or None,
                processing_class=self.processing,
                teachers={name: folder for name, folder in self.teachers.items() if name in stage.tasks} or None,
            )
            if test := splits(data, "test"):
                trainer.evaluation_rows(test, "test")  # so that errors in its rows are raised now
        except ValueError as problem:
            raise ValueError(f"Stage {stage.number}: {problem}") from problem
        trainer.hub_datasets = self.recipe.hub_datasets
        trainer.add_callback(Begun(self.namespace))
        return trainer

    def _measuring(self, stage: Stage, names: Sequence[str], folder: Path) -> MultiTaskTrainer:
        """A trainer of what a stage has saved, which measures tasks that have been trained by then.

        Args:
            stage: that is over.
            names: of the tasks.
            folder: where it writes.
        """
        args, pushed = self.arguments(stage, names), folder == self._output and self.args.push_to_hub
        args.output_dir, args.eval_strategy, args.push_to_hub = str(folder), IntervalStrategy.NO, pushed
        for key in vars(args) if pushed else ():
            if key.startswith("hub_"):
                setattr(args, key, getattr(self.args, key))
        data = data_of(self.data, self.tasks, names)
        model = self._saved(stage)
        trainer = MultiTaskTrainer(
            model=model, args=args, eval_dataset=evaluation_data(data) or None, processing_class=self.processing
        )
        trainer.hub_datasets = self.recipe.hub_datasets
        trainer.state = TrainerState.load_from_json(str(self.folder(stage) / TRAINER_STATE_NAME))
        trainer.state.is_world_process_zero = trainer.is_world_process_zero()
        trainer.state.is_local_process_zero = trainer.is_local_process_zero()
        return trainer

    def _saved(self, stage: Stage) -> MultiTaskModel:
        """The model that a stage has saved. What its training left in the one in memory, such as casts, is gone."""
        gc.collect()
        loading = {key: self.recipe.model[key] for key in _LOADING if key in self.recipe.model}
        return MultiTaskModel.from_pretrained(self.folder(stage), **loading)

    def _start(self, stage: Stage) -> MultiTaskModel:
        if stage.number > 1:
            return self._saved(self.stages[stage.number - 2])
        set_seed(self.args.seed)
        return build_model(self.recipe, self.tasks)

    # Where to begin

    def place(self, resume: Resume) -> tuple[int, str | None]:
        """How many stages are over, and the checkpoint from which the next one resumes.

        Raises:
            ValueError: there is no such checkpoint, or a stage that is over had other arguments.
        """
        if resume is None:
            return 0, None
        over = next((stage.number - 1 for stage in self.stages if not self._state(stage).get("finished")), None)
        over = len(self.stages) if over is None else over
        named = None if resume is True else Path(resume)
        if named is not None:
            chosen = next((s for s in self.stages if self.folder(s).resolve() == named.resolve().parent), None)
            if not named.is_dir() or chosen is None or chosen.number - 1 > over:
                raise ValueError(
                    f"'{named}' is not a checkpoint of a stage that can be resumed. Set a checkpoint in "
                    f"{self._output / FOLDER}{min(over + 1, len(self.stages))}, or true for the last one."
                )
            over = chosen.number - 1
        for stage in self.stages[:over]:
            self._check_unchanged(stage)
            self.tell(f"Stage {stage.number} is finished and is not run again.")
        if named is not None:
            return over, str(named)
        if over == len(self.stages):
            return over, None
        stage = self.stages[over]
        last = last_whole_checkpoint(self.folder(stage), self.tell) if self._state(stage) else None
        found = f"resuming from {last}" if last else "no checkpoint, it starts from the beginning"
        self.tell(f"Stage {stage.number}: {found}.")
        return over, last

    def _state(self, stage: Stage) -> dict[str, Any]:
        return read_state(self.folder(stage) / _STATE)

    def _described(self, stage: Stage, args: MultiTaskTrainingArguments) -> dict[str, Any]:
        model = {key: value for key, value in self.recipe.model.items() if key not in _LOADING}
        tasks, rows = {name: self.tasks[name] for name in stage.tasks}, data_of(self.data, self.tasks, stage.tasks)
        facts = facts_of(tasks, self.recipe.backbone, model, splits(rows, "train"))
        return {"tasks": stage.tasks, "arguments": compared(args, teachers_of(stage, self.teachers)), "facts": facts}

    def _check_unchanged(self, stage: Stage) -> None:
        then, now = self._state(stage), self._described(stage, self.arguments(stage))
        if found := changed(then, now):
            name, before, after = found
            raise ValueError(
                f"The {name} of stage {stage.number}, which is finished, differ: {json.dumps(after)} now, "
                f"{json.dumps(before)} then. Put it back, or start again without resume_from_checkpoint."
            )

    # Training

    def train(self, over: int, checkpoint: str | None) -> None:
        """Train the stages that are left; all of them are checked before the first begins.

        Args:
            over: stages that are finished.
            checkpoint: from which the first of the others resumes.
        """
        if over == len(self.stages):
            return
        for _, checked in self.trainers(self.stages[over:][::-1]):
            trainer = checked
        if checkpoint is not None:
            trainer.course.read(checkpoint)
        self._begin_again(over if checkpoint is None else over + 1, trainer)
        for stage in self.stages[over:]:
            if stage.number > over + 1:
                del trainer
                trainer = self.trainer(stage, self._start(stage))
            self._train(stage, trainer, checkpoint)
            checkpoint = None

    def trainers(self, stages: Sequence[Stage]) -> Iterator[tuple[Stage, MultiTaskTrainer]]:
        """The trainers of stages, which share the model that the earliest one starts from."""
        if not stages:
            return
        model = self._start(min(stages, key=lambda stage: stage.number))
        adapters = model.config.adapters
        for stage in stages:
            model.config.adapters = adapters  # of which another stage may save nothing else
            yield stage, self.trainer(stage, model)

    def _begin_again(self, over: int, trainer: MultiTaskTrainer) -> None:
        """Forget what an earlier run has left of the stages to come."""
        trainer.accelerator.wait_for_everyone()  # until all have read it
        if trainer.args.should_save:
            for stage in self.stages[over:]:
                (self.folder(stage) / _STATE).unlink(missing_ok=True)

    def _train(self, stage: Stage, trainer: MultiTaskTrainer, checkpoint: str | None) -> None:
        """Train a stage, save it, and measure all tasks that have been trained by then; the last is measured later."""
        folder, state = self.folder(stage), {**self._described(stage, trainer.args), "finished": False}
        if trainer.args.should_save:
            leave_out(self._output, f"/{FOLDER}*/")
            drop_results(folder)
            if checkpoint is None:
                drop_checkpoints(folder)
            write_state(folder / _STATE, state)
        trainer.accelerator.wait_for_everyone()
        self.tell(f"\nStage {stage.number} of {len(self.stages)}: {', '.join(stage.tasks)}, into {folder}")
        tell_unnamed(trainer, unnamed(self.recipe))
        try:
            result = trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_model(_internal_call=True)
        except BaseException:
            self.tell(
                f"\nStage {stage.number} stopped early. Run the same command with --resume_from_checkpoint true: "
                "finished stages are not run again, and this one resumes from its last checkpoint, if it has one."
            )
            raise
        seen = self._trained_until(stage)
        trainer.save_state()
        if stage is self.stages[-1]:
            trainer.save_metrics("train", result.metrics)
        else:
            measuring = trainer if seen == stage.tasks else self._measuring(stage, seen, folder)
            measured = finish(measuring, data_of(self.data, self.tasks, seen), result.metrics)
            state["measured"] = _primary(measured, measuring)
        if trainer.args.should_save:
            write_state(folder / _STATE, {**state, "steps": trainer.state.global_step, "finished": True})
        trainer.accelerator.wait_for_everyone()

    def _trained_until(self, stage: Stage) -> list[str]:
        trained = {name for one in self.stages[: stage.number] for name in one.tasks}
        return [name for name in self.tasks if name in trained]

    # The end

    def close(self) -> None:
        """Save the model of the last stage in ``output_dir``, with the results of all tasks and a table of stages."""
        last = self.stages[-1]
        trainer = self._measuring(last, list(self.tasks), self._output)
        trainer.save_model(_internal_call=True)
        metrics = read_state(self.folder(last) / "train_results.json")
        measured = finish(trainer, self.data, metrics)
        found = [self._state(stage) for stage in self.stages]
        found[-1]["measured"] = _primary(measured, trainer)
        kept = ("tasks", "steps", "measured")
        lines = [
            {"stage": stage.number, **{key: one[key] for key in kept if key in one}}
            for stage, one in zip(self.stages, found, strict=True)
        ]
        if trainer.args.should_save:
            write_state(self.folder(last) / _STATE, found[-1])  # for a stage that is added behind it
            (self._output / STAGES).write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
        self.tell(_by_stage(lines, list(self.tasks)))
        conclude(trainer, self.data, measured)


def _primary(measured: Mapping[str, Mapping[str, float]], trainer: MultiTaskTrainer) -> Values:
    """By split and task, the primary metric and its value."""
    names = {name: metric for name, (metric, _) in trainer.evaluator.primary.items()}
    found: Values = {}
    for split, metrics in measured.items():
        keys = {name: key_of(name, metric, prefix_of(metrics)) for name, metric in names.items()}
        found[split] = {name: {names[name]: metrics[key]} for name, key in keys.items() if key in metrics}
    return found


def _by_stage(lines: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
    """A table with a line for each task and a column for each stage."""
    of = [line.get("measured", {}) for line in lines]
    split = "validation" if "validation" in of[-1] else "test"
    by_stage = [one.get(split, {}) for one in of]
    rows = [["task", "metric", *(f"stage {line['stage']}" for line in lines)]]
    for name in tasks:
        for metric in by_stage[-1].get(name, {}):
            values = [one.get(name, {}).get(metric) for one in by_stage]
            rows.append([name, metric, *("-" if value is None else f"{value:.4f}" for value in values)])
    return f"\nOn {split}, after each stage\n{table(rows)}" if len(rows) > 1 else ""
