"""A plain Trainer and a native model for every task, one after the other."""

from __future__ import annotations

from typing import Any

import datasets
from measured import Meter, Run, held_out, tokens_of
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

PARTS = 4  # micro-batches of a step, between which batch_rebalance moves rows


def main() -> None:
    """Train, and write the figures."""
    run = Run()
    values: dict[str, Any] = {
        "plain random": {},
        "plain group_by_length": {"train_sampling_strategy": "group_by_length"},
        "plain batch_rebalance": {
            "train_sampling_strategy": "batch_rebalance",
            "per_device_train_batch_size": run.given["batch"] // PARTS,
            "gradient_accumulation_steps": PARTS,
        },
    }[run.given["system"]]
    meter, autos = Meter(run), {}
    for name, task in run.tasks.items():
        tags = task["kind"] == "tags"
        autos[name] = auto = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
        collator = DataCollatorForTokenClassification if tags else DataCollatorWithPadding
        trainer = Trainer(
            model=auto.from_pretrained(run.given["backbone"], num_labels=len(task["labels"])),
            args=TrainingArguments(**run.arguments(**values)),
            train_dataset=datasets.Dataset.from_list(tokens_of(run, task, "train")),
            data_collator=collator(run.tokenizer),
            processing_class=run.tokenizer,
            callbacks=[meter],
        )
        meter.watch(trainer.model)
        trainer.train()
        trainer.save_model(f"{run.given['out']}/{name}")
        del trainer  # one model at a time
    run.finish(**meter.figures)
    models = {name: auto.from_pretrained(f"{run.given['out']}/{name}") for name, auto in autos.items()}
    run.finish(held_out=held_out(run, models))


if __name__ == "__main__":
    main()
