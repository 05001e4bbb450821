"""The columns of the data that a task reads its texts from, which may be several for one text."""

from collections.abc import Sequence

from .aliases import Settings, TaskDict
from .inputs import as_text

_NAMES = ("prompt_column", "messages_column", "text_column", "tokens_column", "source_column", "context_column")


def text_columns(task: TaskDict) -> tuple[str, str | None]:
    """The columns of the text, and of the second text where a task takes pairs; "text" where it names none.

    Where the text is joined, the first is the name of :func:`joined_columns`.
    """
    found = next((task[name] for name in _NAMES if task.get(name)), "text")
    return _name(found), task.get("text_pair_column")


def joined_columns(task: Settings) -> dict[str, list[str]]:
    """The columns that are read as one text, by the name of that text; none where ``text_column`` is one column."""
    found = task.get("text_column")
    return {_name(found): list(found)} if isinstance(found, list | tuple) else {}


def joined_text(cells: Sequence[object]) -> object:
    """Texts of several columns as one, joined by a space; None if all are missing.

    A cell that is neither a text nor missing is given back as it is, for the reader to refuse.
    """
    parts = []
    for cell in cells:
        if cell is None:
            continue
        try:
            parts.append(as_text(cell))
        except TypeError:
            return cell
    return " ".join(filter(None, parts)) if parts else None


def _name(found: str | Sequence[str]) -> str:
    return found if isinstance(found, str) else " + ".join(found)
