"""Rows of the settings, which all systems read."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from typing import Any

from rows import columns, read_rows

SETS = {"emotion": "tweeteval_emotion", "irony": "tweeteval_irony", "ner": "demo/ner", "article": "xquad_en"}
CHOSEN = {
    "short": ["emotion", "irony", "ner"],
    "long": ["emotion", "irony", "article"],
    "inference": ["emotion"],
}


def draw_rows(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """The rows of a setting: as many of every task as fill whole batches, by their share, and held-out ones.

    Args:
        given: the arguments.
        name: ``short``, ``long``, ``similarity`` or ``inference``.
    """

    def read(dataset: str, split: str) -> dict[str, Any]:
        rows = read_rows(given.data / dataset, split)
        if dataset == "stsb_en":
            return columns(rows, "sentence1", "sentence2") | {"score": [row["label"] / 5 for row in rows]}
        if dataset == "demo/ner":
            return {"tokens": [row["tokens"] for row in rows], "tags": [row["ner_tags"] for row in rows]}
        if dataset == "xquad_en":
            return {"text": [row["context"] for row in rows], "label": [row["title"] for row in rows]}
        return columns(rows, "text", "label")

    def count(table: Mapping[str, list[Any]]) -> int:
        return len(next(iter(table.values())))

    sets = {task: SETS[task] for task in CHOSEN[name]} if name in CHOSEN else {"similarity": "stsb_en"}
    steps = {"inference": 1}.get(name) or getattr(given, f"{name}_steps")
    train = {task: read(dataset, "train") for task, dataset in sets.items()}
    total = sum(map(count, train.values()))
    batches = {task: max(1, steps * count(table) // total) for task, table in train.items()}
    batches[max(batches, key=batches.__getitem__)] += steps - sum(batches.values())
    draw, found = random.Random(0), {}
    for task, dataset in sets.items():
        parts = {"train": train[task], "held_out": read(dataset, "validation")}
        sizes = {"train": given.texts if name == "inference" else batches[task] * given.batch}
        kind, labels = "similarity", []
        if dataset != "stsb_en":
            kind, column = ("tags", "tags") if dataset == "demo/ner" else ("classification", "label")
            cells = [cell for part in parts.values() for cell in part[column]]
            names = sorted({tag for tags in cells for tag in tags} if kind == "tags" else set(cells))
            if dataset == "xquad_en":  # eight groups, as in throughput.py
                number = {title: at % 8 for at, title in enumerate(names)}
                names = list(range(8))
            else:
                number = {one: at for at, one in enumerate(names)}
            for part in parts.values():
                part[column] = [
                    [number[tag] for tag in cell] if kind == "tags" else number[cell] for cell in part[column]
                ]
            labels = [str(one) for one in names]
        found[task] = {"kind": kind, "labels": labels}
        for part, table in parts.items():
            size = min(sizes.get(part, given.held_out), count(table))
            if part == "train" and size < sizes[part]:
                raise ValueError(f"`{name}` needs {sizes[part]} rows of {dataset} for {steps} steps. Found {size}.")
            drawn = draw.sample(range(count(table)), size)
            found[task][part] = {column: [cells[at] for at in drawn] for column, cells in table.items()}
    return found
