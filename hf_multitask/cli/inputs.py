"""From the rows of a file to inputs of the pipeline: which columns are read, and what is added to the answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..modeling.columns import joined_columns, joined_text
from ..modeling.config import close_match
from ..modeling.kinds import reader_of
from ..modeling.readers import Row
from ..modeling.sound import located
from .rows import RowFile

KEYS = ("text", "text_pair", "question", "context", "choices", "audio", "messages")
_FIRST = {"text", "question", "audio", "messages"}  # one of which an input has
# Common column names, for files without the columns of a task or of the pipeline; lower case, the first match is used.
_TEXTS = ("text", "sentence", "tokens", "words", "sentence1", "premise", "content", "document", "review", "utterance")
_PAIRS = ("text_pair", "sentence2", "hypothesis")
_PATH = 1000  # characters; a longer text names no file
USUAL = {*KEYS, *_TEXTS, *_PAIRS}
_NO_AUDIO = {"path": None}  # of a row without a recording, which its reader refuses


@dataclass(frozen=True)
class Input:
    """A row, as the pipeline reads it.

    Args:
        number: of its line.
        parts: the tasks, or None for all that accept the input, and what they read. There are several parts if tasks
            read different columns.
        told: what is added to the answers.
    """

    number: int
    parts: list[tuple[tuple[str, ...] | None, object]]
    told: dict[str, object] = field(default_factory=dict)

    @property
    def noted(self) -> object:
        """Everything that the answer depends on and contains, serializable as JSON."""
        return self.parts[0][1] if len(self.parts) == 1 and not self.told else [self.parts, self.told]


class Columns:
    """The columns of a file that the tasks read.

    A task reads its own columns, as in training; if a row does not have one, the column with the name of the pipeline's
    input; and if no task finds a text in this way, a column with a common name.

    Args:
        tasks: the dicts of the selected tasks.
        text_column: column of the text, instead of these rules.
        text_pair_column: column of the second text, likewise.
        id_column: a column that is added to the answers as ``id``.
        include_line_numbers: add the line number as ``id``.
        include_inputs: add what was read as ``input``.

    Raises:
        ValueError: a text column is given, but no task reads a text.
    """

    def __init__(
        self,
        tasks: Sequence[Row],
        *,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        id_column: str | None = None,
        include_line_numbers: bool = False,
        include_inputs: bool = False,
    ) -> None:
        self.own = {str(task["name"]): reader_of(task).columns(task) for task in tasks}
        self.joined = {name: parts for task in tasks for name, parts in joined_columns(task).items()}
        self.sounds = {name for own in self.own.values() if "audio" in own for name in ("audio", own["audio"])}
        self.hears = bool(self.sounds)
        self.only_hears = all("audio" in own for own in self.own.values())
        self.lists = {"tokens", "words", *(str(task.get("tokens_column")) for task in tasks)}
        self.given = {"text": text_column, "text_pair": text_pair_column}
        for key, column in self.given.items():
            if column is not None and not any("text" in own for own in self.own.values()):
                name, own = next(iter(self.own.items()))
                raise ValueError(
                    f"Task '{name}' reads {' and '.join(own)}, not the text of the column '{column}'. Remove "
                    f"--{key}_column, or select other --tasks."
                )
        self.id_column, self.include_line_numbers = id_column, include_line_numbers
        self.include_inputs = include_inputs
        self._found: dict[tuple[str, ...], list[tuple[tuple[str, ...] | None, dict[str, str]]]] = {}
        self._said = False

    @property
    def names(self) -> set[str]:
        """All columns that are read if a file has them."""
        given = [name for name in (*self.given.values(), self.id_column) if name]
        parts = (part for joined in self.joined.values() for part in joined)
        return {*given, *parts, *(column for own in self.own.values() for column in own.values())}

    def read(self, file: RowFile, number: int, row: object) -> Input:
        """A row of a file as an input.

        Raises:
            ValueError: nothing in it can be read, or a requested column is missing.
        """
        where = file.where(number)
        told: dict[str, object] = {"id": number} if self.include_line_numbers else {}
        parts: list[tuple[tuple[str, ...] | None, object]]
        if isinstance(row, dict):
            if self.hears and file.kind == "table":  # which has no other way to leave out one of the columns
                row = {name: cell for name, cell in row.items() if cell != ""}
            row = row | {
                name: joined_text([row[part] for part in parts])
                for name, parts in self.joined.items()
                if all(part in row for part in parts)
            }
            if self.id_column is not None:
                told["id"] = _cell(row, self.id_column, where)
            parts = [
                (tasks, self._input(row, columns, file, where)) for tasks, columns in self._columns(row, file, where)
            ]
        else:
            asked = next((name for name in (self.id_column, *self.given.values()) if name), None)
            if asked is not None:
                raise ValueError(f"{where} is a text without columns and has no column '{asked}'. Remove the option.")
            if not isinstance(row, str) and not (isinstance(row, list) and all(isinstance(word, str) for word in row)):
                raise ValueError(
                    f"{where} should be an object with 'text' or 'question', a text, or a list of words. Found {row!r}."
                )
            parts = [(None, self.plain(row, [file.folder], where))]
        if self.include_inputs:
            inputs = [_plain(value, isinstance(row, dict)) for _, value in parts]
            told["input"] = inputs[0] if len(inputs) == 1 else inputs
        return Input(number, parts, told)

    def plain(self, value: str | list[str], folders: Sequence[Path], where: str) -> object:
        """An input without columns: the file of a recording if all tasks read those, and else a text.

        Args:
            value: the input.
            folders: that a file may be relative to.
            where: the name of the row in messages.

        Raises:
            ValueError: a text is the name of a file, and the tasks read texts and recordings.
        """
        if self.only_hears and isinstance(value, str):
            return {"audio": located(value, folders)}
        if self.hears and isinstance(value, str) and len(value) < _PATH and Path(located(value, folders)).is_file():
            heard = " ".join(name for name, own in self.own.items() if "audio" in own)
            raise ValueError(
                f"{where} is the file '{value}', and the tasks read texts and recordings. Select --tasks {heard}, or "
                f'write the row as {{"audio": "{value}"}}.'
            )
        return value

    def _columns(self, row: Row, file: RowFile, where: str) -> list[tuple[tuple[str, ...] | None, dict[str, str]]]:
        """Tasks that read the same columns, with these columns by key of the pipeline's input."""
        present = tuple(name for name, value in row.items() if value is not None or name in self.sounds)
        if present not in self._found:
            for name in self.given.values():
                if name is not None:
                    _cell(row, name, where)
            self._found[present] = self._find(present, file, where)
        return self._found[present]

    def _find(
        self, present: tuple[str, ...], file: RowFile, where: str
    ) -> list[tuple[tuple[str, ...] | None, dict[str, str]]]:
        groups: list[tuple[list[str], dict[str, str]]] = []
        for task, own in self.own.items():
            columns = {
                key: self.given.get(key) or (column if column in present else key) for key, column in own.items()
            }
            columns = {key: column for key, column in columns.items() if column in present}
            if not _FIRST & columns.keys():
                columns = {}  # a second text alone
            elif "text" in columns and self.given["text_pair"]:
                columns["text_pair"] = self.given["text_pair"]
            for tasks, shared in groups:
                if all(shared.get(key, column) == column for key, column in columns.items()):
                    tasks.append(task)
                    shared.update(columns)
                    break
            else:
                groups.append(([task], columns))
        groups = [(tasks, columns) for tasks, columns in groups if _FIRST & columns.keys()]
        if not groups:
            groups = [([], self._usual(present, file, where))]
        several = len(groups) > 1
        return [
            (tuple(tasks) if several else None, {key: columns[key] for key in KEYS if key in columns})
            for tasks, columns in groups
        ]

    def _usual(self, present: tuple[str, ...], file: RowFile, where: str) -> dict[str, str]:
        """Columns with common names, reported once."""
        folded = {name.casefold(): name for name in reversed(present)}
        found = {}
        for key, names in (("text", _TEXTS), ("text_pair", _PAIRS)):
            usual = next((folded[name] for name in names if name in folded), None)
            if (column := self.given[key] or usual) is not None:
                found[key] = column
        if "text" not in found:
            columns = f"the columns {', '.join(present)}" if present else "no columns"
            if self.hears:
                known = " or ".join(
                    f"{what} in the column " + ", ".join(sorted(asked))
                    for key, what in (("text", "a text"), ("audio", "a recording"))
                    if (asked := {f"'{own[key]}'" for own in self.own.values() if key in own})
                )
                raise ValueError(f"{where} should have {known}. Found {columns}. Rename it.")
            problem = f"{where} should be an object with 'text' or 'question'. Found {columns}."
            if file.kind == "table":
                problem = f"{where} has {columns}, and none has a known name for a text."
            raise ValueError(f"{problem} Set the column of the text with --text_column.")
        if not self._said and not self.given["text"]:
            sys.stderr.write(f"The texts of '{file.path}' are read from the column '{found['text']}'.\n")
            self._said = True
        return found

    def _input(self, row: Row, columns: dict[str, str], file: RowFile, where: str) -> dict[str, object]:
        result: dict[str, Any] = {key: row[column] for key, column in columns.items()}
        if file.kind == "table":
            result = {key: value for key, value in result.items() if value or key not in ("text_pair", "choices")}
            lists = [key for key in result if key == "choices" or columns[key] in self.lists]
            result |= {key: _list(result[key], columns[key], where) for key in lists}
            given = [key for key in result if key not in lists and columns[key] == self.given.get(key)]
            result |= {key: _words(result[key]) for key in given}
        if "audio" in result:
            result["audio"] = located(result["audio"] or _NO_AUDIO, [file.folder])
        for key in ("text", "question"):
            if not isinstance(result.get(key, ""), str | list):
                raise ValueError(
                    f"{where} should be an object with 'text' or 'question', a text or a list of words. Found "
                    f"{result[key]!r} in '{columns[key]}'. Fix it."
                )
        return result


def _cell(row: Row, column: str, where: str) -> object:
    if row.get(column) is None:
        raise ValueError(
            f"{where} has no column '{column}'; it has {', '.join(row) or 'none'}.{close_match(column, list(row))}"
        )
    return row[column]


def _list(cell: str, column: str, where: str) -> str | list[str]:
    """A cell of a table with a list, which begins with a bracket."""
    if not str(cell).lstrip().startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(
            f'{where}: column \'{column}\' should contain a JSON list of texts, such as ["a", "b"]. Found {cell!r}.'
        )
    return value


def _words(cell: str) -> str | list[str]:
    """A cell of a column with texts or lists of words: a list if the cell is a JSON list."""
    try:
        value = json.loads(cell) if str(cell).lstrip().startswith("[") else None
    except ValueError:
        return cell
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else cell


def _plain(value: object, columns: bool) -> object:
    """What was read; without its key a single text, and whatever has none in the file."""
    if isinstance(value, dict) and (value.keys() == {"text"} or not columns):
        return next(iter(value.values()))
    return value
