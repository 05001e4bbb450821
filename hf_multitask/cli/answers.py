"""Answers to many inputs: a file with one JSON object per line, which an interrupted run can resume."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .inputs import Input

WINDOW = 2048  # inputs that are kept in memory, sorted by length, and answered before the next ones are read


class AnswerFile:
    """A file with one answer per line, and until it is complete a second file with the state of the run.

    Windows of the input are answered one after the other, independently of each other, so a resumed run writes the
    same bytes as an uninterrupted run.

    Args:
        path: of the answers.
        settings: what the answers depend on in addition to the input, serializable as JSON.

    Raises:
        ValueError: the file exists and was not left by an interrupted run with these settings.
    """

    def __init__(self, path: Path, settings: dict[str, object]) -> None:
        self.path, self.beside = path, self.beside_of(path)
        self.settings, self.digest = settings, hashlib.sha256()
        self.read = self.done = 0  # inputs that this run has read, and answers that the file contained before
        if self.beside.is_file() and path.exists():
            self._before = json.loads(self.beside.read_text(encoding="utf-8"))
            self._check_settings()
            self.done = _cut_torn_line(path)
            if self.done > self._before["read"]:
                raise ValueError(f"'{path}' contains more answers than its run has written. Remove it.")
            sys.stderr.write(f"'{path}' contains {self.done} answers of an interrupted run. Resuming after them.\n")
        elif path.exists() and path.stat().st_size:
            raise ValueError(
                f"'{path}' already exists and was not left by an interrupted run. Remove it, or set another --output."
            )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._note()

    @staticmethod
    def beside_of(path: Path) -> Path:
        """The file with the state of the run."""
        return path.with_name(path.name + ".unfinished.json")

    def _check_settings(self) -> None:
        before = self._before["settings"]
        changed = [name for name in self.settings if before.get(name) != self.settings[name]]
        if changed:
            raise ValueError(
                f"'{self.path}' is from an interrupted run with another {changed[0]}: {before.get(changed[0])!r}, and "
                f"now {self.settings[changed[0]]!r}. Use the same value, or remove '{self.path}'."
            )

    def takes(self, window: Sequence[Input]) -> bool:
        """Record the next inputs, and return whether some of them have no answer yet.

        Raises:
            ValueError: they differ from those that the interrupted run has read.
        """
        for one in window:
            self.digest.update(json.dumps(one.noted).encode() + b"\n")
            self.read += 1
            if self.read == self._before["read"] and self.digest.hexdigest() != self._before["digest"]:
                self._refuse_input()
        if self.done < self.read < self._before["read"]:
            self._refuse_input()  # it ends where the earlier one continued
        return self.read > self.done

    def write(self, lines: Sequence[str]) -> None:
        """Add the answers to the inputs recorded last, except those that already exist."""
        self._note()
        first = self.read - len(lines)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines[max(self.done - first, 0) :])

    def _note(self) -> None:
        """Save which inputs have been read, before their answers are written."""
        self._before = {"settings": self.settings, "read": self.read, "digest": self.digest.hexdigest()}
        new = self.beside.with_name(self.beside.name + ".new")
        new.write_text(json.dumps(self._before) + "\n", encoding="utf-8")
        os.replace(new, self.beside)

    def finish(self) -> None:
        """Finish the file after all inputs are answered.

        Raises:
            ValueError: there were fewer than the interrupted run has read.
        """
        self.check_end()
        self.path.touch()
        self.beside.unlink(missing_ok=True)

    def check_end(self) -> None:
        """Check that all inputs that the interrupted run has read were there again.

        Raises:
            ValueError: there were fewer.
        """
        if self.read < self._before["read"]:
            self._refuse_input()

    def _refuse_input(self) -> None:
        raise ValueError(
            f"The first {self._before['read']} inputs differ from those that the interrupted run has read. "
            f"Use the same --input, or remove '{self.path}'."
        )


def _cut_torn_line(path: Path) -> int:
    """Remove an incomplete last line of a file, and count the lines."""
    count = end = position = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            count += chunk.count(b"\n")
            if b"\n" in chunk:
                end = position + chunk.rindex(b"\n") + 1
            position += len(chunk)
    os.truncate(path, end)
    return count
