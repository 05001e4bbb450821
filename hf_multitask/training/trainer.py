"""The trainer: Transformers' own, with the hooks that a mixture of tasks needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import CommitInfo
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import BestRun, PredictionOutput, TrainOutput
from transformers.utils.hub import PushInProgress

from ..aggregation import Aggregator
from ..balancing import Balancer
from ..data import Mixture, MixtureCollator, SamplingRates
from ..hub.records import Log, key_of
from ..modeling import MultiTaskModel, MultiTaskOutput
from ..tasks import Task
from .arguments import MultiTaskTrainingArguments
from .assembly import add_callbacks, assemble
from .distillation import Given, Teachers
from .evaluation.rows import EvaluationRows, Metric, Preprocess
from .optimizing import check_optimizing
from .parameters import decaying_names, regroup
from .plan import Plan
from .preparation.processors import Processing
from .preparation.sets import EvaluationData
from .preparation.setup import adopt, begin_model, check_setup, settle_tasks
from .preparation.tasks import Datasets, check_kinds, preprocessing
from .ranks import release_group_at_exit
from .report.push import Pusher
from .runtime import Inputs, Items, Norm, TrainerRuntime
from .state.progress import Progress
from .state.saver import Trial
from .step.rows import Batch, add_tokens
from .step.update import UpdateBuilder
from .step.weights import Constants


class MultiTaskTrainer(Trainer):
    """Trains a :class:`MultiTaskModel` on batches that mix its tasks.

    The loss of an optimizer step is ``sum over tasks t of w_t * (sum of t's item losses) / (number of t's items)``,
    over all micro-batches and ranks of the step, so it depends on neither.

    Args:
        model: built by ``from_backbone``, or loaded; left out where ``model_init`` is given.
        args: see :class:`MultiTaskTrainingArguments`.
        train_dataset: raw rows by dataset name, ``Dataset`` or ``IterableDataset``; a task reads the dataset of its own
            name unless it names another.
        eval_dataset: likewise, for evaluation; in place of rows a dict of evaluation sets, of which the first counts.
        processing_class: the backbone's tokenizer; for tasks that read something else, what processes that, or a
            processor that holds both.
        tasks: by name, tasks in place of the model's: other columns, the same labels.
        model_init: makes a fresh model for every training, as in ``Trainer``; what a hyperparameter search needs.
        sampler: sampling rates in place of ``args.sampling``.
        balancer: weighs the tasks in place of ``args.balancing``.
        aggregator: in place of ``args.aggregation``, an aggregator of :mod:`hf_multitask.aggregation`, or a weighting
            of torchjd's that remembers nothing.
        teachers: by task, a single-task model to learn from, its folder or its id on the Hub.
        compute_metrics: by task, metrics in place of the task's own; the first one counts for the average.
        preprocess_logits_for_metrics: what is kept for ``compute_metrics`` of a batch's logits and labels, as in
            ``Trainer``; one function for all tasks that have ``compute_metrics``, or by task.
        callbacks, optimizers, optimizer_cls_and_kwargs: as in ``Trainer``.

    Raises:
        ValueError, TypeError: tasks, datasets and arguments do not fit each other, or a row is not usable.
    """

    loss_is_scaled_for_ga = True
    args: MultiTaskTrainingArguments
    model: MultiTaskModel
    processing_class: Processing
    train_dataset: Mixture | None
    eval_dataset: EvaluationRows | None
    data_collator: MixtureCollator
    hub_model_id: str | None = None
    push_in_progress: PushInProgress | None = None

    def __init__(
        self,
        model: MultiTaskModel | None = None,
        args: MultiTaskTrainingArguments | None = None,
        *,
        train_dataset: Datasets | None = None,
        eval_dataset: EvaluationData | None = None,
        processing_class: Processing | None = None,
        tasks: Mapping[str, Task] | None = None,
        model_init: Callable[..., MultiTaskModel] | None = None,
        sampler: SamplingRates | None = None,
        balancer: Balancer | None = None,
        aggregator: object | None = None,
        teachers: Mapping[str, Given] | None = None,
        compute_metrics: Mapping[str, Metric] | None = None,
        preprocess_logits_for_metrics: Preprocess | Mapping[str, Preprocess] | None = None,
        compute_loss_func: object = None,
        data_collator: object = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
    ) -> None:
        args, processing_class = check_setup(args, processing_class, model, model_init)
        self.args, self.processing_class, self.model_init = args, processing_class, model_init
        set_seed(args.seed)  # for model_init, and for heads whose labels were left out
        self.model = model = cast(MultiTaskModel, super().call_model_init()) if model is None else model
        check_kinds(model, sampler, balancer, compute_metrics, compute_loss_func, data_collator)
        self.metric_by_task = dict(compute_metrics or {})
        preprocess = preprocessing(preprocess_logits_for_metrics, self.metric_by_task)
        data, own = (train_dataset, eval_dataset), self.metric_by_task
        self.measures = type(self).evaluate is MultiTaskTrainer.evaluate  # one's own may measure more
        self.tasks = settle_tasks(model, args, tasks, processing_class, data, own=own, measured=self.measures)
        adopt(model, args, self.tasks, processing_class)
        self.runtime = runtime = TrainerRuntime(self)
        self.pusher = Pusher(self, runtime)
        self.plan = Plan(runtime, self.tasks, processing_class, sampler)
        self.teachers = Teachers(runtime, self.tasks, teachers, processing_class)
        mixture = None if train_dataset is None else self.plan.read(train_dataset, self.teachers)
        super().__init__(
            model=model,
            args=args,
            data_collator=MixtureCollator(processing_class, self.tasks, seed=self.plan.seed),
            train_dataset=mixture,
            eval_dataset=None if not eval_dataset else self.evaluation_rows(eval_dataset, "evaluation"),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        begin_model(model, runtime, trains=mixture is not None)
        check_optimizing(args, model, optimizers, optimizer_cls_and_kwargs)
        self.hub_datasets: dict[str, str] = {}  # by dataset, its name on the Hub
        self.single_results: dict[str, Log] = {}  # by task, what a model of its own reaches, for the card
        self.own_balancer, self.model_init = balancer, model_init
        self.updates = UpdateBuilder(runtime, list(self.tasks), aggregator)
        self.constants = None if mixture is None else Constants(mixture, self.tasks, processing_class)
        parts = assemble(self, preprocess)
        self.evaluator, self.card, self.best, self.saver, self.running_loss, self.engine, self.course = parts
        add_callbacks(self)
        release_group_at_exit(self)

    @property
    def task_weights(self) -> dict[str, float]:
        """The fixed weight of every task's loss, by the arguments as they are, which a search changes."""
        return dict.fromkeys(self.tasks, 1.0) | (cast("dict[str, float] | None", self.args.task_weights) or {})

    def call_model_init(self, trial: Trial = None) -> MultiTaskModel:
        """A fresh model from ``model_init``, for the tasks of this trainer."""
        model = cast(MultiTaskModel, super().call_model_init(trial))
        adopt(model, self.args, self.tasks, self.processing_class)
        return model

    def hyperparameter_search(
        self,
        hp_space: Callable[..., dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "maximize",
        **kwargs: object,
    ) -> BestRun | list[BestRun]:
        """Search for the best arguments, as ``Trainer.hyperparameter_search`` does; needs ``model_init``.

        ``hp_space`` gives any arguments, as ``{"task_weights": {"ner": 2.0}}``; the objective is ``eval_average``.
        """
        if self.eval_dataset is None:
            raise ValueError("A search measures what it finds. Give eval_dataset.")
        run: Callable[..., BestRun | list[BestRun]] = super().hyperparameter_search
        return run(hp_space, compute_objective or (lambda found: found["eval_average"]), n_trials, direction, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Those that weight decay is for, whatever tasks and branches are called."""
        return decaying_names(super().get_decay_parameter_names, model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with the rates and decays that the arguments give to tasks and layers."""
        built, trained = self.optimizer is not None, self.model if model is None else model
        optimizer = super().create_optimizer(model)
        return optimizer if built else regroup(optimizer, trained, self.get_decay_parameter_names(trained), self.args)

    @property
    def aggregator(self) -> Aggregator | None:
        """The method that makes one update of the per-task gradients, if there is one."""
        return self.engine.update.aggregator

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of this process, step by step."""
        if self.is_in_train:
            self.course.begin_loop(self._train_batch_size)
        return self.plan.loader(self.data_collator)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        """The micro-batches of an optimizer step, and the items of every task in it."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.plan.note_anchors(batches)
        items = self.engine.open(batches, self.best.finished)
        if self.args.include_num_input_tokens_seen != "no":
            add_tokens(batches, (self.model.main_input_name, "attention_mask"))
        return batches, items

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Items | None = None) -> torch.Tensor:
        """Forward and backward of each part of a micro-batch; the loss of the step with its last one, 0 before."""
        return self.engine.run(model, inputs["forwards"], num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Items | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, MultiTaskOutput]:
        """The weighted sum of the task losses of one of a micro-batch's ``forwards``, each divided by the step's items.

        Distributed training averages gradients over processes, so the loss is multiplied by their number.
        """
        loss, outputs = self.engine.loss(model, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Norm:
        return self.engine.guard.grad_norm  # the gradients are clipped by now

    def _get_grad_norm(self, model: nn.Module, grad_norm: Norm = None) -> Norm:
        return self.engine.guard.grad_norm

    def floating_point_ops(self, inputs: Batch) -> int:
        """Estimated operations of all parts of a micro-batch."""
        return self.engine.operations(inputs["forwards"], super().floating_point_ops)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the :meth:`Engine.figures` of each task since the last log; ``train_loss`` is that of the whole run."""
        if "loss" in logs:
            logs |= {name if task is None else key_of(task, name): value for task, name, value in self.engine.figures()}
        if "train_loss" in logs:
            logs["train_loss"] = self.running_loss.mean()
        self.saver.log(super().log, logs, start_time)

    def evaluation_rows(self, data: EvaluationData, split: str) -> EvaluationRows:
        """Rows of every task that has data in a split, checked and tokenized."""
        return self.plan.evaluation_rows(data, split, self.metric_by_task)

    def get_test_dataloader(self, test_dataset: EvaluationRows) -> DataLoader:
        """This rank's rows in batches that mix the tasks, the shortest first."""
        return self.evaluator.loader(test_dataset)

    def prediction_step(
        self, model: nn.Module, inputs: Inputs, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Keep, of every task in the batch, predictions, each row's summed loss and number of items, and labels."""
        self.evaluator.step(model, inputs)
        return None, None, None

    def evaluate(
        self,
        eval_dataset: EvaluationData | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure every task that has data: ``eval_<task>_<metric>``, ``eval_<task>_loss``, and ``eval_average``.

        The last is the mean of the primary metrics; further sets add ``eval_<set>_<task>_<metric>``. ``eval_dataset``
        is that of the trainer if None. A ValueError says that there are no rows, or which one is not usable.
        """
        rows = self.eval_dataset if eval_dataset is None else self.evaluation_rows(eval_dataset, metric_key_prefix)
        if rows is None:
            raise ValueError("There is nothing to evaluate. Give eval_dataset.")
        metrics = self.course.log(self.evaluator.evaluate_sets(rows, metric_key_prefix, self.eval_dataset))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, test_dataset: Datasets, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> dict[str, PredictionOutput]:
        """Logits, labels and metrics by task, of the rows with a label, in their order; logits of all if none has one.
        A task on tokens has the labeled ones, (N, W, C) and (N, W), padded with -100; question answering labels are
        window, first and last token of the answer.
        """
        rows = self.plan.evaluation_rows(test_dataset, metric_key_prefix, self.metric_by_task, predicts=True)
        return self.evaluator.predict(rows, metric_key_prefix)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and its card, and push it where ``push_to_hub`` is set; a push that fails is logged."""
        self.saver.save_model(super().save_model, output_dir)
        if not _internal_call:  # for checkpoints, and for a push, which writes the card itself
            self.pusher.push_saved()
            self.card.write(Path(output_dir or str(self.args.output_dir)), None)

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        datasets: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
    ) -> None:
        """Write the model card into ``output_dir``; what a user has changed in it stays.

        Metadata that are given stay in later cards. A ``model_name`` with an owner, as in ``me/model``, is also the
        name in the card's code; ``dataset_tags`` is the Trainer's word for ``datasets``.
        """
        data = datasets or dataset_tags
        self.card.give(language=language, license=license, tags=tags, base_model=finetuned_from, datasets=data)
        self.card.write(Path(str(self.args.output_dir)), model_name)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository and the branch of ``hub_revision``; see :meth:`Pusher.create`."""
        self.pusher.create(super().init_hf_repo, token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """Save model, code, tokenizer and card in ``output_dir`` and push it; a ``revision`` that is not there is made.

        Raises:
            PushError: the Hub refuses, or is not there; what was to be pushed is saved.
        """
        self._finish_current_push()  # which reads the files that are written now
        push = super().push_to_hub
        return self.pusher.push(push, commit_message, blocking, token, revision, private=private, metadata=kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.saver.seal_last(Path(checkpoint_folder))  # before it is read
        if not self.pusher.leaves_out():
            self._finish_current_push()
            self.pusher.push_checkpoint(super()._push_from_checkpoint, checkpoint_folder)

    def _finish_current_push(self) -> None:
        self.pusher.finish(super()._finish_current_push)

    @property
    def progress(self) -> Progress:
        """What a checkpoint would hold of the parts now."""
        return self.course.progress

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Trial = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or resume from a checkpoint, as ``Trainer.train`` does; True resumes from the last whole one.

        SIGTERM or Ctrl-C end the run after the optimizer step that it is in, with a checkpoint; a second one ends it at
        once. An argument that differs from those of the checkpoint takes effect from then on, or is refused.

        Raises:
            SystemExit, KeyboardInterrupt: the run was ended by SIGTERM, with code 143, or by Ctrl-C.
            ValueError: there is no checkpoint to resume from, it is not one of this run, another run uses
                ``output_dir``, or the run ends with weights that are NaN or infinite.
        """
        self.course.begin()
        return self.saver.train(super().train, resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.course.resume(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _run_epoch(self, *args: object, **kwargs: object) -> None:
        self.control.should_training_stop |= self.course.is_over()
        if not self.control.should_training_stop:  # the Trainer would look only after another step
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        due = partial(super()._maybe_log_save_evaluate, *args, **kwargs)
        self.saver.after_step(due, model=args[2], trial=args[3])

    def _determine_best_metric(self, metrics: dict[str, float], trial: Trial) -> bool:
        self.course.evaluated(metrics, self._get_output_dir(trial=trial))
        return super()._determine_best_metric(metrics=metrics, trial=trial)

    def _save_checkpoint(self, model: nn.Module, trial: Trial) -> None:
        self.course.note()
        self.saver.save_checkpoint(super()._save_checkpoint, model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.saver.save_files(super()._save, output_dir, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        self.saver.save_random_state(super()._save_rng_state, output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self.saver.load_random_state(super()._load_rng_state, checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.saver.load_optimizer(super()._load_optimizer_and_scheduler, checkpoint)

    def _finalize_training(self, *args: object, **kwargs: object) -> TrainOutput:
        return self.running_loss.finalize(super()._finalize_training, *args, **kwargs)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Save metrics, as in ``Trainer``, and ``eval_report.json``; a damaged file of all results is replaced."""
        self.saver.save_metrics(self.evaluator.with_report(super().save_metrics), split, metrics, combined)
