"""Rows and tasks of every type, made of the demo's texts, for models that are far too small to learn them."""

import pytest
import torch
from datasets import Dataset
from tiny import ALL, NER_LABELS, read_rows

from hf_multitask import (
    DependencyParsing,
    FillMask,
    MultipleChoice,
    MultiTaskModel,
    QuestionAnswering,
    SentenceSimilarity,
    SequenceClassification,
    SpanClassification,
    Summarization,
    Text2TextGeneration,
    TextGeneration,
    TokenClassification,
    Translation,
)
from hf_multitask.modeling.config import MultiTaskConfig

TASKS = {
    "sequence-classification": lambda: SequenceClassification(label_names=["negative", "positive"]),
    "token-classification": lambda: TokenClassification(label_names=NER_LABELS),
    "dependency-parsing": lambda: DependencyParsing(label_names=["root", "left", "right"]),
    "span-classification": lambda: SpanClassification(
        label_names=["ORG", "PER", "NAME"], text_column="tokens", max_span_length=6, negative_spans=20
    ),
    "question-answering": lambda: QuestionAnswering(doc_stride=8, max_length=40),
    "multiple-choice": lambda: MultipleChoice(),
    "sentence-similarity": lambda: SentenceSimilarity(label_column="label"),
    "fill-mask": lambda: FillMask(mlm_probability=0.3),
    "text-generation": lambda: TextGeneration(block_size=24, max_new_tokens=5),
    "translation": lambda: Translation(max_target_length=12),
    "summarization": lambda: Summarization(max_target_length=12, num_beams=2, prefix="sum up: "),
    "text2text-generation": lambda: Text2TextGeneration(max_target_length=12),
}
PRIMARY = {
    "sequence-classification": "accuracy",
    "token-classification": "f1",
    "dependency-parsing": "las",
    "span-classification": "f1",
    "question-answering": "f1",
    "multiple-choice": "accuracy",
    "sentence-similarity": "pearson",
    "fill-mask": "token_accuracy",
    "text-generation": "token_accuracy",
    "translation": "chrf",
    "summarization": "rougeL",
    "text2text-generation": "rougeL",
}
TEXT = "A fine place in London, and I liked it."
INPUTS = {
    "question-answering": {"question": "Where is it?", "context": TEXT * 3},
    "multiple-choice": {"question": "It is", "choices": ["a place.", "late.", "so."]},
    "fill-mask": "A fine [MASK].",
}


def spans_of(row: dict) -> list[dict]:
    """Spans that nest and overlap for words with tags: two words that begin a name, the first of them, and the last."""
    words, spans = row["tokens"], []
    for place, tag in enumerate(row["ner_tags"]):
        start = len(" ".join(words[:place])) + (place > 0)
        ends = [start + len(" ".join(words[place : place + count])) for count in (1, 2)]
        if tag.startswith("B-"):
            spans += [
                {"start": start, "end": end, "label": name} for end, name in zip(ends, ["NAME", "PER"], strict=True)
            ]
            spans.append({"start": start + len(words[place]) // 2, "end": ends[1], "label": "ORG"})
    return spans


def rows_of(kind: str, count: int = 12, split: str = "train") -> Dataset:
    """Rows for the type's task, the last one without a label where the type knows such."""
    texts = [row["text"] for row in read_rows("sentiment", split, 40)]
    wiki = read_rows("ner", split, 40)

    def make(row: int) -> dict:
        text, other, last = texts[row], texts[row + 1], row == count - 1
        if kind == "question-answering":
            words = text.split()
            start = text.index(words[row % len(words)])
            found = {"text": [words[row % len(words)]], "answer_start": [start]}
            answers = {"text": [], "answer_start": []} if row % 5 == 1 else found
            return {"question": other[:30], "context": text, "answers": None if last else answers}
        if kind == "multiple-choice":
            return {"question": text, "choices": texts[row : row + 2 + row % 3], "label": None if last else row % 2}
        if kind == "sentence-similarity":
            return {"sentence1": text, "sentence2": other, "label": None if last else len(other) % 6}
        if kind in ("fill-mask", "text-generation"):
            return {"text": text}
        if kind == "span-classification":
            return {"tokens": wiki[row]["tokens"], "spans": None if last else spans_of(wiki[row])}
        if kind == "token-classification":
            return wiki[row]
        if kind == "dependency-parsing":
            return {"tokens": wiki[row]["tokens"], **({"head": None, "deprel": None} if last else tree_of(wiki[row]))}
        if kind == "summarization":
            return {"document": text, "summary": None if last else other}
        if kind in ("translation", "text2text-generation"):
            return {"source": text, "target": None if last else other}
        return {"text": text, "label": ["negative", "positive"][row % 2]}

    return Dataset.from_list([make(row) for row in range(count)])


def tree_of(row: dict) -> dict:
    """A tree of a row of tagged words: a name hangs on the word behind it, any other word on the one before it."""
    names = [tag != "O" for tag in row["ner_tags"]]
    count = len(names)
    root = next((word for word, name in enumerate(names) if not name), count - 1)
    heads = [0 if word == root else word + 2 if word < root else word for word in range(count)]
    return {
        "head": heads,
        "deprel": ["root" if head == 0 else "left" if head <= word else "right" for word, head in enumerate(heads)],
    }


def refusal(family: str, kind: str) -> str | None:
    """Why a family cannot have a task, or None."""
    task = TASKS[kind]().to_dict() | {"name": "t"}
    try:
        with torch.device("meta"):
            MultiTaskModel(MultiTaskConfig(backbone_config=ALL[family](), tasks=[task]))
    except ValueError as problem:
        return str(problem)
    return None


def assert_same(one, other) -> None:
    """Answers are the same apart from rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == (pytest.approx(other, abs=1e-4) if isinstance(one, float) else other)
