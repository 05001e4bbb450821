"""``hf-multitask evaluate MODEL RECIPE``: evaluate a saved model on a split of a recipe's data."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..training import MultiTaskTrainer
from .arguments import build_arguments, parse_overrides
from .predictions import check_file, save_predictions
from .recipe import read_recipe
from .report import PAGE, check_folder, write_report
from .saved import load_saved
from .shown import show_metrics, with_sets
from .splits import evaluation_data, split_name
from .train import splits


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("evaluate", description=(__doc__ or "").replace("``", ""))
    parser.add_argument("model", help="folder or Hub id of a multi-task model")
    parser.add_argument("recipe", help="a YAML file with the data")
    parser.add_argument("--split", default="test", help="split to evaluate (default: test)")
    parser.add_argument(
        "--save_predictions",
        metavar="FILE",
        help="write a JSON object for every row and task: id, task, gold, answer, score",
    )
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write index.html, a page with tables, confusions, slices, calibration and errors, and eval_report.json",
    )


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Evaluate and print the table; with ``--output_dir``, write the results there as JSON.

    With ``--save_predictions``, write the answers to all rows as well; with ``--report``, a page.
    """
    folder = None if namespace.report is None else Path(namespace.report)
    if folder is not None:
        check_folder(folder)
    file = None if namespace.save_predictions is None else Path(namespace.save_predictions)
    if file is not None:
        check_file(file)
    recipe = read_recipe(namespace.recipe)
    overrides = parse_overrides(words)
    split = split_name(namespace.split)
    loaded = recipe.load([split])
    data = splits(loaded, split)
    if not data:
        raise ValueError(f"No dataset of the recipe has a split '{split}'. Set another with --split.")
    model, tokenizer = load_saved(namespace.model)
    prefix = "eval" if split == "validation" else split
    with tempfile.TemporaryDirectory() as scratch:
        quiet = {"output_dir": scratch, "eval_strategy": "no", "report_to": "none", "push_to_hub": False}
        training = {**recipe.training, **quiet, "load_best_model_at_end": False, "early_stopping_patience": None}
        args, _ = build_arguments(training, overrides)
        trainer = MultiTaskTrainer(model=model, args=args, processing_class=tokenizer, tasks=recipe.tasks)
        measured = evaluation_data(loaded) if split == "validation" else data
        metrics = trainer.evaluate(measured, metric_key_prefix=prefix)
        if "output_dir" in overrides:
            trainer.save_metrics(prefix, metrics, combined=False)
        if file is not None and trainer.is_world_process_zero():
            save_predictions(file, trainer, data)
        if folder is not None and trainer.is_world_process_zero():
            write_report(folder, trainer, data, prefix, namespace.model)
            print(f"The report is in {folder / PAGE}, its numbers are in eval_report.json.")
    show_metrics(with_sets({split: metrics}, trainer), model.config.task_names, trainer.progress.metrics)
