"""The heads by the type of their task."""

import re
from collections.abc import Iterable
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

# Names that others give to the types: pipelines and repositories of the Hub, and common words.
ALIASES = {
    "text-classification": "sequence-classification",
    "sentiment-analysis": "sequence-classification",
    "zero-shot-classification": "sequence-classification",
    "natural-language-inference": "sequence-classification",
    "nli": "sequence-classification",
    "regression": "sequence-classification",
    "ner": "token-classification",
    "named-entity-recognition": "token-classification",
    "pos": "token-classification",
    "tagging": "token-classification",
    "qa": "question-answering",
    "extractive-qa": "question-answering",
    "extractive-question-answering": "question-answering",
    "text-ranking": "sentence-similarity",
    "feature-extraction": "sentence-similarity",
    "semantic-textual-similarity": "sentence-similarity",
    "sts": "sentence-similarity",
    "masked-lm": "fill-mask",
    "masked-language-modeling": "fill-mask",
    "mlm": "fill-mask",
    "causal-lm": "text-generation",
    "language-modeling": "text-generation",
    "clm": "text-generation",
    "text2text": "text2text-generation",
    "seq2seq": "text2text-generation",
}


def suggested_type(found: object, known: Iterable[str]) -> str:
    """The end of an error sentence about an unknown type: what it may stand for; empty where nothing is near."""
    word = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_ ]+", "-", str(found)).lower()
    types = list(known)
    if (alias := ALIASES.get(word)) in types:
        return f" Did you mean '{alias}'?"
    return close_match(word, types)


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
            + suggested_type(task["type"], HEADS)
            + " A type of your own needs register_task first, or trust_remote_code=True to run the code saved with it."
        ) from None


def num_labels(task: dict[str, Any]) -> int:
    """Outputs of a task's head, see :meth:`Head.outputs`."""
    return head_class(task).outputs(task)
