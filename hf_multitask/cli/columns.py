"""Other names for the columns of a dataset."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset, IterableDataset

from ..modeling.config import close_match
from ..modeling.values import shown
from .document import Values
from .splits import Splits

RENAMING = "rename_columns"


def check_renaming(values: Values, name: str) -> None:
    """Check the key ``rename_columns`` of a dataset as far as it can be before the data are loaded.

    Raises:
        ValueError: it is not a mapping of names to different names.
    """
    given = values.get(RENAMING)
    if given is None:
        return
    if not isinstance(given, Mapping) or not all(
        isinstance(one, str) and one for pair in given.items() for one in pair
    ):
        raise ValueError(
            f"Dataset '{name}': `{RENAMING}` should be a mapping of columns to their new names, such as "
            f"{{sentence: text}}. Found {shown(given)}."
        )
    new = list(given.values())
    if twice := next((one for one in new if new.count(one) > 1), None):
        raise ValueError(f"Dataset '{name}': `{RENAMING}` gives two columns the name '{twice}'. Use different names.")


def renamed(name: str, loaded: Splits, arguments: Values) -> Splits:
    """The splits of a dataset with the names of ``rename_columns``.

    A split that does not have a column, such as a test split without labels, stays without it.

    Raises:
        ValueError: no split has a column, or a split already has a column of the new name.
    """
    given = arguments.get(RENAMING) or {}
    if not given:
        return loaded
    columns = {split: _columns(rows) for split, rows in loaded.items()}
    known = list(dict.fromkeys(column for own in columns.values() for column in own))
    for old in given:
        if old not in known:
            raise ValueError(
                f"Dataset '{name}': `{RENAMING}` names the column '{old}', and the data have {', '.join(known)}."
                + (close_match(old, known) or " Fix the name.")
            )
    result = dict(loaded)
    for split, rows in loaded.items():
        own = {old: new for old, new in given.items() if old in columns[split]}
        taken = next((new for new in own.values() if new in columns[split] and new not in own), None)
        if taken is not None:
            raise ValueError(
                f"Dataset '{name}': `{RENAMING}` makes a column '{taken}', and the split '{split}' has one already. "
                "Rename that one as well, or choose another name."
            )
        if own and isinstance(rows, IterableDataset):  # which cannot give a column the name of another that is renamed
            result[split] = rows.rename_columns({old: f"{old}>" for old in own})
            result[split] = result[split].rename_columns({f"{old}>": new for old, new in own.items()})
        elif own:
            result[split] = rows.rename_columns(own)
    return result


def _columns(rows: Dataset | IterableDataset) -> list[str]:
    """The columns of a dataset, or of a stream, by its first row if it does not declare them."""
    return rows.column_names or list(next(iter(rows), {}))
