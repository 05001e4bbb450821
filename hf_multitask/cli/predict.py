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
from ..modeling.sound import SoundError
from .answers import WINDOW
from .inputs import USUAL, Columns, Input
from .jsonl import HALF
from .rows import RowFile, open_rows
from .saved import load_saved, processor_of
from .shares import Shares, own_device, ranks

_LONG = 10_000  # rows, from which on progress is also shown in a log
_OF_FILES = ("text_column", "text_pair_column", "id_column", "include_line_numbers")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("predict", description=(__doc__ or "").replace("``", ""))
    parser.add_argument("model", help="folder or Hub id of a multi-task model")
    parser.add_argument("text", nargs="?", help="the text, or the file of a recording")
    parser.add_argument(
        "--input",
        help="a file instead: CSV, TSV, Parquet, a JSON list, or JSON lines, with the columns of the tasks or with "
        "'text' (and 'text_pair'), or 'question' and 'context' or 'choices'; or one text, "
        "or one file of a recording, per line; or any of them in gzip; or a folder of recordings",
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
    parser.add_argument("--truncate_dim", type=int, help="the first dimensions of embeddings to keep (default: all)")
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
    more = {LENGTH: namespace.chunk_length_s, STRIDE: _stride(namespace.stride_length_s)}
    more["truncate_dim"] = namespace.truncate_dim
    asked |= {name: value for name, value in more.items() if value is not None}
    pipeline = MultiTaskPipeline(model=model.eval(), **processor_of(tokenizer), **asked, **own_device())
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
    if namespace.input is not None and Path(namespace.input).is_dir() and not reader.hears:
        raise ValueError(f"'{namespace.input}' is a folder, and the tasks read no recordings. Set a file as --input.")
    file = None if namespace.input is None else open_rows(Path(namespace.input), reader.names, USUAL)
    inputs = read_inputs(file, reader, namespace.text)
    settings = {"model": namespace.model, "weights": _version(namespace.model, model), **asked, **columns}
    output = None if namespace.output is None else Shares(Path(namespace.output), settings, WINDOW)
    answering = Answering(pipeline, namespace.tasks, file)
    with _progress(file) as progress:
        while window := list(islice(inputs, WINDOW)):
            if output is None:
                sys.stdout.writelines(answering.lines(window))
                sys.stdout.flush()
            elif output.own_next() and output.file.takes(window):
                output.file.write(answering.lines(window))
            progress.update(len(window))
    if output is not None:
        output.finish()
    answering.check()


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
    if ranks() > 1 and namespace.output is None:
        raise ValueError(f"{ranks()} processes answer together, and print nothing. Set --output FILE.")
    if namespace.batch_size < 1:
        raise ValueError(f"--batch_size should be 1 or more. Found {namespace.batch_size}.")
    of_files = next((name for name in _OF_FILES if getattr(namespace, name)), None)
    if namespace.input is None and of_files is not None:
        raise ValueError(f"--{of_files} applies to the rows of a file. Set --input FILE, or remove it.")
    if namespace.id_column and namespace.include_line_numbers:
        raise ValueError("Both --id_column and --include_line_numbers set the 'id'. Remove one of them.")
    if namespace.input is not None and not Path(namespace.input).exists():
        raise ValueError(f"There is no file '{namespace.input}'. Check --input.")


def read_inputs(file: RowFile | None, reader: Columns, text: str | None = None) -> Iterator[Input]:
    """The inputs of a file, or of a single text.

    Raises:
        ValueError: a row cannot be read.
    """
    if file is None:
        asked = reader.plain(str(text), [], "The text")
        yield Input(1, [(None, asked)], {"input": text} if reader.include_inputs else {})
        return
    for number, row in file.rows():
        yield reader.read(file, number, row)


class Answering:
    """Answers windows of inputs, each without any other inputs.

    Args:
        pipeline: of the model.
        tasks: names of the tasks to run; all if None.
        file: that the inputs come from; None for a single text.
    """

    def __init__(self, pipeline: MultiTaskPipeline, tasks: list[str] | None, file: RowFile | None) -> None:
        self.pipeline, self.tasks, self.file = pipeline, tasks, file
        self.failed: list[str] = []  # rows whose recording cannot be used, and why

    def lines(self, window: list[Input]) -> list[str]:
        """The output lines; that of a row whose recording cannot be used has the reason as ``error``.

        Raises:
            ValueError: another input cannot be answered.
        """
        answers: list[dict[str, object]] = [{} for _ in window]
        errors: dict[int, str] = {}
        parts: dict[tuple[str, ...] | None, list[tuple[int, object]]] = {}
        for place, one in enumerate(window):
            for group, value in one.parts:
                parts.setdefault(group, []).append((place, value))
        for group, members in parts.items():
            usable, found = self._answered(members, window, group, errors)
            for (place, _), answer in zip(usable, found, strict=True):
                answers[place] |= {name: value for name, value in answer.items() if group is None or name in group}
        for _, reason in sorted(errors.items()):
            self.failed.append(reason)
            sys.stderr.write(f"{reason}\n")
        names = self.pipeline.model.config.task_names
        lines = []
        for place, one in enumerate(window):
            answer = {name: answers[place][name] for name in names if name in answers[place]}
            error = {"error": errors[place]} if place in errors else {}
            lines.append(json.dumps({**one.told, **answer, **error}, ensure_ascii=False) + "\n")
        return lines

    def _answered(
        self,
        members: list[tuple[int, object]],
        window: list[Input],
        group: tuple[str, ...] | None,
        errors: dict[int, str],
    ) -> tuple[list[tuple[int, object]], list[dict[str, object]]]:
        """The inputs that can be used, by their places, and their answers."""
        only = {} if group is None or self.tasks is None else {"tasks": group}
        try:
            return members, self.pipeline([value for _, value in members], **only)
        except InputError as problem:
            if self.file is None:
                raise ValueError(problem.reason) from None
            if not isinstance(problem.__cause__, SoundError):
                number = window[members[problem.place][0]].number
                raise ValueError(f"{self.file.where(number)}: {problem.reason}") from None
        unusable = self.pipeline.unusable([value for _, value in members], **only)
        for member, reason in unusable.items():
            place = members[member][0]
            errors[place] = f"{self.file.where(window[place].number)}: {reason}"
        usable = [member for number, member in enumerate(members) if number not in unusable]
        return self._answered(usable, window, group, errors)

    def check(self) -> None:
        """Say at the end that rows have no answer.

        Raises:
            ValueError: some have none.
        """
        if self.failed:
            rows = "1 row has no answer" if len(self.failed) == 1 else f"{len(self.failed)} rows have no answer"
            raise ValueError(
                f"{rows}, because the recording cannot be used; the output has the `error` in place of it, and the "
                f"answers to all other rows. The first: {self.failed[0]}"
            )


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
