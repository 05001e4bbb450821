"""From what the user gives a trainer to tasks whose labels are known and datasets of features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

import datasets
import numpy as np
from transformers.utils import logging

from ...balancing import Balancer
from ...data import (
    Encoded,
    SamplingRates,
    Stream,
    StreamError,
    digest_of,
    encode_dataset,
    encode_stream,
    first_rows,
    group_tasks,
)
from ...modeling.config import FORMAT_VERSION, MultiTaskConfig, close_match
from ...modeling.readers import TEXTS
from ...tasks import Task, build_task
from ...tasks.slicing import check_sliced
from ..evaluation.rows import Preprocess
from ..report.rows import report_rows
from .named import check_names
from .processors import Processing, check_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ...modeling import MultiTaskModel

logger = logging.get_logger(__name__)

Rows: TypeAlias = "datasets.Dataset | datasets.IterableDataset"  # the latter in training only
Datasets = Mapping[str, Rows]
D = TypeVar("D", bound=Datasets | None)


def check_kinds(
    model: object,
    sampler: object,
    balancer: object,
    compute_metrics: object,
    compute_loss_func: object = None,
    data_collator: object = None,
) -> None:
    """Check the types of what a trainer is given.

    Raises:
        TypeError: something is not.
        ValueError: there is a loss function or a collator of the whole batch.
    """
    if data_collator is not None:
        raise ValueError(
            "Parameter `data_collator` is not supported: every task makes batches of its rows by itself. Found "
            f"{type(data_collator).__name__}. Leave it out, and set columns and options in the tasks, or register a "
            "task type of your own."
        )
    if compute_loss_func is not None:
        raise ValueError(
            "Parameter `compute_loss_func` is not supported: every task has a loss of its own. Set `loss`, "
            "`class_weights`, `label_smoothing` or `weight_column` in the tasks, or register a task type of your "
            "own."
        )
    # By its name: a model that came with code of its own, from the Hub, has another class of the same name.
    if getattr(getattr(model, "config", None), "model_type", None) != MultiTaskConfig.model_type:
        raise TypeError(
            f"`model` should be a MultiTaskModel. Found {type(model).__name__}. Make one with "
            "MultiTaskModel.from_backbone."
        )
    for name, value, kind in (("sampler", sampler, SamplingRates), ("balancer", balancer, Balancer)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"`{name}` should be a {kind.__name__}. Found {type(value).__name__}. "
                f"A method's name goes to the arguments, as {'sampling' if name == 'sampler' else 'balancing'}."
            )
    if compute_metrics is not None and not isinstance(compute_metrics, Mapping):
        raise TypeError(
            f"`compute_metrics` should be a dict of functions by task. Found {type(compute_metrics).__name__}. "
            "Give one for each task whose own metrics it takes the place of."
        )


def build_tasks(config: MultiTaskConfig, overrides: Mapping[str, Task] | None) -> dict[str, Task]:
    """The tasks of a model, with columns and options of those that the user gives.

    Raises:
        ValueError: an override names an unknown task, another type, or other labels.
    """
    check_names("tasks", overrides, config.task_names)
    tasks = {}
    for name in config.task_names:
        values = dict(config.task(name))
        if overrides and name in overrides:
            given = {key: value for key, value in overrides[name].to_dict().items() if key != "name"}
            if given["type"] != values["type"]:
                raise ValueError(
                    f"Task '{name}' is of type {values['type']}, and {given['type']} is given. Keep the type."
                )
            for key in ("label_names", "problem_type", "vocabulary"):
                if given.get(key) is not None and values.get(key) is not None and given[key] != values[key]:
                    raise ValueError(
                        f"Task '{name}' was built with {key} {values[key]}, and {given[key]} are given. Leave them out."
                    )
            values |= {key: value for key, value in given.items() if value is not None}
        tasks[name] = build_task(name, values)
    return tasks


def adopt_model(model: MultiTaskModel, tasks: Mapping[str, Task]) -> None:
    """Write into the model what its tasks are with these data."""
    if model.config.format_version < FORMAT_VERSION:
        logger.warning(
            f"The model is of format {model.config.format_version}. Training and evaluation read words by the rules of "
            f"format {FORMAT_VERSION}, and so does the model from here on."
        )
        model.config.format_version = FORMAT_VERSION
    for name, task in tasks.items():
        model.set_task(name, task.to_dict())
    model.settle_branches()


def preprocessing(
    given: Preprocess | Mapping[str, Preprocess] | None, metrics: Mapping[str, object]
) -> dict[str, Preprocess]:
    """By task with metrics of the user's own, what reduces its logits for them.

    Args:
        given: a function for all of these tasks, functions by task, or None.
        metrics: by task.

    Raises:
        ValueError: a task has no metrics of the user's own, and the package's read the logits.
    """
    if given is None or isinstance(given, Mapping):
        check_names("preprocess_logits_for_metrics", given, metrics)
        return dict(given or {})
    if not metrics:
        raise ValueError(
            "`preprocess_logits_for_metrics` is for compute_metrics, of which there is none. Leave it out."
        )
    return dict.fromkeys(metrics, given)


def check_datasets(
    tasks: Mapping[str, Task],
    train: Datasets | None,
    evaluation: Datasets | None,
    *,
    evaluates: bool,
    frozen: Iterable[str] = (),
) -> None:
    """Check that every task has the data it needs, in the columns it reads.

    Args:
        tasks: by name.
        train: the training data.
        evaluation: the evaluation data.
        evaluates: whether training evaluates.
        frozen: tasks that do not train, which need no data.

    Raises:
        ValueError: a task has no data, a dataset is read by no task, or a column is missing.
        TypeError: the data are not a dict of ``datasets.Dataset``.
    """
    for data, split in ((train, "train"), (evaluation, "evaluation")):
        if data is not None:
            check_split(tasks, data, split, sliced=split != "train")
    for name, task in tasks.items():
        if train is not None and task.source not in train:
            if name in frozen:
                continue
            raise ValueError(
                f"Task '{name}' has no training data. Add '{task.source}' to train_dataset, or name a task that has "
                "been trained in freeze."
            )
        if task.fits and train is not None and task.source not in (evaluation or {}) and name not in frozen:
            raise task.error(
                f"`{task.fits[0]}` is fitted to validation rows, and there are none. Add '{task.source}' to "
                f"eval_dataset, or remove `{task.fits[0]}`."
            )
        if evaluates and task.source not in (evaluation or {}):
            raise ValueError(
                f"Task '{name}' has no evaluation split. Add one to eval_dataset, or set eval_strategy='no'."
            )


def check_split(tasks: Mapping[str, Task], data: Datasets, split: str, *, sliced: bool = False) -> None:
    """Check that every dataset is read by a task, and has the columns it reads.

    Args:
        tasks: by name.
        data: raw rows by dataset name.
        split: what messages call it.
        sliced: whether the columns of ``slice_columns`` are read as well.

    Raises:
        ValueError: a dataset is read by no task, or a column is missing.
        TypeError: the data are not a dict of ``datasets.Dataset``.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"The {split} data should be a dict of datasets by name. Found {type(data).__name__}.")
    sources = sorted({task.source for task in tasks.values()})
    for name, dataset in data.items():
        if name not in sources:
            raise ValueError(
                f"The {split} data have the dataset '{name}', which no task reads; the tasks read {', '.join(sources)}."
                + (close_match(name, sources) or " Leave it out, or name it in a task.")
            )
        if isinstance(dataset, datasets.IterableDataset):
            if split == "train":
                continue
            raise TypeError(
                f"Dataset '{name}' of the {split} data is a stream, and only training reads streams. Give a "
                "datasets.Dataset, as of its first rows."
            )
        if not isinstance(dataset, datasets.Dataset):
            raise TypeError(
                f"Dataset '{name}' of the {split} data should be a datasets.Dataset. Found {type(dataset).__name__}."
            )
        if dataset.format["type"] == "custom":
            raise ValueError(
                f"Dataset '{name}' of the {split} data has a transform (with_transform), which is not run, as rows are "
                "tokenized once. Make its rows with map."
            )
    for task in tasks.values():
        if task.source in data:
            task.check_columns(cast(datasets.Dataset, data[task.source]), split)
            if sliced:
                check_sliced(task, cast(datasets.Dataset, data[task.source]), split)


