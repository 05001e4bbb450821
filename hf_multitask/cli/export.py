"""``hf-multitask export MODEL --task NAME --output DIR``: a task of a saved model as a stock model of its family."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .saved import load_saved


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("export", description=(__doc__ or "").replace("``", ""))
    parser.add_argument("model", help="folder or Hub id of a multi-task model")
    parser.add_argument("--task", nargs="+", help="name of the task; several are each saved in a folder of their name")
    parser.add_argument("--all", action="store_true", help="every task that has a stock class")
    parser.add_argument(
        "--onnx", action="store_true", help="one ONNX graph of all tasks, or of the named ones, instead of stock models"
    )
    parser.add_argument("--output", required=True, help="folder of the exported files")


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Export, and print where each task, or the graph, is, and why a task is not exported.

    Raises:
        ValueError: a task that was named, or with ``--all`` every task, cannot be exported.
    """
    if words:
        raise ValueError(f"export does not accept the argument '{words[0]}'. Remove it.")
    if namespace.task is not None and namespace.all:
        raise ValueError("Use either --task NAME or --all.")
    if namespace.task is None and not namespace.all and not namespace.onnx:
        raise ValueError("No task is selected for export. Set --task NAME, or --all.")
    model, tokenizer = load_saved(namespace.model)
    output = Path(namespace.output).expanduser()
    if namespace.onnx:
        print(model.export_onnx(output, tokenizer, tasks=namespace.task))
        return
    names = model.config.task_names if namespace.all else list(dict.fromkeys(namespace.task))
    for name in names:
        model.config.task(name)
    refused = []
    for name in names:
        folder = output / name if namespace.all or len(names) > 1 else output
        try:
            model.export_task(name, folder)
        except ValueError as problem:
            refused.append(str(problem))
        else:
            print(f"{name}: {folder}")
    if refused and (not namespace.all or len(refused) == len(names)):
        raise ValueError(" ".join(refused))
    for sentence in refused:
        sys.stderr.write(f"Not exported: {sentence}\n")
