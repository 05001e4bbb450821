"""The splits of a dataset: their names, and the rows that each of them has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import datasets
import numpy as np
from transformers.utils import logging

from ..modeling.config import close_match
from ..modeling.values import shown
from ..training.preparation.sets import check_set_name
from .document import Values

logger = logging.get_logger(__name__)

# By split, a Dataset, or an IterableDataset for a stream.
Splits = Mapping[str, Any]
SPLITS = ("train", "validation", "test")
SETS = "evaluation_sets"
KEYS = ("splits", "validation_fraction", SETS)
_SYNONYMS = {"dev": "validation", "val": "validation", "valid": "validation"}
_SEED = 20  # of the rows that `validation_fraction` takes, whatever the seed of the run is


def split_name(name: str) -> str:
    """The split for a name: ``dev``, ``val`` and ``valid`` are aliases of validation."""
    return _SYNONYMS.get(name, name)


def by_split(given: Mapping[str, object], key: str, name: str, sets: Iterable[str] = ()) -> dict[str, object]:
    """The values of a key of a dataset by split.

    Args:
        given: the values by name.
        key: of the dataset, for messages.
        name: of the dataset, for messages.
        sets: names of further evaluation sets.

    Raises:
        ValueError: a name is unknown, or two names mean the same split.
    """
    found: dict[str, str] = {}
    for own in given:
        split = split_name(own) if isinstance(own, str) else ""
        if split not in (*SPLITS, *sets):
            fix = close_match(str(own).lower(), [*SPLITS, *_SYNONYMS]) or f" Rename it, or name it in {SETS}."
            raise ValueError(
                f"Dataset '{name}' names the split {shown(own)} in {key}; the splits are train, validation (or "
                f"dev, val, valid) and test.{fix}"
            )
        _check_one(found, split, own, name, key)
    return {split: given[own] for split, own in found.items()}


def _check_one(found: dict[str, str], split: str, own: str, name: str, key: str) -> None:
    if split in found:
        fix = "Keep one of them in splits" if key == "splits" else "Set the files of one of them in data_files"
        raise ValueError(f"Dataset '{name}' has the splits '{found[split]}' and '{own}', and both mean {split}. {fix}.")
    found[split] = own


def check_splits(values: Values, name: str) -> Values:
    """The keys of :data:`KEYS` that a dataset has, checked as far as they can be before the data are loaded.

    Raises:
        ValueError: a value is invalid, or both set the validation split.
    """
    result: Values = {}
    if (names := values.get(SETS)) is not None:
        if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
            raise ValueError(
                f"Dataset '{name}': `{SETS}` should be a list of different splits, such as [shifted]. Found "
                f"{shown(names)}."
            )
        for one in names:
            check_set_name(split_name(one) if isinstance(one, str) else one, f"Dataset '{name}'", ())
        result[SETS] = list(names)
    if (given := values.get("splits")) is not None:
        if not isinstance(given, Mapping) or not given:
            raise ValueError(
                f"Dataset '{name}': `splits` should be a mapping of splits to parts of the data, such as "
                f"{{train: 'train[:90%]', validation: 'train[90%:]'}}. Found {shown(given)}."
            )
        result["splits"] = by_split(given, "splits", name, result.get(SETS, ()))
        for split, part in result["splits"].items():
            _instruction(part, split, name, streaming=bool(values.get("streaming")))
    if (fraction := values.get("validation_fraction")) is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise ValueError(
                f"Dataset '{name}': `validation_fraction` should be a number between 0 and 1, such as 0.1. "
                f"Found {shown(fraction)}."
            )
        if values.get("streaming"):
            raise ValueError(
                f"Dataset '{name}': `validation_fraction` cannot divide a stream. Remove it, or set streaming: false."
            )
        result["validation_fraction"] = float(fraction)
    return result


def _instruction(part: object, split: str, name: str, *, streaming: bool) -> datasets.ReadInstruction:
    where = f"Dataset '{name}': `splits` sets {split} to {shown(part)}"
    if not isinstance(part, str):
        raise ValueError(f"{where}, which is not a text such as 'train[:90%]'. Fix it.")
    if streaming and not re.fullmatch(r"\w+", part.strip()):
        raise ValueError(f"{where}, and a stream cannot be divided. Name a whole split, or set streaming: false.")
    try:
        return datasets.ReadInstruction.from_spec(part.strip())
    except ValueError as problem:
        said = str(problem).rstrip(".")
        raise ValueError(f"{where}: {said}. Write it as in datasets, such as 'train[:90%]'.") from None


def arranged(name: str, loaded: Splits, arguments: Values, wanted: Iterable[str]) -> Splits:
    """The splits of a dataset under the names of :data:`SPLITS`, divided as its arguments say.

    Args:
        name: of the dataset, for messages.
        loaded: its splits by their own names.
        arguments: of the dataset, as checked.
        wanted: the splits to return. Others are ignored, with a message.

    Raises:
        ValueError: two splits mean validation, or a part of the data does not exist.
    """
    if (given := arguments.get("splits")) is not None:
        parts = _divided(name, loaded, given, streaming=bool(arguments.get("streaming")))
    else:
        found: dict[str, str] = {}
        for own in loaded:
            _check_one(found, split_name(own), own, name, "data_files")
        known = (*SPLITS, *wanted, *arguments.get(SETS, ()))
        if extra := [own for split, own in found.items() if split not in known]:
            logger.warning(f"Dataset '{name}' also has the splits {', '.join(extra)}, which are not read.")
        parts = {split: loaded[own] for split, own in found.items()}
    if (fraction := arguments.get("validation_fraction")) is not None:
        parts = _with_validation(name, parts, fraction)
    wanted = [*wanted]
    if "validation" in wanted and (sets := arguments.get(SETS)):
        for one in sets:
            if one not in parts or "validation" not in parts:
                lacking = one if one not in parts else "validation"
                raise ValueError(
                    f"Dataset '{name}' has the evaluation sets {', '.join(sets)}, and no split '{lacking}': it has "
                    f"{', '.join(parts)}. Add it, or change {SETS}."
                )
        wanted += sets
    return {split: rows for split, rows in parts.items() if split in wanted}


def evaluation_data(data: Mapping[str, Splits]) -> dict[str, Any]:
    """The validation data of every dataset, or where it has further evaluation sets, all of them by name.

    Args:
        data: the splits of every dataset.
    """
    found: dict[str, Any] = {}
    for name, parts in data.items():
        if "validation" in parts:
            sets = {split: rows for split, rows in parts.items() if split not in SPLITS}
            found[name] = {"validation": parts["validation"], **sets} if sets else parts["validation"]
    return found


def _divided(name: str, loaded: Splits, given: Mapping[str, str], *, streaming: bool) -> dict[str, Any]:
    """The splits that ``splits`` makes; a warning counts the rows that two of them have in common."""
    known = {split_name(own): rows for own, rows in loaded.items()} | dict(loaded)
    taken: dict[str, list[Any]] = {}
    parts: dict[str, Any] = {}
    for split, part in given.items():
        instruction = _instruction(part, split, name, streaming=streaming)
        where = f"Dataset '{name}': `splits` sets {split} to '{part}'"
        if streaming:
            if part.strip() not in known:
                raise ValueError(f"{where}, but the data have the splits {', '.join(loaded)}. Name one of them.")
            parts[split] = known[part.strip()]
            continue
        try:
            taken[split] = instruction.to_absolute({own: len(rows) for own, rows in known.items()})
        except ValueError as problem:
            said = str(problem).rstrip(".")
            raise ValueError(f"{where}: {said}. The data have the splits {', '.join(loaded)}. Fix it.") from None
        pieces = [known[one.splitname].select(range(one.from_, one.to)) for one in taken[split] if one.from_ < one.to]
        parts[split] = datasets.concatenate_datasets(pieces) if pieces else known[taken[split][0].splitname].select([])
    for first, second in combinations(taken, 2):
        shared = sum(
            max(0, min(one.to, other.to) - max(one.from_, other.from_))
            for one in taken[first]
            for other in taken[second]
            if known[one.splitname] is known[other.splitname]
        )
        if shared:
            logger.warning(
                f"Dataset '{name}': its splits {first} and {second} have {shared:,} rows in common, by `splits`: "
                f"'{given[first]}' and '{given[second]}'."
            )
    return parts


def _with_validation(name: str, parts: dict[str, Any], fraction: float) -> dict[str, Any]:
    """The splits with a share of the training rows as validation, the same rows in every run."""
    if "validation" in parts:
        raise ValueError(
            f"Dataset '{name}' has a split 'validation', and `validation_fraction` would make another. Remove one."
        )
    if "train" not in parts:
        raise ValueError(f"Dataset '{name}' has no split 'train' that `validation_fraction` could divide. Add one.")
    rows = parts["train"]
    count = max(1, round(len(rows) * fraction))
    if count >= len(rows):
        raise ValueError(
            f"Dataset '{name}': `validation_fraction` would take {count} of {len(rows)} training rows. Lower it, or "
            "add rows."
        )
    order = np.random.RandomState(_SEED).permutation(len(rows))  # whose numbers are the same in all versions
    train, validation = np.sort(order[count:]), np.sort(order[:count])
    return {**parts, "train": rows.select(train), "validation": rows.select(validation)}