def without_streams(tasks: Mapping[str, Task], train: D) -> D:
    """The training data with the first few rows of a stream in its place, which show its columns.

    Raises:
        ValueError: a stream is empty, or a task would have to read all of it for its labels.
    """
    if not isinstance(train, Mapping):
        return train
    streams = {name for name, data in train.items() if isinstance(data, datasets.IterableDataset)}
    for task in tasks.values():
        if task.source in streams and task.unknown:
            raise task.error(
                f"its labels are not read from dataset '{task.source}', which is a stream. Give {task.unknown}."
            )
    heads = dict(train)
    for name in streams:
        try:
            heads[name] = first_rows(cast(datasets.IterableDataset, train[name]))
        except Exception as problem:
            said = " ".join(str(problem).split()) or type(problem).__name__
            raise StreamError(
                f"Dataset '{name}' of the train data is a stream whose first rows could not be read "
                f"({type(problem).__name__}: {said}). Fix the stream."
            ) from problem
        if not len(cast(datasets.Dataset, heads[name])):
            raise ValueError(f"Dataset '{name}' of the train data is a stream without rows. Add some.")
    return cast(D, heads)


def draw_rows(rows: Rows, most: int | None, seed: int) -> Rows:
    """At most so many rows of a dataset, drawn with a seed, in their order in the dataset; all of them if None.

    Of a stream, the first rows.
    """
    if isinstance(rows, datasets.IterableDataset):
        return rows if most is None else rows.take(most)
    if most is None or most >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng([seed, 5]).permutation(len(rows))[:most]))


