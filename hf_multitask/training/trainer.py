"""The trainer: Transformers' own, with the hooks that a mixture of tasks needs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import CommitInfo
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
from transformers.trainer_utils import PredictionOutput, TrainOutput
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from ..balancing import Balancer
from ..data import Mixture, MixtureCollator, SamplingRates
from ..modeling import MultiTaskModel
from ..tasks import Task
from .arguments import OWN_TO_A_RANK, MultiTaskTrainingArguments
from .checks import adopt, check_given_names, check_metrics, check_setup, facts_of, settle_tasks, task_weights
from .evaluation.evaluator import Evaluator
from .evaluation.rows import EvaluationRows, Metric, Preprocess
from .parameters import check_optimizer, check_precision, freeze, regroup
from .plan import MixingTrainer
from .preparation import Datasets, check_kinds, check_measured, check_split, preprocessing
from .ranks import check_alike, release_group_at_exit
from .report.callbacks import ResumableEarlyStopping
from .report.card import CardCallback, CardWriter
from .report.console import SEVERAL, PlanCallback, summary_callbacks
from .report.picture import PictureCallback
from .report.push import Pusher
from .requirements import check_extras
from .runtime import Inputs, TrainerRuntime
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
    InsightTrainer,
    RunningLossTrainer,
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
    hub_model_id: str | None = None
    push_in_progress: PushInProgress | None = None
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
        args, processing_class = check_setup(args, processing_class, model, model_init)
        self.args = args
        self.processing_class = processing_class
        self.model_init = model_init
        set_seed(args.seed)  # for model_init, and for heads whose labels were left out
        model = cast(MultiTaskModel, super().call_model_init()) if model is None else model
        self.model = model
        check_kinds(model, sampler, balancer, compute_metrics)
        check_optimizer(optimizers[0], args)
        self.metric_by_task = dict(compute_metrics or {})
        preprocess = preprocessing(preprocess_logits_for_metrics, self.metric_by_task)
        self.own_rates = sampler
        self.own_balancer = balancer
        self.tasks = settle_tasks(
            model,
            args,
            tasks,
            tokenizer=processing_class,
            train=train_dataset,
            evaluation=eval_dataset,
            own=self.metric_by_task,
            measured=self._measures,
        )
        adopt(model, args, self.tasks, processing_class)
        runtime = TrainerRuntime(self)
        collator = MixtureCollator(processing_class, self.tasks, seed=self._data_seed)
        self.evaluator = Evaluator(
            runtime,
            tasks=self.tasks,
            metrics=self.metric_by_task,
            preprocess=preprocess,
            collator=collator,
            tokenizer=processing_class,
            sweep=self._sweep,
        )
        self.hub_datasets: dict[str, str] = {}  # by dataset, its name on the Hub
        self.card = CardWriter(runtime, self, measured=self.evaluator.measured_rows)
        self.pusher = Pusher(runtime)
        mixture = None if train_dataset is None else self._train_mixture(train_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=mixture,
            eval_dataset=None if not eval_dataset else self.evaluation_rows(eval_dataset, "evaluation"),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.add_callback(CardCallback(self))
        model.reads_in_parts = not self._sharded  # processes gather weights at every pass
        self.model_init = model_init
        self._steps = None if mixture is None else self._step_sampler()  # rates that do not fit the data fail here
        rows = 0 if mixture is None else len(mixture.sizes)
        self._seen_rows = torch.zeros(rows, dtype=torch.long, device=args.device)
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
        self.add_callback(PictureCallback(self))
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
        return task_weights(self.args, self.tasks)

    @property
    def _measures(self) -> bool:
        """Whether the evaluation is ours; one's own may measure more."""
        return type(self).evaluate is MultiTaskTrainer.evaluate

    def call_model_init(self, trial: Any = None) -> MultiTaskModel:
        """A fresh model from ``model_init``, for the tasks of this trainer."""
        model = cast(MultiTaskModel, super().call_model_init(trial))
        adopt(model, self.args, self.tasks, self.processing_class)
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        built = (self.args.max_train_samples, self.args.max_eval_samples)
        super()._hp_search_setup(trial)
        if built != (self.args.max_train_samples, self.args.max_eval_samples):
            raise ValueError("Rows are chosen when the trainer is built. Leave max_*_samples out of the search.")
        self.args.check_mixture()
        check_given_names(self.args, self.tasks)
        check_metrics(self.args, self.tasks, self.metric_by_task, measured=self._measures)
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

    # Evaluation

    def evaluation_rows(self, data: Datasets, split: str) -> EvaluationRows:
        """Rows of every task that has data in a split, checked and tokenised."""
        check_split(self.tasks, data, split)
        if not data:
            raise ValueError(f"The {split} data hold no dataset. Add one that a task reads.")
        check_extras(self.tasks, data, self.metric_by_task)
        rows = EvaluationRows(self._encode(self._capped(data, self.args.max_eval_samples), split, training=False))
        rows.check(split, self.args.world_size)
        return rows

    def get_test_dataloader(self, test_dataset: EvaluationRows) -> DataLoader:
        """This rank's rows in batches that mix the tasks, the shortest first."""
        return self.evaluator.loader(test_dataset)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[None, None, None]:
        """Keep, of every task in the batch, predictions, each row's summed loss and number of items, and labels."""
        self.evaluator.step(model, inputs)
        return None, None, None

    def _sweep(self, rows: EvaluationRows, title: str) -> int:
        loader = self.get_test_dataloader(rows)
        self.evaluation_loop(loader, description=title, prediction_loss_only=False)
        return len(loader)

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
        metrics = self.evaluator.evaluate(rows, metric_key_prefix)
        self.progress.metrics |= self.evaluator.metric_names
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
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
        return self.evaluator.predict(self.evaluation_rows(test_dataset, metric_key_prefix), metric_key_prefix)

    # Saves, cards and pushes

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and its card, as in ``Trainer``, and push it where ``push_to_hub`` is set.

        A push that fails is told and leaves the model saved.
        """
        super().save_model(output_dir, _internal_call=True)
        if _internal_call:  # for checkpoints, and for a push, which writes the card itself
            return
        if self.args.push_to_hub:
            with self.pusher.forgiving():
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
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

        Metadata that are given here stay in the card, and in those that this trainer writes later.

        Args:
            language: codes of the texts' languages, such as ``en``.
            license: of the model; none is made up where it is left out.
            tags: beside those that the card has.
            model_name: title; with the owner, as in ``me/model``, also the name in the card's code.
            finetuned_from: name of the backbone on the Hub, where it is not the one that the model was built from.
            datasets: names of the training data on the Hub.
            dataset_tags: the Trainer's word for the same.
        """
        datasets = datasets or dataset_tags
        self.card.give(language=language, license=license, tags=tags, base_model=finetuned_from, datasets=datasets)
        self.card.write(Path(str(self.args.output_dir)), model_name)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, and the branch that ``hub_revision`` names.

        Raises:
            PushError: the Hub refuses, or is not there.
        """
        with self.pusher.creating(private):
            super().init_hf_repo(token)
            self.pusher.make_branch(self.hub_model_id, self.args.hub_revision, token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """Save model, code, tokenizer and card in ``output_dir`` and push it, as ``Trainer.push_to_hub`` does.

        A ``revision`` that is not there is made. What a push before this one has uploaded is not uploaded again.

        Raises:
            PushError: the Hub refuses, or is not there; what was to be pushed is saved.
        """
        self._finish_current_push()  # which reads the files that are written now
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        kwargs.setdefault("model_name", self.hub_model_id)
        with self.pusher.pushing(self.hub_model_id):
            self.pusher.make_branch(self.hub_model_id, revision, token)
            return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.pusher.leaves_out(self.push_in_progress):
            return
        self._finish_current_push()
        with self.pusher.beginning(self.hub_model_id, checkpoint_folder):
            self.create_model_card(model_name=self.hub_model_id)
            super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        push, self.push_in_progress = self.push_in_progress, None
        self.pusher.tell_failures(self.hub_model_id, push)

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

    def _facts(self) -> dict[str, Any]:
        """What has to be the same on all ranks, in words that an error can say."""
        return {
            **self._row_order(),
            **facts_of(self.tasks),
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
        better = self.progress.record(self.evaluator.primary, step)
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
