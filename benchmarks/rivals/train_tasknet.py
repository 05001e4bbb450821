"""tasknet: one encoder, every step has the rows of one task.

Its import loads scripts of metrics from the Hub, so ``evaluate.load`` is replaced by a local stand-in before.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
from measured import Meter, Run, held_out
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score


class Metric:
    """A metric of the Hub by its name, of which only that of tags is computed here.

    Args:
        name: of its script.
    """

    def __init__(self, name: str, *_: Any, **__: Any) -> None:
        self.name = name

    def compute(self, predictions: list[list[str]], references: list[list[str]], **_: Any) -> dict[str, float]:
        """The measures over all rows.

        Raises:
            ValueError: the metric is another one.
        """
        if self.name != "seqeval":
            raise ValueError(f"The stand-in for `evaluate.load` computes seqeval only. Found {self.name!r}.")
        measures = {"f1": f1_score, "precision": precision_score, "recall": recall_score, "accuracy": accuracy_score}
        return {f"overall_{name}": float(of(references, predictions)) for name, of in measures.items()}


evaluate.load = Metric
import tasknet  # noqa: E402


def main() -> None:
    """Train, and write the figures."""
    run = Run()
    tasks = []
    for name, task in run.tasks.items():
        tags, label = task["kind"] == "tags", datasets.ClassLabel(names=[f"{name} {one}" for one in task["labels"]])
        rows = datasets.Dataset.from_dict(task["train"])
        rows = rows.cast_column("tags", datasets.List(label)) if tags else rows.cast_column("label", label)
        few = rows.select(range(2))  # tasknet needs all three splits
        parts = datasets.DatasetDict(train=rows, validation=few, test=few)
        if tags:
            tasks.append(tasknet.TokenClassification(dataset=parts, name=name, tokens="tokens", y="tags"))
        else:
            tasks.append(tasknet.Classification(dataset=parts, name=name, s1="text", y="label"))
    settings = {"model_name": run.given["backbone"], "max_length": run.max_length, "batched": True}
    model, trainer = tasknet.Model_Trainer(tasks, {**settings, **run.arguments()})
    meter = Meter(run)
    for one in model.task_models_list:
        meter.watch(one)
    trainer.add_callback(meter)
    trainer.train()
    run.finish(**meter.figures)
    run.finish(held_out=held_out(run, dict(zip(run.tasks, model.task_models_list, strict=True))))


if __name__ == "__main__":
    main()
