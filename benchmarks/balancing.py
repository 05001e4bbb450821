"""Time of a step with each balancer relative to a step without a balancer.

The script measures whole optimizer steps of ``MultiTaskTrainer.train()`` on classification tasks with separate rows,
which consist of words of the tokenizer's vocabulary and are truncated to ``--length`` tokens, so that all batches have
one shape. A trainer for each balancer, also with ``exact``, and one without a balancer take turns of ``--turn`` steps
in a random order in every round; the first round is a warm-up. The output is the median over rounds of the ratio to the
trainer without a balancer, with its 95 % bootstrap interval, by wall clock and by CPU seconds (for a machine with other
load; with ``OMP_NUM_THREADS=1``). CoBa runs without evaluations, whose cost would be added. The memory is the peak of a
separate process over one turn::

    OMP_NUM_THREADS=1 python benchmarks/balancing.py --steps 200 --memory
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from memory import in_process, peak
from overhead import make_rows
from ratios import median_ratio
from throughput import arguments, run_trainer, silence
from transformers import AutoTokenizer, set_seed
from turns import Runner, asked, take_turns

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification
from hf_multitask.balancing import BALANCING
from hf_multitask.modeling.backbone import resolve_backbone

NONE = "none"
SYSTEMS = [NONE, *BALANCING, *(f"{name}-exact" for name, kind in BALANCING.items() if kind.reads_losses)]


def build(name: str, given: argparse.Namespace, out: str) -> Runner:
    """A trainer with a balancer that takes turns."""
    path = resolve_backbone(given.backbone)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tasks = {f"task{k}": SequenceClassification(label_names=["no", "yes"]) for k in range(given.tasks)}
    rows = {
        task: make_rows(tokenizer, given.rows // given.tasks, given.length, given.seed + k)
        for k, task in enumerate(tasks)
    }
    for task in tasks.values():
        task.max_length = given.length
    balancing, _, exact = name.partition("-")
    kwargs: dict[str, Any] = {"exact": True} if exact else {}
    if balancing == "fixed":
        kwargs["weights"] = {"task0": 2.0}
    values: dict[str, Any] = {"balancing": balancing, "balancing_kwargs": kwargs or None, "logging_steps": given.turn}
    set_seed(given.seed)
    trainer = MultiTaskTrainer(
        model=MultiTaskModel.from_backbone(path, tasks=tasks, branches="none"),
        args=arguments(MultiTaskTrainingArguments, out, given, eval_strategy="steps", eval_steps=10**6, **values),
        train_dataset=rows,
        eval_dataset={task: of_task.select(range(2)) for task, of_task in rows.items()},
        processing_class=tokenizer,
    )
    silence(trainer)
    return Runner(name, run_trainer(trainer))


def run(runners: dict[str, Runner], given: argparse.Namespace) -> dict[str, Any]:
    """Run rounds of turns and return the results."""
    take_turns(runners, -(-given.steps // given.turn), given)
    figures: dict[str, Any] = {}
    plain = runners[NONE].turns[1:]
    for name, runner in runners.items():
        turns = runner.turns[1:]
        figures[name] = {"steps": sum(turn.steps for turn in turns), "forwards": sum(turn.forwards for turn in turns)}
        for clock in ("seconds", "cpu"):
            own, others = ([getattr(turn, clock) / turn.steps for turn in of_one] for of_one in (turns, plain))
            ratio, low, high = median_ratio(own, others)
            figures[name][clock] = {"step": statistics.median(own), "ratio": ratio, "interval": [low, high]}
    return figures


def memory_of(name: str, given: argparse.Namespace) -> float:
    """Peak memory of a process that runs one turn, in MiB."""
    with tempfile.TemporaryDirectory() as out:
        runner = build(name, given, out)
        runner.take_turn(given.turn)
        runner.stop()
    return peak()


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS[1:], default=SYSTEMS[1:], help="in addition to none")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each, without warm-up")
    parser.add_argument("--turn", type=int, default=5, help="optimizer steps per turn")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    parser.add_argument("--length", type=int, default=32, help="tokens per row")
    parser.add_argument("--rows", type=int, default=2000, help="rows of all tasks")
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory")
    given = asked(parser, words)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as out:
        figures = run({name: build(name, given, out) for name in [NONE, *given.systems]}, given)
    shape = f"{given.tasks} tasks, {given.batch} rows of {given.length} tokens, {figures[NONE]['steps']} steps of each"
    print(f"{shape}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after\n")
    print("| balancing | forwards a step | ms a step, CPU | over none, by CPU time | by the clock | MiB |")
    print("|---|---|---|---|---|---|")
    for name, of_one in figures.items():
        cells = [
            f"{of_one[clock]['ratio']:.3f} [{of_one[clock]['interval'][0]:.3f}, {of_one[clock]['interval'][1]:.3f}]"
            for clock in ("cpu", "seconds")
        ]
        if given.memory:
            of_one["memory"] = in_process(memory_of, name, given)
        memory = f"{of_one['memory']:,.0f}" if given.memory else ""
        forwards = of_one["forwards"] / of_one["steps"]
        print(
            f"| `{name}` | {forwards:.2f} | {of_one['cpu']['step'] * 1000:.0f} | {cells[0]} | {cells[1]} | {memory} |"
        )
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
