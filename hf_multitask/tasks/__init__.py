"""Task types: columns and labels, alignment, collation and metrics."""

from dataclasses import fields

from ..modeling.config import check_task_name, close_match
from ..modeling.entries import load_entries
from ..modeling.kinds import suggested_type
from ..modeling.readers import Row
from ..modeling.values import check_values, hints_of, shown
from .audio import AudioClassification
from .base import Task
from .dependency_parsing import DependencyParsing
from .labelled import Labelled
from .language_modelling import FillMask, TextGeneration
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .registration import register_task
from .sentence_similarity import SentenceSimilarity
from .sequence_classification import SequenceClassification
from .span_classification import SpanClassification
from .speech_recognition import AutomaticSpeechRecognition
from .text2text import Summarization, Text2TextGeneration, Translation
from .token_classification import TokenClassification
from .types import TASK_TYPES


def build_task(name: str, values: Row) -> Task:
    """The task for a dict with ``type`` and arguments, as in a recipe or the configuration of a model.

    Raises:
        ValueError: the name, the type or an argument is invalid.
    """
    check_task_name(name)
    if values.get("name") not in (None, name):
        raise ValueError(f"Task '{name}' also has the name {shown(values['name'])}. Remove it.")
    arguments = {key: value for key, value in values.items() if key not in ("type", "name")}
    kind = values.get("type")
    if kind is None:
        raise ValueError(f"Task '{name}' has no 'type'; the types are {', '.join(sorted(TASK_TYPES))}. Set one.")
    failed = load_entries(kind, TASK_TYPES) if isinstance(kind, str) and kind not in TASK_TYPES else ""
    if failed:
        raise ValueError(f"Task '{name}' has the unknown type {shown(kind)}{failed}.")
    if not isinstance(kind, str) or kind not in TASK_TYPES:
        raise ValueError(
            f"Task '{name}' has the unknown type {shown(kind)}; the types are {', '.join(sorted(TASK_TYPES))}."
            + (suggested_type(kind, TASK_TYPES) or " Register a type of your own with register_task first.")
        )
    known = [field.name for field in fields(TASK_TYPES[kind]) if field.name != "name"]
    for key in arguments:
        if key not in known:
            others = [other for other, task in TASK_TYPES.items() if key in {field.name for field in fields(task)}]
            raise ValueError(
                f"Task '{name}' of type {kind} has no argument '{key}'; its arguments are {', '.join(sorted(known))}."
                + (f" '{key}' is an argument of {', '.join(others)}. Remove it." if others else close_match(key, known))
            )
    defaults = {field.name: field.default for field in fields(TASK_TYPES[kind])}
    try:
        given = {key: value for key, value in arguments.items() if value is not defaults[key]}
        check_values(given, hints_of(TASK_TYPES[kind]))
        for key, value in given.items():
            if key.endswith("_column") and value == "":
                raise ValueError(f"`{key}` should be the name of a column. Found `{key} = ''`.")
    except ValueError as problem:
        raise ValueError(f"Task '{name}': {problem}") from None
    return TASK_TYPES[kind](name=name, **arguments)


__all__ = [
    "AudioClassification",
    "AutomaticSpeechRecognition",
    "DependencyParsing",
    "FillMask",
    "Labelled",
    "MultipleChoice",
    "QuestionAnswering",
    "SentenceSimilarity",
    "SequenceClassification",
    "SpanClassification",
    "Summarization",
    "Task",
    "Text2TextGeneration",
    "TextGeneration",
    "TokenClassification",
    "Translation",
    "build_task",
    "register_task",
]
