"""Alignment of the labels of words and spans with tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..modeling.heads import IGNORE
from ..modeling.inputs import Windows
from ..modeling.words import Place, first_tokens, marks_of, token_units
from .columns import Gold, Table
from .span_labels import Span


@dataclass(frozen=True)
class Aligned:
    """The labels of a row.

    Args:
        labels: of the tokens of all its windows, concatenated.
        gold: the references for evaluation: ``places``, the index of the labeled token for each word or unit, and the
            ``tags`` of words, or the ``spans`` of a ``text``, whose units have ``starts`` and ``ends``.
        lost: number of labels without a token.
    """

    labels: list[int]
    gold: Gold
    lost: int


def align_words(windows: Windows, words: Sequence[Place], tags: list[int], later: Mapping[int, int] | None) -> Aligned:
    """Align tags of words with their first tokens.

    Args:
        windows: tokens of the text.
        words: character positions of its words.
        tags: of the words.
        later: by tag, the label of the other tokens of a word; None if they have no label.
    """
    labels, place = _unlabelled(windows)
    firsts = first_tokens(windows.offsets, words)
    for tag, first in zip(tags, firsts, strict=True):
        if first >= 0:
            labels[place[first]] = tag
    if later is None:  # the first tokens rise, and are all that is labeled
        count = itertools.count()
        places = [next(count) if first >= 0 else -1 for first in firsts]
    else:
        word_of = {first: word for word, first in enumerate(firsts) if first >= 0}
        word = None
        for token, (start, end) in enumerate(windows.offsets):
            word = word_of.get(token, word)
            if word is not None and token not in word_of and start < end and start < words[word][1]:
                labels[place[token]] = later.get(tags[word], tags[word])
        order = _order(labels)
        places = [order[place[first]] if first >= 0 else -1 for first in firsts]
    return Aligned(labels, {"tags": tags, "places": places}, firsts.count(-1))


def align_spans(windows: Windows, text: str, spans: Sequence[Span], table: Table, scheme: str) -> Aligned:
    """Align spans with the tokens that overlap them.

    Args:
        windows: tokens of the text.
        text: running text.
        spans: in ascending order, without overlap.
        table: indices of the tags.
        scheme: of the tags.
    """
    labels, place = _unlabelled(windows)
    units, tokens = token_units(text, windows.offsets)
    inside: list[list[int]] = [[] for _ in spans]
    number = 0
    for token, (start, end) in zip(tokens, units, strict=True):
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        labels[place[token]] = table.get("O", IGNORE)
        if number < len(spans) and spans[number][0] < end:
            inside[number].append(place[token])
    for (_, _, kind), places in zip(spans, inside, strict=True):
        for token, mark in zip(places, marks_of(len(places), scheme) if places else [], strict=True):
            labels[token] = table.get(f"{mark}-{kind}", table[f"B-{kind}"])
    order = _order(labels)
    gold = {
        "text": text,
        "starts": [start for start, _ in units],
        "ends": [end for _, end in units],
        "places": [order.get(place[token], -1) for token in tokens],
        "spans": [[start, end, table[f"B-{kind}"]] for start, end, kind in spans],
    }
    return Aligned(labels, gold, sum(not places for places in inside))


def _unlabelled(windows: Windows) -> tuple[list[int], Sequence[int]]:
    """Empty labels for the tokens of all windows, and the position where each token of the text is labeled."""
    if len(windows.rows) == 1:
        return [IGNORE] * len(windows.rows[0]["input_ids"]), range(windows.lead, windows.lead + len(windows.offsets))
    lengths = [len(row["input_ids"]) for row in windows.rows]
    starts = [0, *itertools.accumulate(lengths)]
    return [IGNORE] * starts[-1], [starts[window] + place for window, place in windows.home()]


def _order(labels: Sequence[int]) -> dict[int, int]:
    """For every labeled token, the number of labeled tokens before it."""
    return {place: number for number, place in enumerate(p for p, label in enumerate(labels) if label != IGNORE)}
