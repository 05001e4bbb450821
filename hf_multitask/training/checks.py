"""What is checked of the arguments of a trainer before anything is built of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import cast

from transformers import PreTrainedTokenizerBase

from ..modeling import MultiTaskModel
from ..tasks import Task
from .arguments import MultiTaskTrainingArguments
from .evaluation.results import check_primary
from .parameters import BACKBONE
from .preparation import check_names, check_watched
from .requirements import check_output_dir, check_trackers


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


def check_given_names(
    args: MultiTaskTrainingArguments, tasks: Mapping[str, Task], weights: Mapping[str, float]
) -> None:
    """See that arguments by name name tasks, datasets and the backbone.

    Args:
        args: of the run.
        tasks: by name.
        weights: of the tasks' losses.

    Raises:
        ValueError: they do not, or nothing would train.
    """
    check_names("task_weights", cast("dict[str, float] | None", args.task_weights), tasks)
    if not any(weights.values()):
        raise ValueError("`task_weights` are 0 for every task, so nothing would train. Give one a weight above 0.")
    for argument in ("learning_rates", "weight_decays", "freeze"):
        check_names(argument, getattr(args, argument), [*tasks, BACKBONE])
    if isinstance(args.task_early_stopping_patience, Mapping):
        check_names("task_early_stopping_patience", args.task_early_stopping_patience, tasks)
    for argument in ("max_train_samples", "max_eval_samples"):
        if isinstance(caps := getattr(args, argument), Mapping):
            check_names(argument, caps, sorted({task.source for task in tasks.values()}), "dataset")


def check_metrics(
    args: MultiTaskTrainingArguments, tasks: Mapping[str, Task], own: Container[str], *, measured: bool
) -> None:
    """See that primary metrics grow, and that there will be a metric for the best model; set its direction.

    Args:
        args: of the run.
        tasks: by name.
        own: tasks whose metrics are the user's.
        measured: whether the evaluation is ours; one's own may measure more.

    Raises:
        ValueError: one falls, or there is none.
    """
    for name, task in tasks.items():
        if name not in own and task.metric_names:
            check_primary(task, task.metric_names[0])
    if args.eval_strategy != "no" and measured:
        args.set_direction(check_watched(args.metric_for_best_model, tasks, own))
