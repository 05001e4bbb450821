"""SentenceTransformerTrainer with the squared error of the cosine; it tokenizes in its collator."""

from __future__ import annotations

import datasets
from measured import Meter, Run, held_out_pairs
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)


def main() -> None:
    """Train, and write the figures."""
    run = Run()
    (task,) = run.tasks.values()
    model = SentenceTransformer(run.given["backbone"], device="cpu")
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**run.arguments()),
        train_dataset=datasets.Dataset.from_dict(task["train"]),
        loss=losses.CosineSimilarityLoss(model),
    )
    meter = Meter(run)
    model[0].register_forward_pre_hook(lambda _module, args: meter.count(args[0]["attention_mask"]))
    trainer.add_callback(meter)
    trainer.train()
    run.finish(**meter.figures)
    run.finish(held_out=held_out_pairs(run, model[0].auto_model))


if __name__ == "__main__":
    main()
