"""One model of 2, 10, 100 and 1,000 classification tasks, over the same rows.

The rows of ``overhead.py``, which have one length, are distributed over the tasks in turn, so that a step has the same
batches of the same shape for any number of tasks. The script measures for every number of tasks:

``step``      seconds of whole optimizer steps of ``MultiTaskTrainer.train()``, including a log with TensorBoard every
              ``--turn`` steps. All numbers of tasks are trained in turns of ``--turn`` steps in one process, in random
              order in every round; the first round is a warm-up. The output is the median, and the median over rounds
              of the ratio to the smallest number of tasks with its 95 % bootstrap interval.
``build``     seconds of ``from_backbone``.
``prepare``   seconds from raw rows and a model to a trainer, with an empty cache of datasets: checks, tokens, labels.
``evaluate``  seconds of ``trainer.evaluate()`` over ``--evaluation-rows`` rows.
``save``, ``load``  seconds of ``save_pretrained`` and ``from_pretrained``.
``checkpoint``  seconds of saving a checkpoint after a few steps, including the optimizer.
``memory``    peak memory of a process that does all of this except the turns, in GB.

With ``--ranks 2``, only the steps are measured, with two processes and half the batch each::

    OMP_NUM_THREADS=1 python benchmarks/many_tasks.py
    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node 2 benchmarks/many_tasks.py --batch 8
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from overhead import make_rows
from ratios import median_ratio
from throughput import arguments, run_trainer
from transformers import AutoTokenizer, set_seed
from turns import Runner, asked, take_turns

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone


def build_trainer(count: int, given: argparse.Namespace, out: str, clock: Callable[..., Any], **values: Any) -> Any:
    """A trainer for a number of tasks."""
    path = resolve_backbone(given.backbone)
    tokenizer = AutoTokenizer.from_pretrained(path)

    def deal(rows: datasets.Dataset) -> dict[str, datasets.Dataset]:
        return {f"task{number:04d}": rows.select(range(number, len(rows), count)) for number in range(count)}

    train = deal(make_rows(tokenizer, given.rows, given.length, given.seed))
    evaluation = deal(make_rows(tokenizer, given.evaluation_rows, given.length, given.seed + 1))
    tasks = {name: SequenceClassification(label_names=["no", "yes"], max_length=given.length) for name in train}
    set_seed(given.seed)
    model = clock("build", lambda: MultiTaskModel.from_backbone(path, tasks=tasks))
    args = arguments(MultiTaskTrainingArguments, out, given, **{"logging_steps": given.turn, **values})
    return clock(
        "prepare",
        lambda: MultiTaskTrainer(
            model=model, args=args, train_dataset=train, eval_dataset=evaluation, processing_class=tokenizer
        ),
    )


def alone(count: int, given: argparse.Namespace) -> dict[str, float]:
    """Measure everything except the steps in this process."""
    figures: dict[str, float] = {}

    def clock(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        figures[name] = time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory() as out:
        trainer = build_trainer(count, given, out, clock, max_steps=given.turn)
        trainer.train()
        clock("evaluate", trainer.evaluate)
        clock("checkpoint", lambda: trainer._save_checkpoint(trainer.model, trial=None))
        clock("save", lambda: trainer.model.save_pretrained(f"{out}/model"))
        loaded = clock("load", lambda: MultiTaskModel.from_pretrained(f"{out}/model"))
        if list(loaded.heads) != list(trainer.tasks):
            raise RuntimeError("The loaded model has other heads than the saved one.")
    figures["memory"] = peak_memory()
    return figures


def peak_memory() -> float:
    """Peak memory of this process in GB, from /proc on Linux, because ``ru_maxrss`` includes that of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_a_process(count: int, words: Sequence[str]) -> dict[str, float]:
    """Run :func:`alone` in a new process, with an empty cache of datasets."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, *words, "--alone", str(count)]
        environment = {**os.environ, "HF_DATASETS_CACHE": cache}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def steps(given: argparse.Namespace, out: str) -> dict[str, dict[str, Any]]:
    """Seconds per step for every number of tasks, in turns."""
    values = {"report_to": ["tensorboard"], "disable_tqdm": True, "max_steps": given.steps + 3 * given.turn}
    trainers = {
        count: build_trainer(count, given, f"{out}/{count}", lambda _, work: work(), **values) for count in given.tasks
    }
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        runners = {count: Runner(str(count), run_trainer(trainer)) for count, trainer in trainers.items()}
        take_turns(runners, -(-given.steps // given.turn), given)
    figures = {}
    for clock in ("seconds", "cpu"):
        each = {
            count: [getattr(turn, clock) / turn.steps for turn in runner.turns[1:]] for count, runner in runners.items()
        }
        for count, of_one in each.items():
            ratio, *interval = median_ratio(of_one, each[given.tasks[0]])
            entry = {"median": statistics.median(of_one), "ratio": ratio, "interval": interval}
            figures.setdefault(str(count), {})[clock] = entry
    return figures


def report(figures: dict[str, dict[str, Any]]) -> str:
    """The table."""
    costs = ["build", "prepare", "evaluate", "checkpoint", "save", "load", "memory"]
    head = [
        f"{'tasks':>5}",
        f"{'ms a step':>9}",
        f"{'ratio':>22}",
        f"{'by CPU':>22}",
        *(f"{cost:>10}" for cost in costs),
    ]
    lines = [" ".join(head)]
    for count, values in figures.items():
        ratios = [
            f"{of['ratio']:.3f} [{of['interval'][0]:.3f}, {of['interval'][1]:.3f}]"
            for of in (values["seconds"], values["cpu"])
        ]
        cells = [f"{count:>5}", f"{values['seconds']['median'] * 1000:>9.1f}", *(f"{ratio:>22}" for ratio in ratios)]
        cells += [f"{values[cost]:>10.2f}" if cost in values else f"{'-':>10}" for cost in costs]
        lines.append(" ".join(cells))
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Measure, print, and return the results by number of tasks."""
    words = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 10, 100, 1000])
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each, without warm-up")
    parser.add_argument("--turn", type=int, default=10, help="optimizer steps per turn")
    parser.add_argument("--batch", type=int, default=16, help="rows per step")
    parser.add_argument("--length", type=int, default=16, help="tokens per row")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--evaluation-rows", type=int, default=2000)
    parser.add_argument("--only-steps", action="store_true")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    given = asked(parser, words)
    if given.alone:
        figures: dict[str, Any] = alone(given.alone, given)
        print(json.dumps(figures))
        return figures
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as out:
        figures = steps(given, out)
    if ranks == 1 and not given.only_steps:
        for count in given.tasks:
            figures[str(count)] |= in_a_process(count, words)
    if int(os.environ.get("RANK", "0")) == 0:
        shape = f"{ranks} x {given.batch} rows of {given.length} tokens, {given.steps} steps"
        print(f"\n{shape}, {torch.get_num_threads()} threads, torch {torch.__version__}\n\n{report(figures)}")
        if given.output:
            given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
