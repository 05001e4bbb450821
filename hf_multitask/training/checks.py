"""What a trainer checks of its arguments, model and data before it is built, and what it tells the model of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from ..modeling import MultiTaskModel
from ..modeling.config import FORMAT_VERSION
from ..tasks import Task
from .arguments import MultiTaskTrainingArguments
from .evaluation.results import check_primary
from .evaluation.rows import Metric
from .parameters import BACKBONE
from .preparation import (
    Datasets,
    build_tasks,
    check_datasets,
    check_names,
    check_tokenizer,
    check_vocabulary,
    check_watched,
    ensure_pad_token,
    resolve_tasks,
    without_streams,
)
from .ranks import check_alike
from .requirements import check_output_dir, check_trackers

logger = logging.get_logger(__name__)


def check_setup(
    args: MultiTaskTrainingArguments | None,
    processing_class: PreTrainedTokenizerBase | None,
    model: MultiTaskModel | None,
    model_init: Callable[..., MultiTaskModel] | None,
) -> tuple[MultiTaskTrainingArguments, PreTrainedTokenizerBase]:
    """See that a trainer is given what it cannot do without, and that it can run here; arguments and tokenizer.

    Raises:
        TypeError: the arguments are of another kind.
        ValueError: something is missing, or there is no place for what is written.
    """
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
    return args, processing_class


def task_weights(args: MultiTaskTrainingArguments, tasks: Iterable[str]) -> dict[str, float]:
    """The fixed weight of every task's loss."""
    return dict.fromkeys(tasks, 1.0) | (cast("dict[str, float] | None", args.task_weights) or {})


def check_given_names(args: MultiTaskTrainingArguments, tasks: Mapping[str, Task]) -> None:
    """See that arguments by name name tasks, datasets and the backbone.

    Raises:
        ValueError: they do not, or nothing would train.
    """
    check_names("task_weights", cast("dict[str, float] | None", args.task_weights), tasks)
    if not any(task_weights(args, tasks).values()):
        raise ValueError("`task_weights` are 0 for every task, so nothing would train. Give one a weight above 0.")
    for argument in ("learning_rates", "weight_decays", "freeze"):
        check_names(argument, getattr(args, argument), [*tasks, BACKBONE])
    if isinstance(args.task_early_stopping_patience, Mapping):
        check_names("task_early_stopping_patience", args.task_early_stopping_patience, tasks)
    for argument in ("max_train_samples", "max_eval_samples"):
        if isinstance(caps := getattr(args, argument), Mapping):
            check_names(argument, caps, sorted({task.source for task in tasks.values()}), "dataset")


def check_metrics(
    args: MultiTaskTrainingArguments, tasks: Mapping[str, Task], own: Mapping[str, Metric], *, measured: bool
) -> None:
    """See that primary metrics grow, and that there will be a metric for the best model; set its direction.

    Args:
        args: of the run.
        tasks: by name.
        own: by task, metrics of the user's.
        measured: whether the evaluation is ours; one's own may measure more.

    Raises:
        ValueError: one falls, or there is none.
    """
    for name, task in tasks.items():
        if name not in own and task.metric_names:
            check_primary(task, task.metric_names[0])
    if args.eval_strategy != "no" and measured:
        args.set_direction(check_watched(args.metric_for_best_model, tasks, own))


def settle_tasks(
    model: MultiTaskModel,
    args: MultiTaskTrainingArguments,
    overrides: Mapping[str, Task] | None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    train: Datasets | None,
    evaluation: Datasets | None,
    own: Mapping[str, Metric],
    measured: bool,
) -> dict[str, Task]:
    """The tasks of a trainer, whose labels are known, once all that it is given fits together.

    Args:
        model: that trains.
        args: of the run.
        overrides: tasks in place of the model's.
        tokenizer: the backbone's; it has a padding token then.
        train: raw rows by dataset.
        evaluation: likewise.
        own: by task, metrics of the user's.
        measured: whether the evaluation is ours.

    Raises:
        ValueError: something does not fit, or is not the same on all ranks.
    """
    tasks = build_tasks(model.config, overrides)
    check_tokenizer(tasks, tokenizer)
    check_names("compute_metrics", own, tasks)
    check_given_names(args, tasks)
    whole = without_streams(tasks, train)
    frozen = [name for name in args.freeze or () if name in model.heads]
    check_datasets(tasks, whole, evaluation, evaluates=args.eval_strategy != "no", frozen=frozen)
    set_seed(args.seed)
    tasks = resolve_tasks(tasks, [whole, evaluation])
    check_metrics(args, tasks, own, measured=measured)
    if args.world_size > 1:
        check_alike(facts_of(tasks))
    ensure_pad_token(tokenizer)
    check_vocabulary(tokenizer, model)
    return tasks


def facts_of(tasks: Mapping[str, Task]) -> dict[str, dict[str, dict[str, Any]]]:
    """What of the tasks has to be the same on all ranks, in words that an error can say."""
    return {"tasks": {name: task.to_dict() for name, task in tasks.items()}}


def adopt(
    model: MultiTaskModel,
    args: MultiTaskTrainingArguments,
    tasks: Mapping[str, Task],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Tell a model what the data say of its tasks, and which token is padding."""
    if model.config.format_version < FORMAT_VERSION:
        logger.warning(
            f"The model is of format {model.config.format_version}. Training and evaluation read words by the "
            f"rules of format {FORMAT_VERSION}, and so does the model from here on."
        )
        model.config.format_version = FORMAT_VERSION
    for name, task in tasks.items():
        model.set_task(name, task.to_dict())
    model.set_pad_token_id(tokenizer.pad_token_id)
    if args.save_adapters_only:
        model.leave_out_backbone()
