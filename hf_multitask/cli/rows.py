"""The rows of a file of CSV, TSV, JSON, JSON lines, Parquet or text, whose format is detected from its content."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .jsonl import parse_json, read_values
from .lines import count_lines, read_lines

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON = (".json", ".jsonl", ".ndjson")
_LINES = (".jsonl", ".ndjson")
_TEXT = (".txt", ".text")
_SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aif", ".aiff", ".au")
DELIMITERS = (",", "\t", ";", "|")
_ALONE = ("text", "sentence")  # headers of a table with one column; other words may also begin a text file
# The beginning of JSON: an object with or without a key, or a list of objects, texts or lists, or an empty list.
_JSON_START = re.compile(r'\{\s*("|\}?$)|\[\s*(["\[{]|\]?$)')

csv.field_size_limit(2**31 - 1)  # a cell may contain a long text


@dataclass(frozen=True)
class RowFile:
    """A file of rows.

    Args:
        path: of the file.
        kind: ``"text"``, one text per line; ``"lines"``, one JSON value per line; ``"list"``, one JSON list, or one
            object; ``"table"``, cells below a header; ``"parquet"``; ``"folder"``, recordings.
        delimiter: between the cells.
    """

    path: Path
    kind: str
    delimiter: str = ""

    def rows(self) -> Iterator[tuple[int, object]]:
        """The rows with their numbers: the line where a row begins, or in a JSON list the position from 1.

        Lines of a text file are rows even if they are empty; in other formats empty lines are skipped, but counted.

        Raises:
            ValueError: a row cannot be read.
        """
        if self.kind == "folder":
            return enumerate(({"audio": name, "file": name} for name in recordings_in(self.path)), 1)
        if self.kind == "parquet":
            return enumerate(_parquet(self.path), 1)
        if self.kind == "text":
            return ((number, line.rstrip("\r\n")) for number, line in read_lines(self.path))
        if self.kind == "lines":
            return read_values(self.path)
        if self.kind == "table":
            return _table(self.path, self.delimiter)
        value = parse_json(_whole(self.path), f"'{self.path}', which begins like JSON,")
        return enumerate(value if isinstance(value, list) else [value], 1)

    def where(self, number: int) -> str:
        """The name of a row in messages."""
        if self.kind == "folder":
            return f"file '{recordings_in(self.path)[number - 1]}' of '{self.path}'"
        return f"{'row' if self.kind in ('list', 'parquet') else 'line'} {number} of '{self.path}'"

    def count(self) -> int:
        """The approximate number of rows."""
        if self.kind == "parquet":
            return _opened(self.path).metadata.num_rows
        return sum(1 for _ in self.rows()) if self.kind in ("list", "folder") else count_lines(self.path)

    @property
    def folder(self) -> Path:
        """To which files that it names are relative."""
        return self.path if self.kind == "folder" else self.path.parent


def recordings_in(folder: Path) -> list[str]:
    """The recordings in a folder and those below it, by their paths in it, sorted."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in _SOUNDS and path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def open_rows(path: Path, own: Collection[str], usual: Collection[str]) -> RowFile:
    """Detect the format of a file by its first lines, and if they are ambiguous by its name, case-insensitively.

    A table without the suffix of a table is detected by its header: names without surrounding spaces, at least one of
    which is known.

    Args:
        path: of the file.
        own: columns that the tasks read, or that are requested; a header may consist of one of them.
        usual: other known columns, in lower case.

    Raises:
        ValueError: the file does not exist, is not a text file, or contains invalid JSON.
    """
    if path.is_dir():
        if not recordings_in(path):
            raise ValueError(f"The folder '{path}' has no recording ({', '.join(_SOUNDS)}). Check --input.")
        return RowFile(path, "folder")
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'. Check --input.")
    with path.open("rb") as file:
        if file.read(4) == b"PAR1":
            _opened(path)
            return RowFile(path, "parquet")
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    filled = ((number, line.strip("\r\n")) for number, line in read_lines(path) if line.strip())
    head = [line for _, line in islice(filled, 2)]
    if not head:
        return RowFile(path, "lines" if ending in (*_JSON, *TABLES) else "text")
    if ending in _JSON or _JSON_START.match(head[0].strip()):
        kind = _json_kind(path, ending, head)
        if kind is not None:
            return RowFile(path, kind)
    own = {name.casefold() for name in own}
    if ending in TABLES:
        return RowFile(path, "table", _delimiter(head[0], TABLES[ending], own.union(usual)))
    for delimiter in DELIMITERS:
        if _is_header(head[0], delimiter, own, usual):
            return RowFile(path, "table", delimiter)
    return RowFile(path, "text")


def _json_kind(path: Path, ending: str, head: list[str]) -> str | None:
    """The kind of JSON in a file; None if it is a text that begins like JSON."""
    begin = head[0].strip()
    try:
        first = parse_json(begin, "")
    except ValueError:  # JSON over several lines, or not valid
        if ending in (*_TEXT, *TABLES):
            return "list" if _is_json(path) else None
        whole = begin in ("[", "{") or (ending not in _LINES and (begin[0] == "[" or begin[-1] != "}"))
        return "list" if whole else "lines"
    whole = len(head) == 1 and ending not in _LINES and isinstance(first, list)
    return "list" if whole else "lines"


def _is_json(path: Path) -> bool:
    try:
        parse_json(_whole(path), "")
    except ValueError:
        return False
    return True


def cells_of(line: str, delimiter: str) -> list[str]:
    """The cells of a line, as far as it can be read as a table."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return line.split(delimiter)


def _delimiter(header: str, usual: str, columns: set[str]) -> str:
    """The delimiter of a header: the default, unless only another one gives known columns."""
    for delimiter in (usual, *DELIMITERS):
        if columns.intersection(name.strip().casefold() for name in cells_of(header, delimiter)):
            return delimiter
    return max((usual, *DELIMITERS), key=lambda delimiter: len(cells_of(header, delimiter)))


def _is_header(line: str, delimiter: str, own: set[str], usual: Collection[str]) -> bool:
    cells = [name.casefold() for name in cells_of(line, delimiter)]
    names = cells if cells[0] else cells[1:]  # pandas writes its index without a name
    if any(not name or name != name.strip() for name in names) or len(set(names)) < len(names):
        return False
    return bool(own.union(_ALONE if len(cells) == 1 else usual).intersection(names))


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader((line for _, line in read_lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as problem:
            raise ValueError(
                f"line {number} of '{path}' is not a row of a table ({problem}). Close the quotes that begin a cell, "
                "and double those inside it."
            ) from None
        if cells is None:
            return
        if header is None and any(cells):
            header = [name.strip() for name in cells]
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"The header of '{path}' has the column '{twice}' twice. Rename one of them.")
        elif header is not None and cells:
            if len(cells) > len(header):
                raise ValueError(
                    f"line {number} of '{path}' has {len(cells)} cells, but the header has {len(header)}. Put cells "
                    f"that contain {delimiter!r} in double quotes."
                )
            yield number, dict(zip(header, cells, strict=False))


def _opened(path: Path) -> ParquetFile:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as problem:
        raise ValueError(f"'{path}' is not a whole Parquet file ({' '.join(str(problem).split())}).") from None


def _parquet(path: Path) -> Iterator[dict[str, object]]:
    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=2048):
            yield from batch.to_pylist()


def _whole(path: Path) -> str:
    return "".join(line for _, line in read_lines(path))