def resolve_tasks(tasks: Mapping[str, Task], splits: Iterable[Datasets | None]) -> dict[str, Task]:
    """Read labels that were left out from the data: of the first split first, then of the others."""
    given = [split for split in splits if split is not None]
    resolved = {}
    for name, task in tasks.items():
        own = [cast(datasets.Dataset, split[task.source]) for split in given if task.source in split]
        resolved[name] = task.resolve(own[0], own[1:]) if own else task
    return resolved


def encode_datasets(
    tasks: Mapping[str, Task],
    data: Datasets,
    split: str,
    *,
    training: bool,
    tokenizer: Processing,
    config: PreTrainedConfig,
    workers: int = 0,
) -> list[Encoded | Stream]:
    """Features of all datasets, :class:`Encoded`, or :class:`Stream` where one is; tasks without data are left out.

    A warning says how many rows were cut or have no label, and which labels are unknown.

    Args:
        tasks: by name.
        data: raw rows.
        split: its name.
        training: whether the rows are trained on.
        tokenizer: or whatever else the tasks' readers find their processors in.
        config: the backbone's configuration.
        workers: see :func:`encode_dataset`.

    Raises:
        ValueError: a row or a label is not usable, or the backbone has no embedding for a token.
    """
    present = {name: task for name, task in tasks.items() if task.source in data}
    digests: dict[str, str] = {}
    result: list[Encoded | Stream] = []
    for name, members in group_tasks(present).items():
        rows, reader = data[members[0].source], members[0].reader
        if reader.modality not in digests:  # which takes time
            digests[reader.modality] = digest_of(reader.processor(tokenizer))
        if isinstance(rows, datasets.IterableDataset):
            stream = encode_stream(name, rows, members, tokenizer=tokenizer, config=config)
            if not stream.keeps_place:
                logger.warning(
                    f"The stream '{name}' has a shuffle buffer, whose content is in no checkpoint: a resumed run reads "
                    "the current pass from its beginning again, to get the same rows."
                )
            result.append(stream)
            continue
        encoded = encode_dataset(
            name,
            rows,
            members,
            tokenizer=tokenizer,
            config=config,
            split=split,
            training=training,
            vocabulary=digests[reader.modality],
            workers=workers,
        )
        if reader.modality == TEXTS:
            check_tokens(encoded, members[0], config, split)
        report_rows(name, encoded, members, split)
        result.append(encoded)
    return result
