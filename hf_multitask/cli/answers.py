"""Answers to many inputs: a file of one JSON object a line, which an interrupted run goes on with."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .inputs import Input

WINDOW = 2048  # inputs that are held in memory, sorted by length, and answered before the next are read


class AnswerFile:
    """A file of answers, a line each, and beside it, until it is whole, what the run that writes it has read.

    Windows of the input are answered one after the other, whatever came before, so a run that goes on writes the bytes
    that it would have written without the interruption.

    Args:
        path: of the answers.
        settings: what the answers depend on beside the input, as JSON can hold it.

    Raises:
        ValueError: the file is there, and no run with these settings that was interrupted has left it.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.beside = path, path.with_name(path.name + ".unfinished.json")
        self.settings, self.digest = settings, hashlib.sha256()
        self.read = self.done = 0  # inputs that this run has read, and answers that the file held before
        if self.beside.is_file() and path.exists():
            self._before = json.loads(self.beside.read_text(encoding="utf-8"))
            self._check_settings()
            self.done = _cut_torn_line(path)
            if self.done > self._before["read"]:
                raise ValueError(f"'{path}' holds more answers than its run has given. Remove it.")
            sys.stderr.write(f"'{path}' holds {self.done} answers of an interrupted run. Going on after them.\n")
        elif path.exists() and path.stat().st_size:
            raise ValueError(
                f"'{path}' is there already, and no interrupted run has left it. Remove it, or name another --output."
            )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._note()

    def _check_settings(self) -> None:
        before = self._before["settings"]
        changed = [name for name in self.settings if before.get(name) != self.settings[name]]
        if changed:
            raise ValueError(
                f"'{self.path}' is of an interrupted run with another {changed[0]}: {before.get(changed[0])!r}, and "
                f"now {self.settings[changed[0]]!r}. Give the same, or remove '{self.path}'."
            )

    def takes(self, window: Sequence[Input]) -> bool:
        """Take note of the next inputs, and tell whether some of them have no answer yet.

        Raises:
            ValueError: they are not those that the interrupted run has read.
        """
        for one in window:
            self.digest.update(json.dumps(one.noted).encode() + b"\n")
            self.read += 1
            if self.read == self._before["read"] and self.digest.hexdigest() != self._before["digest"]:
                self._refuse_input()
        if self.done < self.read < self._before["read"]:
            self._refuse_input()  # it ends where it went on before
        return self.read > self.done

    def write(self, lines: Sequence[str]) -> None:
        """Add the answers of the inputs noted last, but for those that are there already."""
        self._note()
        first = self.read - len(lines)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines[max(self.done - first, 0) :])

    def _note(self) -> None:
        """Write down, before the answers to them are, which inputs have been read."""
        self._before = {"settings": self.settings, "read": self.read, "digest": self.digest.hexdigest()}
        new = self.beside.with_name(self.beside.name + ".new")
        new.write_text(json.dumps(self._before) + "\n", encoding="utf-8")
        os.replace(new, self.beside)

    def finish(self) -> None:
        """All inputs are answered.

        Raises:
            ValueError: there were fewer than the interrupted run has read.
        """
        if self.read < self._before["read"]:
            self._refuse_input()
        self.path.touch()
        self.beside.unlink(missing_ok=True)

    def _refuse_input(self) -> None:
        raise ValueError(
            f"The first {self._before['read']} inputs are not those that the interrupted run has read. "
            f"Give the same --input, or remove '{self.path}'."
        )


def _cut_torn_line(path: Path) -> int:
    """Cut what stands behind the last whole line of a file, and count the lines."""
    count = end = position = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            count += chunk.count(b"\n")
            if b"\n" in chunk:
                end = position + chunk.rindex(b"\n") + 1
            position += len(chunk)
    os.truncate(path, end)
    return count
