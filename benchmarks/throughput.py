"""Tokens per second of mixed training, compared with plain Trainers on the same rows.

The script measures tokens (without padding) per second of whole optimizer steps of ``Trainer.train()``: loading,
collation, forward, backward, clipping, optimizer, logging. Texts are tokenized before, the same for all. The systems:

``ours``                MultiTaskTrainer: one model, every step mixes the tasks.
``plain random``        a plain Trainer and a native model for every task, one after the other; random batches.
``plain group``         the same with ``train_sampling_strategy="group_by_length"``.
``plain rebalance``     the same with ``train_sampling_strategy="batch_rebalance"``. It moves rows between the
                        micro-batches of a step, so on one device it has a choice only where it accumulates:
                        ``--rebalance`` micro-batches.
``mixed random``        MultiTaskTrainer without sorting by length and with one forward pass: random mixed batches.
``ours varlen``         ``ours`` without padding, ``attn_implementation="varlen"``; only where ``--systems`` names it.
``ours branches``       ``ours`` with the branches that are the default of models; likewise.
``ours alone``          MultiTaskTrainer for every task by itself, one after the other; likewise.
``ceiling``             forward and backward only, of a native model, on batches without padding: the rows in order of
                        length, those of a batch cut to the shortest.

Each runs at least ``--steps`` optimizer steps of ``--batch`` rows, in one process, in turns of ``--turn`` steps, in a
random order from ``--seed``: every trainer has a separate thread, and only one of them runs at a time. The
tasks of a plain system share its steps by their rows, two a turn at least, and its speed is that of running every
task's share of the tokens one after the other. The first turn of each is warm-up and does not count. Padding is counted
at the input of the model, in the actual batches. The output shows the median over turns and its quartiles, all tokens
over all seconds (``overall``), and all tokens over all CPU seconds (``by CPU``: for a machine with other load, and only
with ``OMP_NUM_THREADS=1``, because threads that wait for work count as busy). ``group_by_length`` begins with
its longest rows, so only a whole epoch compares it fairly: 229 steps of 32 rows (``short``), 216 (``long``)::

    python benchmarks/throughput.py --data PATH --setting short
    python benchmarks/throughput.py --data PATH --setting long

``short``: emotion and irony of tweets and named entities of Wikipedia sentences, 23 to 28 tokens on average. ``long``:
the tweets, and paragraphs of Wikipedia (171 tokens on average, at most 512), to be classified by article.
``sharing``: the seven tasks of the small suite of ``learning.py``, at most 600 rows each.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rows import columns, read_rows
from suites import SUITES, TASKS, load
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from turns import Baton, Runner, Turn, asked

from hf_multitask import (
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    SequenceClassification,
    TokenClassification,
)
from hf_multitask.data import MixtureCollator, StepSampler
from hf_multitask.modeling.backbone import resolve_backbone

Tasks = dict[str, tuple[Any, datasets.Dataset]]


def short(data: Path) -> Tasks:
    """Two classification tasks on tweets, and token classification of sentences."""
    ner = columns(read_rows(data / "demo" / "ner"), "tokens", "ner_tags")
    return {**_tweets(data), "ner": (TokenClassification(), datasets.Dataset.from_dict(ner))}


def long(data: Path) -> Tasks:
    """Two classification tasks on tweets, and one on paragraphs, by article in eight groups."""
    rows = columns(read_rows(data / "xquad_en"), "context", "title")
    titles = sorted(set(rows["title"]))
    article = {"text": rows["context"], "label": [titles.index(title) % 8 for title in rows["title"]]}
    return {**_tweets(data), "article": (SequenceClassification(), datasets.Dataset.from_dict(article))}


def sharing(data: Path) -> Tasks:
    """The tasks on which sharing is measured."""
    names, most = SUITES["small"]
    return {name: (TASKS[name].task, rows) for name, rows in load(data, names, "train", most, 0).items()}


def _first_window(row: dict[str, Any]) -> dict[str, Any]:
    """The part of a row that the other systems read, which truncate long texts."""
    if "windows" not in row or len(row["windows"]) == 1:
        return row
    return {
        name: value[: row["windows"][0]] if isinstance(value, list) and name != "windows" else value
        for name, value in row.items()
    }


def _tweets(data: Path) -> Tasks:
    return {
        name: (
            SequenceClassification(),
            datasets.Dataset.from_dict(columns(read_rows(data / f"tweeteval_{name}"), "text", "label")),
        )
        for name in ("emotion", "irony")
    }


SYSTEMS = ["ours", "plain random", "plain group", "plain rebalance", "mixed random", "ceiling"]
VARLEN = "ours varlen"
NAMED = [VARLEN, "ours branches", "ours alone"]  # only where --systems names them
SETTINGS: dict[str, Callable[[Path], Tasks]] = {"short": short, "long": long, "sharing": sharing}


def run_trainer(trainer: Trainer) -> Callable[[Runner], None]:
    """Train a trainer with a runner."""

    def train(runner: Runner) -> None:
        def seen(module: Any, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG001
            runner.count(kwargs["attention_mask"])

        trainer.model.register_forward_pre_hook(seen, with_kwargs=True)
        trainer.add_callback(Baton(runner))
        trainer.train()

    return train


def run_ceiling(model: torch.nn.Module, rows: list[list[int]], batch: int, seed: int) -> Callable[[Runner], None]:
    """Forward and backward passes on batches that are truncated to their shortest row, without padding."""

    def train(runner: Runner) -> None:
        model.train()
        ordered = sorted(rows, key=len)
        starts = list(range(0, max(len(ordered) - batch, 0) + 1, batch))
        draw = random.Random(seed)
        while not runner.stopped:
            for start in draw.sample(starts, len(starts)):
                chosen = ordered[start : start + batch]
                ids = torch.tensor([row[: len(chosen[0])] for row in chosen])
                mask = torch.ones_like(ids)
                runner.count(mask)
                model(
                    input_ids=ids, attention_mask=mask, labels=torch.zeros(len(ids), dtype=torch.long)
                ).loss.backward()
                model.zero_grad()
                runner.step()
                if runner.stopped:
                    return

    return train


class MixedRandom(MultiTaskTrainer):
    """Random mixed batches, each in one forward pass, as a baseline for sorting by length."""

    def get_train_dataloader(self) -> Any:
        """The data loader, with every micro-batch in one forward pass."""
        loader = super().get_train_dataloader()
        sampler: StepSampler = self.plan.sampler
        sampler.lengths = None
        collator: MixtureCollator = loader.collate_fn.collator
        loader.collate_fn = lambda features: {
            "forwards": [collator(features)],
            "row_numbers": [{}],
            "rows": {},
            "anchors": {},
        }
        return loader


def arguments(kind: type[TrainingArguments], out: str, given: argparse.Namespace, **values: Any) -> TrainingArguments:
    """The same arguments for every trainer; it trains until it is stopped."""
    Path(out).mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(dir=out),  # a run holds its folder
        "per_device_train_batch_size": given.batch,
        "max_steps": 10**6,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 50,
        "seed": given.seed,
    }
    return kind(**common | given.training | values)


def build(given: argparse.Namespace, out: str, tasks: Tasks) -> dict[str, list[Runner]]:
    """By system, its runners: one per task for plain Trainers."""
    path = resolve_backbone(given.backbone)
    tokenizer = AutoTokenizer.from_pretrained(path)

    def multitask(kind: type[MultiTaskTrainer], names: Sequence[str] = tuple(tasks), **values: Any) -> MultiTaskTrainer:
        set_seed(given.seed)
        model = MultiTaskModel.from_backbone(
            path, tasks={name: tasks[name][0] for name in names}, **{"branches": "none"} | values
        )
        args = arguments(MultiTaskTrainingArguments, out, given)
        rows = {name: tasks[name][1] for name in names}
        trainer = kind(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        silence(trainer)
        return trainer

    ours = multitask(MultiTaskTrainer)
    encoded = {
        features.name: features.rows.rename_column(f"labels:{features.name}", "labels").map(_first_window)
        for features in ours.train_dataset.datasets
    }

    def plain(name: str, **values: Any) -> Trainer:
        task = ours.tasks[name]
        tags = isinstance(task, TokenClassification)
        auto = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
        collator = DataCollatorForTokenClassification if tags else DataCollatorWithPadding
        set_seed(given.seed)
        trainer = Trainer(
            model=auto.from_pretrained(path, num_labels=len(task.label_names or [name])),
            args=arguments(TrainingArguments, out, given, **values),
            train_dataset=encoded[name],
            data_collator=collator(tokenizer, pad_to_multiple_of=given.pad_to_multiple_of),
            processing_class=tokenizer,
        )
        silence(trainer)
        return trainer

    rows = {name: len(features) for name, features in encoded.items()}
    tokens = {name: sum(map(len, features["input_ids"])) for name, features in encoded.items()}

    def each(system: str, make: Callable[..., Trainer] = plain, **values: Any) -> list[Runner]:
        return [
            Runner(
                f"{system}, {name}",
                run_trainer(make(name, **values)),
                part=rows[name] / sum(rows.values()),
                share=tokens[name] / sum(tokens.values()),
            )
            for name in tasks
        ]

    parts = given.rebalance
    rebalance = {"per_device_train_batch_size": given.batch // parts, "gradient_accumulation_steps": parts}
    texts = [row for features in encoded.values() for row in features["input_ids"]]

    def ceiling() -> Runner:
        model = AutoModelForSequenceClassification.from_pretrained(path)
        return Runner("ceiling", run_ceiling(model, texts, given.batch, given.seed))

    def joint(system: str, **values: Any) -> Runner:
        return Runner(system, run_trainer(multitask(MultiTaskTrainer, **values)))

    ready: dict[str, Callable[[], list[Runner]]] = {
        "ours": lambda: [Runner("ours", run_trainer(ours))],
        "plain random": lambda: each("plain random"),
        "plain group": lambda: each("plain group", train_sampling_strategy="group_by_length"),
        "plain rebalance": lambda: each("plain rebalance", train_sampling_strategy="batch_rebalance", **rebalance),
        "mixed random": lambda: [Runner("mixed random", run_trainer(multitask(MixedRandom)))],
        "ceiling": lambda: [ceiling()],
        VARLEN: lambda: [joint(VARLEN, attn_implementation="varlen")],
        "ours branches": lambda: [joint("ours branches", branches="auto")],
        "ours alone": lambda: each("ours alone", lambda name: multitask(MultiTaskTrainer, [name])),
    }
    return {name: make() for name, make in ready.items() if name == "ours" or name in given.systems}


def silence(trainer: Trainer) -> None:
    """Remove callbacks that print, so that only this script prints."""
    for callback in list(trainer.callback_handler.callbacks):
        kinds = {kind.__name__ for kind in type(callback).__mro__}
        if kinds & {"PrinterCallback", "PlanCallback", "ProgressCallback"}:
            trainer.remove_callback(type(callback))


def run(systems: dict[str, list[Runner]], given: argparse.Namespace) -> None:
    """Run rounds in which every runner has one turn, in random order; the first round is a warm-up."""
    draw = random.Random(given.seed)
    runners = [runner for members in systems.values() for runner in members]
    started = time.perf_counter()
    for number in range(1 + -(-given.steps // given.turn)):
        for runner in draw.sample(runners, len(runners)):
            runner.take_turn(max(round(runner.part * given.turn), 2))
        print(f"round {number}: {time.perf_counter() - started:.0f} s", flush=True)
    for runner in runners:
        runner.stop()


def summary(runners: Sequence[Runner]) -> dict[str, float]:
    """Results of one system; those of its tasks are weighted by their share of the tokens."""
    shares = [runner.share for runner in runners]
    turns = [runner.turns[1:] for runner in runners]
    whole = [sum(of_one, Turn()) for of_one in turns]

    def speed(parts: Sequence[Turn], clock: str) -> float:
        return 1 / sum(share * getattr(part, clock) / part.real for share, part in zip(shares, parts, strict=True))

    speeds = [speed(parts, "seconds") for parts in zip(*turns, strict=True)]
    low, high = np.percentile(speeds, [25, 75])
    positions = sum(share * part.positions / part.real for share, part in zip(shares, whole, strict=True))
    steps = sum(part.steps for part in whole)
    return {
        "median": statistics.median(speeds),
        "low": float(low),
        "high": float(high),
        "overall": speed(whole, "seconds"),
        "by_cpu": speed(whole, "cpu"),
        "padding": 1 - 1 / positions,
        "forwards_per_step": sum(part.forwards for part in whole) / steps,
        "steps": steps,
    }


def report(figures: dict[str, dict[str, float]]) -> str:
    """The table."""
    against = [name for name in figures if name != "ours"]
    head = f"{'system':<16} {'tokens/s':>9} {'quartiles':>13} {'overall':>8} {'by CPU':>7}"
    lines = [f"{head} {'padding':>8} {'forwards':>9} {'steps':>6}"]
    for name, values in figures.items():
        quartiles = f"{values['low']:.0f} - {values['high']:.0f}"
        lines.append(
            f"{name:<16} {values['median']:>9.0f} {quartiles:>13} {values['overall']:>8.0f} {values['by_cpu']:>7.0f} "
            f"{values['padding']:>8.1%} {values['forwards_per_step']:>9.2f} {values['steps']:>6.0f}"
        )
    lines += ["", f"{'ours, as a multiple of':<26} {'medians':>9} {'overall':>9} {'by CPU':>9}"]
    for name in against:
        ratios = [figures["ours"][key] / figures[name][key] for key in ("median", "overall", "by_cpu")]
        lines.append(f"  {name:<24} " + " ".join(f"{ratio:>9.2f}" for ratio in ratios))
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per dataset")
    parser.add_argument("--setting", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each system, without warm-up")
    parser.add_argument("--turn", type=int, default=10, help="optimizer steps per turn")
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    parser.add_argument("--systems", nargs="+", choices=[*SYSTEMS, *NAMED], default=SYSTEMS, help="systems to run")
    parser.add_argument("--pad_to_multiple_of", type=int, help="for the batches of the plain Trainers")
    parser.add_argument("--rebalance", type=int, default=4, help="micro-batches of a step for batch_rebalance")
    given = asked(parser, words)
    with tempfile.TemporaryDirectory() as out:
        systems = build(given, out, SETTINGS[given.setting](given.data))
        run(systems, given)
    figures = {name: summary(members) for name, members in systems.items()}
    threads = torch.get_num_threads()
    print(f"\nsetting {given.setting}, batch {given.batch}, {threads} threads, torch {torch.__version__}\n")
    print(report(figures))
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
