"""The argument ``layer`` of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..modeling.kinds import kind_of
from ..modeling.layers import check_layer

if TYPE_CHECKING:
    from .base import Task


def check_own_layer(task: Task) -> None:
    """Check the layer of a task, as far as that is possible without a backbone.

    Raises:
        ValueError: it is not the index of a layer or ``"mix"``, or the type has no head of its own.
    """
    try:
        check_layer(task.layer)
    except ValueError as problem:
        raise task.error(str(problem)) from None
    if task.layer is not None and kind_of({"type": task.type, "name": task.name}).head.language_model:
        raise task.error(
            f"`layer` is for types with a head of their own, and {task.type} reads the last layers of a language "
            f"model. Found `layer = {task.layer!r}`. Leave it out."
        )
