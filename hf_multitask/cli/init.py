"""``hf-multitask init FILE_OR_DATASET ...``: write a recipe for data, with the reason for every task."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from .document import Values
from .lines import read_lines
from .proposals import ENCODER, LISTENER, WRITER, Proposal, named, proposals
from .recipe import read_recipe
from .rows import DELIMITERS, cells_of
from .source import check_source, load_source
from .splits import SPLITS, Splits, split_name

_SPLIT = re.compile(r"(?P<base>.*?)[-_. ]*(?P<split>train|training|validation|valid|val|dev|test)", re.IGNORECASE)
_FORMATS: dict[str, Values] = {
    ".csv": {"path": "csv"},
    ".tsv": {"path": "csv", "sep": "\t"},
    **{suffix: {"path": "json"} for suffix in (".json", ".jsonl", ".ndjson")},
    ".parquet": {"path": "parquet"},
    ".txt": {"path": "text"},
    ".conll": {"path": "conll"},
    ".conllu": {"format": "conllu"},
}
_BACKBONES = {
    ENCODER: "google-bert/bert-base-uncased",
    WRITER: "google-t5/t5-small",
    LISTENER: "facebook/wav2vec2-base",
}
_FRACTION = 0.1
_TRAINING = """training:
  output_dir: out
  num_train_epochs: 3
  learning_rate: 5.0e-5           # 1e-4 to 3e-4 for small encoders
  per_device_train_batch_size: 32
  eval_strategy: epoch
  save_strategy: epoch
  save_total_limit: 1
  load_best_model_at_end: true    # the best mean over tasks of each task's first metric
"""


@dataclass
class Source:
    """A dataset to be.

    Args:
        name: of the dataset.
        values: its arguments in a recipe, with paths relative to the working directory.
    """

    name: str
    values: Values


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("init", description=(__doc__ or "").replace("``", ""))
    parser.add_argument(
        "data",
        nargs="+",
        help="files (CSV, TSV, JSON, JSON lines, Parquet, CoNLL, CoNLL-U, text), folders, or ids of datasets on the "
        "Hub; files whose names end in train, validation or test are splits of one dataset",
    )
    parser.add_argument("--output", default="recipe.yaml", help="the recipe to write (default: %(default)s)")
    parser.add_argument("--backbone", help="the pretrained model (default: by the tasks)")


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Write the recipe, and print its tasks."""
    if words:
        raise ValueError(f"init does not accept the argument '{words[0]}'. Remove it.")
    output = Path(namespace.output)
    if output.exists():
        raise ValueError(f"There is a file '{output}' already. Set another with --output, or remove it.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"There is no folder '{output.parent}' for the recipe. Make it, or set another --output.")
    found: list[tuple[Source, Splits, list[Proposal], list[str]]] = []
    for source in sources(namespace.data):
        sys.stderr.write(f"Reading {source.name} ...\n")
        rows = load_source(source.name, check_source(source.values, source.name, Path.cwd()), None)
        if not isinstance(rows.get("train"), datasets.Dataset):
            raise ValueError(
                f"Dataset '{source.name}' has no rows for training. Name a file whose name ends in 'train'."
            )
        tasks, unread = proposals(rows["train"])
        named(tasks, source.name, [one.name for _, _, others, _ in found for one in others])
        found.append((source, rows, tasks, unread))
    tasks = [one for _, _, own, _ in found for one in own]
    if not tasks:
        columns = "; ".join(
            f"{source.name} has {', '.join(rows['train'].column_names)}" for source, rows, _, _ in found
        )
        raise ValueError(
            f"No column looks like texts, recordings or labels of some: {columns}. Write the recipe by hand."
        )
    usable = [one for one in tasks if one.problem is None]
    if not usable:
        raise ValueError(f"No task can be trained: {'; '.join(f'{one.name}: {one.problem}' for one in tasks)}")
    wanted = [one.backbone for one in usable]
    needed = WRITER if WRITER in wanted else LISTENER if LISTENER in wanted and ENCODER not in wanted else ENCODER
    for one in usable:  # an encoder-decoder takes the tasks of an encoder, too
        if one.backbone != needed and (needed, one.backbone) != (WRITER, ENCODER):
            one.problem = f"It needs another backbone, of the kind {one.backbone}. Give it a recipe of its own."
    text = "".join(written(found, namespace.backbone or _BACKBONES[needed], output.absolute().parent))
    output.write_text(text, encoding="utf-8")
    read_recipe(output)
    for one in tasks:
        print(f"{one.name}: {one.kind.type}, as {one.reason}" + (f" - left out: {one.problem}" if one.problem else ""))
    print(f"\nRead {output}, and train with: hf-multitask train {output}")


def sources(given: Sequence[str]) -> list[Source]:
    """The datasets that files, folders and ids make.

    Raises:
        ValueError: a file does not exist, has an unknown format, or is there twice.
    """
    files: dict[tuple[str, str], dict[str, str]] = {}
    found: list[tuple[str, Values]] = []
    for one in given:
        path = Path(one)
        if path.is_dir():
            listed = sorted(child for child in path.iterdir() if _form(child) is not None and child.is_file())
            listed = [child for child in listed if _SPLIT.fullmatch(_stem(child))] or listed
            if not listed:
                found.append((path.resolve().name, {"path": one}))
            for child in listed:
                _add_file(files, child)
        elif path.is_file():
            _add_file(files, path)
        elif path.suffix in _FORMATS or one.startswith((".", "/", "~")):
            raise ValueError(f"There is no file '{one}'. Check the path.")
        else:
            found.append((one.rpartition("/")[2], {"path": one}))
    for (base, suffix), splits in files.items():
        if "train" not in splits and len(splits) == 1:
            splits = {"train": next(iter(splits.values()))}
        in_order = {split: splits[split] for split in SPLITS if split in splits}
        values = _FORMATS[suffix]
        if values["path"] == "csv":
            values = {**values, **_delimited(Path(next(iter(in_order.values()))), values.get("sep", ","))}
        found.append((base, {**values, "data_files": in_order}))
    names: dict[str, int] = {}
    made = []
    for base, values in found:
        name = re.sub(r"\W+", "_", base).strip("_") or "data"
        names[name] = names.get(name, 0) + 1
        made.append(Source(name if names[name] == 1 else f"{name}_{names[name]}", values))
    return made


def _delimited(path: Path, usual: str) -> Values:
    """The delimiter of a table, if its header has one cell with the usual delimiter, and several with this one."""
    header = next((line.strip("\r\n") for _, line in read_lines(path) if line.strip()), "")
    if len(cells_of(header, usual)) > 1:
        return {}
    best = max(DELIMITERS, key=lambda one: len(cells_of(header, one)))
    return {"sep": best} if len(cells_of(header, best)) > 1 else {}


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0]


