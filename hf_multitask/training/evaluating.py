"""The Trainer's evaluation hooks: every task by itself, and the average of their primary metrics."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import PredictionOutput, speed_metrics

from ..data.workers import leave_sigterm_to_parent
from ..modeling.generation import generation_kwargs
from ..tasks import Task
from .evaluation import Metric, Scores, TaskRows, prefixed, score
from .preparation import Datasets


class EvaluatingTrainer(Trainer):
    """The Trainer, measuring tasks one after the other."""

    tasks: dict[str, Task]
    metric_by_task: dict[str, Metric]
    eval_dataset: dict[str, TaskRows] | None
    _primary: dict[str, tuple[str, float]]

    @abstractmethod
    def evaluation_rows(self, data: Datasets, split: str) -> dict[str, TaskRows]:
        """Rows of every task that has data in a split, checked and tokenised."""

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """The rows of one task in batches, as in ``Trainer``."""
        loader: Any = super().get_test_dataloader(test_dataset)
        getattr(loader, "base_dataloader", loader).worker_init_fn = leave_sigterm_to_parent
        return loader

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[None, tuple[torch.Tensor, ...], torch.Tensor]:
        """Predictions of the one task in the batch, each row's summed loss and number of items, and its labels."""
        inputs = self._prepare_inputs(inputs)
        ((name, labels),) = inputs["labels"].items()
        unwrapped = self.accelerator.unwrap_model(self.model)
        head = unwrapped.heads[name]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits[name]
            losses = head.loss(logits, labels)
            predictions = head.predictions(logits, labels)
            if head.writes and name not in self.metric_by_task:
                predictions = self._written(unwrapped, name, inputs)
        if predictions.is_floating_point():
            predictions = predictions.to(torch.promote_types(losses.dtype, predictions.dtype))
        return None, (predictions, losses, head.items(labels)), labels

    def _written(self, model: Any, name: str, inputs: dict[str, Any]) -> torch.Tensor:
        """The tokens that a task writes for the rows of a batch."""
        tokenizer: Any = self.processing_class
        rows = inputs["task_rows"][name]
        given = {key: inputs[key][rows] for key in ("input_ids", "attention_mask") if key in inputs}
        return model.generate(
            **given, task=name, **generation_kwargs(tokenizer, {**self.tasks[name].to_dict(), "name": name})
        )

    def _scores(self, rows: Mapping[str, TaskRows], description: str) -> dict[str, Scores]:
        scores = {}
        for name, own in rows.items():
            output = self.evaluation_loop(
                self.get_test_dataloader(own), description=f"{description} of {name}", prediction_loss_only=False
            )
            scores[name] = score(
                own,
                self.tasks[name],
                output.predictions,
                np.asarray(output.label_ids),
                self.metric_by_task.get(name),
                self.processing_class,
            )
        return scores

    def evaluate(
        self,
        eval_dataset: Datasets | None = None,
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure every task that has data, each by itself.

        Args:
            eval_dataset: raw rows by dataset name, of all tasks or of some; those of the trainer where None.
            ignore_keys: not used.
            metric_key_prefix: first part of the metric names.

        Returns:
            ``eval_<task>_<metric>``, ``eval_<task>_loss``, and ``eval_average``, the mean of the primary metrics.

        Raises:
            ValueError: there are no data, or a row is not usable.
        """
        rows = self.eval_dataset if eval_dataset is None else self.evaluation_rows(eval_dataset, metric_key_prefix)
        if rows is None:
            raise ValueError("There is nothing to evaluate. Give eval_dataset.")
        start = time.time()
        scores = self._scores(rows, "Evaluation")
        metrics = {
            key: value
            for name, result in scores.items()
            for key, value in prefixed(result.metrics, metric_key_prefix, name)
        }
        self._primary = {name: result.primary for name, result in scores.items()}
        average = sum(value for _, value in self._primary.values()) / len(scores)
        self._primary["average"] = ("average", average)
        metrics[f"{metric_key_prefix}_average"] = average
        samples = sum(len(own) for own in rows.values())
        batch = self.args.eval_batch_size * self.args.world_size
        steps = sum(math.ceil(len(own) / batch) for own in rows.values())
        metrics.update(speed_metrics(metric_key_prefix, start, num_samples=samples, num_steps=steps))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(  # a dict by task, as evaluate takes
        self,
        test_dataset: Datasets,
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "test",
    ) -> dict[str, PredictionOutput]:
        """Logits, labels and metrics by task, rows in the order of the dataset, those without a label left out.

        Args:
            test_dataset: raw rows by dataset name, of all tasks or of some.
            ignore_keys: not used.
            metric_key_prefix: first part of the metric names.
        """
        scores = self._scores(self.evaluation_rows(test_dataset, metric_key_prefix), "Prediction")
        return {
            name: PredictionOutput(
                result.logits, result.labels, dict(prefixed(result.metrics, metric_key_prefix, name))
            )
            for name, result in scores.items()
        }
