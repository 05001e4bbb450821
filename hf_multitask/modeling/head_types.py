"""The heads by the type of their task."""

from typing import Any

from .choice import MultipleChoiceHead
from .config import close_match
from .heads import Head, SequenceClassificationHead, TokenClassificationHead
from .language import FillMaskHead, Text2TextHead, TextGenerationHead
from .similarity import SentenceSimilarityHead
from .spans import QuestionAnsweringHead

HEADS: dict[str, type[Head]] = {
    "sequence-classification": SequenceClassificationHead,
    "token-classification": TokenClassificationHead,
    "question-answering": QuestionAnsweringHead,
    "multiple-choice": MultipleChoiceHead,
    "sentence-similarity": SentenceSimilarityHead,
    "fill-mask": FillMaskHead,
    "text-generation": TextGenerationHead,
    "translation": Text2TextHead,
    "summarization": Text2TextHead,
    "text2text-generation": Text2TextHead,
}


def head_class(task: dict[str, Any]) -> type[Head]:
    """The head of a task's type.

    Raises:
        ValueError: there is no such type.
    """
    try:
        return HEADS[task["type"]]
    except KeyError:
        raise ValueError(
            f"Task '{task['name']}' has the unknown type '{task['type']}'; the types are {', '.join(sorted(HEADS))}."
            + close_match(task["type"], list(HEADS))
            + " A type of your own needs register_task first, or trust_remote_code=True to run the code saved with it."
        ) from None


def num_labels(task: dict[str, Any]) -> int:
    """Outputs of a task's head, see :meth:`Head.outputs`."""
    return head_class(task).outputs(task)
