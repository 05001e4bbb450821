"""Answers that several processes write, or that end in a Parquet file: parts, which are joined in order at the end."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .answers import AnswerFile

if TYPE_CHECKING:
    import pyarrow
    import torch
    from accelerate import PartialState

PARQUET = ".parquet"


class Shares:
    """The windows of an input that each of several processes answers, in turns, and the file of all answers.

    Each process writes a file of its own beside the output, which resumes like any :class:`AnswerFile`.

    Args:
        path: of the output; one that ends in ``.parquet`` is written as Parquet.
        settings: see :class:`AnswerFile`.
        window: inputs that are answered together.

    Raises:
        ValueError: the output exists, or was not left by an interrupted run with these settings.
    """

    def __init__(self, path: Path, settings: dict[str, object], window: int) -> None:
        self.rank, self.ranks = int(os.environ.get("RANK", 0)), ranks()
        self.path, self.window, self.place = path, window, -1
        self.parquet = path.suffix.lower() == PARQUET
        if self.in_parts and path.exists() and path.stat().st_size:
            raise ValueError(f"'{path}' already exists. Remove it, or set another --output.")
        self.file = AnswerFile(self._part(self.rank) if self.in_parts else path, settings)

    @property
    def in_parts(self) -> bool:
        """Whether the output is made of other files at the end."""
        return self.parquet or self.ranks > 1

    def own_next(self) -> bool:
        """Whether this process answers the next window."""
        self.place += 1
        return self.place % self.ranks == self.rank

    def finish(self) -> None:
        """Wait for the other processes, and join the parts.

        Raises:
            ValueError: there were fewer inputs than the interrupted run has read.
        """
        if not self.in_parts:
            self.file.finish()
            return
        self.file.check_end()
        self.file.path.touch()
        if self.ranks > 1:
            _state().wait_for_everyone()
        if self.rank == 0:
            new = self.path.with_name(self.path.name + ".new")
            if self.parquet:
                _write_parquet(new, self._windows)
            else:
                with new.open("w", encoding="utf-8") as file:
                    for lines in self._windows():
                        file.writelines(lines)
            os.replace(new, self.path)
            for part in map(self._part, range(self.ranks)):
                part.unlink()
                AnswerFile.beside_of(part).unlink()

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.part-{rank + 1}-of-{self.ranks}.jsonl")

    def _windows(self) -> Iterator[list[str]]:
        """The answers in the order of the input, a window at a time."""
        with contextlib.ExitStack() as open_files:
            files = [
                open_files.enter_context(self._part(rank).open(encoding="utf-8", newline="\n"))
                for rank in range(self.ranks)
            ]
            while lines := list(islice(files[0], self.window)):
                yield lines
                files.append(files.pop(0))


def ranks() -> int:
    """The number of processes that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def own_device() -> dict[str, torch.device]:
    """The argument of a pipeline for the device of this process; none where it is alone, and chooses by itself."""
    return {"device": _state().device} if ranks() > 1 else {}


def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def _write_parquet(path: Path, windows: Callable[[], Iterator[list[str]]]) -> None:
    """Write lines of JSON as a Parquet file, whose schema is that of all of them.

    Args:
        path: of the file.
        windows: gives the lines, a few at a time; called twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema: pyarrow.Schema | None = None
    for lines in windows():
        own = _table(lines).schema
        schema = own if schema is None else pa.unify_schemas([schema, own], promote_options="permissive")
    with pq.ParquetWriter(path, schema or pa.schema([])) as writer:
        for lines in windows():
            writer.write_table(_table(lines, schema))


def _table(lines: list[str], schema: pyarrow.Schema | None = None) -> pyarrow.Table:
    from pyarrow import json as reader

    text = "".join(lines).encode()
    parsing = reader.ParseOptions(explicit_schema=schema)
    return reader.read_json(io.BytesIO(text), reader.ReadOptions(block_size=len(text) + 1), parsing)
