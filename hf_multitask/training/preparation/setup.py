"""What a trainer checks of its arguments, model and data before it is built, and what it tells the model of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from transformers import set_seed
from transformers.utils import logging

from ...modeling import Head, MultiTaskModel
from ...modeling.processors import tokenizer_of
from ...tasks import Task
from ..arguments import MultiTaskTrainingArguments
from ..evaluation.rows import Metric
from ..parameters import check_precision, freeze
from ..ranks import check_alike
from ..runtime import Runtime
from .class_weights import check_balanced
from .named import check_arguments_by_name, check_metrics, check_names
from .processors import Processing, check_processors, check_vocabulary, ensure_pad_token
from .requirements import check_output_dir, check_trackers
from .sets import EvaluationData, split_sets
from .tasks import (
    Datasets,
    adopt_model,
    build_tasks,
    check_datasets,
    check_split,
    resolve_tasks,
    without_streams,
)

logger = logging.get_logger(__name__)


def check_setup(
    args: MultiTaskTrainingArguments | None,
    processing_class: Processing | None,
    model: MultiTaskModel | None,
    model_init: Callable[..., MultiTaskModel] | None,
) -> tuple[MultiTaskTrainingArguments, Processing]:
    """See that a trainer is given what it cannot do without, and that it can run here; arguments and tokenizer.

    Raises:
        TypeError: the arguments are of another kind.
        ValueError: something is missing, or there is no place for what is written.
    """
    if not isinstance(args, MultiTaskTrainingArguments):
        raise TypeError(f"`args` should be MultiTaskTrainingArguments. Found {type(args).__name__}.")
    if processing_class is None:
        raise ValueError("The trainer tokenizes the rows. Give the backbone's tokenizer as processing_class.")
    if args.should_save:
        check_output_dir(str(args.output_dir))
    check_trackers(args.report_to or ())
    for message in args.idle if args.process_index == 0 else ():
        logger.warning(message)
    if args.n_gpu > 1:
        raise ValueError("nn.DataParallel is not supported. Start one process per GPU, for example with torchrun.")
    if (model is None) == (model_init is None):
        raise ValueError("The trainer takes either a model or a model_init. Give one of them.")
    return args, processing_class


def settle_tasks(
    model: MultiTaskModel,
    args: MultiTaskTrainingArguments,
    overrides: Mapping[str, Task] | None,
    given: Processing,
    data: tuple[Datasets | None, EvaluationData | None],
    *,
    own: Mapping[str, Metric],
    measured: bool,
) -> dict[str, Task]:
    """The tasks of a trainer, whose labels are known, once all that it is given fits together.

    Args:
        model: that trains.
        args: of the run.
        overrides: tasks in place of the model's.
        given: the trainer's ``processing_class``; its tokenizer has a padding token then.
        data: raw rows by dataset, to train on and to evaluate; the latter may have several sets.
        own: by task, metrics of the user's.
        measured: whether the evaluation is ours.

    Raises:
        ValueError: something does not fit, or is not the same on all ranks.
    """
    check_names("tasks", args.tasks, model.config.task_names)
    tasks, (train, given_sets) = build_tasks(model.config, overrides), data
    tasks = {name: task for name, task in tasks.items() if args.tasks is None or name in args.tasks}
    evaluation, sets = (None, {}) if given_sets is None else split_sets(given_sets, tasks)
    check_processors(tasks, given)
    check_names("compute_metrics", own, tasks)
    check_arguments_by_name(args, tasks, model.config.task_names)
    whole = without_streams(tasks, train)
    frozen = [name for name in args.freeze or () if name in model.heads]
    check_datasets(tasks, whole, evaluation, evaluates=args.eval_strategy != "no", frozen=frozen)
    for name, own_set in sets.items():
        check_split(tasks, own_set, f"evaluation ({name})", sliced=True)
    check_balanced(tasks, train, model.config)
    set_seed(args.seed)
    tasks = resolve_tasks(tasks, [whole, evaluation, *sets.values()])
    check_metrics(args, tasks, own, measured=measured and args.eval_strategy != "no")
    if args.world_size > 1:
        check_alike(facts_of(tasks))
    ensure_pad_token(given)
    check_vocabulary(given, model)
    return tasks


def facts_of(tasks: Mapping[str, Task]) -> dict[str, dict[str, dict[str, Any]]]:
    """What of the tasks has to be the same on all ranks, in words that an error can say."""
    return {"tasks": {name: task.to_dict() for name, task in tasks.items()}}


def adopt(
    model: MultiTaskModel,
    args: MultiTaskTrainingArguments,
    tasks: Mapping[str, Task],
    tokenizer: Processing,
) -> None:
    """Tell a model what the data say of its tasks, which token is padding, and what it saves."""
    adopt_model(model, tasks)
    if (own := tokenizer_of(tokenizer)) is not None:
        model.set_pad_token_id(own.pad_token_id)
    if args.save_adapters_only:
        model.leave_out_backbone()


def begin_model(model: MultiTaskModel, runtime: Runtime, *, trains: bool = True) -> None:
    """Freeze what the arguments name of a model that is to train, and say what its precision loses.

    Raises:
        ValueError: nothing is left to train, fp16 could not scale its gradients back, or weights that a loss reads are
            sharded.
    """
    for name, head in cast("dict[str, Head]", model.heads).items() if runtime.engine else ():
        if any(True for _ in head.loss_parameters()):
            raise ValueError(
                f"Task '{name}': its loss reads weights outside of a forward pass, and {runtime.engine} shards them. "
                "Train with plain data parallelism"
                + (", or set decoding='constrained'." if head.beyond_stock() else ".")
            )
    model.reads_in_parts = runtime.engine is None  # one that shards gathers weights at every pass
    if trains:
        freeze(model, runtime.args.freeze or (), runtime.args.tasks)
    if runtime.engine != "DeepSpeed":  # which has float32 copies of its own
        lost = check_precision(model, fp16=runtime.args.fp16)
        if lost and runtime.is_main:
            logger.warning(lost)
