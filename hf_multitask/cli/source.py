"""A dataset of a recipe: its arguments, which are checked before anything is loaded, and its rows by split."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns

from ..modeling.config import close_match
from ..modeling.values import check_values, hints_of, parameters_of, shown
from ..tasks.recordings import dataset_of, undecoded
from .builders import config_class, is_format, keys_of, load_xml
from .columns import RENAMING, check_renaming, renamed
from .database import check_database, load_database
from .document import Values
from .folders import is_audio_folder, load_audio_folder
from .formats import FORMATS, load_format
from .jsonl import read_jsonl
from .splits import KEYS, SETS, SPLITS, Splits, arranged, by_split, check_splits
from .tables import check_cells, check_words, with_labels_kept

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CHAIN = "::"  # which fsspec reads as a file inside of another
OWN = (*KEYS, RENAMING)  # keys of a dataset that load_dataset does not take
_NO_ROWS = re.compile("corresponds to no data|BatchSize must be greater than 0")
_LONG = 600  # characters of a message from another library


def local_path(folder: Path, name: str) -> Path:
    """A path of a recipe: relative to its folder, used literally; ``~`` is the home folder unless that file exists."""
    path = folder / name
    return path if os.path.lexists(path) or not name.startswith("~") else Path(os.path.expanduser(name))


def find_folder(name: str, folder: Path, what: str) -> Path | None:
    """The folder of a name, or None if it can only be a repository of the Hub.

    Args:
        name: as written in the recipe.
        folder: of the recipe.
        what: the beginning of the error message.

    Raises:
        ValueError: it is a file, or neither a folder nor a valid repository name.
    """
    local = local_path(folder, name)
    if os.path.isdir(local):
        return local.absolute()
    if os.path.exists(local):
        raise ValueError(f"{what} names the file '{local}'. Use its folder, or a repository of the Hub.")
    if name.startswith(".") or not _HUB_NAME.fullmatch(name):
        raise ValueError(f"{what} names the folder '{local}', which does not exist. Check the path.")
    return None


def check_source(values: Values, name: str, folder: Path) -> Values:
    """The arguments of a dataset with absolute paths, and its data files as lists by split.

    Raises:
        ValueError: a key is unknown, a value is invalid, or a file does not exist.
    """
    if "format" in values:
        return _check_export(values, name, folder)
    path = values.get("path")
    if isinstance(path, str) and path in FORMATS:
        raise ValueError(
            f"Dataset '{name}': '{path}' is not a builder of datasets. Write format: {path}, without path."
        )
    if not isinstance(path, str) or not path.strip():
        raise ValueError(
            f"Dataset '{name}' has no 'path'. Set a file format such as json, a folder, or a Hub dataset; or the "
            "'format' of an annotation tool." + (f" Found {shown(path)}." if path is not None else "")
        )
    if "split" in values:
        raise ValueError(
            f"Dataset '{name}' has a 'split'. Remove it: train, validation and test are read as they are, or as "
            "`splits` sets them."
        )
    hints = hints_of(datasets.load_dataset)
    known = [*(key for key in parameters_of(datasets.load_dataset) if key != "features"), *OWN]
    if is_format(path):
        config = config_class(path)
        hints = hints_of(config) | hints
        known += [key for key in keys_of(path) if key not in (*known, "features", "version", "description")]
    _check_keys(values, known, name)
    try:
        check_values({key: value for key, value in values.items() if key not in ("path", "data_files", "sql")}, hints)
    except ValueError as problem:
        raise ValueError(f"Dataset '{name}': {problem}") from None
    if (processes := values.get("num_proc")) is not None and processes < 1:
        raise ValueError(f"Dataset '{name}': `num_proc` should be 1 or more. Found {processes}.")
    if processes is not None and values.get("streaming"):
        raise ValueError(f"Dataset '{name}': `num_proc` does not apply to a stream. Remove it.")
    check_renaming(values, name)
    if path == "sql":
        return values | check_splits(values, name) | check_database(values, name, folder)
    resolved = _with_folders(values, path, name, folder) | check_splits(values, name)
    if values.get("data_files") is not None:
        on_hub = not is_format(path) and not Path(resolved["path"]).is_absolute()
        resolved["data_files"] = _data_files(values, name, None if on_hub else folder)
    if path == "csv":
        resolved = with_labels_kept(resolved)
    return resolved


def is_read_here(path: str) -> bool:
    """Whether the ``path`` of checked arguments is that of a reader of files, neither a folder nor a repository."""
    return is_format(path) or path in FORMATS


def _check_keys(values: Values, known: list[str], name: str) -> None:
    for key in values:
        if key not in known:
            raise ValueError(
                f"Dataset '{name}' has the unknown key '{key}'; known keys are {', '.join(known)}."
                + close_match(str(key), known)
            )


def _data_files(values: Values, name: str, folder: Path | None) -> dict[str, list[str]]:
    files = values["data_files"]
    named = by_split(
        files if isinstance(files, Mapping) else {"train": files}, "data_files", name, values.get(SETS) or ()
    )
    return {split: _files(given, f"Dataset '{name}'", folder) for split, given in named.items()}


def _check_export(values: Values, name: str, folder: Path) -> Values:
    """The arguments of a dataset that an annotation tool has exported; its ``path`` is the name of the tool."""
    form = values["format"]
    if not isinstance(form, str) or form not in FORMATS:
        raise ValueError(
            f"Dataset '{name}': `format` should be one of {', '.join(FORMATS)}. Found {shown(form)}."
            + (close_match(str(form), list(FORMATS)) or " For a builder of datasets, write path.")
        )
    _check_keys(values, ["format", "data_files", *OWN], name)
    if not values.get("data_files"):
        raise ValueError(f"Dataset '{name}' has no 'data_files'. Set the exported files of train, validation and test.")
    check_renaming(values, name)
    resolved = {key: value for key, value in values.items() if key != "format"} | check_splits(values, name)
    return resolved | {"path": form, "data_files": _data_files(values, name, folder)}


def _with_folders(values: Values, path: str, name: str, folder: Path) -> Values:
    """The arguments with absolute folders."""
    resolved = dict(values)
    if "cache_dir" in values and values["cache_dir"] is not None:
        resolved["cache_dir"] = str(local_path(folder, str(values["cache_dir"])))
        if _CHAIN in resolved["cache_dir"]:  # datasets would use another folder, and delete its content
            raise ValueError(
                f"Dataset '{name}': `cache_dir` cannot contain '{_CHAIN}'. Found {resolved['cache_dir']!r}."
            )
    if is_format(path):
        if not values.get("data_files") and not values.get("data_dir"):
            raise ValueError(f"Dataset '{name}' has no 'data_files'. Set a file for train, validation and test.")
        if values.get("data_dir"):
            data_dir = local_path(folder, values["data_dir"])
            if not os.path.isdir(data_dir):
                raise ValueError(f"Dataset '{name}': there is no folder '{data_dir}'. Check data_dir.")
            resolved["data_dir"] = str(data_dir)
        return resolved
    local = local_path(folder, path)
    if os.path.isfile(local):
        form = {".jsonl": "json", ".ndjson": "json", ".tsv": "csv", ".txt": "text"}.get(local.suffix, local.suffix[1:])
        form = form if is_format(form) else "json"
        raise ValueError(
            f"Dataset '{name}': 'path' names the file '{local}'. Write path: {form}, and the file under data_files."
        )
    if (found := find_folder(path, folder, f"Dataset '{name}': 'path'")) is not None:
        resolved["path"] = str(found)
    return resolved


def _files(given: object, where: str, folder: Path | None) -> list[str]:
    """The files for a name or a list of names; a name is a pattern only if no such file exists.

    Args:
        given: name or names.
        where: the dataset, for messages.
        folder: to which names are relative; None for files of a Hub repository, which are not checked here.

    Raises:
        ValueError: the file does not exist.
    """
    found = []
    for one in given if isinstance(given, list) else [given]:
        if not isinstance(one, str) or not one.strip() or "\0" in one:
            raise ValueError(f"{where}: a data file should be a path. Found {shown(one)}.")
        if "://" in one or folder is None:
            found.append(one)
            continue
        path = local_path(folder, one)
        matches = [str(path)]
        if not os.path.lexists(path):
            root = Path(os.path.expanduser(one)).anchor or folder
            matches = [os.path.join(root, match) for match in glob.glob(one, root_dir=root, recursive=True)]
            matches = sorted(match for match in matches if os.path.isfile(match))
        if not matches:
            raise ValueError(f"{where}: there is no file '{path}'. Check data_files; paths are relative to the recipe.")
        if not os.path.isfile(matches[0]):
            raise ValueError(f"{where}: '{path}' is a folder or not a regular file. Set files in data_files.")
        found += matches
    if not found:
        raise ValueError(f"{where}: data_files has no file for a split. Add one, or remove the split.")
    return found


def folders_of(arguments: Values, split: str) -> list[Path]:
    """The folders of the files of a split, as far as they are on this machine."""
    given = (arguments.get("data_files") or {}).get(split, [arguments["path"] + "/"])
    return [Path(folder) for folder in dict.fromkeys(map(os.path.dirname, given)) if os.path.isabs(folder)]


def load_source(name: str, arguments: Values, most: int | None, wanted: Iterable[str] = SPLITS) -> Splits:
    """The splits of a dataset; with ``streaming``, the training split is a stream.

    Args:
        name: of the dataset, for messages.
        arguments: as checked.
        most: maximum number of rows of a stream that is not for training; all if None.
        wanted: the splits to return. Others are ignored, with a message.

    Raises:
        ValueError: a file is malformed or empty, or two splits mean validation.
    """
    files = [file for split in (arguments.get("data_files") or {}).values() for file in split if "://" not in file]
    files = [file for file in files if os.path.isabs(file)]  # the others are in a Hub repository
    for file in files:
        if not os.path.getsize(file):
            raise ValueError(f"Dataset '{name}': the file '{file}' is empty. Add rows.")
    if arguments["path"] == "csv":
        for file in files:
            check_cells(name, file, arguments)
    if arguments["path"] == "conll" and arguments.get("encoding") is None:
        for file in files:
            check_words(name, file, arguments)
    with _explained(name, arguments, files):
        loaded = _loaded(arguments)
    kept = arranged(name, renamed(name, loaded, arguments), arguments, wanted)
    if any(isinstance(rows, datasets.IterableDataset) for rows in kept.values()):
        with _explained(name, arguments, files):
            kept = {split: rows if split == "train" else _first(rows, most) for split, rows in kept.items()}
    for split, rows in kept.items():
        if isinstance(rows, datasets.Dataset) and not len(rows):
            raise ValueError(f"Dataset '{name}' has no rows in its split '{split}'. Add rows.")
    return kept


@contextmanager
def _explained(name: str, arguments: Values, files: Iterable[str]) -> Iterator[None]:
    """Explain why a dataset cannot be read: by file and line, if they are known.

    Raises:
        ValueError: it cannot.
    """
    try:
        yield
    except Exception as problem:  # datasets raises whatever Arrow, pandas and the file system raise
        for file in files:
            if arguments["path"] == "json" and "field" not in arguments:
                _check_lines(name, file)
            elif arguments["path"] == "csv":
                check_cells(name, file, arguments, rows=None)
        reason = problem.__cause__ or problem
        said = " ".join(str(reason).split()) or type(reason).__name__
        if _NO_ROWS.search(said):
            raise ValueError(f"Dataset '{name}' has no rows. Add rows.") from None
        said = said if len(said) < _LONG else f"{said[:_LONG]} ..."
        raise ValueError(f"Dataset '{name}' could not be loaded: {said.removesuffix('.')}.") from None


def _loaded(arguments: Values) -> Splits:
    """The result of ``load_dataset``, with names of files and folders used literally, not as patterns."""
    values, path = {key: value for key, value in arguments.items() if key not in OWN}, arguments["path"]
    folder = os.path.join("" if is_format(path) else path, values.get("data_dir") or "")
    files: Mapping[str, Iterable[str]] | None = values.get("data_files")
    if not files and os.path.isabs(folder) and any(mark in folder for mark in "*?[$"):  # no file would be found there
        values["data_dir"] = None
        folder = glob.escape(folder)
        files = DataFilesDict.from_patterns(get_data_patterns(folder), base_path=folder)
    if files:
        values["data_files"] = {str(split): list(map(_literal, names)) for split, names in files.items()}
    if path == "sql":
        return load_database(arguments)
    if path == "xml" and files and not values.get("streaming"):
        return load_xml(arguments)
    if path in FORMATS:
        return load_format(path, arguments["data_files"])
    if is_audio_folder(values):
        return load_audio_folder(values)
    if path != "json" or not values.get("data_files"):
        return datasets.load_dataset(**values)
    # Each split is loaded alone: together, the types of the first would turn lists and numbers of others into strings.
    splits = values["data_files"]
    group = datasets.IterableDatasetDict if values.get("streaming") else datasets.DatasetDict
    return group(
        {split: datasets.load_dataset(**values | {"data_files": {split: splits[split]}})[split] for split in splits}
    )


def _literal(file: str) -> str:
    """A pattern that matches one file.

    ``datasets`` reads ``$HOME`` in a name as a variable and ``::`` as the path inside of an archive: such a file is
    linked under another name. The link changes with the file, because ``datasets`` finds cached rows by this name.
    """
    if "://" in file or not os.path.isabs(file):
        return file
    if _CHAIN in file or os.path.expandvars(file) != file:
        facts = os.stat(file)
        digest = hashlib.sha256(f"{file}\0{facts.st_mtime_ns}\0{facts.st_size}".encode()).hexdigest()[:32]
        link = Path(datasets.config.HF_DATASETS_CACHE, "links", digest, "file" + "".join(Path(file).suffixes[-2:]))
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(file)
        file = str(link)
    return glob.escape(file)


def _first(stream: datasets.IterableDataset, most: int | None) -> datasets.Dataset:
    """The first rows of a stream; all if None."""
    stream = undecoded(stream)
    return dataset_of(list(stream if most is None else stream.take(most)), stream.features)


def _check_lines(name: str, file: str) -> None:
    """Report the first line of a JSONL file that cannot be read; a file with one JSON list is left to datasets."""
    if Path(file).suffix not in (".jsonl", ".ndjson"):
        return
    try:
        for _ in read_jsonl(Path(file)):
            pass
    except ValueError as problem:
        raise ValueError(f"Dataset '{name}': {problem}") from None
