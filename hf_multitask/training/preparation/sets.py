"""Several evaluation sets of a dataset: the first one is its evaluation data, and the others are measured beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias, cast

if TYPE_CHECKING:
    from .tasks import Datasets, Rows

# By dataset, its rows, or its evaluation sets by name.
EvaluationData: TypeAlias = "Mapping[str, Rows | Mapping[str, Rows]]"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
RESERVED = ("train", "validation", "test", "average")


def split_sets(data: EvaluationData, tasks: Iterable[str]) -> tuple[Datasets, Mapping[str, Datasets]]:
    """The evaluation data of every dataset, and by name the further sets, each by dataset.

    Args:
        data: rows by dataset, or a dict of sets.
        tasks: names of the tasks, with which the names of sets must not be confused in a log.

    Raises:
        ValueError: a dataset has no set, or the name of a further set cannot be part of a key of a log.
    """
    if not isinstance(data, Mapping) or not any(isinstance(rows, Mapping) for rows in data.values()):
        return cast("Datasets", data), {}
    first: dict[str, Rows] = {}
    others: dict[str, dict[str, Rows]] = {}
    for name, given in data.items():
        if not isinstance(given, Mapping):
            first[name] = given
            continue
        if not given:
            raise ValueError(f"Dataset '{name}' has an empty dict of evaluation sets. Add one, or leave it out.")
        (_, first[name]), *rest = given.items()
        for other, rows in rest:
            check_set_name(other, f"Dataset '{name}'", tasks)
            others.setdefault(other, {})[name] = rows
    return first, others


def check_set_name(name: object, where: str, tasks: Iterable[str]) -> None:
    """Check the name of an evaluation set, which stands before the name of a task in a log.

    Raises:
        ValueError: it is not a name, or it is reserved, or keys of a log could be those of a task.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(
            f"{where} has the evaluation set {name!r}. Its name should have letters, digits, '-' and '_', and not be "
            f"one of {', '.join(RESERVED)}. Rename it."
        )
    for task in tasks:
        if f"{name}_".startswith(f"{task}_"):
            raise ValueError(
                f"{where} has the evaluation set '{name}', whose metrics would look like those of task '{task}'. "
                "Rename it."
            )
