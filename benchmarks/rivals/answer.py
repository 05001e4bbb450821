"""Texts through one pipeline of several heads, or through as many pipelines of one task, one after the other."""

from __future__ import annotations

import time
from typing import Any

from measured import Run
from transformers import AutoModelForSequenceClassification, pipeline


def main() -> None:
    """Answer, and write the figures."""
    run = Run()
    (task,) = run.tasks.values()
    texts, heads, batch = task["train"]["text"], run.given["heads"], run.given["batch"]
    pipes: list[Any]
    if run.given["system"] == "ours":
        from hf_multitask import MultiTaskModel, SequenceClassification

        tasks = {f"task{number}": SequenceClassification(label_names=task["labels"]) for number in range(heads)}
        model = MultiTaskModel.from_backbone(run.given["backbone"], tasks=tasks, branches="none")
        pipes = [pipeline("multitask", model=model, tokenizer=run.tokenizer)]
    else:
        pipes = [
            pipeline(
                "text-classification",
                model=AutoModelForSequenceClassification.from_pretrained(
                    run.given["backbone"], num_labels=len(task["labels"])
                ),
                tokenizer=run.tokenizer,
            )
            for _ in range(heads)
        ]
    for pipe in pipes:
        pipe(texts[:batch], batch_size=batch)
    run.started()
    clock, cpu = time.perf_counter(), time.process_time()
    for pipe in pipes:
        answers = pipe(texts, batch_size=batch)
        if len(answers) != len(texts):
            raise RuntimeError(f"There should be {len(texts)} answers. Found {len(answers)}.")
    run.finish(seconds=time.perf_counter() - clock, cpu=time.process_time() - cpu, units=len(texts))


if __name__ == "__main__":
    main()
