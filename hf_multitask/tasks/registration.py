"""Registration of user-defined task types."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

from ..modeling import Head
from ..modeling.decoding import Decoder
from ..modeling.registry import add_type
from .base import Task
from .types import TASK_TYPES

_NAME = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")


def register_task(task: type[Task], *, head: type[Head], decode: Decoder) -> None:
    """Register your own task type, for Python and recipes, under the name ``task.type``.

    A saved model contains the file of ``head`` and ``decode``, so it loads with ``trust_remote_code=True`` where
    neither this package nor your code is installed. Where this package is imported, register the type before you load
    the model; then ``trust_remote_code`` is not needed.

    Args:
        task: a dataclass derived from :class:`Task`.
        head: its layers and its loss, a subclass of :class:`hf_multitask.modeling.Head`.
        decode: ``decode(task_dict, logits, text, token_words)`` converts the logits of one row to the answer of the
            pipeline. ``head`` and ``decode`` are defined in a file that imports only torch, transformers and
            ``hf_multitask.modeling``, or are part of this package.

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
        missing = ", ".join(sorted(task.__abstractmethods__))
        raise TypeError(f"Type '{kind}': the class {task.__name__} does not define {missing}. Define it.")
    if "__dataclass_fields__" not in vars(task):
        raise TypeError(
            f"Type '{kind}': {task.__name__} is not a dataclass. Decorate it with @dataclass(kw_only=True)."
        )
    names = [field.name for field in fields(task)]
    if "type" in names:
        raise TypeError(f"Type '{kind}': `type` is a field of {task.__name__}. Annotate it as ClassVar[str].")
    if "text_column" not in names and "tokens_column" not in names:
        raise TypeError(f"Type '{kind}': {task.__name__} does not define its text column. Add a field `text_column`.")
    known = TASK_TYPES.get(kind)
    if known is not None and (known.__module__, known.__qualname__) != (task.__module__, task.__qualname__):
        raise ValueError(f"Type '{kind}' is taken by {known.__module__}.{known.__qualname__}. Choose another name.")
    add_type(kind, head, decode)
    TASK_TYPES[kind] = task


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
