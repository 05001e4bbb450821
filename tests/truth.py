"""Random rows of every type that reads texts, and the metrics of answers to them, computed without the package's own."""

import random

import numpy as np
from seqeval.metrics.sequence_labeling import get_entities

from hf_multitask import (
    MultipleChoice,
    QuestionAnswering,
    SentenceSimilarity,
    SequenceClassification,
    TokenClassification,
)

NAMES = ["Maria", "Pedro", "Ingrid", "O'Neill", "Jean-Luc", "José", "Zoe\u0308", "李"]
PLACES = ["Oslo", "U.K.", "São", "New York", "Nairobi", "東京"]
REST = ["the", "old", "harbour", "in", "18th", "e-mail", "with", "two", "friends", ",", "(", ")", '"', "...", "😀", "½"]
ODD = ["", " ", "\r\n", "\u200d", "a\u0301\u0301", "\ufeff", "👩‍👩‍👧", "ﬁne", "don't", "--", "x" * 40]
TAGS = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]


def sentence(draw, words):
    """Words with tags, some of them of two words."""
    tokens, tags = [], []
    while len(tokens) < words:
        kind = draw.random()
        if kind < 0.2:
            parts = draw.choice(NAMES).split()
            tokens += [*parts, draw.choice(NAMES)]
            tags += ["B-PER", *["I-PER"] * len(parts)]
        elif kind < 0.4:
            parts = draw.choice(PLACES).split()
            tokens += parts
            tags += ["B-LOC", *["I-LOC"] * (len(parts) - 1)]
        else:
            tokens.append(draw.choice(ODD if kind > 0.93 else REST))
            tags.append(draw.choice(TAGS) if kind > 0.97 else "O")
    return tokens, tags


def running(tokens, tags, draw):
    """A text of words with and without spaces between them, and the spans of its tags."""
    text, spans = "", []
    for token, tag in zip(tokens, tags, strict=True):
        text += draw.choice([" ", " ", " ", "\n", "\u00a0", ", "]) if text and draw.random() < 0.9 else ""
        start = len(text)
        text += token
        if tag.startswith("B-") and token.strip():
            spans.append({"start": start, "end": len(text), "label": tag[2:]})
        elif tag.startswith("I-") and spans and token.strip() and spans[-1]["label"] == tag[2:]:
            spans[-1]["end"] = len(text)
    return text, spans


def make_rows(count, seed, longest=30):
    """Rows with the columns of all tasks."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        tokens, tags = sentence(draw, draw.randint(1, longest) if number % 7 else longest * 6)
        text, spans = running(tokens, tags, draw)
        place = draw.choice(PLACES)
        before = " ".join(draw.choice(REST) for _ in range(draw.randint(1, longest)))
        context = f"{before} is in {place}, {text}"
        rows.append(
            {
                "tokens": tokens,
                "tags": tags,
                "pos": ["NAME" if tag != "O" else "REST" for tag in tags],
                "text": text,
                "spans": spans,
                "topic": draw.choice(["a", "b"]),
                "set": [name for name in ("x", "y", "z") if draw.random() < 0.4],
                "number": draw.random() * 4,
                "other": draw.choice(REST) + " " + draw.choice(NAMES),
                "question": "where is it?",
                "context": context,
                "answers": {"text": [place], "answer_start": [len(before) + 7]},
                "choices": draw.sample(PLACES, draw.randint(2, 4)),  # equal ones would tie
                "right": draw.randint(0, 1),
            }
        )
    return rows


def make_tasks():
    """A task of every type and way of reading; all read the dataset ``rows``."""
    common = {"dataset": "rows"}
    return {
        "words": TokenClassification(tags_column="tags", label_names=TAGS, **common),
        "pos": TokenClassification(tags_column="pos", label_names=["NAME", "REST"], **common),
        "spans": TokenClassification(text_column="text", spans_column="spans", label_names=TAGS, **common),
        "topic": SequenceClassification(label_column="topic", label_names=["a", "b"], **common),
        "whole": SequenceClassification(label_column="topic", label_names=["a", "b"], stride=16, **common),
        "set": SequenceClassification(label_column="set", label_names=["x", "y", "z"], **common),
        "number": SequenceClassification(label_column="number", **common),
        "pair": SequenceClassification(
            label_column="topic", label_names=["a", "b"], text_pair_column="other", max_length=40, **common
        ),
        "answer": QuestionAnswering(doc_stride=16, **common),
        "choice": MultipleChoice(question_column="other", label_column="right", **common),
        "near": SentenceSimilarity(
            text_column="other", text_pair_column="text", label_column="number", score_range=[0, 4], **common
        ),
    }


def question_of(name, row):
    """The input of the pipeline for a task's row."""
    return {
        "words": {"text": row["tokens"]},
        "pos": {"text": row["tokens"]},
        "pair": {"text": row["text"], "text_pair": row["other"]},
        "answer": {"question": row["question"], "context": row["context"]},
        "choice": {"question": row["other"], "choices": row["choices"]},
        "near": {"text": row["other"], "text_pair": row["text"]},
    }.get(name, {"text": row["text"]})


def f1(told, true):
    both = sum(len(one & other) for one, other in zip(told, true, strict=True))
    return 2 * both / max(sum(map(len, told)) + sum(map(len, true)), 1)


def measured(name, rows, answers):
    """The primary metric of a task, of what the pipeline has answered."""
    if name == "words":
        true = [set(get_entities(row["tags"])) for row in rows]
        told = [{(a["entity_group"], a["word_indices"][0], a["word_indices"][-1]) for a in own} for own in answers]
        return f1(told, true)
    if name == "spans":
        true = [{(span["label"], span["start"], span["end"]) for span in row["spans"]} for row in rows]
        return f1([{(a["entity_group"], a["start"], a["end"]) for a in own} for own in answers], true)
    if name == "pos":
        hits = sum(
            row["pos"][a["word_indices"][0]] == a["entity"] for row, own in zip(rows, answers, strict=True) for a in own
        )
        return hits / sum(len(row["pos"]) for row in rows)
    if name in ("topic", "whole", "pair"):
        return np.mean([row["topic"] == answer["label"] for row, answer in zip(rows, answers, strict=True)])
    if name == "set":
        return f1([{a["label"] for a in own if a["score"] > 0.5} for own in answers], [set(row["set"]) for row in rows])
    if name in ("number", "near"):
        pairs = [[row["number"], answer["score"]] for row, answer in zip(rows, answers, strict=True)]
        return np.corrcoef(np.array(pairs).T)[0, 1]
    if name == "choice":
        return np.mean([row["right"] == answer["index"] for row, answer in zip(rows, answers, strict=True)])
    from hf_multitask.tasks.metrics import Squad

    texts = [answer["answer"] for answer in answers]
    return Squad().compute(predictions=texts, references=[row["answers"]["text"] for row in rows])["f1"]
