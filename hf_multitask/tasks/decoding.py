"""The options of a task whose tags are decoded as a sequence, and rows whose own tags cannot be decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..modeling.schemes import CRF, IOB1, NO_SCHEME, check_structure, is_allowed

if TYPE_CHECKING:
    from .alignment import Aligned
    from .base import Task


def check_decoding(task: Task) -> None:
    """Check ``scheme`` and ``decoding`` of a task, with the labels as far as they are known.

    Raises:
        ValueError: they do not fit each other, the labels or other options.
    """
    values = task.to_dict()
    try:
        check_structure(values)
    except ValueError as problem:
        raise task.error(str(problem)) from None
    if values["decoding"] == CRF and values["label_all_tokens"]:
        raise task.error(
            "`decoding = 'crf'` scores tags of words that follow each other, and `label_all_tokens` labels parts of "
            "words. Leave one of them out."
        )
    if values["decoding"] == CRF and values["calibration"] is not None:
        raise task.error(
            "`calibration` divides the logits of single words, and `decoding = 'crf'` answers sequences. Leave one "
            "of them out, or set `decoding = 'constrained'`."
        )
    if values["spans_column"] is not None and values["scheme"] in (IOB1, NO_SCHEME):
        raise task.error(
            f"`scheme = '{values['scheme']}'` is for tags of words, and `spans_column` holds spans. Set BIO, BIOES or "
            "BILOU, or leave it out."
        )


def impossible(aligned: Aligned | None, names: Sequence[str], scheme: str) -> int:
    """1 for a row with tags in an order that the scheme does not allow; tags that are not in ``names`` are left out."""
    tags = [] if aligned is None else aligned.gold.get("tags", [])
    return int(not is_allowed([names[tag] for tag in tags if tag < len(names)], scheme))
