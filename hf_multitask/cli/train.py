"""``hf-multitask train RECIPE``: train, evaluate, save, and print the results."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    FeatureExtractionMixin,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

from ..modeling.backbone import resolve_backbone
from ..modeling.kinds import fitted, kind_of, loading_reader
from ..modeling.loading import explained
from ..tasks import Task, build_task
from ..training import MultiTaskTrainer, MultiTaskTrainingArguments
from ..training.preparation.tasks import resolve_tasks, without_streams
from ..training.state.checkpoint import last_whole_checkpoint
from .arguments import Resume, build_arguments, parse_overrides, typed
from .document import Values
from .dry import QUIET, add_argument, show_plan
from .helps import add_help
from .recipe import Recipe, read_recipe
from .shown import show_beside, show_example, show_metrics, with_sets
from .splits import Splits, evaluation_data
from .start import build_model, check_labels, fit_saved, freeze_unnamed, saved_config, tell_unnamed, unnamed
from .subruns import drop_results
from .teachers import Apprenticeship, auto_teachers, given_teachers


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("train", description=(__doc__ or "").replace("``", ""), add_help=False)
    add_help(parser)
    parser.add_argument("recipe", help="a YAML file; any training argument may follow, as in --learning_rate 5e-5")
    parser.add_argument(
        "--teachers",
        choices=["auto"],
        help="train a single-task model for every task without a teacher into output_dir/teachers first, or reuse it "
        "if nothing has changed, and let the shared model learn from these",
    )
    add_argument(parser)


def prepare(
    namespace: argparse.Namespace, words: Sequence[str]
) -> tuple[MultiTaskTrainer, str | None, dict[str, Splits]]:
    """Prepare everything up to the first step: all errors in a recipe are raised here."""
    recipe = read_recipe(namespace.recipe)
    overrides = given_overrides(namespace, words)
    args, resume = training_arguments(recipe, overrides)
    teachers = given_teachers(recipe)
    if namespace.teachers == "auto" and recipe.continued is not None:
        raise ValueError(
            "--teachers auto trains single-task models from the backbone of the recipe, which continues a saved model. "
            "Name teachers under 'teachers' instead."
        )
    data, tasks = read_data(recipe, args)
    freeze_unnamed(recipe, args)
    data = data_of(data, tasks, args.tasks)
    tokenizer = load_tokenizer(recipe)

    def build(args: MultiTaskTrainingArguments, teachers: Mapping[str, str]) -> MultiTaskTrainer:
        set_seed(args.seed)
        model = build_model(recipe, tasks)
        trainer = MultiTaskTrainer(
            model=model,
            args=args,
            train_dataset=splits(data, "train"),
            eval_dataset=evaluation_data(data) or None,
            processing_class=tokenizer,
            teachers=teachers or None,
        )
        if test := splits(data, "test"):
            trainer.evaluation_rows(test, "test")  # so that errors in its rows are raised now; the result is cached
        return trainer

    def build_untaught() -> MultiTaskTrainer:
        """Likewise before the missing teachers are trained."""
        left_out = {} if teachers else {"distillation": "annealed", "distillation_kwargs": None}
        return build(build_arguments(recipe.training, {**overrides, **left_out})[0], teachers)

    if namespace.teachers != "auto":
        trainer = build(args, teachers)
    elif namespace.dry_run:
        trainer = build_untaught()
    else:
        build_untaught()  # so that errors are raised now
        values = {**typed(recipe.training), **overrides}
        lesson = Apprenticeship(recipe, values, data, tasks, tokenizer, finish, Begun(namespace))
        named, teachers = set(teachers), auto_teachers(lesson, teachers, args.tasks, namespace)
        trainer = build(args, teachers)
        found = trainer.teachers.results  # of the teachers, which were measured on the same rows
        trainer.single_results |= {name: own for name, own in found.items() if name not in named and own}
    tell_unnamed(trainer, unnamed(recipe))
    trainer.hub_datasets = recipe.hub_datasets
    checkpoint = _checkpoint(resume, trainer)
    if checkpoint is not None:
        trainer.course.read(checkpoint)  # so that errors that prevent a resume are raised now
    return trainer, checkpoint, data


def given_overrides(namespace: argparse.Namespace, words: Sequence[str]) -> Values:
    """The training arguments of the command line, and those of a dry run, which leaves nothing behind."""
    return {**parse_overrides(words), **(QUIET if namespace.dry_run else {})}


def training_arguments(recipe: Recipe, overrides: Mapping[str, Any]) -> tuple[MultiTaskTrainingArguments, Resume]:
    """The arguments of a run that trains, and what it resumes from.

    Raises:
        ValueError: one is not usable.
    """
    if {**recipe.training, **overrides}.get("do_train") is False:  # the default of the arguments is False as well
        raise ValueError("Parameter `do_train` is False, but this command trains. Remove it, or use evaluate.")
    return build_arguments(recipe.training, overrides)


def read_data(recipe: Recipe, args: MultiTaskTrainingArguments) -> tuple[dict[str, Splits], dict[str, Task]]:
    """The datasets of a recipe by name and split, and its tasks with resolved labels.

    Raises:
        ValueError: a task has no data for a required split, or a row is invalid.
    """
    fit_tasks(recipe)
    data = recipe.load()
    whole = without_streams(recipe.tasks, splits(data, "train"))
    for name, task in recipe.tasks.items():
        if "train" not in data[task.source]:
            raise ValueError(
                f"Task '{name}' has no training data: dataset '{task.source}' has no split 'train'. Add one."
            )
        if args.eval_strategy != "no" and "validation" not in data[task.source]:
            raise ValueError(
                f"Task '{name}' has no evaluation split: dataset '{task.source}' has no split 'validation'. "
                "Add one, or set eval_strategy: 'no'."
            )
        for split, rows in {**data[task.source], "train": whole[task.source]}.items():
            task.check_columns(rows, split)
    names = dict.fromkeys(["validation", "test", *(split for parts in data.values() for split in parts)])
    tasks = resolve_tasks(recipe.tasks, [whole, *(splits(data, name) for name in names if name != "train")])
    check_labels(recipe, tasks, whole)
    return data, tasks


def fit_tasks(recipe: Recipe) -> None:
    """Make the tasks of a recipe those of its backbone, which decides how some read their data, or saved model."""
    recipe.check_backbone()
    if recipe.continued is not None:
        fit_saved(recipe)
        return
    if not any(kind_of({"type": task.type}).architectures for task in recipe.tasks.values()):
        return
    with explained(recipe.backbone, recipe.model.get("revision")):
        config = AutoConfig.from_pretrained(resolve_backbone(recipe.backbone), **_of_hub(recipe))
    subsampler = recipe.model.get("subsampler")
    for name, task in recipe.tasks.items():
        recipe.tasks[name] = build_task(name, fitted({**task.to_dict(), "name": name}, config, subsampler))


def _of_hub(recipe: Recipe) -> dict[str, object]:
    """The arguments of the model with which all of its parts are loaded."""
    names = ("revision", "token", "cache_dir", "trust_remote_code")
    return {key: recipe.model[key] for key in names if key in recipe.model}


def splits(data: Mapping[str, Splits], split: str) -> Splits:
    """The datasets with a split of this name, by name."""
    return {name: splits[split] for name, splits in data.items() if split in splits}


def data_of(data: Mapping[str, Splits], tasks: Mapping[str, Task], names: Collection[str] | None) -> dict[str, Splits]:
    """The datasets that some tasks read; all of them if no task is named."""
    sources = {task.source for name, task in tasks.items() if names is None or name in names}
    return {name: splits for name, splits in data.items() if names is None or name in sources}


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase | FeatureExtractionMixin:
    """The tokenizer of the backbone, its feature extractor, or the processor that holds both."""
    hub = _of_hub(recipe)
    tasks = [] if recipe.continued is None else saved_config(recipe).tasks
    reader = loading_reader([*tasks, *({**task.to_dict(), "name": name} for name, task in recipe.tasks.items())])
    path = resolve_backbone(recipe.backbone)
    with explained(recipe.backbone, recipe.model.get("revision")):
        try:
            return reader.load(path, **hub)
        except ValueError as problem:
            if not Path(path).is_dir():
                raise
            said = " ".join(str(problem).split())
            raise ValueError(f"The backbone '{path}' has no tokenizer that can be loaded: {said}") from None


def _checkpoint(resume: Resume, trainer: MultiTaskTrainer) -> str | None:
    if resume is not True:
        if resume is not None and not Path(resume).is_dir():
            raise ValueError(
                f"There is no checkpoint '{resume}'. Set the folder of a checkpoint, or true for the last one."
            )
        return resume
    output, tell = str(trainer.args.output_dir), print if trainer.is_world_process_zero() else lambda _: None
    last = last_whole_checkpoint(output, tell)
    tell(f"Resuming from {last}." if last else f"No checkpoint in {output}: training starts from the beginning.")
    return last


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Train, evaluate on validation and test, save, and print metrics and an example."""
    recipe = read_recipe(namespace.recipe)
    if recipe.stages:
        from .staged import run_stages

        run_stages(recipe, namespace, given_overrides(namespace, words))
        return
    trainer, checkpoint, data = prepare(namespace, words)
    if namespace.dry_run:
        show_plan(trainer)
        return
    trainer.add_callback(Begun(namespace))
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(_internal_call=True)  # pushed at the end, with the results
    except BaseException:
        output = str(trainer.args.output_dir)
        begun = getattr(namespace, "prepared", False)
        if begun and trainer.is_world_process_zero() and last_whole_checkpoint(output):
            print(
                f"\nTraining stopped early. Resume from the last checkpoint in {output}: --resume_from_checkpoint true"
            )
        raise
    conclude(trainer, data, finish(trainer, data, result.metrics))


