"""Tables of CSV, TSV and CoNLL: which cells are missing values, and rows with too many or too few cells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import datasets
import pandas as pd

from ..modeling.values import hints_of
from .builders import config_class
from .document import Values
from .lines import read_lines

_TOO_MANY = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


def with_labels_kept(values: Values) -> Values:
    """Arguments with which only an empty cell is a missing value, and None, NA and null are strings."""
    resolved = dict(values)
    files = [file for split in (values.get("data_files") or {}).values() for file in split]
    if values.get("keep_default_na") is None:
        own = values.get("na_values")
        if not isinstance(own, Mapping):
            resolved["na_values"] = ["", *(own if isinstance(own, list) else [] if own is None else [own])]
            resolved["keep_default_na"] = False
    chosen = values.get("sep") is not None or values.get("delimiter") is not None
    if files and not chosen and all(".tsv" in map(str.lower, Path(file).suffixes[-2:]) for file in files):
        resolved["delimiter"] = "\t"
    return resolved


def check_cells(name: str, file: str, arguments: Values, rows: int | None = 1) -> None:
    """Check that the rows of a CSV file have no more cells than its header.

    If the first row has more, pandas would use its first cells as the index, and shift the others.

    Args:
        name: of the dataset, for messages.
        file: path.
        arguments: of the dataset.
        rows: minimum number of rows to read; all if None.

    Raises:
        ValueError: a row has more cells, or the file cannot be read.
    """
    kind = config_class("csv")
    own = hints_of(kind).keys() - hints_of(datasets.BuilderConfig).keys()
    options = kind(**{key: value for key, value in arguments.items() if key in own}).pd_read_csv_kwargs
    options |= {"chunksize": None, "nrows": rows}
    try:
        index = pd.read_csv(file, **options).index
        if options["index_col"] is None and not isinstance(index, pd.RangeIndex):
            pd.read_csv(file, **options | {"header": None, "names": None, "nrows": 2})  # whose error contains the line
            raise ValueError("its first row has more cells than its header, or than there are column_names")
    except Exception as problem:  # pandas raises different errors depending on its options
        if isinstance(problem, UnicodeDecodeError):
            raise ValueError(
                f"Dataset '{name}': the file '{file}' is not in {problem.encoding.upper()}: {problem.reason} "
                f"(0x{problem.object[problem.start]:02x}). Save it as UTF-8, or set encoding of the dataset."
            ) from None
        said = " ".join(str(problem).split())
        if found := _TOO_MANY.search(said):
            said = f"line {found[2]} has {found[3]} cells, but the header has {found[1]}"
        raise ValueError(
            f"Dataset '{name}': the file '{file}' is not a usable table: {said or type(problem).__name__}. Quote the "
            "cells that contain the delimiter, or set delimiter, quotechar or encoding of the dataset."
        ) from None


def check_words(name: str, file: str, arguments: Values) -> None:
    """Check that every word of a CoNLL file has all of its columns; ``datasets`` would fill them with empty labels.

    Raises:
        ValueError: a line has fewer cells than there are ``column_names``.
    """
    columns = arguments.get("column_names") or config_class("conll")().column_names
    mark, delimiter = arguments.get("comment_prefix"), arguments.get("delimiter")
    for number, line in read_lines(Path(file)):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith("-DOCSTART-") or (mark is not None and line.startswith(mark)):
            continue
        cells = len(line.split(delimiter))
        if cells < len(columns):
            raise ValueError(
                f"Dataset '{name}': line {number} of '{file}' has {cells} cells, and there are {len(columns)} "
                f"column_names, {', '.join(columns)}. Fix the line, or set column_names, delimiter or comment_prefix."
            )
