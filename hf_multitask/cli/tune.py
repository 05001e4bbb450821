"""``hf-multitask tune RECIPE``: search for the training arguments with which the tasks of a recipe are best."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from ..modeling import MultiTaskModel
from ..modeling.finite import WeightsError
from ..tasks.directions import rises
from ..training import MultiTaskTrainer, MultiTaskTrainingArguments
from ..training.diagnosis.trainer import reads_evaluations
from ..training.preparation.named import check_arguments_by_name
from ..training.report.console import PlanCallback, table
from ..training.step.guard import LossError
from .arguments import build_arguments, parse_overrides, typed
from .best_recipe import write_best
from .document import Values, read_document
from .recipe import Recipe, read_recipe
from .space import Space, read_space
from .start import build_model, freeze_unnamed, unnamed
from .teachers import given_teachers
from .train import load_tokenizer, read_data, splits, training_arguments

if TYPE_CHECKING:
    from .study import Found, Study

BEST, TRIALS = "best_recipe.yaml", "trials.json"
_KEY = "Key 'tune'"
# Trials save and report nothing; what they evaluate while they train is for those who read it.
_QUIET: Values = {
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "save_best_by_task": False,
    "report_to": "none",
    "push_to_hub": False,
    "gradient_logging_steps": 0,
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("tune", description=(__doc__ or "").replace("``", ""))
    parser.add_argument("recipe", help="a YAML file; any training argument may follow, as in --num_train_epochs 2")
    parser.add_argument(
        "--n_trials", type=int, default=20, help="trials, with those of an interrupted search (default: %(default)s)"
    )
    parser.add_argument("--backend", choices=["optuna"], default="optuna", help="what proposes the trials")
    parser.add_argument("--space", metavar="FILE", help="a YAML file with the space, in place of the key tune")


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Train the trials, print a table of them, and write the best one as a recipe."""
    search = prepare(namespace, words)
    namespace.prepared = True
    found = search.run(namespace.n_trials)
    _conclude(search, found)


