"""The rows of a database, which a query makes."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import datasets
import pandas as pd

from ..modeling.values import shown
from .builders import config_class
from .document import Values
from .splits import by_split

_SQLITE = "sqlite:///"


def check_database(values: Values, name: str, folder: Path) -> Values:
    """The ``sql`` and ``con`` of a dataset: the queries by split, and the address with an absolute path.

    Raises:
        ValueError: one is missing or invalid, or the file does not exist.
    """
    sql, con = values.get("sql"), values.get("con")
    if not isinstance(con, str) or "://" not in con:
        raise ValueError(
            f"Dataset '{name}': `con` should be the address of a database, such as sqlite:///reviews.db. "
            f"Found {shown(con)}."
        )
    for key in ("data_files", "data_dir", "streaming"):
        if values.get(key):
            raise ValueError(f"Dataset '{name}': `{key}` does not apply to a database. Remove it.")
    queries = by_split(sql if isinstance(sql, dict) else {"train": sql}, "sql", name)
    for query in queries.values():
        if not isinstance(query, str) or not query.strip():
            raise ValueError(
                f"Dataset '{name}': `sql` should be a query or a table, or one for each split. Found {shown(query)}."
            )
    if con.startswith(_SQLITE):
        file = folder / con.removeprefix(_SQLITE)
        if not file.is_file():
            raise ValueError(f"Dataset '{name}': there is no database '{file}'. Check con.")
        con = f"{_SQLITE}{file.absolute()}"
    return {"sql": queries, "con": con}


def load_database(arguments: Values) -> datasets.DatasetDict:
    """The rows by split, read from the database in every run.

    Raises:
        ValueError: the package that opens such a database is missing.
    """
    fields = ("index_col", "coerce_float", "params", "parse_dates", "columns")
    given = {key: arguments[key] for key in fields if key in arguments}
    options = config_class("sql")(sql="", con="", **given).pd_read_sql_kwargs
    splits = {}
    for split, query in arguments["sql"].items():
        query = f"SELECT * FROM {query.strip()}" if re.fullmatch(r"\w+", query.strip()) else query
        frame = _read(query, arguments["con"], options)
        splits[split] = datasets.Dataset.from_pandas(frame, preserve_index=arguments.get("index_col") is not None)
    return datasets.DatasetDict(splits)


def _read(query: str, con: str, options: Values) -> pd.DataFrame:
    if con.startswith(_SQLITE):
        address = f"file:{quote(con.removeprefix(_SQLITE))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            return pd.read_sql(query, connection, **options)
    try:
        return pd.read_sql(query, con, **options)
    except ImportError as problem:
        raise ValueError(f"the package that opens it is missing ({problem}). Run pip install sqlalchemy") from None
