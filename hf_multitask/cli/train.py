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

from ..hub.beside import Beside, beside_in_words, beside_rows
from ..hub.history import in_order
from ..hub.records import Orders, average_of, by_task, of_set, ranked, whole
from ..modeling import MultiTaskPipeline
from ..modeling.backbone import resolve_backbone
from ..modeling.inputs import as_text
from ..modeling.kinds import fitted, kind_of, loading_reader, reader_of
from ..modeling.loading import explained
from ..modeling.tags import TagReader
from ..tasks import Task, build_task
from ..training import MultiTaskTrainer, MultiTaskTrainingArguments
from ..training.preparation.tasks import resolve_tasks, without_streams
from ..training.report.console import FEW, MANY, table
from ..training.state.checkpoint import last_whole_checkpoint
from .arguments import Resume, build_arguments, parse_overrides, typed
from .helps import add_help
from .recipe import Recipe, read_recipe
from .saved import processor_of
from .splits import SPLITS, Splits, evaluation_data
from .start import build_model, check_labels, fit_saved, freeze_unnamed, saved_config, tell_unnamed, unnamed
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


def prepare(
    namespace: argparse.Namespace, words: Sequence[str]
) -> tuple[MultiTaskTrainer, str | None, dict[str, Splits]]:
    """Prepare everything up to the first step: all errors in a recipe are raised here."""
    recipe = read_recipe(namespace.recipe)
    overrides = parse_overrides(words)
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

    if namespace.teachers == "auto":
        untaught = {} if teachers else {"distillation": "annealed", "distillation_kwargs": None}
        build(build_arguments(recipe.training, {**overrides, **untaught})[0], teachers)  # so that errors are raised now
        values = {**typed(recipe.training), **overrides}
        lesson = Apprenticeship(recipe, values, data, tasks, tokenizer, finish)
        named, teachers = set(teachers), auto_teachers(lesson, teachers, namespace)
    trainer = build(args, teachers)
    if namespace.teachers == "auto":  # which were measured on the same rows
        found = trainer.teachers.results
        trainer.single_results |= {name: own for name, own in found.items() if name not in named and own}
    tell_unnamed(trainer, unnamed(recipe))
    trainer.hub_datasets = recipe.hub_datasets
    checkpoint = _checkpoint(resume, trainer)
    if checkpoint is not None:
        trainer.course.read(checkpoint)  # so that errors that prevent a resume are raised now
    return trainer, checkpoint, data


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

        run_stages(recipe, namespace, parse_overrides(words))
        return
    trainer, checkpoint, data = prepare(namespace, words)
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
        _show_example(trainer, data)
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
        """See the class."""
        self.namespace.prepared = True


def show_metrics(
    measured: Mapping[str, Mapping[str, float]], tasks: Sequence[str], names: Orders | None = None
) -> None:
    """Print a table with a line per task and metric and a column per split; of many tasks, the worst and the best.

    Args:
        measured: the metrics of an evaluation of each split.
        tasks: the names of the model's tasks.
        names: the names of the metrics of each task.
    """
    found = {split: by_task(metrics, tasks, names)[0] for split, metrics in measured.items()}
    if len(tasks) > MANY:
        _, order = ranked(next(iter(found.values()), {}))
        shown = [name for name, _ in (order if len(order) <= 2 * FEW else order[:FEW] + order[-FEW:])]
        print(f"{len(order):,} tasks; the worst and the best {FEW} (all of them: the results in JSON)")
    else:
        shown = list(tasks)
    lines: list[list[str]] = [["task", "metric", *measured]]
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for split, own in found.items():
        for task, values in own.items():
            primary = next((metric for metric in values if metric != "loss"), None)
            for metric, value in values.items() if task in shown else ():
                if whole(metric) not in (metric, primary):
                    continue  # of the metrics of slices, those of the primary one
                rows.setdefault((task, metric), {})[split] = value
    rows[("average", "")] = {split: average_of(metrics) for split, metrics in measured.items()}
    for line, values in rows.items():
        lines.append([*line, *(f"{values[split]:.4f}" if split in values else "-" for split in measured)])
    print(table(lines))


