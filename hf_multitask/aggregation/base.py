"""What an aggregator is: the gradients of several tasks in, the weights of their sum or one combined gradient out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch


class Aggregator(ABC):  # noqa: B024 - its two kinds have one each
    """Combines the gradients that the tasks of a step have for the shared parameters.

    The update is that of the plain summed loss where all weights are 1. Tasks without rows in the step, and those
    whose gradient is zero, are left out before an aggregator is asked, and with one task left it is not asked at all.

    Subclasses are :class:`GramianAggregator` and :class:`VectorAggregator`. One that remembers something from step to
    step says so in :meth:`state_dict`, by task name, so that tasks which are absent keep what they have.
    """

    def check_tasks(self, tasks: Sequence[str]) -> None:  # noqa: B027 - most have nothing to check
        """See that what was given by task name names tasks.

        Raises:
            ValueError: it does not.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, in terms of JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most remember nothing
        """Take over what another remembered."""


class GramianAggregator(Aggregator):
    """An aggregator that needs no more than the inner products of the gradients."""

    @abstractmethod
    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """The weight of each gradient in their sum, (K,).

        Args:
            gramian_KK: inner products of the gradients, float64 on the CPU.
            tasks: names of the K tasks.

        Raises:
            ArithmeticError: there is no answer, or none was found; the step then takes the plain sum.
        """


class VectorAggregator(Aggregator):
    """An aggregator that needs the gradients themselves, and treats every entry of them by itself."""

    @abstractmethod
    def combine(
        self, gradients_KP: torch.Tensor, tasks: Sequence[str], draw: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """One gradient (P,) of those of K tasks, for P entries of the shared parameters.

        Args:
            gradients_KP: the gradients.
            tasks: names of the K tasks.
            draw: gives a number between 0 and 1 for each entry (P,), drawn from the seed of the step. Which entries are
                given at a time, all of an embedding or the touched ones, makes no difference to them.
        """


def check_number(
    name: str, value: object, *, least: float | None = None, above: float | None = None, whole: bool = False
) -> None:
    """See that an argument is a finite number within its bounds, a whole one where ``whole``.

    Balancers have one of their own: neither room needs the other.

    Raises:
        ValueError: it is not.
    """
    fits = (
        isinstance(value, int if whole else int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
    )
    if not fits:
        bound = f" of {least:g} or more" if least is not None else "" if above is None else f" above {above:g}"
        raise ValueError(f"Parameter `{name}` should be a {'whole ' * whole}number{bound}. Found `{name} = {value!r}`.")


def trace_scaled(gramian_KK: torch.Tensor) -> torch.Tensor:
    """The Gramian of gradients whose squared norms average 1: what a method that knows no scale is given.

    Constants that guard against division by zero are far from gradients of any size then.
    """
    return gramian_KK / gramian_KK.diagonal().mean()


def square_root(gramian_KK: torch.Tensor) -> torch.Tensor:
    """A matrix (K, K) whose rows have the inner products of the Gramian: they stand for gradients of any length."""
    values_K, vectors_KK = torch.linalg.eigh(gramian_KK)
    return vectors_KK * values_K.clamp(min=0).sqrt()
