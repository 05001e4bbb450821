"""The definition of a word: where words are in a text, which token represents each, and the spans that tags mark.

Legend: a unit is what carries a tag: a word, or a token of running text whose spans are labeled. Places are
characters, ``(start, end)``, in the text that the tokenizer reads.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence

Place = tuple[int, int]
# First and last unit of a span, and its label without the mark.
Group = tuple[int, int, str]

NO_TOKEN = -1
# By scheme, the marks that its tags begin with; the first one whose marks hold all of the tags' is the scheme.
_SCHEMES = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU"}
_ALONE = {"BIOES": "S", "BILOU": "U"}
_LAST = {"BIOES": "E", "BILOU": "L"}


def joined(words: Sequence[str]) -> tuple[str, list[Place]]:
    """Words joined by single spaces, and the place of each; that of a word without a visible character is empty."""
    places, start = [], 0
    for word in words:
        end = start + len(word)
        places.append((start, end if word.strip() else start))
        start = end + 1
    return " ".join(words), places


def running_words(text: str, marks: Sequence[str] = ()) -> list[Place]:
    """The words of running text: it is split at white space, and punctuation at a word's edge is a word of its own.

    Punctuation inside a word stays (``e-mail``), and so does the full stop of an abbreviation that has one inside
    (``U.K.``). Equal characters in a row are one word (``...``). ``@`` and ``#`` before a letter stay with their word.

    Args:
        text: running text.
        marks: what is a word of its own wherever it stands, as the tokenizer's special tokens are (``[MASK]``).
    """
    longest = sorted(filter(None, marks), key=len, reverse=True)
    places: list[Place] = []
    behind = 0
    for found in re.finditer("|".join(map(re.escape, longest)), text) if longest else ():
        places += _words_between(text, behind, found.start())
        places.append(found.span())
        behind = found.end()
    return [*places, *_words_between(text, behind, len(text))]


def _words_between(text: str, first: int, last: int) -> Iterator[Place]:
    """The words of a part of a text."""
    start = None
    for place in range(first, last):
        if text[place].isspace():
            if start is not None:
                yield from _split_edges(text, start, place)
            start = None
        elif start is None:
            start = place
    if start is not None:
        yield from _split_edges(text, start, last)


def _split_edges(text: str, start: int, end: int) -> Iterator[Place]:
    """The words of a text between two white spaces."""
    first, last = start, end
    while first < last and _is_punctuation(text[first]):
        if text[first] in "@#" and text[first + 1 : first + 2].isalnum():
            break
        first += 1
    while last > first and _is_punctuation(text[last - 1]) and not _ends_abbreviation(text, first, last):
        last -= 1
    yield from _runs(text, start, first)
    if first < last:
        yield first, last
    yield from _runs(text, last, end)


def _is_punctuation(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "P" or unicodedata.category(letter) == "Sc"


def _ends_abbreviation(text: str, start: int, end: int) -> bool:
    """Whether a full stop belongs to the word before it, which has single letters with full stops only."""
    letters = text[start:end]
    return len(letters) > 2 and all(
        letter == "." if place % 2 else letter.isalpha() for place, letter in enumerate(letters)
    )


def _runs(text: str, start: int, end: int) -> Iterator[Place]:
    """Equal characters in a row, as places."""
    while start < end:
        stop = start + 1
        while stop < end and text[stop] == text[start]:
            stop += 1
        yield start, stop
        start = stop


def trimmed(text: str, place: Place) -> Place:
    """A place without the white space at its edges; empty where there is nothing else."""
    start, end = place
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, max(start, start + len(inside.strip()))


def first_tokens(offsets: Sequence[Place], units: Sequence[Place]) -> list[int]:
    """For each unit, its first token: the first that overlaps it and no unit before it; -1 without one.

    Args:
        offsets: places of the tokens, in rising order; empty ones are passed over.
        units: likewise.
    """
    found = [NO_TOKEN] * len(units)
    rest = iter(enumerate(units))
    unit, (first, last) = next(rest, (NO_TOKEN, (0, 0)))
    for token, (start, end) in enumerate(offsets):
        if start >= end:
            continue
        while last <= start or first == last:
            unit, (first, last) = next(rest, (NO_TOKEN, (0, 0)))
            if unit == NO_TOKEN:
                return found
        if first < end and found[unit] == NO_TOKEN:
            found[unit] = token
    return found


def token_units(text: str, offsets: Sequence[Place]) -> tuple[list[Place], list[int]]:
    """The units of running text whose spans are labeled, in rising order and apart, and the token of each.

    Tokens that share a character, as the bytes of an emoji do, are one unit; tokens of white space are none.
    """
    units: list[Place] = []
    tokens: list[int] = []
    for token, offset in enumerate(offsets):
        start, end = trimmed(text, offset)
        if start >= end:
            continue
        if units and start < units[-1][1]:
            units[-1] = units[-1][0], max(units[-1][1], end)
        else:
            units.append((start, end))
            tokens.append(token)
    return units, tokens


def scheme_of(label_names: Sequence[str]) -> str | None:
    """The scheme by which tags mark spans: ``"BIO"``, ``"BIOES"`` or ``"BILOU"``; None where they do not.

    IOB1 reads as BIO: a span begins at ``B-``, and at an ``I-`` that continues no span of its label.
    """
    marks = set()
    for name in label_names:
        mark, dash, kind = name.partition("-")
        if name != "O":
            marks.add(mark if dash and kind else name)
    return next((scheme for scheme, own in _SCHEMES.items() if marks and marks <= set(own)), None)


def split_tag(tag: str) -> tuple[str, str]:
    """A tag's mark and label; the marks of BILOU as those of BIOES."""
    mark, _, kind = tag.partition("-")
    return {"L": "E", "U": "S"}.get(mark, mark), kind