def with_sets(measured: Mapping[str, Mapping[str, float]], trainer: MultiTaskTrainer) -> dict[str, Mapping[str, float]]:
    """The metrics by split, and by further evaluation set as well.

    Args:
        measured: the metrics by split.
        trainer: that has measured them.
    """
    names = [split for split in trainer.evaluator.reports.splits if split not in SPLITS]
    found = {split: dict(metrics) for split, metrics in measured.items()}
    sets = {name: of_set(found.get("validation", {}), name) for name in names}
    every = {**found, **{name: own for name, own in sets.items() if own}}
    return {split: every[split] for split in in_order(every)}


def show_beside(compared: Sequence[Beside], tasks: Sequence[str]) -> None:
    """Print the tasks beside their single-task models, where there are such, and which of them lose."""
    if compared:
        print(f"\n{table(beside_rows(compared))}\n{beside_in_words(compared, tasks)}")


def _show_example(trainer: MultiTaskTrainer, data: Mapping[str, Splits]) -> None:
    """Print the answers for a row of the data: the first one of a token classification task, if there is one.

    Of a model that reads texts and recordings, a row of each.
    """
    tokenizer: Any = trainer.processing_class
    pipeline = MultiTaskPipeline(model=trainer.model.eval(), **processor_of(tokenizer))
    tasks = [task for task in trainer.model.config.tasks if (task["dataset"] or task["name"]) in data]
    tasks = [task for task in tasks if reader_of(task).answers_rows]
    for modality in dict.fromkeys(reader_of(task).modality for task in tasks):
        own = [task for task in tasks if reader_of(task).modality == modality]
        task = next((task for task in own if isinstance(reader_of(task), TagReader)), own[0])
        rows = data[task["dataset"] or task["name"]]
        row = reader_of(task).example(task, next(iter(rows["test" if "test" in rows else "train"])))
        text = as_text(row["text"]) if isinstance(reader_of(task), TagReader) else shown_inputs(row)
        print(f"\nExample: {_short(text)}")
        for name, answer in pipeline(row).items():
            print(f"  {name}: {_readable(answer)}")


def shown_inputs(row: Mapping[str, object]) -> str:
    """The inputs of a row in one line."""
    return " / ".join(map(_shown, row.values()))


def _shown(value: object) -> str:
    """A text or several, or the file of a recording."""
    if isinstance(value, Mapping):
        return str(value.get("path") or "a recording")
    if isinstance(value, bytes):
        return "a recording"
    if isinstance(value, list):
        return " | ".join(one["content"] if isinstance(one, Mapping) else one for one in value)
    return as_text(value)


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _readable(answer: object) -> str:
    if isinstance(answer, list):
        shown = ", ".join(map(_readable, answer[:12]))
        return (shown + (", ..." if len(answer) > 12 else "")) or "nothing"
    if isinstance(answer, dict) and "embedding" in answer:
        return f"an embedding with {len(answer['embedding'])} numbers"
    if isinstance(answer, dict) and "generated_text" in answer:
        return _short(_shown(answer["generated_text"]))
    if isinstance(answer, dict) and answer.keys() == {"text"}:
        return _short(answer["text"])
    if not isinstance(answer, dict) or "score" not in answer:  # a task type of the user
        return str(answer)
    for key in ("answer", "choice"):
        if key in answer:
            return f"{answer[key] or 'no answer'} ({answer['score']:.3f})"
    if "label" not in answer and "word" not in answer:
        return f"{answer['score']:.3f}"
    label = answer.get("entity_group") or answer.get("entity") or answer.get("label")
    return f"{answer['word']} = {label}" if "word" in answer else f"{label} ({answer['score']:.3f})"