def prepare(namespace: argparse.Namespace, words: Sequence[str]) -> Search:
    """Prepare everything up to the first trial: all errors are raised here.

    Raises:
        ImportError: optuna is not installed.
        ValueError: something does not fit.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ImportError("A search needs optuna, which is not installed. Run: pip install 'hf_multitask[optuna]'")
    from .study import Study

    if namespace.n_trials < 1:
        raise ValueError(f"--n_trials should be 1 or more. Found {namespace.n_trials}.")
    recipe = read_recipe(namespace.recipe)
    overrides = parse_overrides(words)
    if recipe.stages:
        raise ValueError("A search is over the arguments of one training. Remove 'stages' from the recipe.")
    args, resume = training_arguments(recipe, overrides)
    if resume is not None:
        raise ValueError("A search continues by itself in its output_dir. Remove resume_from_checkpoint.")
    if args.world_size > 1:
        raise ValueError("A search runs in one process. Start it without torchrun or accelerate launch.")
    training = {**typed(recipe.training), **overrides}
    space = _space(recipe, namespace.space, training)
    data, tasks = read_data(recipe, args)
    for name, task in tasks.items():
        if "validation" not in data[task.source]:
            raise ValueError(
                f"Task '{name}' has no validation rows: a search compares its trials on them. Add a split 'validation' "
                f"to dataset '{task.source}'."
            )
    quiet, known = _quiet(training, space), unnamed(recipe)
    for where, values in space.corners():
        try:
            check_arguments_by_name(build_arguments({}, {**training, **quiet, **values})[0], tasks, known)
        except (ValueError, TypeError) as problem:
            raise ValueError(f"The space has a trial that cannot train, {where}: {problem}") from None
    tokenizer, teachers = load_tokenizer(recipe), given_teachers(recipe)
    base = build_arguments({}, {**training, **quiet})[0]
    freeze_unnamed(recipe, base)

    def model_init() -> MultiTaskModel:
        model = build_model(recipe, tasks)
        set_seed(base.seed)  # as where a trainer is given a model: the best recipe repeats its trial
        return model

    trainer = MultiTaskTrainer(
        model_init=model_init,
        args=base,
        train_dataset=splits(data, "train"),
        eval_dataset=splits(data, "validation"),
        processing_class=tokenizer,
        teachers=teachers or None,
    )
    trainer.saver.leaves_checkpoint = False  # a trial that is ended starts again
    trainer.remove_callback(PlanCallback)
    output = Path(str(args.output_dir))
    study = Study(output, base.seed)
    study.check({"space": space.given, **trainer.plan.row_order(), **_described(recipe, training)})
    return Search(recipe, space, trainer, study, Watched(args), {**training, **quiet}, overrides, teachers)


def _space(recipe: Recipe, file: str | None, training: Values) -> Space:
    if file is None:
        if recipe.tune is None:
            raise ValueError(
                "There is no space to search. Add the key 'tune' to the recipe, such as tune: {learning_rate: {low: "
                "1e-5, high: 1e-3, log: true}}, or give a file with --space."
            )
        return read_space(recipe.tune, _KEY, training)
    if not Path(file).is_file():
        raise ValueError(f"There is no file '{file}'. Check --space.")
    return read_space(read_document(Path(file)), f"The space of '{file}'", training)


def _quiet(training: Values, space: Space) -> Values:
    """The arguments that are the same in all trials; without evaluations unless the training reads them."""
    watching = ("load_best_model_at_end", "early_stopping_patience", "task_early_stopping_patience")
    every = [training, *(training | values for _, values in space.corners())]
    reads = any(training.get(name) for name in watching) or any(reads_evaluations(values) for values in every)
    return _QUIET if reads else {**_QUIET, "eval_strategy": "no"}


def _described(recipe: Recipe, training: Values) -> Values:
    """What two parts of a search must have in common."""
    aside = ("output_dir", "disable_tqdm", "report_to", "push_to_hub")
    kept = {key: value for key, value in training.items() if key not in aside and not key.startswith("hub_")}
    model = {key: value for key, value in recipe.model.items() if key != "token"}
    return {"backbone": recipe.backbone, "model": model, "training arguments": kept, "teachers": recipe.teachers}


class Watched:
    """The objective of a trial: ``eval_average`` of its model, which is the best one if the run keeps that.

    Args:
        args: of the run.
    """

    def __init__(self, args: MultiTaskTrainingArguments) -> None:
        self._keeps_best = args.load_best_model_at_end
        name = (args.metric_for_best_model or "average").removeprefix("eval_")
        self._key = f"eval_{name}"
        chosen = args.greater_is_better
        self._sign = 1.0 if (rises(name) is not False if chosen is None else chosen) else -1.0
        self.begin()

    def begin(self) -> None:
        """Begin a trial."""
        self._best: float | None = None
        self._value = 0.0

    def __call__(self, metrics: Mapping[str, float]) -> float:
        """The objective after an evaluation."""
        watched = self._sign * metrics.get(self._key, metrics["eval_average"])
        if not self._keeps_best or self._best is None or watched > self._best:
            self._best, self._value = watched, metrics["eval_average"]
        return self._value


@dataclass(frozen=True)
class Search:
    """A search that is ready.

    Args:
        recipe: whose arguments it searches.
        space: of the search.
        trainer: of all trials.
        study: that proposes and keeps them.
        watched: their objective.
        values: the training arguments that all trials have.
        overrides: those of the command line.
        teachers: by task, their folders.
    """

    recipe: Recipe
    space: Space
    trainer: MultiTaskTrainer
    study: Study
    watched: Watched
    values: Values
    overrides: Values
    teachers: Mapping[str, str]

    def run(self, count: int) -> list[Found]:
        """Train trials until there are so many.

        Raises:
            LossError: none of them could be measured.
        """
        if done := self.study.resume():
            print(f"The search in {self.study.folder} has {done} of {count} trials, and continues.")
        while (done := len(self.study.found())) < count:
            print(f"\nTrial {done + 1} of {count}")
            try:
                self.trainer.hyperparameter_search(
                    self._arguments, self.watched, n_trials=1, backend="optuna", **self.study.options
                )
            except (LossError, WeightsError) as problem:
                self.study.failed()
                print(f"It failed: {problem}")
                continue
            last, best = self.study.found()[-1], self.study.best()
            print(f"eval_average {last.value:.4f}, best {best.value:.4f} (trial {best.number}): {shown_values(last)}")
        if all(one.value is None for one in self.study.found()):
            raise LossError("No trial could be measured: in all of them losses or weights became NaN or infinite.")
        return self.study.found()

    def _arguments(self, trial: Any) -> Values:  # noqa: ANN401 - of optuna
        """Give the trainer the arguments of a trial, with the types of their fields."""
        self.watched.begin()
        drawn, args = self.space.draw(trial), self.trainer.args
        print(f"  {json.dumps(trial.params)}")
        built = build_arguments({}, {**self.values, **drawn})[0]
        for name in drawn:
            setattr(args, name, getattr(built, name))
        return {}


def shown_values(found: Found) -> str:
    """The values of a trial in words."""
    return ", ".join(f"{name} {shown_value(value)}" for name, value in found.params.items())


def shown_value(value: object) -> str:
    """A value in a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _conclude(search: Search, found: Sequence[Found]) -> None:
    """Print the trials, and write them and the best recipe."""
    best = search.study.best()
    names = [one.name for one in search.space.dimensions]
    order = sorted(found, key=lambda one: (one.value is None, -(one.value or 0.0)))
    rows = [["trial", "eval_average", *names, "seconds"]]
    for one in order:
        value = "failed" if one.value is None else f"{one.value:.4f}"
        drawn = [shown_value(one.params.get(name)) for name in names]
        rows.append([str(one.number), value, *drawn, f"{one.seconds:.0f}"])
    print(f"\nTrials, the best first\n{table(rows)}")
    folder = search.study.folder
    lines = [{"trial": one.number, "eval_average": one.value, "arguments": one.params} for one in found]
    (folder / TRIALS).write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
    path = write_best(
        folder / BEST, search.recipe, {**search.overrides, **search.space.kept(best.params)}, search.teachers
    )
    print(f"\nThe best arguments are in {path}. Train with them: hf-multitask train {path}")
