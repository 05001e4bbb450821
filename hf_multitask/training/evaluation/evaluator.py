"""Evaluation of all tasks in one sweep: metrics by task, and the average of the primary ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import PredictionOutput, speed_metrics

from ...data import MixtureCollator
from ...data.workers import leave_sigterm_to_parent
from ...hub.records import flat
from ...modeling.aliases import Open
from ...modeling.generation import generation_kwargs
from ...modeling.heads import IGNORE, Head
from ...modeling.processors import tokenizer_of
from ...tasks import Task
from ..compiled import uncompiled
from ..preparation.processors import Processing
from ..runtime import Inputs, Runtime
from .reports import Reports, reporting
from .rows import NUMBERS, EvaluationRows, Metric, Preprocess, sweep_loader
from .scores import Part, Scores, score


class Evaluator:
    """Measures tasks on all rows of a split.

    Args:
        runtime: where it runs.
        tasks: by name.
        metrics: by task, what takes the place of the task's own metrics.
        preprocess: by task that has such metrics, what is kept for them of the logits and labels of a batch.
        collator: makes a batch of features.
        given: the trainer's ``processing_class``.
        sweep: runs :meth:`step` on every batch of some rows, under a title; gives the number of batches.

    Attributes:
        primary: name and value of each task's primary metric in the last evaluation, and under ``average`` their mean.
        metric_names: by task, the names of its metrics in the last evaluation, in their order.
        measured_rows: by prefix of the metric names, such as ``eval``, the rows of each dataset.
        labeled_rows: likewise, the rows with a label of each task.
        reports: of the last evaluation of every split.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        tasks: Mapping[str, Task],
        metrics: Mapping[str, Metric],
        preprocess: Mapping[str, Preprocess],
        collator: MixtureCollator,
        given: Processing,
        sweep: Callable[[EvaluationRows, str], int],
    ) -> None:
        self.primary: dict[str, tuple[str, float]] = {}
        self.metric_names: dict[str, list[str]] = {}
        self.measured_rows: dict[str, dict[str, int]] = {}
        self.labeled_rows: dict[str, dict[str, int]] = {}
        self.reports = Reports()
        self._runtime, self._tasks, self._collator, self._given = runtime, tasks, collator, given
        self._metrics, self._preprocess, self._sweep = metrics, preprocess, sweep
        self._parts: dict[str, list[Part]] = {}
        self._waiting: list[tuple[str, tuple[torch.Tensor, ...]]] = []
        self._batches = 0
        self._keeps_predictions = False  # beyond what metrics need
        for name in preprocess:
            if tasks[name].fits:
                raise tasks[name].error(
                    f"`{tasks[name].fits[0]}` is fitted to logits, which preprocess_logits_for_metrics replaces. "
                    "Remove one of them."
                )

    def loader(self, rows: EvaluationRows) -> DataLoader:
        """This rank's rows in batches that mix the tasks, the shortest first."""
        args = self._runtime.args
        return sweep_loader(
            rows,
            self._collator,
            batch=args.eval_batch_size,
            world_size=args.world_size,
            rank=args.process_index,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context if args.dataloader_num_workers else None,
            worker_init_fn=leave_sigterm_to_parent,
        )

    def step(self, model: torch.nn.Module, inputs: Inputs) -> None:
        """Keep, of every task in a batch, predictions, summed loss and number or weight of items by row, and labels."""
        inputs = dict(self._runtime.prepare(inputs))
        numbers, labels, weights = inputs.pop(NUMBERS), inputs.pop("labels"), inputs.pop("row_weights", {})
        heads = {name: cast(Head, self._runtime.model.heads[name]) for name in labels}
        sharded = self._runtime.engine is not None
        # Language models compute logits where there is a label.
        given = {name: own for name, own in labels.items() if sharded or heads[name].language_model}
        with torch.no_grad(), self._runtime.autocast():
            # Ranks gather a sharded head together, whether they have a row for it or not.
            logits = model(**inputs, labels=given or None, all_heads=sharded).logits
            for name, own in labels.items():
                losses = heads[name].weighted_loss(logits[name], own, weights.get(name))
                items = heads[name].weighted_items(own, weights.get(name))
                predictions = heads[name].predictions(logits[name], own)
                if heads[name].writes:
                    predictions = self._written(name, inputs)
                kept, counts = heads[name].references(own), torch.zeros(0, dtype=torch.long)
                if heads[name].predicts_labelled:
                    counts = (own != IGNORE).flatten(1).sum(1)
                decided = None if name in self._metrics else heads[name].tagged(logits[name], own != IGNORE)
                answers = torch.zeros(0, dtype=torch.long) if decided is None else decided.tags
                if decided is None or self._keeps_predictions or self._tasks[name].extra_metrics:
                    predictions = self._reduced_for_metrics(name, predictions, kept)
                else:
                    predictions = decided.tags
                if predictions.is_floating_point():
                    predictions = predictions.to(torch.promote_types(losses.dtype, predictions.dtype))
                part = numbers[name], counts, predictions, losses, items, kept, answers
                self._waiting.append((name, part))
        self._batches += 1
        most = self._runtime.args.eval_accumulation_steps
        if most and self._batches % most == 0:
            self._fetch_parts()

    def _reduced_for_metrics(self, name: str, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the metrics of a task need of the predictions of a batch."""
        if name in self._metrics:
            reduce = self._preprocess.get(name)
            return predictions if reduce is None else reduce(predictions, labels)
        return predictions if self._keeps_predictions else self._tasks[name].reduced(predictions)

    def _written(self, name: str, inputs: Inputs) -> torch.Tensor:
        """The tokens that a task writes for the rows of a batch."""
        rows, reader, model = inputs["task_rows"][name], self._tasks[name].reader, self._runtime.model
        given = {key: inputs[key][rows] for key in reader.input_names if key in inputs}
        task = {**self._tasks[name].to_dict(), "name": name}
        tokenizer: Open = tokenizer_of(reader.processor(self._given))
        kwargs = generation_kwargs(tokenizer, task, model.config.backbone_config)
        with uncompiled(model):
            return model.generate(**given, task=name, **kwargs)

    def _fetch_parts(self) -> None:
        """Bring what the device holds to the CPU."""
        for name, part in self._waiting:
            self._parts.setdefault(name, []).append(tuple(tensor.cpu().numpy() for tensor in part))
        self._waiting.clear()

    def scores(self, rows: EvaluationRows, title: str, validation: EvaluationRows | None = None) -> dict[str, Scores]:
        """What a sweep over some rows says of each task that has any.

        Args:
            rows: what is measured.
            title: of the progress.
            validation: the rows to which tasks fit thresholds and temperatures, where they are among the measured ones.
        """
        self._parts, self._waiting, self._batches = {}, [], 0
        self._steps = self._sweep(rows, title)
        self._fetch_parts()
        ranks, self._parts = self._runtime.gather(self._parts), {}
        fitting = [name for name, task in self._tasks.items() if task.fits and rows.are_of(validation, name)]
        found = {
            name: score(
                rows,
                task,
                [part for of_rank in ranks for part in of_rank.get(name, [])],
                self._metrics.get(name),
                task.reader.processor(self._given),
                fits=name in fitting,
            )
            for name, task in self._tasks.items()
            if name in rows.by_task
        }
        for name in fitting:
            self._runtime.model.set_task(name, self._tasks[name].to_dict())
        return found

    def evaluate(self, rows: EvaluationRows, prefix: str, validation: EvaluationRows | None = None) -> dict[str, float]:
        """Metrics of every task that has rows under names that begin with a prefix, their average, and the speed.

        For the arguments, see :meth:`scores`.
        """
        self.measured_rows[prefix] = rows.sizes
        self.labeled_rows[prefix] = {name: len(numbers) for name, numbers in rows.by_task.items()}
        start = time.time()
        scores = self.scores(rows, "Evaluation", validation)
        metrics = flat({name: result.metrics | result.slices for name, result in scores.items()}, prefix)
        makers = {
            name: reporting(result.measure, result.metrics, result.told)
            for name, result in scores.items()
            if result.measure is not None
        }
        self.reports.add(prefix, makers)
        self.primary = {name: result.primary for name, result in scores.items()}
        self.metric_names = {name: list(result.metrics) for name, result in scores.items()}
        average = sum(value for _, value in self.primary.values() if math.isfinite(value)) / len(scores)
        self.primary["average"] = ("average", average)
        metrics[f"{prefix}_average"] = average
        metrics.update(speed_metrics(prefix, start, num_samples=len(rows.order()), num_steps=self._steps))
        return metrics

    def evaluate_sets(
        self, rows: EvaluationRows, prefix: str, validation: EvaluationRows | None = None
    ) -> list[dict[str, float]]:
        """The metrics of some rows, whose primary ones count, and of each of their further evaluation sets.

        For the arguments, see :meth:`scores`.
        """
        found = [self.evaluate(rows, prefix, validation)]
        primary, names = self.primary, self.metric_names
        found += [self.evaluate(part, f"{prefix}_{name}", validation) for name, part in rows.sets.items()]
        self.primary, self.metric_names = primary, {**self.metric_names, **names}
        return found

    def with_report(self, save: Callable[..., None]) -> Callable[..., None]:
        """A function that saves metrics of a split, and then its report into ``output_dir``."""

        def saving(split: str, *args: object) -> None:
            save(split, *args)
            if self._runtime.is_main:
                self.reports.save(Path(str(self._runtime.args.output_dir)), split)

        return saving

    def predict(self, rows: EvaluationRows, prefix: str) -> dict[str, PredictionOutput]:
        """Predictions and labels, whole, and metrics of every task that has rows; only predictions without labels."""
        self._keeps_predictions = True
        try:
            scores = self.scores(rows, "Prediction")
        finally:
            self._keeps_predictions = False
        found = {}
        for name, result in scores.items():
            predictions, labels = result.arrays()
            known = None if name in rows.unlabeled else labels
            found[name] = PredictionOutput(predictions, known, flat({name: result.metrics | result.slices}, prefix))
        return found
