"""How tags mark spans: which sequences a scheme allows, and the options ``scheme`` and ``decoding`` of a task.

Legend: C tags.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch

from .aliases import Settings
from .config import close_match
from .words import scheme_of, split_tag

ARGMAX, CONSTRAINED, CRF = "argmax", "constrained", "crf"
DECODINGS = (ARGMAX, CONSTRAINED, CRF)
NO_SCHEME, IOB1 = "none", "IOB1"
_MARKS = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU", IOB1: "BI"}
SCHEMES = (*_MARKS, NO_SCHEME)
# Options of the losses of single tags, with the values that change nothing.
_BY_TOKEN = {"class_weights": None, "label_smoothing": 0, "loss": "cross_entropy"}


def scheme_in(task: Settings) -> str | None:
    """The scheme of a task's tags: the one that it names, or that of its labels; None if they mark no spans."""
    named = task.get("scheme")
    if named is None:
        return scheme_of(task.get("label_names") or [])
    return None if named == NO_SCHEME else named


def decoding_in(task: Settings) -> str:
    """How a task finds the tags of a text."""
    return task.get("decoding") or ARGMAX


@lru_cache(maxsize=64)
def allowed(names: tuple[str, ...], scheme: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which tags may begin a sequence, (C,), which may end one, (C,), and which may follow which, (C, C) by row.

    BIO: ``I-X`` follows ``B-X`` or ``I-X``. BIOES and BILOU: a span of one word is ``S-`` (``U-``), and a longer one
    begins with ``B-`` and ends with ``E-`` (``L-``). IOB1: ``B-X`` follows ``B-X`` or ``I-X``, and ``I-X`` any tag.
    """
    tags = [split_tag(name) for name in names]
    edge = ("O", "")
    rules = (
        [_follows(scheme, edge, tag) for tag in tags],
        [_follows(scheme, tag, edge) for tag in tags],
        [[_follows(scheme, one, other) for other in tags] for one in tags],
    )
    starts, ends, steps = (torch.tensor(rule, device="cpu") for rule in rules)  # also where a model is built on meta
    return starts, ends, steps


def _follows(scheme: str, one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether a tag may follow another, each a mark, in BIOES where the scheme is BILOU, and a label."""
    (before, kind), (mark, own) = one, other
    inside = before in ("B", "I")
    if scheme in ("BIO", IOB1):
        return mark != ("I" if scheme == "BIO" else "B") or (inside and kind == own)
    return (mark in ("I", "E") and kind == own) if inside else mark not in ("I", "E")


def is_allowed(tags: Sequence[str], scheme: str) -> bool:
    """Whether a scheme allows a sequence of tags."""
    whole = [("O", ""), *map(split_tag, tags), ("O", "")]
    return all(_follows(scheme, one, other) for one, other in pairwise(whole))


def check_structure(task: Settings) -> None:
    """Check ``scheme`` and ``decoding`` of a task, and its labels as far as they are known.

    Raises:
        ValueError: a value is unknown, labels are not of the scheme, or there is nothing to decode by.
    """
    scheme, decoding, names = task.get("scheme"), decoding_in(task), task.get("label_names") or []
    for option, value, known in (("scheme", scheme, SCHEMES), ("decoding", decoding, DECODINGS)):
        if value is not None and value not in known:
            raise ValueError(
                f"`{option}` should be one of {', '.join(known)}. Found `{option} = {value!r}`."
                + close_match(str(value), list(known))
            )
    if scheme in _MARKS:
        _check_marks(names, str(scheme))
    for option, usual in _BY_TOKEN.items() if decoding == CRF else ():
        if (value := task.get(option)) not in (None, usual):
            raise ValueError(
                f"`{option}` changes the loss of single tags, and `decoding = 'crf'` has one loss for all tags of a "
                f"text. Found `{option} = {value!r}`. Leave one of them out."
            )
    own = scheme_in(task)
    if own is None and decoding == CONSTRAINED and (names or scheme == NO_SCHEME):
        why = "`scheme = 'none'`" if scheme == NO_SCHEME else f"the labels {', '.join(names[:4])}, which are of none"
        raise ValueError(
            f"`decoding = 'constrained'` needs a scheme, which says what is impossible. Found {why}. Set another "
            "decoding, or the scheme of the labels."
        )
    if own is not None and decoding != ARGMAX and names:
        _check_sequences(names, own, decoding)


def _check_marks(names: Sequence[str], scheme: str) -> None:
    """See that all labels are ``O`` or have a mark of the scheme."""
    for name in names:
        mark, _, kind = name.partition("-")
        if name != "O" and (mark not in _MARKS[scheme] or (not kind and mark != name)):
            marks = ", ".join(f"{mark}-" for mark in _MARKS[scheme])
            raise ValueError(
                f"`scheme = '{scheme}'` is for the label O and labels that begin with {marks}. Found the label "
                f"{name!r}. Set another scheme, or 'none'."
            )


def _check_sequences(names: Sequence[str], scheme: str, decoding: str) -> None:
    """See that every label is in a sequence that the scheme allows, and that texts of any length have one."""
    starts, ends, steps = allowed(tuple(names), scheme)
    reached, leaving = _closure(starts, steps), _closure(ends, steps.T)
    fix = "Add the labels that are missing to label_names, set the scheme of the labels, or decoding='argmax'."
    for name, used in zip(names, (reached & leaving).tolist(), strict=True):
        if not used:
            raise ValueError(
                f"`decoding = '{decoding}'` could never answer the label {name!r}, which is in no sequence of the "
                f"labels that the scheme {scheme} allows. {fix}"
            )
    if not (starts & ends & steps.diagonal()).any():
        raise ValueError(
            f"`decoding = '{decoding}'` needs a label for a word of its own, and in the scheme {scheme} none of "
            f"{', '.join(names[:4])} is one. {fix}"
        )


def _closure(first: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Which tags are reached from some, (C,)."""
    found = first
    while not torch.equal(more := found | (steps & found.unsqueeze(1)).any(0), found):
        found = more
    return found
