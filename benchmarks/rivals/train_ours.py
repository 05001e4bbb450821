"""MultiTaskTrainer: one model, every step mixes the tasks."""

from __future__ import annotations

import datasets
from measured import Meter, Run, held_out, held_out_pairs

from hf_multitask import (
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    SentenceSimilarity,
    SequenceClassification,
    TokenClassification,
)


def main() -> None:
    """Train, and write the figures."""
    run = Run()
    tasks = {}
    for name, task in run.tasks.items():
        if task["kind"] == "classification":
            tasks[name] = SequenceClassification(label_names=task["labels"], max_length=run.max_length)
        elif task["kind"] == "tags":
            tasks[name] = TokenClassification(label_names=task["labels"], tags_column="tags", max_length=run.max_length)
        else:
            tasks[name] = SentenceSimilarity(label_column="score", score_range=[0, 1], max_length=run.max_length)
    trainer = MultiTaskTrainer(
        model=MultiTaskModel.from_backbone(run.given["backbone"], tasks=tasks, branches="none"),
        args=MultiTaskTrainingArguments(**run.arguments()),
        train_dataset={name: datasets.Dataset.from_dict(task["train"]) for name, task in run.tasks.items()},
        processing_class=run.tokenizer,
    )
    meter = Meter(run)
    meter.watch(trainer.model)
    trainer.add_callback(meter)
    trainer.train()
    run.finish(**meter.figures)
    pairs = any(task["kind"] == "similarity" for task in run.tasks.values())
    models = {name: trainer.model.task_model(name) for name in tasks}
    run.finish(held_out=held_out_pairs(run, *models.values()) if pairs else held_out(run, models))


if __name__ == "__main__":
    main()
