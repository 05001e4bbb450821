"""The trainer: Transformers' own, with the hooks that a mixture of tasks needs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import PredictionOutput, speed_metrics

from ..data import Mixture, MixtureCollator, SamplingRates, StepLoader, StepSampler, build_rates
from ..hub import model_card
from ..modeling import MultiTaskModel
from ..tasks import Task
from .arguments import MultiTaskTrainingArguments
from .callbacks import PlanCallback, ResumableEarlyStopping, describe_plan
from .checkpoint import check_checkpoint
from .evaluation import Metric, Scores, TaskRows, prefixed, score
from .preparation import (
    Datasets,
    build_tasks,
    check_datasets,
    check_names,
    check_split,
    check_tokenizer,
    encode_datasets,
    ensure_pad_token,
    resolve_tasks,
)
from .ranks import release_group_at_exit


class MultiTaskTrainer(Trainer):
    """Trains a :class:`MultiTaskModel` on batches that mix its tasks.

    The loss of an optimizer step is ``sum over tasks t of w_t * (sum of t's item losses) / (number of t's items)``,
    over all micro-batches and ranks of the step, so it depends on neither.

    Args:
        model: built by ``from_backbone``, or loaded.
        args: see :class:`MultiTaskTrainingArguments`.
        train_dataset: raw rows by dataset name; a task reads the dataset of its own name unless it names another.
        eval_dataset: likewise, for evaluation.
        processing_class: the backbone's tokenizer.
        tasks: by name, tasks in place of the model's: other columns, the same labels.
        sampler: sampling rates in place of ``args.sampling``.
        compute_metrics: by task, metrics in place of the task's own; the first one counts for the average.
        callbacks: as in ``Trainer``.
        optimizers: as in ``Trainer``.

    Raises:
        ValueError: tasks, datasets and arguments do not fit each other, or a row is not usable.
        TypeError: an argument is of the wrong kind.
    """

    loss_is_scaled_for_ga = True
    args: MultiTaskTrainingArguments
    model: MultiTaskModel
    processing_class: PreTrainedTokenizerBase
    train_dataset: Mixture | None
    eval_dataset: dict[str, TaskRows] | None
    data_collator: MixtureCollator

    def __init__(
        self,
        model: MultiTaskModel,
        args: MultiTaskTrainingArguments,
        *,
        train_dataset: Datasets | None = None,
        eval_dataset: Datasets | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        tasks: Mapping[str, Task] | None = None,
        sampler: SamplingRates | None = None,
        compute_metrics: Mapping[str, Metric] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        if not isinstance(args, MultiTaskTrainingArguments):
            raise TypeError(f"`args` should be MultiTaskTrainingArguments. Found {type(args).__name__}.")
        if processing_class is None:
            raise ValueError("The trainer tokenises the rows. Give the backbone's tokenizer as processing_class.")
        if args.n_gpu > 1:
            raise ValueError("nn.DataParallel is not supported. Start one process per GPU, for example with torchrun.")
        self.args = args
        self.processing_class = processing_class
        self.model = model
        self.tasks = build_tasks(model.config, tasks)
        check_tokenizer(self.tasks, processing_class)
        check_names("task_weights", args.task_weights, self.tasks)
        check_names("compute_metrics", compute_metrics, self.tasks)
        self.metric_by_task = dict(compute_metrics or {})
        self.task_weights = dict.fromkeys(self.tasks, 1.0) | dict(args.task_weights or {})  # type: ignore[arg-type]
        self.rates = sampler or build_rates(args.sampling, args.sampling_kwargs)  # type: ignore[arg-type]
        evaluates = args.eval_strategy != "no"
        check_datasets(self.tasks, train_dataset, eval_dataset, evaluates=evaluates)
        set_seed(args.seed)  # heads whose labels were left out are built below
        self.tasks = resolve_tasks(self.tasks, [train_dataset, eval_dataset])
        for name, task in self.tasks.items():
            model.set_task(name, task.to_dict())
        ensure_pad_token(processing_class)
        model.set_pad_token_id(processing_class.pad_token_id)
        mixture = None if train_dataset is None else self._train_mixture(train_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=MixtureCollator(processing_class, self.tasks),
            train_dataset=mixture,
            eval_dataset=None if eval_dataset is None else self.evaluation_rows(eval_dataset, "evaluation"),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if mixture is not None:
            self._step_sampler()  # so that rates that do not fit the data fail here
        self._drop_totals()
        release_group_at_exit(self)
        self.add_callback(PlanCallback(self))
        if args.early_stopping_patience is not None:
            self.add_callback(ResumableEarlyStopping(args.early_stopping_patience))

    # Data

    def _encode(self, data: Datasets, split: str, *, training: bool) -> list[Any]:
        with self.args.main_process_first(desc="tokenising"):
            return encode_datasets(
                self.tasks,
                data,
                split,
                training=training,
                tokenizer=self.processing_class,
                config=self.model.config.backbone_config,
            )

    def evaluation_rows(self, data: Datasets, split: str) -> dict[str, TaskRows]:
        """Rows of every task that has data in a split, checked and tokenised."""
        check_split(self.tasks, data, split)
        encoded = self._encode(data, split, training=False)
        by_task = {task: TaskRows(rows, task) for rows in encoded for task in rows.tasks}
        for task, rows in by_task.items():
            if not len(rows):
                raise ValueError(f"Task '{task}' has no row with a label in the {split} data. Add some.")
        return {name: by_task[name] for name in self.tasks if name in by_task}

    def _train_mixture(self, data: Datasets) -> Mixture:
        encoded = self._encode(data, "train", training=True)
        for rows in encoded:
            for task in rows.tasks:
                if not len(rows.labelled(task)):
                    raise ValueError(
                        f"Task '{task}' has no training data: no row of '{rows.name}' has its label. Add some."
                    )
        return Mixture(encoded)

    def _mixture(self) -> Mixture:
        if self.train_dataset is None:
            raise ValueError("There is nothing to train on. Give train_dataset.")
        return self.train_dataset

    def _step_sampler(self) -> StepSampler:
        mixture = self._mixture()
        batch, accumulation, world = self._train_batch_size, self.args.gradient_accumulation_steps, self.args.world_size
        return StepSampler(
            mixture.sizes,
            self.rates,
            lengths=mixture.lengths(),
            rows_per_step=batch * accumulation * world,
            accumulation=accumulation,
            world_size=world,
            rank=self.args.process_index,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank, step by step."""
        return StepLoader(
            self._mixture(),
            self._step_sampler(),
            self.data_collator,
            device=self.args.device.type,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def describe_plan(self, steps: int) -> str:
        """What a run of so many optimizer steps does with the data: rows, share and passes of every dataset."""
        sampler = self._step_sampler()
        tasks = {encoded.name: encoded.tasks for encoded in self._mixture().datasets}
        return describe_plan(sampler.plan(steps), tasks, steps, sampler.rows_per_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        check_checkpoint(resume_from_checkpoint, self.model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    # The step

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> dict[str, torch.Tensor]:
        """Items of every task in the whole step, over micro-batches and ranks."""
        heads = self.accelerator.unwrap_model(self.model).heads
        counts_K2 = torch.zeros(len(self.tasks), 2, dtype=torch.long)
        places = {name: number for number, name in enumerate(self.tasks)}
        for batch in batch_samples:
            for forward in batch["forwards"]:
                for name, labels in forward["labels"].items():
                    counts_K2[places[name], 0] += heads[name].items(labels).sum()
                    counts_K2[places[name], 1] += len(labels)
        counts_K2 = self.accelerator.reduce(counts_K2.to(device), "sum")
        self._total_rows += counts_K2[:, 1]
        self._total_steps += counts_K2[:, 0] > 0
        return {name: counts_K2[number, 0] for number, name in enumerate(self.tasks)}

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, list[dict[str, Any]]],
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Forward and backward of each part of a micro-batch; ranks meet at the last."""
        *parts, last = inputs["forwards"]
        total = torch.zeros((), device=self.args.device)
        for part in parts:
            with self.accelerator.no_sync(model):
                total += super().training_step(model, part, num_items_in_batch)
        return total + super().training_step(model, last, num_items_in_batch)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimated operations of all parts of a micro-batch."""
        return sum(super(MultiTaskTrainer, self).floating_point_ops(part) for part in inputs["forwards"])

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        for part in inputs["forwards"]:
            super()._track_num_input_tokens(part)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted sum of the task losses of a micro-batch, each divided by the items of the whole step.

        Distributed training averages gradients over ranks, so the loss is multiplied by their number.
        """
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        terms = [self.task_weights[name] * loss for name, loss in outputs.losses.items()]
        loss = sum(terms) if terms else outputs.loss
        for number, name in enumerate(self.tasks):
            if name in outputs.losses:
                self._total_losses[number] += outputs.losses[name].detach()
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _drop_totals(self) -> None:
        """Start counting anew what the next log reports."""
        self._total_losses = torch.zeros(len(self.tasks), device=self.args.device)
        self._total_rows = torch.zeros(len(self.tasks), dtype=torch.long, device=self.args.device)
        self._total_steps = torch.zeros(len(self.tasks), dtype=torch.long, device=self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each task's mean loss and share of the rows since the last log, ``<task>_loss`` and ``<task>_share``."""
        if "loss" in logs:
            losses = self.accelerator.reduce(self._total_losses, "sum").tolist()
            rows, steps = self._total_rows.tolist(), self._total_steps.tolist()
            for number, name in enumerate(self.tasks):
                if steps[number]:
                    logs[f"{name}_loss"] = losses[number] / steps[number]
                logs[f"{name}_share"] = rows[number] / max(sum(rows), 1)
            self._drop_totals()
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[None, tuple[torch.Tensor, ...], torch.Tensor]:
        """Logits of the one task in the batch, with each row's summed loss and number of items, and its labels."""
        inputs = self._prepare_inputs(inputs)
        ((name, labels),) = inputs.pop("labels").items()
        head = self.accelerator.unwrap_model(self.model).heads[name]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits[name]
            losses = head.loss(logits, labels)
        return None, (logits.to(losses.dtype), losses, head.items(labels)), labels

    def _scores(self, rows: Mapping[str, TaskRows], description: str) -> dict[str, Scores]:
        scores = {}
        for name, own in rows.items():
            output = self.evaluation_loop(
                self.get_test_dataloader(own), description=f"{description} of {name}", prediction_loss_only=False
            )
            scores[name] = score(
                own, self.tasks[name], output.predictions, np.asarray(output.label_ids), self.metric_by_task.get(name)
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
        metrics[f"{metric_key_prefix}_average"] = sum(result.primary for result in scores.values()) / len(scores)
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

    # What is left behind

    def create_model_card(self, **kwargs: Any) -> None:
        """Write the model card into ``output_dir``.

        Args:
            kwargs: ``model_name``, ``license``, ``language``, ``tags``, as in ``Trainer``.
        """
        if not self.is_world_process_zero():
            return
        card = model_card(
            self.accelerator.unwrap_model(self.model).config,
            name=kwargs.get("model_name") or Path(str(self.args.output_dir)).resolve().name,
            history=self.state.log_history,
            plan=None if self.train_dataset is None else self.describe_plan(self.state.max_steps),
            arguments=self.args,
            metadata={key: value for key, value in kwargs.items() if key in ("license", "language", "tags") and value},
        )
        card.save(Path(str(self.args.output_dir)) / "README.md")
