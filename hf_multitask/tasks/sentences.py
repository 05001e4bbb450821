"""The heads of the words of a sentence, as data have them."""

from __future__ import annotations

from collections.abc import Sequence

from ..modeling.trees import find_cycle
from ..modeling.values import shown

NOTHING = (None, "", "_")  # cells of a word without a value; the last is that of CoNLL-U


def heads_of(words: Sequence[str], cell: Sequence[object]) -> list[int]:
    """The heads of a row as numbers, of which there is one per word.

    Args:
        words: of the row.
        cell: numbers of words, counted from 1, and 0 for the root; also as text.

    Raises:
        ValueError: they are not a tree with one root; the message is a sentence.
    """
    heads = [_head(head, number, word) for number, (head, word) in enumerate(zip(cell, words, strict=True), 1)]
    for number, head in enumerate(heads, 1):
        if not 0 <= head <= len(heads):
            raise ValueError(
                f"word {number} ({words[number - 1]!r}) has the head {head}, but heads are the numbers of the "
                f"{len(heads)} words, counted from 1, and 0 for the root."
            )
    roots = [number for number, head in enumerate(heads, 1) if head == 0]
    if words and len(roots) != 1:
        found = f"{len(roots)}, the words {_listed(roots)}" if roots else "none"
        raise ValueError(f"one word of a sentence should have the head 0, as the root of the tree. Found {found}.")
    if cycle := find_cycle(heads):
        raise ValueError(
            f"the heads should be a tree, but word {cycle[0]} is reached again from its own head: words "
            f"{_listed([*cycle, cycle[0]])}."
        )
    return heads


def _head(cell: object, number: int, word: str) -> int:
    """A head as a number."""
    if cell in NOTHING:
        raise ValueError(f"word {number} ({word!r}) has no head.")
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    if isinstance(cell, str) and cell.strip().removeprefix("-").isdecimal():
        return int(cell)
    if isinstance(cell, int) and not isinstance(cell, bool):
        return cell
    raise ValueError(f"the head of word {number} ({word!r}) should be the number of a word, or 0. Found {shown(cell)}.")


def _listed(words: Sequence[int], most: int = 10) -> str:
    return ", ".join(map(str, words[:most])) + (", ..." if len(words) > most else "")
