"""The lines of a text file: decompressed, decoded strictly, and numbered."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

# The longer mark is first, because that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_PIECES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def open_bytes(path: Path) -> BinaryIO:
    """A file as bytes, decompressed if its first bytes are those of gzip, whatever its name."""
    file = path.open("rb")
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    file.close()
    return cast(BinaryIO, gzip.open(path, "rb"))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""The lines of UTF-8, or UTF-16 with its mark, with their ends, ``\n``, ``\r\n`` or ``\r``, numbered from 1.

    Raises:
        ValueError: the file is in another encoding, contains no text, or is damaged.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(_decoded(path, file), 1):
                if "\0" in line:
                    raise ValueError(
                        f"line {number} of '{path}' contains a null character, like binary files and UTF-16 without "
                        "a byte order mark. Save the file as text in UTF-8."
                    )
                yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise ValueError(
            f"'{path}' is a damaged gzip file: {problem} (after line {number}). Create it again."
        ) from None


def _decoded(path: Path, file: BinaryIO) -> Iterator[str]:
    head = file.peek(4)[:4]  # type: ignore[attr-defined]  # a method of both readers, not of BinaryIO
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if encoding is not None:
        number = 0
        try:
            with io.TextIOWrapper(file, encoding, newline="") as decoded:
                for number, line in enumerate(decoded, 1):  # noqa: B007 - used where decoding fails
                    yield line
        except UnicodeError as problem:
            raise ValueError(
                f"'{path}' begins as {encoding.upper()} and continues in another encoding after line {number} "
                f"({problem}). Save it as UTF-8."
            ) from None
        return
    number = 1
    for raw in file:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise ValueError(
                f"line {number} of '{path}' is not in UTF-8: its byte {problem.start + 1} is "
                f"0x{raw[problem.start]:02x}. Save the file as UTF-8."
            ) from None
        if number == 1:
            text = text.removeprefix("\ufeff")
        pieces = _PIECES.findall(text) if "\r" in text else [text]
        number += len(pieces)
        yield from pieces


def count_lines(path: Path) -> int:
    """The number of lines of a file, decompressed."""
    count = 0
    with open_bytes(path) as file:
        while chunk := file.read(1 << 20):
            count += chunk.count(b"\n")
    return count
