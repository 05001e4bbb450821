"""In which form a task's outputs are taught, and whether a teacher's outputs are those of the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...modeling.choice import MultipleChoiceHead
from ...modeling.config import close_match
from ...modeling.heads import SequenceClassificationHead, TokenClassificationHead
from ...modeling.kinds import kind_of
from ...modeling.readers import TEXTS
from ...modeling.schemes import CRF
from ...modeling.similarity import SentenceSimilarityHead
from ...modeling.spans import QuestionAnsweringHead
from ...tasks import Task
from ..plain import Saved

OF_PROBLEMS = {
    "single_label_classification": "classes",
    "multi_label_classification": "sets",
    "regression": "numbers",
}


def form_of(task: Task) -> str:
    """The form of a task's outputs: classes, sets, numbers, tags, choices or scores.

    Raises:
        ValueError: outputs of its type are not taught.
    """
    head = kind_of({"type": task.type, "name": task.name}).head
    if task.reader.modality == TEXTS and task.keeps_rows:
        if issubclass(head, SequenceClassificationHead):
            return OF_PROBLEMS[str(getattr(task, "problem_type", None) or "single_label_classification")]
        for kind, form in (
            (TokenClassificationHead, "tags"),
            (MultipleChoiceHead, "choices"),
            (SentenceSimilarityHead, "scores"),
        ):
            if issubclass(head, kind) and not _chained(task.to_dict()) and (form != "scores" or task.target_column):
                return form
    why = "its outputs are not classes, numbers, tags, choices or scores of texts"
    if issubclass(head, SentenceSimilarityHead):
        why = (
            "without scores a pair has no output of its own, but is compared with negatives or other pairs of its group"
        )
    elif issubclass(head, QuestionAnsweringHead):
        why = "its outputs are positions among the tokens of the teacher's own tokenizer"
    elif head.writes or head.language_model:
        why = "its outputs are tokens of the teacher's own vocabulary"
    elif task.reader.modality != TEXTS:
        why = "it reads recordings, and teachers read texts"
    elif _chained(task.to_dict()):
        why = "with decoding='crf' its loss is one of whole sequences, and teachers answer tags one by one"
    raise task.error(f"a task of type {task.type} cannot have a teacher: {why}. Leave it out of `teachers`.")


def order_of(task: Task, form: str, theirs: Saved, source: str) -> list[int] | None:
    """For each output of a task, which of its teacher's it is; None if they are the same.

    Args:
        task: with resolved labels.
        form: of its outputs.
        theirs: the dict of the teacher's task.
        source: what messages call the teacher.

    Raises:
        ValueError: the teacher is of another type, or has other outputs.
    """
    if theirs["type"] != task.type:
        raise task.error(
            f"a teacher should be of type {task.type}. Found {theirs['type']} of {source}. Give another teacher."
        )
    if _chained(theirs):
        raise task.error(
            "a teacher should answer tags one by one. Found decoding='crf', whose logits are parts of the scores of "
            f"sequences, of {source}. Give a teacher with another decoding."
        )
    if form in ("classes", "sets", "numbers"):
        found = OF_PROBLEMS[str(theirs.get("problem_type") or "single_label_classification")]
        if found != form:
            raise task.error(
                f"a teacher should have problem_type {_problem(form)}. Found {_problem(found)} of {source}. Give "
                "another one."
            )
    mine, other = getattr(task, "label_names", None), theirs.get("label_names")
    if form in ("choices", "scores") or (form == "numbers" and not mine and not other):
        return None
    names, known = [str(name) for name in mine or ["LABEL_0"]], [str(name) for name in other or ["LABEL_0"]]
    if form == "numbers" and len(names) == len(known) == 1:
        return None
    if sorted(names) != sorted(known):
        raise task.error(
            f"a teacher should have the labels {_listed(names)}. Found {_listed(known)} of {source}. "
            f"{_difference(names, known)} Give another teacher, or name its labels in its config (id2label)."
        )
    order = [known.index(name) for name in names]
    return None if order == list(range(len(order))) else order


def _chained(task: Saved) -> bool:
    """Whether the outputs of a task are parts of the scores of sequences."""
    return task.get("decoding") == CRF


def _problem(form: str) -> str:
    return next(name for name, own in OF_PROBLEMS.items() if own == form)


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _difference(names: Sequence[str], known: Sequence[str]) -> str:
    missing = [name for name in names if name not in known]
    if not missing:
        return f"It has {len(known) - len(names)} more."
    return f"'{missing[0]}' is missing there." + close_match(missing[0], list(known))


def input_kind(task: Task) -> str | None:
    """What a task reads, for teachers that answer rows of other datasets: text, pair or words; None for others."""
    head: Any = kind_of({"type": task.type, "name": task.name}).head
    if task.reader.modality != TEXTS:
        return None
    if issubclass(head, SequenceClassificationHead):
        return "text" if task.text_columns[1] is None else "pair"
    if issubclass(head, TokenClassificationHead) and getattr(task, "spans_column", None) is None:
        return "words"
    return None
