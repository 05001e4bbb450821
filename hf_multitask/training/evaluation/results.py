"""What metrics give, checked: numbers by name, the first of which a better model has more of."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from numbers import Real

import numpy as np
import torch
from transformers.utils import logging

from ...tasks import Task
from ...tasks.directions import rises

logger = logging.get_logger(__name__)

_ROUNDING = 1e-4  # of a mean in half precision that is 1


def check_results(task: Task, found: object, *, own: bool) -> dict[str, float]:
    """The metrics of an evaluation of a task as floats, the primary one first.

    Args:
        task: whose they are.
        found: what computed them.
        own: whether that is the user's ``compute_metrics``, else the task's type.

    Raises:
        ValueError: they are not numbers by name, or the first one is not 1 for the best model.
    """
    maker = "compute_metrics" if own else "score"
    if not isinstance(found, Mapping) or (own and not found):
        raise task.error(
            f"its {maker} should return a dict of numbers, the primary one first. Found {_shown(found)}. "
            "Return one number for each name."
        )
    values: dict[str, float] = {}
    for name, value in found.items():
        number = _number(value)
        if not isinstance(name, str) or number is None:
            raise task.error(
                f"its {maker} should return one number for each name. Found {name!r}: {_shown(value)}. Return the "
                "numbers that are to be logged, each under a name of its own, and write tables elsewhere."
            )
        values[name] = number
    for name, value in list(values.items())[:1]:
        check_primary(task, name, maker)
        if value > 1 + _ROUNDING:
            raise task.error(
                f"its {maker} returns '{name}' first, which makes it the primary metric, and a primary metric is at "
                f"most 1. Found {name} = {value:g}. Divide it by the most it can be (100 for percentages), or put "
                "another one first, such as accuracy."
            )
        if not math.isfinite(value):
            logger.warning(
                f"Task '{task.name}': its primary metric '{name}' is {value}. It counts as 0 in the average, and not "
                "as a best value."
            )
    return values


def check_primary(task: Task, name: str, maker: str = "score") -> None:
    """Check that a task's primary metric grows when the model gets better, as far as its name says.

    Raises:
        ValueError: it falls.
    """
    if rises(name) is False:
        raise task.error(
            f"its {maker} returns '{name}' first, which makes it the primary metric, and a primary metric grows when "
            f"the model gets better. Put another one first, such as accuracy, or 1 - {name} under a name such as "
            f"'one_minus_{name}'."
        )


def _number(value: object) -> float | None:
    if isinstance(value, np.ndarray | np.generic | torch.Tensor) and value.ndim == 0:
        value = value.item()
    return float(value) if isinstance(value, Real) else None


def _shown(value: object) -> str:
    return textwrap.shorten(repr(value), 80, placeholder=" ...")
