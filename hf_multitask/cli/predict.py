"""``hf-multitask predict MODEL``: what every task says about a text, or about each line of a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..modeling import MultiTaskPipeline
from .answers import WINDOW, AnswerFile, Numbered, count_lines, read_inputs
from .saved import load_saved

_LONG = 10_000  # lines, from which progress is shown in a log as well


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "predict", help="answers of a saved model", description=(__doc__ or "").replace("``", "")
    )
    parser.add_argument("model", help="folder or Hub id of a multi-task model")
    parser.add_argument("text", nargs="?", help="the text")
    parser.add_argument(
        "--input",
        help="a file instead: "
        "JSONL with 'text' (and 'text_pair'), or 'question' and 'context' or 'choices'; or a text a line",
    )
    parser.add_argument(
        "--output",
        help="a file for the answers (default: standard output), which the same command goes on with if interrupted",
    )
    parser.add_argument("--tasks", nargs="+", help="names of the tasks to ask (default: all)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows of a forward (default: 16)")


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Write one JSON object per text, in the order of the input."""
    if words:
        raise ValueError(f"predict does not take '{words[0]}'. Quote the text if it has several words.")
    if (namespace.text is None) == (namespace.input is None):
        raise ValueError("Give either a text or --input FILE.")
    if namespace.batch_size < 1:
        raise ValueError(f"--batch_size should be 1 or more. Found {namespace.batch_size}.")
    path = None if namespace.input is None else Path(namespace.input)
    inputs = iter([(1, namespace.text)]) if path is None else read_inputs(path)
    windows = iter(lambda: list(islice(inputs, WINDOW)), [])
    first = next(windows, [])  # what is wrong with it need not wait for the model
    model, tokenizer = load_saved(namespace.model)
    pipeline = MultiTaskPipeline(
        model=model.eval(), tokenizer=tokenizer, batch_size=namespace.batch_size, tasks=namespace.tasks
    )
    given = {"model": namespace.model, "weights": _version(namespace.model, model)}
    settings = {**given, "tasks": namespace.tasks, "batch_size": namespace.batch_size}
    output = None if namespace.output is None else AnswerFile(Path(namespace.output), settings)
    with _progress(path) as progress:
        for window in chain([first] if first else [], windows):
            if output is None:
                sys.stdout.writelines(_answers(pipeline, window, path))
                sys.stdout.flush()
            elif output.takes(window):
                output.write(_answers(pipeline, window, path))
            progress.update(len(window))
    if output is not None:
        output.finish()


def _answers(pipeline: MultiTaskPipeline, window: list[Numbered], path: Path | None) -> list[str]:
    """The lines for some inputs, which are batched among themselves, so that they depend on no others."""
    rows = [row for _, row in window]
    try:
        answers = pipeline(rows)
    except (ValueError, TypeError):
        _name_line(pipeline, window, path)
        raise
    return [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]


def _name_line(pipeline: MultiTaskPipeline, window: list[Numbered], path: Path | None) -> None:
    """Tell which line of a file cannot be answered, if it is the fault of one."""
    for number, row in window if path is not None else []:
        try:
            pipeline.preprocess(row, **pipeline._preprocess_params)
        except (ValueError, TypeError) as problem:
            raise ValueError(f"line {number} of '{path}': {problem}") from None


def _progress(path: Path | None) -> Any:
    total = 1 if path is None else count_lines(path)[0]
    terminal = sys.stderr.isatty()
    hidden = total < _LONG and not (terminal and total > 1)
    return tqdm(total=total, unit=" inputs", disable=hidden, mininterval=0.1 if terminal else 30.0)


def _version(name: str, model: Any) -> str:
    """Which weights a name stands for now: sizes and times of a folder's files, or the commit of a repository."""
    files = [(path.name, path.stat()) for path in sorted(Path(name).expanduser().glob("*.safetensors"))]
    told = [f"{file} of {stat.st_size} bytes at {stat.st_mtime_ns}" for file, stat in files]
    return ", ".join(told) or str(getattr(model.config, "_commit_hash", None))
