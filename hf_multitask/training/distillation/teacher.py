"""One teacher: loaded, compared with its task, and hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ...data import digest_of
from ...modeling import MultiTaskModel
from ...modeling.config import MultiTaskConfig
from ...modeling.loading import explained
from ...tasks import Task
from ..preparation.processors import Processing, check_vocabulary, ensure_pad_token, tokenizer_of
from .forms import form_of, order_of
from .streaming import amount, available_memory, load_streamed, saved_size, streamed, unread_weights, weights_of

logger = logging.get_logger(__name__)

_STOCK = 2  # times the memory of its weights that a stock model takes while it becomes one of ours
Given: TypeAlias = "str | Path | PreTrainedModel"  # a folder, an id of the Hub, or a model


@dataclass(frozen=True)
class Teacher:
    """A model that answers the rows of a task.

    Args:
        name: of the task.
        form: of its outputs; see :func:`form_of`.
        model: with a task of this name.
        tokenizer: the model's.
        source: what messages call it.
        order: for each output of the task, which of the model's it is; None if they are the same.
        digest: a hash of everything that its answers depend on.
    """

    name: str
    form: str
    model: MultiTaskModel
    tokenizer: Processing
    source: str
    order: list[int] | None
    digest: str

    def reading(self, task: Task) -> Task:
        """A task with the columns of another, read with the lengths and the prompt that the model was made for."""
        own = self.model.config.task(self.name)
        names = {field.name for field in fields(task)} & {"max_length", "stride", "language", "prompt"}
        return replace(task, name=self.name, weight_column=None, **{name: own.get(name) for name in names})


def source_of(given: Given) -> str:
    """What messages call a teacher."""
    return f"'{given}'" if isinstance(given, str | Path) else f"the {type(given).__name__} that was given"


def load_teacher(task: Task, given: Given, processing: Processing, device: torch.device) -> Teacher:
    """Load a teacher, and compare it with its task.

    Args:
        task: with resolved labels.
        given: the model, its folder or its id on the Hub.
        processing: the trainer's own tokenizer, for a model that was given without one.
        device: where it is to run.

    Raises:
        ValueError: it cannot be loaded, or its outputs are not those of the task.
        TypeError: it is not a model.
    """
    name, form, source = str(task.name), form_of(task), source_of(given)
    if not isinstance(given, str | Path | PreTrainedModel):
        raise TypeError(
            f"Task '{name}': a teacher should be a model, its folder or its id on the Hub. Found "
            f"{type(given).__name__}. Save the model, and give its folder."
        )
    with _told(task, source):
        model = _multitask(given, task, device)
    if name not in model.config.task_names:
        raise task.error(
            f"a teacher should have the task '{name}'. Found {', '.join(model.config.task_names) or 'no task'} in "
            f"{source}. Give another teacher, or rename its task with rename_task."
        )
    order = order_of(task, form, model.config.task(name), source)
    with _told(task, source):
        tokenizer = _tokenizer(given, task, model, processing)
    return Teacher(name, form, model, tokenizer, source, order, _digest(model, name, tokenizer))


@contextmanager
def _told(task: Task, source: str) -> Iterator[None]:
    try:
        yield
    except Exception as problem:
        said = " ".join(str(problem).split()) or type(problem).__name__
        raise task.error(
            f"its teacher {source} cannot be loaded: {said} Give the folder of a model that was saved with its "
            "tokenizer."
        ) from problem


def _multitask(given: Given, task: Task, device: torch.device) -> MultiTaskModel:
    """The model of a teacher, a stock one as a multi-task model of one task."""
    name = str(task.name)
    if isinstance(given, PreTrainedModel):
        if given.config.model_type == MultiTaskConfig.model_type:
            return given  # type: ignore[return-value]
        if streamed(given):
            raise ValueError("some of its weights are not in memory.")
        return MultiTaskModel.from_task_models({name: given}, backbone=name, tasks={name: {"type": task.type}})
    path = str(given)
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise ValueError("there is no such folder.")
    with explained(path):
        values, _ = PreTrainedConfig.get_config_dict(path)
        own = values.get("model_type") == MultiTaskConfig.model_type
        size, available = saved_size(path), available_memory(device)
        if size * (1 if own else _STOCK) > available:
            logger.warning(
                f"Task '{name}': its teacher {source_of(given)} has {amount(size)} of weights, and "
                f"{amount(available)} of memory is available, so each of its layers is read from its files whenever it "
                "runs, which takes longer."
            )
            return load_streamed(path, task, device)
        if own:
            return MultiTaskModel.from_pretrained(path)
        return MultiTaskModel.from_task_models({name: path}, backbone=name, tasks={name: {"type": task.type}})


def _tokenizer(given: Given, task: Task, model: MultiTaskModel, processing: Processing) -> Processing:
    """The tokenizer beside the model; of a model that was made of no folder, the trainer's own."""
    if isinstance(given, PreTrainedModel):
        path = str(given.name_or_path or model.config.backbone_config._name_or_path or "")
    else:
        path = str(given)
    found: Processing = processing
    if path:
        with explained(path):
            found = task.reader.load(path)
    tokenizer = task.reader.processor(found)
    task.check_tokenizer(tokenizer)
    ensure_pad_token(tokenizer)
    check_vocabulary(tokenizer, model)
    own, config = tokenizer_of(tokenizer), model.config.backbone_config.get_text_config()
    if own is not None and config.pad_token_id is None:  # of a decoder, whose head looks for padding
        model.set_pad_token_id(own.pad_token_id)
    return tokenizer


def _digest(model: MultiTaskModel, name: str, tokenizer: Processing) -> str:
    """A hash of configuration, tokenizer and the weights that the task reads."""
    digest = hashlib.blake2b(digest_size=16)
    config: Mapping[str, object] = model.config.backbone_config.to_diff_dict()
    free = {"_name_or_path", "transformers_version", "architectures", "dtype"}
    described = [
        {key: value for key, value in config.items() if key not in free},
        dict(model.config.task(name)),
        [model.config.pooling, digest_of(tokenizer)],
        [getattr(tokenizer, option, None) for option in ("model_max_length", "truncation_side")],
    ]
    described += [model.config.adapters] if model.config.adapters else []
    digest.update(json.dumps(described, default=str, sort_keys=True).encode())
    for key, value in weights_of(model, unread_weights(model, name)):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
