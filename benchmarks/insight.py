"""Cost of measuring the per-task gradients in a run.

The script measures whole optimizer steps of ``Trainer.train()`` for two trainers that only differ in
``gradient_logging_steps``, the default and 0. The rows of a step are divided evenly among ``--tasks`` sequence
classification tasks; every row has ``--length`` tokens, so that there is no padding and the step is one forward pass.
Both take turns with the number of steps between two measurements, in a random order for every pair of turns; the first
pair, which includes the check of the row split, is reported separately. The output is the median over pairs of the
ratio of the two with its 95 % bootstrap interval, by wall clock and by CPU seconds::

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/insight.py --pairs 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from overhead import make_rows
from ratios import median_ratio
from throughput import arguments, run_trainer, silence
from transformers import AutoTokenizer, set_seed
from turns import Runner, asked, take_turns

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone
from hf_multitask.training.step.probe import INTERVAL


def build(given: argparse.Namespace, out: str, steps: int | None) -> Runner:
    """A trainer that measures at an interval of steps and takes turns."""
    path = resolve_backbone(given.backbone)
    tokenizer = AutoTokenizer.from_pretrained(path)
    names = [f"task{number}" for number in range(given.tasks)]
    task = {"label_names": ["no", "yes"], "max_length": given.length}
    set_seed(given.seed)
    values: dict[str, Any] = {"logging_steps": given.turn, "gradient_logging_steps": steps}
    trainer = MultiTaskTrainer(
        model=MultiTaskModel.from_backbone(path, tasks={name: SequenceClassification(**task) for name in names}),
        args=arguments(MultiTaskTrainingArguments, out, given, **values),
        train_dataset={
            name: make_rows(tokenizer, given.rows // given.tasks, given.length, number)
            for number, name in enumerate(names)
        },
        processing_class=tokenizer,
    )
    if steps is None and trainer.engine.probe.interval != given.turn:
        raise RuntimeError(f"It measures every {trainer.engine.probe.interval} steps, and a turn has {given.turn}.")
    silence(trainer)
    return Runner(str(steps), run_trainer(trainer))


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of turns, without warm-up")
    parser.add_argument("--turn", type=int, default=INTERVAL, help="optimizer steps per turn")
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    parser.add_argument("--length", type=int, default=32, help="tokens per row")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1600)
    given = asked(parser, words)
    with tempfile.TemporaryDirectory() as out:
        steps = None if given.turn == INTERVAL else given.turn
        runners = {"measured": build(given, out, steps), "plain": build(given, out, 0)}
        take_turns(runners, given.pairs, given)
    shape = (
        f"{given.tasks} tasks, {given.batch} rows of {given.length} tokens, {given.pairs} pairs of {given.turn} steps"
    )
    print(f"{shape}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    figures: dict[str, Any] = {}
    for clock in ("seconds", "cpu"):
        each = {name: [getattr(turn, clock) for turn in runner.turns] for name, runner in runners.items()}
        ratio, low, high = median_ratio(each["measured"][1:], each["plain"][1:])
        first = each["measured"][0] / each["plain"][0]
        figures[clock] = {name: statistics.median(of_one[1:]) for name, of_one in each.items()}
        figures[clock] |= {"ratio": ratio, "interval": [low, high], "first": first}
        step = 1000 * figures[clock]["plain"] / given.turn
        interval = f"{ratio:.4f} [{low:.4f}, {high:.4f}]"
        print(f"{clock + ':':<9} {step:.1f} ms a step; measured over plain {interval}, first pair {first:.4f}")
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
