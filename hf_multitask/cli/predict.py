"""``hf-multitask predict MODEL``: the answers of every task for a text, or for each row of a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from ..modeling import MultiTaskModel, MultiTaskPipeline
from ..modeling.chunks import LENGTH, STRIDE
from ..modeling.pipeline import InputError
from .answers import WINDOW, AnswerFile
from .inputs import USUAL, Columns, Input
from .jsonl import HALF
from .rows import RowFile, open_rows
from .saved import load_saved, processor_of

_LONG = 10_000  # rows, from which on progress is also shown in a log
_OF_FILES = ("text_column", "text_pair_column", "id_column", "include_line_numbers")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "predict", help="print the answers of a saved model", description=(__doc__ or "").replace("``", "")
    )
    parser.add_argument("model", help="folder or Hub id of a multi-task model")
    parser.add_argument("text", nargs="?", help="the text, or the file of a recording")
    parser.add_argument(
        "--input",
        help="a file instead: CSV, TSV, a JSON list, or JSON lines, with the columns of the tasks or with 'text' (and "
        "'text_pair'), or 'question' and 'context' or 'choices'; or one text, "
        "or one file of a recording, per line; or any of them in gzip",
    )
    parser.add_argument(
        "--output",
        help="a file for the answers (default: standard output); the same command resumes it if interrupted",
    )
    parser.add_argument("--tasks", nargs="+", help="names of the tasks to run (default: all)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows per forward pass (default: 16)")
    parser.add_argument(
        "--chunk_length_s",
        type=float,
        help="seconds of a chunk in which long recordings are transcribed (default: whole)",
    )
    parser.add_argument(
        "--stride_length_s",
        type=float,
        nargs="+",
        help="seconds by which chunks overlap on each side, or left and right (default: a sixth of a chunk)",
    )
    parser.add_argument("--text_column", help="the column of the text (default: detected)")
    parser.add_argument("--text_pair_column", help="the column of the second text of pairs (default: detected)")
    parser.add_argument("--id_column", help="a column that is repeated in the output, as 'id'")
    parser.add_argument(
        "--include_line_numbers", action="store_true", default=None, help="add the line number to the output, as 'id'"
    )
    parser.add_argument(
        "--include_inputs", action="store_true", default=None, help="repeat what was read in the output, as 'input'"
    )


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Write one JSON object per text, in the order of the input."""
    _check(namespace, words)
    model, tokenizer = load_saved(namespace.model)
    asked = {"tasks": namespace.tasks, "batch_size": namespace.batch_size}
    chunks = {LENGTH: namespace.chunk_length_s, STRIDE: _stride(namespace.stride_length_s)}
    asked |= {name: value for name, value in chunks.items() if value is not None}
    pipeline = MultiTaskPipeline(model=model.eval(), **processor_of(tokenizer), **asked)
    names = namespace.tasks or model.config.task_names
    told = {"id": namespace.id_column or namespace.include_line_numbers, "input": namespace.include_inputs}
    clash = next((key for key, wanted in told.items() if wanted and key in names), None)
    if clash is not None:
        raise ValueError(
            f"The answers of the task '{clash}' use the same key as the {clash} of a row. Remove the option for the "
            f"{clash}, or select other --tasks."
        )
    columns = {name: getattr(namespace, name) for name in (*_OF_FILES, "include_inputs")}
    reader = Columns([model.config.task(name) for name in names], **columns)
    file = None if namespace.input is None else open_rows(Path(namespace.input), reader.names, USUAL)
    inputs = read_inputs(file, reader, namespace.text)
    settings = {"model": namespace.model, "weights": _version(namespace.model, model), **asked, **columns}
    output = None if namespace.output is None else AnswerFile(Path(namespace.output), settings)
    with _progress(file) as progress:
        while window := list(islice(inputs, WINDOW)):
            if output is None:
                sys.stdout.writelines(_answers(pipeline, window, namespace.tasks, file))
                sys.stdout.flush()
            elif output.takes(window):
                output.write(_answers(pipeline, window, namespace.tasks, file))
            progress.update(len(window))
    if output is not None:
        output.finish()