def _form(path: Path) -> str | None:
    """The suffix of a format that is known."""
    suffix = path.name.removesuffix(".gz").rpartition(".")
    return f".{suffix[2].lower()}" if f".{suffix[2].lower()}" in _FORMATS else None


def _add_file(files: dict[tuple[str, str], dict[str, str]], path: Path) -> None:
    form = _form(path)
    if form is None:
        raise ValueError(
            f"The format of '{path}' is not known. Give files that end in {', '.join(_FORMATS)}, or write the recipe "
            "by hand."
        )
    matched = _SPLIT.fullmatch(_stem(path))
    base, split = (matched["base"], matched["split"].lower()) if matched else (_stem(path), "train")
    split = split_name("train" if split == "training" else split)
    base = base or path.resolve().parent.name
    own = files.setdefault((base, form), {})
    if split in own:
        raise ValueError(
            f"The files '{own[split]}' and '{path}' are both the {split} split of '{base}'. Give one of them."
        )
    own[split] = str(path)


def written(
    found: Iterable[tuple[Source, Splits, list[Proposal], list[str]]], backbone: str, folder: Path
) -> Iterator[str]:
    """The text of the recipe.

    Args:
        found: datasets, with their rows, tasks, and the columns that no task reads.
        backbone: of the tasks.
        folder: of the recipe, which paths are relative to.
    """
    found = list(found)
    yield "# Written by hf-multitask init. Every task says why it is there: check them, and remove some.\n"
    yield f"backbone: {_scalar(_relative(backbone, folder))}\n\ndatasets:\n"
    for source, rows, tasks, unread in found:
        counts = ", ".join(f"{split} {len(rows[split]):,}" for split in SPLITS if split in rows)
        off = "" if any(one.problem is None for one in tasks) else "# "
        yield f"  # Rows: {counts}." + (f" No task reads {', '.join(unread)}." if unread else "") + "\n"
        more = {} if "validation" in rows else {"validation_fraction": _FRACTION}
        yield f"  {off}{_scalar(source.name)}: {_flow({**_with_paths(source.values, folder), **more})}\n"
    yield "\ntasks:\n"
    for source, _, tasks, _ in found:
        for one in tasks:
            values = {"type": one.kind.type, "dataset": source.name, **one.arguments}
            if one.name == source.name:
                del values["dataset"]
            yield f"  # {one.reason[:1].upper()}{one.reason[1:]}.\n"
            if one.problem is None:
                yield f"  {_scalar(one.name)}: {_flow(values)}\n"
            else:
                yield f"  # Left out: {one.problem}\n  # {_scalar(one.name)}: {_flow(values)}\n"
    yield f"\n{_TRAINING}"


def _with_paths(values: Values, folder: Path) -> Values:
    """Arguments with paths relative to the recipe."""
    files = values.get("data_files")
    if isinstance(files, Mapping):
        return {**values, "data_files": {split: _relative(path, folder) for split, path in files.items()}}
    return {**values, "path": _relative(values["path"], folder)}


def _relative(path: str, folder: Path) -> str:
    """A path of this machine as seen from a folder; any other name as it is."""
    return os.path.relpath(path, folder) if os.path.exists(path) and not os.path.isabs(path) else path


def _flow(values: Mapping[str, object]) -> str:
    """A mapping in YAML, on one line."""
    parts = (
        f"{_scalar(key)}: {_flow(value) if isinstance(value, Mapping) else _scalar(value)}"
        for key, value in values.items()
    )
    return "{" + ", ".join(parts) + "}"


def _scalar(value: object) -> str:
    """A value in YAML, quoted where it has to be."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./-]*", value)
    reserved = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return str(value) if plain and str(value).lower() not in reserved else json.dumps(value, ensure_ascii=False)
