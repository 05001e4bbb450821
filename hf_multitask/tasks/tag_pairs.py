"""Predicted and true tags of the rows of an evaluation, which the metrics of a token classification compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..modeling.tags import spans_of as decoded_spans
from ..modeling.words import groups, split_tag, tags_of
from . import reports
from .measures import Spans

if TYPE_CHECKING:
    from .columns import Cells, Gold, References

Pairs = Sequence[tuple[Sequence[str | None], Sequence[str]]]  # by row, told and true; None for a word without a token


def tag_pairs(
    predictions: Sequence[np.ndarray] | np.ndarray,
    references: References,
    names: Sequence[str],
    unseen: Cells,
    marks: Sequence[str],
) -> Pairs:
    """Predicted and true tags by row: of the words of the data, or of the segments between the edges of all spans.

    Args:
        predictions: for every row, the best tags of its labeled tokens, or their logits.
        references: for every row, the ``gold`` of the task's ``more_columns``.
        names: of the tags.
        unseen: tags that are numbered after these.
        marks: the special tokens, which are words of running text.
    """
    known = [*names, *map(str, unseen)]
    pairs: list[tuple[Sequence[str | None], Sequence[str]]] = []
    for best, gold in zip(predictions, references, strict=True):
        tags = best.argmax(-1) if best.ndim > 1 else best
        told = [names[tags[place]] if place >= 0 else None for place in gold["places"]]
        pairs.append(
            (told, [known[tag] for tag in gold["tags"]]) if "tags" in gold else _segments(told, gold, known, marks)
        )
    return pairs


def _segments(
    told: list[str | None], gold: Gold, known: list[str], marks: Sequence[str]
) -> tuple[list[str | None], list[str]]:
    """Spans of characters, told and true, as tags of the segments between all of their edges."""
    units = list(zip(gold["starts"], gold["ends"], strict=True))
    found = decoded_spans([tag or "O" for tag in told], units, gold["text"], marks)
    spans = [(start, end, kind) for _, _, kind, start, end in found]
    true = [(start, end, split_tag(known[label])[1]) for start, end, label in gold["spans"]]
    edges = sorted({edge for start, end, _ in (*spans, *true) for edge in (start, end)})
    number = {edge: place for place, edge in enumerate(edges)}
    both = []
    for those in (spans, true):
        whole = [(number[start], number[end] - 1, kind) for start, end, kind in those if start < end]
        both.append(tags_of(whole, len(edges)))
    # Spans of white space are never answers.
    blank = [f"B-{kind}" for start, end, kind in true if start == end]
    return [*both[0], *["O"] * len(blank)], [*both[1], *blank]


def spans_of_pairs(pairs: Pairs) -> Spans:
    """The spans of tags of any scheme in BIO, true and told."""
    true, told = ([tags_of(groups(_tags(pair[side])), len(pair[side])) for pair in pairs] for side in (1, 0))
    return Spans(true, told)


def _tags(tags: Sequence[str | None]) -> list[str]:
    return [tag or "O" for tag in tags]


def details_of_tags(pairs: Pairs, names: Sequence[str], *, spans: bool) -> dict[str, Any]:
    """The labels of spans, or the tags if they mark none, and the confusions of the tags.

    Args:
        pairs: see :func:`tag_pairs`.
        names: of the tags.
        spans: whether tags mark spans.
    """
    told, true = ([tag or reports.NO_ANSWER for pair in pairs for tag in pair[side]] for side in (0, 1))
    every = list(dict.fromkeys([*names, *true, *told]))
    number = {name: place for place, name in enumerate(every)}
    wanted, got = (np.array([number[tag] for tag in tags], dtype=int) for tags in (true, told))
    found = reports.of_classes(wanted, got, every)
    given = spans_of_pairs(pairs)
    return found | reports.of_spans(given.true, given.told) if spans else found