def _stride(given: list[float] | None) -> float | list[float] | None:
    return given[0] if given is not None and len(given) == 1 else given


def _check(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    if words:
        raise ValueError(f"predict does not accept the argument '{words[0]}'. Quote the text if it has several words.")
    if (namespace.text is None) == (namespace.input is None):
        raise ValueError("Use either a text or --input FILE.")
    if namespace.text is not None and HALF.search(namespace.text):
        raise ValueError(
            f"The text {namespace.text!r} is not in UTF-8. Set the terminal to UTF-8, or use --input FILE."
        )
    if namespace.batch_size < 1:
        raise ValueError(f"--batch_size should be 1 or more. Found {namespace.batch_size}.")
    of_files = next((name for name in _OF_FILES if getattr(namespace, name)), None)
    if namespace.input is None and of_files is not None:
        raise ValueError(f"--{of_files} applies to the rows of a file. Set --input FILE, or remove it.")
    if namespace.id_column and namespace.include_line_numbers:
        raise ValueError("Both --id_column and --include_line_numbers set the 'id'. Remove one of them.")
    if namespace.input is not None and not Path(namespace.input).is_file():
        raise ValueError(f"There is no file '{namespace.input}'. Check --input.")


def read_inputs(file: RowFile | None, reader: Columns, text: str | None = None) -> Iterator[Input]:
    """The inputs of a file, or of a single text.

    Raises:
        ValueError: a row cannot be read.
    """
    if file is None:
        yield Input(1, [(None, text)], {"input": text} if reader.include_inputs else {})
        return
    for number, row in file.rows():
        yield reader.read(file, number, row)


def _answers(
    pipeline: MultiTaskPipeline, window: list[Input], tasks: list[str] | None, file: RowFile | None
) -> list[str]:
    """The output lines for a window of inputs, which are batched without any other inputs."""
    answers: list[dict[str, object]] = [{} for _ in window]
    parts: dict[tuple[str, ...] | None, list[tuple[int, object]]] = {}
    for place, one in enumerate(window):
        for group, value in one.parts:
            parts.setdefault(group, []).append((place, value))
    for group, members in parts.items():
        only = {} if group is None or tasks is None else {"tasks": group}
        try:
            found = pipeline([value for _, value in members], **only)
        except InputError as problem:
            if file is None:
                raise ValueError(problem.reason) from None
            number = window[members[problem.place][0]].number
            raise ValueError(f"{file.where(number)}: {problem.reason}") from None
        for (place, _), answer in zip(members, found, strict=True):
            answers[place] |= {name: value for name, value in answer.items() if group is None or name in group}
    names = pipeline.model.config.task_names
    ordered = [{name: answer[name] for name in names if name in answer} for answer in answers]
    return [
        json.dumps({**one.told, **answer}, ensure_ascii=False) + "\n"
        for one, answer in zip(window, ordered, strict=True)
    ]


def _progress(file: RowFile | None) -> tqdm:
    total = 1 if file is None else file.count()
    terminal = sys.stderr.isatty()
    hidden = total < _LONG and not (terminal and total > 1)
    return tqdm(total=total, unit=" inputs", disable=hidden, mininterval=0.1 if terminal else 30.0)


def _version(name: str, model: MultiTaskModel) -> str:
    """The version of the weights: sizes and times of the files in a folder, or the commit of a repository."""
    files = [(path.name, path.stat()) for path in sorted(Path(name).expanduser().glob("*.safetensors"))]
    told = [f"{file} of {stat.st_size} bytes at {stat.st_mtime_ns}" for file, stat in files]
    return ", ".join(told) or str(getattr(model.config, "_commit_hash", None))
