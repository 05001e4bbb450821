"""The side of compare.py that trains: every setting of a file, then each again from the other side's checkpoint.

It runs in the processes of one revision, and uses nothing but public names of the package.
"""

import gc
import json
import os
import time
from pathlib import Path

import torch
from datasets import Dataset
from mixtures import build
from safetensors.torch import save_file
from tiny import read_rows
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import hf_multitask
from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification

MIDDLE = 2  # the step of the checkpoint that the other side goes on from
LABELS = ["negative", "positive"]
TIMINGS = ("runtime", "per_second")


def write(path, value):
    """Write JSON that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    written.write_text(json.dumps(value))
    written.replace(path)


def describe_checkpoint(folder):
    """What a checkpoint says, without the hashes of its files."""
    state = json.loads((folder / "multitask_state.json").read_text())
    state.pop("hash", None)
    state.pop("files", None)
    files = sorted(path.name for path in folder.iterdir() if path.suffix != ".py")  # the package's own
    return {"multitask_state.json": state, "config.json": json.loads((folder / "config.json").read_text()), "": files}


def train(setting, backbone, folder, rank, checkpoint=None):
    """Train a setting; the first rank leaves the weights and what was logged and saved."""
    output = folder / "out"
    layout = setting["description"], backbone, output, setting["batch"], setting["accumulation"]
    trainer = build(*layout, save_strategy="steps", save_steps=MIDDLE)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if rank == 0:
        weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return {
        "log_history": [
            {key: value for key, value in entry.items() if not any(word in key for word in TIMINGS)}
            for entry in trainer.state.log_history
        ],
        f"the checkpoint of step {MIDDLE}": None
        if checkpoint
        else describe_checkpoint(output / f"checkpoint-{MIDDLE}"),
        "the last checkpoint": describe_checkpoint(last),
    }


def await_file(path):
    while not path.exists():
        time.sleep(0.05)


def attempt(folder, rank, *arguments):
    """Train and write down what came of it, a failure too."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        record = train(*arguments[:2], folder, rank, *arguments[2:])
    except Exception as problem:
        record = {"failure": f"{type(problem).__name__}: {problem}"}
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the ranks no longer stand at the same place
            write(folder / "record.json", record)
            raise
    if rank == 0:
        write(folder / "record.json", record)


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def ours(backbone, rows, **arguments):
    return MultiTaskTrainer(
        MultiTaskModel.from_backbone(
            backbone, tasks={"sentiment": SequenceClassification(label_names=LABELS, max_length=16)}
        ),
        MultiTaskTrainingArguments(**arguments),
        train_dataset={"sentiment": rows},
        processing_class=AutoTokenizer.from_pretrained(backbone),
    )


def plain(backbone, rows, **arguments):
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    encoded = [
        {**tokenizer(row["text"], truncation=True, max_length=16), "labels": LABELS.index(row["label"])} for row in rows
    ]
    return Trainer(
        AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2),
        TrainingArguments(**arguments),
        train_dataset=Dataset.from_list(encoded),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )


def count_operations(make, backbone, folder):
    """The operations of a plain step, from loading to the optimizer: those of three steps less those of two."""
    texts = [row | {"text": " ".join((row["text"].split() * 16)[:16])} for row in read_rows("sentiment", "train", 64)]
    counts = []
    for steps in (2, 3):
        trainer = make(
            backbone,
            Dataset.from_list(texts),
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            logging_steps=100,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        with Operations() as operations:
            trainer.train()
        counts.append(operations.count)
    return counts[1] - counts[0]


def main(package, settings, backbone, other):
    """Run the settings in the working folder; the other side's is given."""
    assert Path(hf_multitask.__file__).is_relative_to(package), f"{hf_multitask.__file__} is not of {package}"
    rank, here, there = int(os.environ.get("RANK", 0)), Path(), Path(other)
    for setting in json.loads(Path(settings).read_text()):
        if setting["name"] == "operations":
            counts = {
                make.__name__: count_operations(make, setting["backbone"], here / "operations")
                for make in (ours, plain)
            }
            write(here / setting["name"] / "record.json", counts)
            continue
        name = setting["name"]
        attempt(here / name / "whole", rank, setting, backbone)
        await_file(there / name / "whole" / "record.json")
        checkpoint = there / name / "whole" / "out" / f"checkpoint-{MIDDLE}"
        if checkpoint.exists():
            attempt(here / name / "resumed", rank, setting, backbone, checkpoint)
        write(here / name / f"done-{rank}.json", True)
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()  # before the interpreter ends
