"""The Trainer's evaluation hooks: one sweep over all rows, metrics by task, and the average of the primary ones."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import PredictionOutput, speed_metrics

from ...data import MixtureCollator
from ...data.workers import leave_sigterm_to_parent
from ...hub.records import flat
from ...modeling import MultiTaskModel
from ...modeling.generation import generation_kwargs
from ...modeling.heads import IGNORE
from ...tasks import Task
from ..preparation import Datasets
from ..state.progress import Progress
from .rows import NUMBERS, EvaluationRows, Metric, Part, Preprocess, Scores, score, sweep_loader


class EvaluatingTrainer(Trainer):
    """The Trainer, measuring all tasks in one sweep."""

    model: MultiTaskModel
    data_collator: MixtureCollator
    tasks: dict[str, Task]
    metric_by_task: dict[str, Metric]
    preprocess_by_task: dict[str, Preprocess]
    eval_dataset: EvaluationRows | None
    _primary: dict[str, tuple[str, float]]
    _measured_rows: dict[str, dict[str, int]]
    _sharded: bool
    _keeps_predictions = False  # for predict, beyond what metrics need
    progress: Progress

    @abstractmethod
    def evaluation_rows(self, data: Datasets, split: str) -> EvaluationRows:
        """Rows of every task that has data in a split, checked and tokenised."""

    def get_test_dataloader(self, test_dataset: EvaluationRows) -> DataLoader:
        """This rank's rows in batches that mix the tasks, the shortest first."""
        return sweep_loader(
            test_dataset,
            self.data_collator,
            batch=self.args.eval_batch_size,
            world_size=self.args.world_size,
            rank=self.args.process_index,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=leave_sigterm_to_parent,
        )

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[None, None, None]:
        """Keep, of every task in the batch, predictions, each row's summed loss and number of items, and labels."""
        inputs = self._prepare_inputs(inputs)
        numbers, labels = inputs.pop(NUMBERS), inputs.pop("labels")
        heads: Any = self.model.heads
        # Language models compute logits where there is a label.
        given = {name: own for name, own in labels.items() if self._sharded or heads[name].language_model}
        with torch.no_grad(), self.compute_loss_context_manager():
            # Ranks gather a sharded head together, whether they have a row for it or not.
            logits = model(**inputs, labels=given or None, all_heads=self._sharded).logits
            for name, own in labels.items():
                losses = heads[name].loss(logits[name], own)
                predictions = heads[name].predictions(logits[name], own)
                if heads[name].writes:
                    predictions = self._written(name, inputs)
                kept, counts = heads[name].references(own), torch.zeros(0, dtype=torch.long)
                if heads[name].predicts_labelled:
                    counts = (own != IGNORE).flatten(1).sum(1)
                predictions = self._reduced_for_metrics(name, predictions, kept)
                if predictions.is_floating_point():
                    predictions = predictions.to(torch.promote_types(losses.dtype, predictions.dtype))
                part = numbers[name], counts, predictions, losses, heads[name].items(own), kept
                self._waiting.append((name, part))
        self._batches += 1
        if self.args.eval_accumulation_steps and self._batches % self.args.eval_accumulation_steps == 0:
            self._fetch_parts()
        return None, None, None

    def _reduced_for_metrics(self, name: str, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the metrics of a task need of the predictions of a batch."""
        if name in self.metric_by_task:
            reduce = self.preprocess_by_task.get(name)
            return predictions if reduce is None else reduce(predictions, labels)
        return predictions if self._keeps_predictions else self.tasks[name].reduced(predictions)

    def _written(self, name: str, inputs: dict[str, Any]) -> torch.Tensor:
        """The tokens that a task writes for the rows of a batch."""
        tokenizer: Any = self.processing_class
        rows = inputs["task_rows"][name]
        given = {key: inputs[key][rows] for key in ("input_ids", "attention_mask") if key in inputs}
        config = self.accelerator.unwrap_model(self.model).config.backbone_config
        kwargs = generation_kwargs(tokenizer, {**self.tasks[name].to_dict(), "name": name}, config)
        return self.model.generate(**given, task=name, **kwargs)

    def _fetch_parts(self) -> None:
        """Bring what the device holds to the CPU."""
        for name, part in self._waiting:
            self._parts.setdefault(name, []).append(tuple(tensor.cpu().numpy() for tensor in part))
        self._waiting.clear()

    def _scores(self, rows: EvaluationRows, description: str) -> dict[str, Scores]:
        self._parts: dict[str, list[Part]] = {}
        self._waiting: list[tuple[str, tuple[torch.Tensor, ...]]] = []
        self._batches = 0
        self.evaluation_loop(self.get_test_dataloader(rows), description=description, prediction_loss_only=False)
        self._fetch_parts()
        ranks = gather_object([self._parts]) if self.args.world_size > 1 else [self._parts]
        self._parts = {}
        return {
            name: score(
                rows,
                self.tasks[name],
                [part for of_rank in ranks for part in of_rank.get(name, [])],
                self.metric_by_task.get(name),
                self.processing_class,
            )
            for name in self.tasks
            if name in rows.by_task
        }

    def evaluate(
        self,
        eval_dataset: Datasets | None = None,
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure every task that has data.

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
        self._measured_rows[metric_key_prefix] = rows.sizes
        start = time.time()
        scores = self._scores(rows, "Evaluation")
        metrics = flat({name: result.metrics for name, result in scores.items()}, metric_key_prefix)
        self._primary = {name: result.primary for name, result in scores.items()}
        self.progress.metrics |= {name: list(result.metrics) for name, result in scores.items()}
        average = sum(value for _, value in self._primary.values() if math.isfinite(value)) / len(scores)
        self._primary["average"] = ("average", average)
        metrics[f"{metric_key_prefix}_average"] = average
        steps = len(self.get_test_dataloader(rows))
        metrics.update(speed_metrics(metric_key_prefix, start, num_samples=len(rows.order()), num_steps=steps))
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

        Of a task on tokens, those of the labelled ones, (N, W, C) and (N, W), padded with -100 to the most of a row; of
        question answering window, first and last token of the answer.

        Args:
            test_dataset: raw rows by dataset name, of all tasks or of some.
            ignore_keys: not used.
            metric_key_prefix: first part of the metric names.
        """
        rows = self.evaluation_rows(test_dataset, metric_key_prefix)
        self._keeps_predictions = True
        try:
            scores = self._scores(rows, "Prediction")
        finally:
            self._keeps_predictions = False
        return {
            name: PredictionOutput(*result.arrays(), flat({name: result.metrics}, metric_key_prefix))
            for name, result in scores.items()
        }
