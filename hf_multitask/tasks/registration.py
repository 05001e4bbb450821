"""Making task types known: those of this package, and those from outside."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

from ..modeling import Head
from ..modeling.kinds import KINDS
from ..modeling.readers import Decoder, Reader
from ..modeling.registry import add_type
from .base import Task
from .types import TASK_TYPES

_OF_TEXTS = ("tokens_column", "source_column")
_NAME = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")


def register_task(
    task: type[Task],
    *,
    head: type[Head] | None = None,
    decode: Decoder | None = None,
    reader: type[Reader] | None = None,
) -> None:
    """Make a task type known, for Python and recipes, under the name ``task.type``.

    The package's own types come through here as well, with head, reader and decoder from their row in ``kinds``.

    A saved model contains the file of ``head`` and ``decode``, so it loads with ``trust_remote_code=True`` where
    neither this package nor your code is installed. Where this package is imported, register the type before you load
    the model; then ``trust_remote_code`` is not needed.

    Args:
        task: a dataclass derived from :class:`Task`.
        head: its layers and its loss, a subclass of :class:`hf_multitask.modeling.Head`.
        decode: ``decode(task_dict, logits, text, token_words)`` makes of the logits of one row what the pipeline
            answers. It, ``head`` and ``reader`` are defined in files that import torch, transformers and
            ``hf_multitask.modeling`` only, or are the package's own.
        reader: a subclass of :class:`hf_multitask.modeling.readers.Reader`, for types that read something else than a
            text or a pair of texts; one that answers by itself needs no ``decode``.

    Raises:
        TypeError: an argument has the wrong type, or a method is missing.
        ValueError: the name is invalid or taken, or the file cannot be saved with a model.

    Example::

        register_task(Count, head=CountHead, decode=decode_count)
    """
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"`task` should be a subclass of hf_multitask.Task. Found {task!r}.")
    kind = _name(task)
    if inspect.isabstract(task):
        missing = ", ".join(sorted("metrics" if name == "measure" else name for name in task.__abstractmethods__))
        raise TypeError(f"Type '{kind}': the class {task.__name__} does not define {missing}. Define it.")
    if "__dataclass_fields__" not in vars(task):
        raise TypeError(
            f"Type '{kind}': {task.__name__} is not a dataclass. Decorate it with @dataclass(kw_only=True)."
        )
    names = [field.name for field in fields(task)]
    if "type" in names:
        raise TypeError(f"Type '{kind}': `type` is a field of {task.__name__}. Annotate it as ClassVar[str].")
    read = _first_field(kind, head, reader)
    columns = {f"{read}_column", *(_OF_TEXTS if read == "text" else ())}
    if not columns & {*names}:
        raise TypeError(
            f"Type '{kind}': {task.__name__} does not define its {read} column. Add a field `{read}_column`."
        )
    known = TASK_TYPES.get(kind)
    if known is not None and (known.__module__, known.__qualname__) != (task.__module__, task.__qualname__):
        raise ValueError(f"Type '{kind}' is taken by {known.__module__}.{known.__qualname__}. Choose another name.")
    add_type(kind, head, decode, reader)
    TASK_TYPES[kind] = task


def _first_field(kind: str, head: type[Head] | None, reader: type[Reader] | None) -> str:
    """What a type reads in the first place, as its reader has it."""
    if head is None and kind in KINDS:
        return KINDS[kind].reader.fields[0]
    return getattr(reader or Reader, "fields", Reader.fields)[0]


def _name(task: type[Task]) -> str:
    kind = getattr(task, "type", None)
    if kind is None:
        raise TypeError(f'{task.__name__} has no type name. Add a class attribute `type: ClassVar[str] = "my-type"`.')
    if not isinstance(kind, str) or not _NAME.fullmatch(kind):
        raise ValueError(
            f"Type name {kind!r} of {task.__name__} is invalid: names consist of letters, digits and single '-' "
            "between them. Rename it."
        )
    return kind
