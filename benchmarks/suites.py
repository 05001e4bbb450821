"""The tasks that shared models and models of single tasks are compared on, their rows, and their metrics."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rows import read_rows

from hf_multitask import SequenceClassification, Task, TokenClassification

PAIR = {"text_column": "sentence1", "text_pair_column": "sentence2"}


@dataclass(frozen=True)
class Source:
    """A task with its dataset; ``metric`` is its primary one."""

    folder: str
    task: Task
    metric: str = "accuracy"


def _stance(topic: str) -> Source:
    return Source(f"tweeteval_stance_{topic}", SequenceClassification())


TASKS = {
    "sst2": Source("sst2", SequenceClassification()),
    "trec": Source("trec", SequenceClassification(label_column="coarse_label")),
    "emotion": Source("tweeteval_emotion", SequenceClassification()),
    **{topic: _stance(topic) for topic in ("abortion", "atheism", "climate", "feminist", "hillary")},
    "rte": Source("rte", SequenceClassification(**PAIR)),
    "stsb": Source("stsb_en", SequenceClassification(**PAIR, problem_type="regression"), "pearson"),
    "upos": Source("ud_english_ewt", TokenClassification(tags_column="upos")),
    "ner": Source("demo/ner", TokenClassification(), "f1"),
    "irony": Source("tweeteval_irony", SequenceClassification()),
    "entailment": Source("sick", SequenceClassification(**PAIR)),
    "banking": Source("banking77", SequenceClassification()),
    "intent": Source("atis", SequenceClassification(text_column="tokens", label_column="intent", dataset="atis")),
    "slots": Source("atis", TokenClassification(tags_column="slot_tags", dataset="atis"), "f1"),
}
STANCES = ("abortion", "atheism", "climate", "feminist", "hillary")
SUITES = {
    "whole": (["sst2", "trec", "emotion", *STANCES, "rte", "stsb", "upos", "ner"], 1000),
    "small": (["trec", "emotion", "climate", "feminist", "stsb", "upos", "ner"], 600),
    "second": (["irony", "entailment", "banking", "intent", "slots"], 1000),
}


def load(data: Path, names: Sequence[str], split: str, most: int, seed: int) -> dict[str, datasets.Dataset]:
    """At most so many rows of each dataset, drawn with a seed; one for the tasks that share a dataset."""
    found = {}
    for name in names:
        source = TASKS[name]
        rows = read_rows(data / source.folder, split)
        key = source.task.to_dict().get("dataset") or name
        found[key] = datasets.Dataset.from_list(random.Random(seed).sample(rows, min(most, len(rows))))
    return found


def counts(name: str, answers: Sequence[Any], data: datasets.Dataset) -> list[list[float]]:
    """By test row, what the metric of a task is computed from; see :func:`metric`."""
    task = TASKS[name].task.to_dict()
    if name == "stsb":
        return [[answer["score"], float(gold)] for answer, gold in zip(answers, data["label"], strict=True)]
    if task["type"] == "sequence-classification":
        gold = data[task["label_column"]]
        names = [f"LABEL_{label}" if isinstance(label, int) else label for label in gold]
        return [[float(answer["label"] == name), 1.0] for answer, name in zip(answers, names, strict=True)]
    found = []
    for answer, tags in zip(answers, data[task["tags_column"]], strict=True):
        if TASKS[name].metric == "accuracy":
            ours = {index: one["entity"] for one in answer for index in one["word_indices"]}
            found.append([float(sum(ours.get(place) == tag for place, tag in enumerate(tags))), float(len(tags))])
        else:
            ours_spans = {(one["entity_group"], one["word_indices"][0], one["word_indices"][-1]) for one in answer}
            gold_spans = spans(tags)
            both = len(ours_spans & gold_spans)
            found.append([float(both), float(len(ours_spans)), float(len(gold_spans))])
    return found


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The spans of BIO tags: label, first and last word."""
    found, start = set(), None
    for place, tag in enumerate([*tags, "O"]):
        if start is not None and (not tag.startswith("I-") or tag[2:] != tags[start][2:]):
            found.add((tags[start][2:], start, place - 1))
            start = None
        if tag.startswith("B-") or (tag.startswith("I-") and start is None):
            start = place
    return found


def metric(name: str, rows: np.ndarray) -> float:
    """The metric of a task over rows of :func:`counts`."""
    if name == "stsb":
        return float(np.corrcoef(rows[:, 0], rows[:, 1])[0, 1])
    total = rows.sum(0)
    if TASKS[name].metric == "f1":
        return float(2 * total[0] / max(total[1] + total[2], 1))
    return float(total[0] / total[1])


def inputs_of(name: str, data: datasets.Dataset) -> list[Any]:
    """The test rows as inputs of the pipeline."""
    task = TASKS[name].task.to_dict()
    if task["type"] == "token-classification":
        return list(data[task["tokens_column"]])
    if task.get("text_pair_column"):
        pairs = zip(data[task["text_column"]], data[task["text_pair_column"]], strict=True)
        return [{"text": one, "text_pair": other} for one, other in pairs]
    return list(data[task["text_column"]])
