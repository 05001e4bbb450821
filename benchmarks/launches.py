"""Operations of an optimizer step and reads of tensors by the host, which an accelerator waits for.

An accelerator computes as fast as operations are launched, and stands still while the host reads a tensor. Both can be
counted on a CPU. A dispatch mode counts operations, without those that compute nothing: views of a tensor, allocations,
marks of the profiler. A function mode counts reads: ``tolist``, ``item``, ``bool``, ``int``, ``float``, ``cpu``,
``numpy``, ``nonzero``, ``unique``, and indexing by a mask, also of tensors that never leave the CPU. A step is a whole
one of ``Trainer.train()``, from loading to the optimizer, after those that warm up. The backbone is a BERT with random
weights, all tasks classify sequences, and all rows of a task have ``--length`` tokens; with two forwards the rows of
the second task have three times as many. Plain is ``Trainer`` with the stock class::

    OMP_NUM_THREADS=1 python benchmarks/launches.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from overhead import make_rows
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from turns import asked

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone

# Functions that wait for the values of a tensor.
READS = {
    *("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "__array__", "equal"),
    *("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select"),
}
WARM_UP = 2  # optimizer steps; the first one checks what separates the gradients of tasks


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        tasks: how many; 0 for the plain Trainer.
        arguments: of the training.
        forwards: of a step.
    """

    tasks: int
    arguments: dict[str, Any] = field(default_factory=dict)
    forwards: int = 1


ROWS = {
    "plain Trainer, one model": Row(0),
    "one task": Row(1),
    "two tasks": Row(2),
    "eight tasks": Row(8),
    "eight tasks, uncertainty": Row(8, {"balancing": "uncertainty"}),
    "two tasks, two forwards": Row(2, forwards=2),
    "two tasks, pcgrad": Row(2, {"aggregation": "pcgrad"}),
    "eight tasks, upgrad": Row(8, {"aggregation": "upgrad"}),
}


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches and that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        if not function.is_view and function.namespace == "aten" and "empty" not in function.__name__:
            self.found[str(function)] += 1
        return function(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Counts the functions that wait for the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function."""
        name = function.__name__
        by_mask = name in ("__getitem__", "__setitem__") and _has_mask(args[1])
        if name in READS or by_mask:
            self.found[str(resolve_name(function))] += 1
        return function(*args, **(kwargs or {}))


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple | list) else [index]
    return any(isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


class Marks(TrainerCallback):
    """Notes the counts at the end of every step.

    Args:
        counters: of operations and of reads.
    """

    def __init__(self, *counters: Operations | Reads) -> None:
        self.counters = counters
        self.steps: list[list[Counter[str]]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Note them."""
        self.steps.append([Counter(one.found) for one in self.counters])


def save_backbone(path: str, layers: int, folder: str) -> None:
    """Save a backbone like another one, but of so many layers and with random weights, and its tokenizer."""
    AutoModel.from_config(AutoConfig.from_pretrained(path, num_hidden_layers=layers)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)


def build(given: argparse.Namespace, row: Row, backbone: str, out: str) -> Trainer:
    """The trainer of a row of the table."""
    set_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    common: dict[str, Any] = {
        "output_dir": out,
        "per_device_train_batch_size": given.batch,
        "max_steps": WARM_UP + 1,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    count = given.batch * (WARM_UP + 2)
    if not row.tasks:
        rows = make_rows(tokenizer, count, given.length, given.seed)
        encoded = rows.map(lambda one: tokenizer(one["text"], truncation=True, max_length=given.length))
        labels = encoded.map(lambda one: {"labels": int(one["label"] == "yes")}, remove_columns=["text", "label"])
        return Trainer(
            AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2),
            TrainingArguments(**common),
            train_dataset=labels,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
    lengths = {
        f"task{number}": given.length * (3 if number >= row.tasks / row.forwards else 1) for number in range(row.tasks)
    }
    return MultiTaskTrainer(
        MultiTaskModel.from_backbone(
            backbone,
            tasks={
                name: SequenceClassification(label_names=["no", "yes"], max_length=length)
                for name, length in lengths.items()
            },
            branches="none",
        ),
        MultiTaskTrainingArguments(**common, gradient_logging_steps=0, **row.arguments),
        train_dataset={
            name: make_rows(tokenizer, count // row.tasks, length, number)
            for number, (name, length) in enumerate(lengths.items())
        },
        processing_class=tokenizer,
    )


def count(trainer: Trainer) -> tuple[Counter[str], Counter[str]]:
    """Operations and reads of the last step, by name."""
    operations, reads = Operations(), Reads()
    marks = Marks(operations, reads)
    trainer.add_callback(marks)
    with operations, reads:
        trainer.train()
    before, after = marks.steps[-2:]
    return after[0] - before[0], after[1] - before[1]


def main(words: Sequence[str] | None = None) -> dict[str, dict[str, int]]:
    """Count, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="rows per step")
    parser.add_argument("--length", type=int, default=16, help="tokens per row")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="of the table")
    parser.add_argument("--names", action="store_true", help="also print the names of operations and reads")
    given = asked(parser, words)
    figures: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        backbone = str(Path(folder) / "backbone")
        save_backbone(resolve_backbone(given.backbone), given.layers, backbone)
        print("| | operations | reads by the host |\n|---|---|---|")
        for name in given.rows:
            operations, reads = count(build(given, ROWS[name], backbone, folder))
            figures[name] = {"operations": operations.total(), "reads": reads.total()}
            print(f"| {name} | {operations.total():,} | {reads.total()} |", flush=True)
            if given.names:
                print(operations, reads, sep="\n")
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