def groups(tags: Sequence[str]) -> list[Group]:
    """The spans that tags mark, as seqeval reads them in its default mode.

    One begins at ``B``, at ``S``, and at any tag that continues no open span of its label; ``E`` and ``S`` end one.
    """
    found: list[list[int]] = []
    kinds: list[str] = []
    open_kind: str | None = None
    for unit, tag in enumerate(tags):
        mark, kind = split_tag(tag)
        if tag == "O":
            open_kind = None
            continue
        if mark in ("B", "S") or open_kind != kind:
            found.append([unit, unit])
            kinds.append(kind)
        else:
            found[-1][1] = unit
        open_kind = None if mark in ("E", "S") else kind
    return [(first, last, kind) for (first, last), kind in zip(found, kinds, strict=True)]


def tags_of(spans: Sequence[Group], count: int) -> list[str]:
    """The tags, in BIO, of spans over so many units."""
    tags = ["O"] * count
    for first, last, kind in spans:
        tags[first] = f"B-{kind}"
        tags[first + 1 : last + 1] = [f"I-{kind}"] * (last - first)
    return tags


def marks_of(count: int, scheme: str) -> list[str]:
    """The marks of a span of so many units."""
    if count == 1 and scheme in _ALONE:
        return [_ALONE[scheme]]
    marks = ["B", *["I"] * (count - 1)]
    if scheme in _LAST:
        marks[-1] = _LAST[scheme]
    return marks


def snapped(text: str, words: Sequence[Place], first: Place, last: Place) -> Place:
    """The place of a span that begins in one token and ends in another.

    Where a token holds a word with punctuation at its edge, as a Unigram tokenizer's ``Oslo,`` may, the span begins or
    ends at the word.

    Args:
        text: running text.
        words: its words.
        first: place of the first token, without white space.
        last: likewise, of the last.
    """
    return _without_edges(text, words, first)[0], _without_edges(text, words, last)[1]


def _without_edges(text: str, words: Sequence[Place], token: Place) -> Place:
    """A token's place without punctuation that is a word of its own; all of it where it holds nothing else."""
    start, end = token
    number = max(bisect_right(words, (start, len(text))) - 1, 0)
    kept: list[int] = []
    while number < len(words) and words[number][0] < end:
        first, last = max(start, words[number][0]), min(end, words[number][1])
        if first < last and not all(map(_is_punctuation, text[slice(*words[number])])):
            kept += [first, last]
        number += 1
    return (kept[0], kept[-1]) if kept else token
