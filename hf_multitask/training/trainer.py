"""The trainer: Transformers' own, with the hooks that a mixture of tasks needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import BestRun, TrainOutput
from transformers.utils import logging

from ..balancing import Balancer
from ..data import Mixture, MixtureCollator, SamplingRates
from ..modeling import MultiTaskModel
from ..tasks import Task
from .arguments import OWN_TO_A_RANK, MultiTaskTrainingArguments
from .evaluation.evaluator import EvaluatingTrainer
from .evaluation.rows import EvaluationRows, Metric, Preprocess
from .named import check_arguments_by_name, check_measured, check_metrics, check_names
from .parameters import check_optimizer, check_precision, freeze, regroup
from .plan import MixingTrainer
from .preparation import (
    Datasets,
    adopt_model,
    build_tasks,
    check_datasets,
    check_kinds,
    check_tokenizer,
    check_vocabulary,
    ensure_pad_token,
    preprocessing,
    resolve_tasks,
    without_streams,
)
from .ranks import check_alike, release_group_at_exit
from .report.callbacks import PlanCallback
from .report.card import DescribingTrainer
from .report.console import SEVERAL, summary_callbacks
from .report.push import PushingTrainer
from .requirements import check_output_dir, check_trackers
from .runtime import TrainerRuntime
from .state.best import Best, ResumableEarlyStopping
from .state.checkpoint import check_checkpoint
from .state.loss import RunningLoss
from .state.progress import Progress
from .state.resuming import check_arguments, compared
from .state.saving import Saver, Trial
from .step.probe import InsightCallback, InsightTrainer
from .step.weighing import BalanceCallback
from .step.weights import Balance

logger = logging.get_logger(__name__)


class MultiTaskTrainer(
    MixingTrainer,
    DescribingTrainer,
    EvaluatingTrainer,
    InsightTrainer,
    PushingTrainer,
):
    """Trains a :class:`MultiTaskModel` on batches that mix its tasks.

    The loss of an optimizer step is ``sum over tasks t of w_t * (sum of t's item losses) / (number of t's items)``,
    over all micro-batches and ranks of the step, so it depends on neither.

    Args:
        model: built by ``from_backbone``, or loaded; left out where ``model_init`` is given.
        args: see :class:`MultiTaskTrainingArguments`.
        train_dataset: raw rows by dataset name, ``Dataset`` or ``IterableDataset``; a task reads the dataset of its own
            name unless it names another.
        eval_dataset: likewise, for evaluation.
        processing_class: the backbone's tokenizer.
        tasks: by name, tasks in place of the model's: other columns, the same labels.
        model_init: makes a fresh model for every training, as in ``Trainer``; what a hyperparameter search needs.
        sampler: sampling rates in place of ``args.sampling``.
        balancer: weighs the tasks in place of ``args.balancing``.
        aggregator: in place of ``args.aggregation``, an aggregator of :mod:`hf_multitask.aggregation`, or a weighting
            of torchjd's that remembers nothing.
        compute_metrics: by task, metrics in place of the task's own; the first one counts for the average.
        preprocess_logits_for_metrics: what is kept for ``compute_metrics`` of a batch's logits and labels, as in
            ``Trainer``; one function for all tasks that have ``compute_metrics``, or by task.
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
    eval_dataset: EvaluationRows | None
    data_collator: MixtureCollator
    _told_on_resume: list[str]
    _start: Progress
    _begun_with: int | None = None

    def __init__(
        self,
        model: MultiTaskModel | None = None,
        args: MultiTaskTrainingArguments | None = None,
        *,
        train_dataset: Datasets | None = None,
        eval_dataset: Datasets | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        tasks: Mapping[str, Task] | None = None,
        model_init: Callable[..., MultiTaskModel] | None = None,
        sampler: SamplingRates | None = None,
        balancer: Balancer | None = None,
        aggregator: Any = None,
        compute_metrics: Mapping[str, Metric] | None = None,
        preprocess_logits_for_metrics: Preprocess | Mapping[str, Preprocess] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        if not isinstance(args, MultiTaskTrainingArguments):
            raise TypeError(f"`args` should be MultiTaskTrainingArguments. Found {type(args).__name__}.")
        if processing_class is None:
            raise ValueError("The trainer tokenises the rows. Give the backbone's tokenizer as processing_class.")
        if args.should_save:
            check_output_dir(str(args.output_dir))
        check_trackers(args.report_to or ())
        if args.n_gpu > 1:
            raise ValueError("nn.DataParallel is not supported. Start one process per GPU, for example with torchrun.")
        if (model is None) == (model_init is None):
            raise ValueError("The trainer takes either a model or a model_init. Give one of them.")
        self.args = args
        self.processing_class = processing_class
        self.model_init = model_init
        set_seed(args.seed)  # for model_init, and for heads whose labels were left out
        model = cast(MultiTaskModel, super().call_model_init()) if model is None else model
        self.model = model
        check_kinds(model, sampler, balancer, compute_metrics)
        check_optimizer(optimizers[0], args)
        self.tasks = build_tasks(model.config, tasks)
        check_tokenizer(self.tasks, processing_class)
        check_names("compute_metrics", compute_metrics, self.tasks)
        self.metric_by_task = dict(compute_metrics or {})
        self.preprocess_by_task = preprocessing(preprocess_logits_for_metrics, self.metric_by_task)
        self.own_rates = sampler
        self.own_balancer = balancer
        check_arguments_by_name(args, self.tasks)
        evaluates = args.eval_strategy != "no"
        whole = without_streams(self.tasks, train_dataset)
        frozen = [name for name in args.freeze or () if name in model.heads]
        check_datasets(self.tasks, whole, eval_dataset, evaluates=evaluates, frozen=frozen)
        set_seed(args.seed)
        self.tasks = resolve_tasks(self.tasks, [whole, eval_dataset])
        self._check_arguments()
        if args.world_size > 1:
            check_alike(self._task_facts())
        ensure_pad_token(processing_class)
        check_vocabulary(processing_class, model)
        self._adopt(model)
        mixture = None if train_dataset is None else self._train_mixture(train_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=MixtureCollator(processing_class, self.tasks, seed=self._data_seed),
            train_dataset=mixture,
            eval_dataset=None if not eval_dataset else self.evaluation_rows(eval_dataset, "evaluation"),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.runtime = TrainerRuntime(self)
        self.saver = Saver(self, self.runtime, lambda folder: self.progress.save(folder))
        self.best = Best()
        self.running_loss = RunningLoss(self, self._tell_sums, self._take_up_sums)
        self.progress = Progress()
        self._caps = args.max_train_samples, args.max_eval_samples
        self.add_callback(self.saver.after_epoch)
        self.add_callback(self.running_loss)
        model.reads_in_parts = not self._sharded  # processes gather weights at every pass
        self.model_init = model_init
        self._steps = None if mixture is None else self._step_sampler()  # rates that do not fit the data fail here
        rows = 0 if mixture is None else len(mixture.sizes)
        self._seen_rows = torch.zeros(rows, dtype=torch.long, device=args.device)
        self._primary: dict[str, tuple[str, float]] = {}
        freeze(model, args.freeze or ())
        told = "" if self.is_deepspeed_enabled else check_precision(model, fp16=args.fp16)  # it has float32 copies
        if told and self.is_world_process_zero():
            logger.warning(told)
        self._set_aggregator(aggregator)
        self._drop_totals()
        self.balance = Balance(None, list(self.tasks), self.task_weights) if mixture is None else self._new_balance()
        release_group_at_exit(self)
        self.add_callback(PlanCallback(self))
        self.add_callback(BalanceCallback(self))
        self.add_callback(InsightCallback(self))
        if len(self.tasks) > SEVERAL:
            consoles = [self.pop_callback(PrinterCallback), self.pop_callback(ProgressCallback)]
            shown = next((type(callback) for callback in consoles if callback is not None), None)
            for callback in summary_callbacks(shown, list(self.tasks)):
                self.add_callback(callback)
        if args.early_stopping_patience is not None:
            self.add_callback(ResumableEarlyStopping(args.early_stopping_patience))

    # What the arguments say of tasks; read anew at every training, as a hyperparameter search changes them

    @property
    def task_weights(self) -> dict[str, float]:
        """The fixed weight of every task's loss."""
        return dict.fromkeys(self.tasks, 1.0) | dict(self.args.task_weights or {})  # type: ignore[arg-type]

    def _check_arguments(self) -> None:
        """See that what the arguments name is there; a subclass with an ``evaluate`` of its own may measure more."""
        check_arguments_by_name(self.args, self.tasks)
        ours = self.args.eval_strategy != "no" and type(self).evaluate is MultiTaskTrainer.evaluate
        check_metrics(self.args, self.tasks, self.metric_by_task, measured=ours)

    def _adopt(self, model: MultiTaskModel) -> None:
        adopt_model(model, self.tasks, self.processing_class.pad_token_id)
        if self.args.save_adapters_only:
            model.leave_out_backbone()

    def call_model_init(self, trial: Trial = None) -> MultiTaskModel:
        """A fresh model from ``model_init``, for the tasks of this trainer."""
        model = cast(MultiTaskModel, super().call_model_init(trial))
        self._adopt(model)
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

        Args:
            hp_space: any fields of the arguments, those by task too: ``{"task_weights": {"ner": trial.suggest_...}}``.
            compute_objective: of the metrics of an evaluation; ``eval_average`` where None.
            n_trials: trainings.
            direction: of the objective.
            kwargs: as in ``Trainer``.
        """
        if self.eval_dataset is None:
            raise ValueError("A search measures what it finds. Give eval_dataset.")
        objective = compute_objective or (lambda metrics: metrics["eval_average"])
        search: Callable[..., BestRun | list[BestRun]] = super().hyperparameter_search
        return search(hp_space, objective, n_trials, direction, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with the rates and decays that the arguments give to tasks and layers."""
        built = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        args: Any = self.args
        if not built and (args.learning_rates or args.weight_decays or args.layerwise_lr_decay is not None):
            trained = self.model if model is None else model
            regroup(
                optimizer,
                trained,
                decaying=self.get_decay_parameter_names(trained),
                learning_rates=args.learning_rates or {},
                weight_decays=args.weight_decays or {},
                layerwise_decay=args.layerwise_lr_decay,
            )
        return optimizer

    # Progress: what a checkpoint holds beyond the Trainer's own state

    @property
    def progress(self) -> Progress:
        """What a checkpoint holds of the parts, as it is now."""
        for part in (self.best, self.running_loss, self.saver):
            vars(self._progress).update(part.state_dict())
        return self._progress

    @progress.setter
    def progress(self, progress: Progress) -> None:
        self._progress = progress
        for part in (self.best, self.running_loss, self.saver):
            part.load_state_dict(vars(progress))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Trial = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or go on from a checkpoint, as ``Trainer.train`` does; True takes the last whole one.

        SIGTERM or Ctrl-C end the run after the optimizer step that it is in, with a checkpoint; a second one ends it at
        once. An argument that differs from those of the checkpoint takes effect from then on, or is refused.

        Raises:
            SystemExit: with code 143, the run was ended by SIGTERM.
            KeyboardInterrupt: it was ended by Ctrl-C.
            ValueError: there is no checkpoint to go on from, it is not one of this run, another run is at work in
                ``output_dir``, or it ends with weights that are NaN or infinite.
        """
        self.progress = Progress()
        self._begun_with = None
        self._drop_totals()
        self.balance = self._new_balance()
        self._seen_rows.zero_()
        if self.args.world_size > 1:
            check_alike(self._facts())
        return self.saver.train(super().train, resume_from_checkpoint, trial, ignore_keys_for_eval)

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank, step by step; a training begins with them."""
        if self.is_in_train and self._begun_with != self._train_batch_size:
            self._begin()
        return super().get_train_dataloader()

    def _begin(self) -> None:
        """Count and weigh from the start, also where ``auto_find_batch_size`` starts again with a smaller batch."""
        if self._begun_with is None:
            self._see_arguments()
            self._start = deepcopy(self.progress)
        else:
            self.progress = deepcopy(self._start)
            self._begin_again()
        self._begun_with = self._train_batch_size

    def _see_arguments(self) -> None:
        """See that what the arguments say by now can be done, those of a trial too, and freeze a fresh model."""
        if self.hp_search_backend is not None:
            if self._caps != (self.args.max_train_samples, self.args.max_eval_samples):
                raise ValueError("Rows are chosen when the trainer is built. Leave max_*_samples out of the search.")
            self.balance = self._new_balance()
            if self.progress.balancing:
                self.balance.load_state_dict(self.progress.balancing, "of the start")
        self.args.check_mixture()
        self._check_arguments()
        freeze(self.model, self.args.freeze or ())

    def read_progress(self, checkpoint: str) -> Progress:
        """What a checkpoint holds beyond the Trainer's own state.

        Raises:
            ValueError: this run cannot go on from it: it is torn, or of other tasks, data, arguments or another
                version.
        """
        check_checkpoint(checkpoint, self.model)
        progress = Progress.load(checkpoint)
        if self.args.auto_find_batch_size:  # the Trainer goes on with the size that was found, and sees to it too late
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            self._train_batch_size = state.train_batch_size or self._train_batch_size
        if not self.args.ignore_data_skip:
            progress.check_data(self._row_order(), checkpoint)
        self._told_on_resume = check_arguments(progress.arguments, compared(self.args), checkpoint, progress.optimizer)
        return progress

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.progress = self.read_progress(resume_from_checkpoint)
        for sentence in self._told_on_resume if self.is_world_process_zero() else ():
            logger.warning(sentence)
        self._follow_progress()
        self.balance.load_state_dict(self.progress.balancing, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _task_facts(self) -> dict[str, Any]:
        return {"tasks": {name: task.to_dict() for name, task in self.tasks.items()}}

    def _facts(self) -> dict[str, Any]:
        """What has to be the same on all ranks, in words that an error can say."""
        return {
            **self._row_order(),
            **self._task_facts(),
            "arguments": {key: value for key, value in self.args.to_dict().items() if key not in OWN_TO_A_RANK},
        }

    def _tell_sums(self) -> dict[str, Any]:
        return {"rows": self._total_rows.tolist(), "tasks": self._logged, "left_out": self._left_out}

    def _take_up_sums(self, sums: Mapping[str, Any]) -> None:
        self._total_rows += torch.tensor(sums["rows"], device=self._total_rows.device)
        self._logged = {name: list(sums["tasks"][name]) for name in self._logged}
        self._left_out = dict(sums["left_out"])

    # The Trainer's hooks of a run and its checkpoints

    def _run_epoch(self, *args: object, **kwargs: object) -> None:
        over = self.state.global_step >= self.state.max_steps or self.best.is_all(self._training_tasks)
        self.control.should_training_stop |= over  # as in a run that was killed after its last checkpoint
        if not self.control.should_training_stop:  # the Trainer would look only after another step
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: torch.Tensor | float | None,
        model: nn.Module,
        trial: Trial,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        given = (tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time)
        due = partial(super()._maybe_log_save_evaluate, *given, learning_rate=learning_rate)
        self.saver.after_step(due, model, trial)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Trial) -> bool:
        if self.args.metric_for_best_model is not None:
            check_measured(self.args.metric_for_best_model, metrics)
        losses = {name: metrics.get(f"eval_{name}_loss", math.nan) for name in self.tasks}
        self.balance.on_evaluate({name: loss for name, loss in losses.items() if math.isfinite(loss)})
        folder = Path(self._get_output_dir(trial=trial)) if self.args.save_best_by_task else None
        self.best.keep(self._primary, self.state.global_step, folder, self.saver)
        self._stop_tasks()
        self.saver.note_best()
        return super()._determine_best_metric(metrics=metrics, trial=trial)

    def _stop_tasks(self) -> None:
        patience = cast(Mapping[str, int] | int | None, self.args.task_early_stopping_patience)
        tasks = self._training_tasks
        if patience is not None:
            by_task = patience if isinstance(patience, Mapping) else dict.fromkeys(tasks, patience)
            self.best.stop(by_task, self.state.global_step, self._mixture().tasks, math.ceil(self.state.epoch or 0))
            self._follow_progress()
            self.control.should_training_stop |= self.best.is_all(tasks)

    def _save_checkpoint(self, model: nn.Module, trial: Trial) -> None:
        self._count_seen()
        self._count_rows()
        self.running_loss.note()
        progress = self.progress
        progress.data, progress.balancing = self._row_order(), self.balance.state_dict()
        self.saver.save_checkpoint(super()._save_checkpoint, model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and its card, as in ``Trainer``; one with weights that are NaN or infinite is not saved."""
        self.saver.save_model(super().save_model, output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.saver.save_files(super()._save, output_dir, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        self.saver.save_random_state(super()._save_rng_state, output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self.saver.load_random_state(super()._load_rng_state, checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.saver.load_optimizer(super()._load_optimizer_and_scheduler, checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.saver.seal_last(Path(checkpoint_folder))  # before it is read
        super()._push_from_checkpoint(checkpoint_folder)

    def _finalize_training(self, *args: object, **kwargs: object) -> TrainOutput:
        return self.running_loss.finalize(super()._finalize_training, *args, **kwargs)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Save metrics, as in ``Trainer``; a file of all results that a killed run has torn is begun anew."""
        self.saver.save_metrics(super().save_metrics, split, metrics, combined)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, as in ``Trainer``, with the training loss of the whole run; curves that find no place are given up."""
        if "train_loss" in logs:
            logs["train_loss"] = self.running_loss.mean()
        self.saver.log(super().log, logs, start_time)