def conclude(
    trainer: MultiTaskTrainer, data: Mapping[str, Splits], measured: Mapping[str, Mapping[str, float]]
) -> None:
    """Print the metrics of each split and an example, and push the model if asked to."""
    if trainer.is_world_process_zero():
        if measured:
            print()
            show_metrics(with_sets(measured, trainer), trainer.model.config.task_names, trainer.progress.metrics)
            show_beside(trainer.card.beside_single(), trainer.model.config.task_names)
        show_example(trainer, data)
        print(f"\nModel, card and results are in {trainer.args.output_dir}")
        if trainer.args.report_to and "tensorboard" in trainer.args.report_to:
            print(f"Curves: tensorboard --logdir {trainer.args.output_dir}")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def finish(
    trainer: MultiTaskTrainer, data: Mapping[str, Splits], metrics: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Evaluate what has been trained on validation and test, and save results and card.

    Args:
        trainer: at the end of its training.
        data: the datasets by name and split.
        metrics: of the training.

    Returns:
        The metrics by split.
    """
    if trainer.args.should_save:
        drop_results(Path(str(trainer.args.output_dir)))
    trainer.save_state()
    trainer.log_metrics("train", dict(metrics))
    trainer.save_metrics("train", dict(metrics))
    measured = {}
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if rows := evaluation_data(data) if split == "validation" else splits(data, split):
            measured[split] = trainer.evaluate(rows, metric_key_prefix=prefix)
            if split == "validation" and any(task.fits for task in trainer.tasks.values()):
                trainer.save_model(_internal_call=True)  # with what was fitted to the weights as they are
            compared = [one for one in trainer.card.beside_single() if one.split == split]
            trainer.save_metrics(
                prefix, measured[split] | {key: value for one in compared for key, value in one.flat().items()}
            )
    trainer.create_model_card()
    return measured


class Begun(TrainerCallback):
    """Records that training has started: earlier errors, such as a missing optimizer, are mistakes of the user."""

    def __init__(self, namespace: argparse.Namespace) -> None:
        self.namespace = namespace

    def on_train_begin(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        """See the class; in a dry run nothing trains, and a later stage may have a mistake."""
        self.namespace.prepared = not self.namespace.dry_run
