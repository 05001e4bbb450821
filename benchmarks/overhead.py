"""Time of MultiTaskTrainer relative to the plain Trainer, on one task with the same rows.

The script measures whole optimizer steps of ``Trainer.train()`` - loading, collation, forward, backward, clipping,
optimizer, logging - of MultiTaskTrainer with one sequence classification task, and of ``Trainer`` with the stock class
of the same backbone. Rows consist of words of the tokenizer's vocabulary and are truncated to ``--length`` tokens, so
that all batches have one shape, there is no padding, and no batch is split into several forward passes. Both use the
same object of encoded rows. Both take turns of ``--turn`` steps, each with one log, in a random order for every pair of
turns; the first pair is a warm-up. The output is the median over pairs of the ratio with its 95 % bootstrap interval,
by wall clock and by CPU seconds (for a machine with other load; with ``OMP_NUM_THREADS=1``)::

    OMP_NUM_THREADS=1 python benchmarks/overhead.py --steps 400
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from ratios import median_ratio
from throughput import arguments, run_trainer, silence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from turns import Runner, Turn, asked, take_turns

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone


def make_rows(tokenizer: Any, count: int, words: int, seed: int) -> datasets.Dataset:
    """Texts with a number of words of a vocabulary, with one of two labels."""
    draw = random.Random(seed)
    vocabulary = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii())
    texts = [" ".join(draw.choices(vocabulary, k=words)) for _ in range(count)]
    return datasets.Dataset.from_dict({"text": texts, "label": draw.choices(["no", "yes"], k=count)})


def build(given: argparse.Namespace, out: str) -> dict[str, Runner]:
    """The trainer of this package and the plain one, which take turns."""
    path = resolve_backbone(given.backbone)
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = make_rows(tokenizer, given.rows, given.length, given.seed)
    task = SequenceClassification(label_names=["no", "yes"], max_length=given.length)
    values: dict[str, Any] = {"logging_steps": given.turn}
    set_seed(given.seed)
    ours = MultiTaskTrainer(
        model=MultiTaskModel.from_backbone(path, tasks={"task": task}),
        args=arguments(MultiTaskTrainingArguments, out, given, **values),
        train_dataset={"task": rows},
        processing_class=tokenizer,
    )
    set_seed(given.seed)
    plain = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(path, num_labels=2),
        args=arguments(TrainingArguments, out, given, **values),
        train_dataset=ours.train_dataset.datasets[0].rows.rename_column("labels:task", "labels"),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    for trainer in (ours, plain):
        silence(trainer)
    return {"ours": Runner("ours", run_trainer(ours)), "plain": Runner("plain", run_trainer(plain))}


def run(runners: dict[str, Runner], given: argparse.Namespace) -> dict[str, Any]:
    """Run pairs of turns and return the results."""
    take_turns(runners, -(-given.steps // given.turn), given)
    turns = {name: runner.turns[1:] for name, runner in runners.items()}
    figures: dict[str, Any] = {"steps": sum(turn.steps for turn in turns["ours"])}
    for clock in ("seconds", "cpu"):
        each = {name: [getattr(turn, clock) / turn.steps for turn in of_one] for name, of_one in turns.items()}
        figures[clock] = {name: statistics.median(of_one) for name, of_one in each.items()}
        figures[clock]["ratio"], *figures[clock]["interval"] = median_ratio(each["ours"], each["plain"])
    check_same_work(turns)
    return figures


def check_same_work(turns: dict[str, list[Turn]]) -> None:
    """Check that both ran the same number of forward passes and tokens.

    Raises:
        RuntimeError: they did not.
    """
    whole = {name: sum(of_one, Turn()) for name, of_one in turns.items()}
    work = {name: (turn.forwards, turn.real, turn.positions) for name, turn in whole.items()}
    if work["ours"] != work["plain"]:
        raise RuntimeError(f"The two did not do the same work (forwards, tokens, positions): {work}.")


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each, without warm-up")
    parser.add_argument("--turn", type=int, default=10, help="optimizer steps per turn")
    parser.add_argument("--batch", type=int, default=16, help="rows per step")
    parser.add_argument("--length", type=int, default=16, help="tokens per row")
    parser.add_argument("--rows", type=int, default=2000)
    given = asked(parser, words)
    with tempfile.TemporaryDirectory() as out:
        figures = run(build(given, out), given)
    shape = f"{given.batch} rows of {given.length} tokens, {figures['steps']} steps"
    print(f"{shape}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    for clock in ("seconds", "cpu"):
        of_clock = figures[clock]
        low, high = of_clock["interval"]
        each = ", ".join(f"{name} {of_clock[name] * 1000:.1f} ms" for name in ("ours", "plain"))
        print(f"{clock + ':':<9} {each} a step; ours over plain {of_clock['ratio']:.3f} [{low:.3f}, {high:.3f}]")
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
