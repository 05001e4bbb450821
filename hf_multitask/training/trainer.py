"""The trainer: Transformers' own, with the hooks that a mixture of tasks needs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..balancing import Balancer
from ..data import Mixture, MixtureCollator, SamplingRates
from ..modeling import MultiTaskModel
from ..modeling.config import FORMAT_VERSION
from ..tasks import Task
from .arguments import OWN_TO_A_RANK, MultiTaskTrainingArguments
from .evaluation.evaluator import EvaluatingTrainer
from .evaluation.results import check_primary
from .evaluation.rows import EvaluationRows, Metric, Preprocess
from .parameters import BACKBONE, check_optimizer, check_precision, freeze, regroup
from .plan import MixingTrainer
from .preparation import (
    Datasets,
    build_tasks,
    check_datasets,
    check_kinds,
    check_measured,
    check_names,
    check_tokenizer,
    check_vocabulary,
    check_watched,
    ensure_pad_token,
    preprocessing,
    resolve_tasks,
    without_streams,
)
from .ranks import check_alike, release_group_at_exit
from .report.callbacks import PlanCallback, ResumableEarlyStopping
from .report.card import DescribingTrainer
from .report.console import SEVERAL, summary_callbacks
from .report.push import PushingTrainer
from .requirements import check_output_dir, check_trackers
from .state.checkpoint import check_checkpoint
from .state.loss import RunningLossTrainer
from .state.progress import BEST_FOLDER, Progress, tidy_best
from .state.resuming import check_arguments, compared
from .state.saving import SaveError, SavingTrainer
from .step.probe import InsightCallback, InsightTrainer
from .step.weighing import BalanceCallback
from .step.weights import Balance

logger = logging.get_logger(__name__)


class MultiTaskTrainer(
    MixingTrainer,
    DescribingTrainer,
    EvaluatingTrainer,
    InsightTrainer,
    RunningLossTrainer,
    PushingTrainer,
    SavingTrainer,
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
        self._check_names()
        evaluates = args.eval_strategy != "no"
        whole = without_streams(self.tasks, train_dataset)
        frozen = [name for name in args.freeze or () if name in model.heads]
        check_datasets(self.tasks, whole, eval_dataset, evaluates=evaluates, frozen=frozen)
        set_seed(args.seed)
        self.tasks = resolve_tasks(self.tasks, [whole, eval_dataset])
        self._check_metrics()
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
            for callback in summary_callbacks(shown, list(self.tasks), lambda: self.progress.metrics):
                self.add_callback(callback)
        if args.early_stopping_patience is not None:
            self.add_callback(ResumableEarlyStopping(args.early_stopping_patience))

    # What the arguments say of tasks; read anew at every training, as a hyperparameter search changes them

    @property
    def task_weights(self) -> dict[str, float]:
        """The fixed weight of every task's loss."""
        return dict.fromkeys(self.tasks, 1.0) | dict(self.args.task_weights or {})  # type: ignore[arg-type]

    def _check_names(self) -> None:
        """See that arguments by name name tasks, datasets and the backbone."""
        args: Any = self.args
        check_names("task_weights", args.task_weights, self.tasks)
        if not any(self.task_weights.values()):
            raise ValueError("`task_weights` are 0 for every task, so nothing would train. Give one a weight above 0.")
        for argument in ("learning_rates", "weight_decays", "freeze"):
            check_names(argument, getattr(args, argument), [*self.tasks, BACKBONE])
        if isinstance(args.task_early_stopping_patience, Mapping):
            check_names("task_early_stopping_patience", args.task_early_stopping_patience, self.tasks)
        for argument in ("max_train_samples", "max_eval_samples"):
            if isinstance(caps := getattr(args, argument), Mapping):
                check_names(argument, caps, sorted({task.source for task in self.tasks.values()}), "dataset")

    def _check_metrics(self) -> None:
        """See that primary metrics grow, and that there will be a metric for the best model, which has a direction."""
        for name, task in self.tasks.items():
            if name not in self.metric_by_task and task.metric_names:
                check_primary(task, task.metric_names[0])
        measures_ours = type(self).evaluate is MultiTaskTrainer.evaluate  # one's own may measure more
        if self.args.eval_strategy == "no" or not measures_ours:
            return
        self.args.set_direction(check_watched(self.args.metric_for_best_model, self.tasks, self.metric_by_task))

    def _adopt(self, model: MultiTaskModel) -> None:
        """Tell a model what the data say of its tasks, and which token is padding."""
        if model.config.format_version < FORMAT_VERSION:
            logger.warning(
                f"The model is of format {model.config.format_version}. Training and evaluation read words by the "
                f"rules of format {FORMAT_VERSION}, and so does the model from here on."
            )
            model.config.format_version = FORMAT_VERSION
        for name, task in self.tasks.items():
            model.set_task(name, task.to_dict())
        model.set_pad_token_id(self.processing_class.pad_token_id)
        if self.args.save_adapters_only:
            model.leave_out_backbone()

    def call_model_init(self, trial: Any = None) -> MultiTaskModel:
        """A fresh model from ``model_init``, for the tasks of this trainer."""
        model = cast(MultiTaskModel, super().call_model_init(trial))
        self._adopt(model)
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        built = (self.args.max_train_samples, self.args.max_eval_samples)
        super()._hp_search_setup(trial)
        if built != (self.args.max_train_samples, self.args.max_eval_samples):
            raise ValueError("Rows are chosen when the trainer is built. Leave max_*_samples out of the search.")
        self.args.check_mixture()
        self._check_names()
        self._check_metrics()
        freeze(self.model, self.args.freeze or ())
        self.balance = self._new_balance()

    def hyperparameter_search(
        self,
        hp_space: Callable[..., dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "maximize",
        **kwargs: Any,
    ) -> Any:
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
        return super().hyperparameter_search(hp_space, objective, n_trials, direction, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
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

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train, or go on from a checkpoint, as ``Trainer.train`` does; True takes the last whole one.

        SIGTERM or Ctrl-C end the run after the optimizer step that it is in, with a checkpoint; a second one ends it at
        once. An argument that differs from those of the checkpoint takes effect from then on, or is refused.

        Raises:
            SystemExit: with code 143, the run was ended by SIGTERM.
            KeyboardInterrupt: it was ended by Ctrl-C.
            ValueError: there is no checkpoint to go on from, it is not one of this run, or another run is at work in
                ``output_dir``.
        """
        self.progress = Progress()
        self._start = None
        self._drop_totals()
        self.balance = self._new_balance()
        self._seen_rows.zero_()
        if self.args.world_size > 1:
            check_alike(self._facts())
        return super().train(resume_from_checkpoint, **kwargs)

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
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

    def _is_over(self) -> bool:
        return super()._is_over() or set(self._training_tasks) <= set(self.progress.finished)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._count_seen()
        self.progress.data = self._row_order()
        self.progress.balancing = self.balance.state_dict()
        super()._save_checkpoint(model, trial)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.args.metric_for_best_model is not None:
            check_measured(self.args.metric_for_best_model, metrics)
        step, before = self.state.global_step, dict(self.progress.best)
        losses = {name: metrics.get(f"eval_{name}_loss", math.nan) for name in self.tasks}
        self.balance.on_evaluate({name: loss for name, loss in losses.items() if math.isfinite(loss)})
        better = self.progress.record(self._primary, step)
        if self.args.save_best_by_task:
            folder = Path(self._get_output_dir(trial=trial))
            try:
                if better:
                    self._write(self.save_model, str(folder / BEST_FOLDER / f"step-{step}"), _internal_call=True)
                self._write(self._tidy_best, folder)
            except SaveError as problem:
                self.progress.best = before
                self._give_up_best(folder, step, problem)
        self._finish_tasks()
        return super()._determine_best_metric(metrics=metrics, trial=trial)

    def _tidy_best(self, folder: Path) -> None:
        if self.args.should_save:
            tidy_best(folder, self.progress.best)

    def _give_up_best(self, folder: Path, step: int, problem: SaveError) -> None:
        """Go on with the best models that are kept, where a better one finds no place."""
        if self.args.should_save:
            shutil.rmtree(folder / BEST_FOLDER / f"step-{step}", ignore_errors=True)
            logger.warning(
                f"The model of step {step}, better than those before, could not be saved ({problem}); those before it "
                "are still there. Training goes on. Free some space."
            )

    def _finish_tasks(self) -> None:
        """Stop the tasks whose patience is at its end, and the datasets that nobody reads any more."""
        patience: Any = self.args.task_early_stopping_patience
        if patience is None:
            return
        by_task = patience if isinstance(patience, Mapping) else dict.fromkeys(self._training_tasks, patience)
        for sentence in self.progress.finish(by_task, self.state.global_step):
            logger.warning(sentence)
        self.progress.leave(self._mixture().tasks, math.ceil(self.state.epoch or 0))
        self._follow_progress()
        if set(self._training_tasks) <= set(self.progress.finished):
            self.control.should_training_stop = True
