"""Base classes of aggregators, which compute weights of the per-task gradients, or one combined gradient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

State = dict[str, Any]  # of an aggregator, serializable as JSON


class Aggregator(ABC):  # noqa: B024 - its two kinds have one each
    """Combines the per-task gradients of the shared parameters in a step.

    If all weights are 1, the update is that of the plain summed loss. Tasks without rows in the step, and tasks with a
    gradient of zero, are removed before an aggregator is called; with one remaining task it is not called.

    Subclasses are :class:`GramianAggregator` and :class:`VectorAggregator`. An aggregator with a state returns it in
    :meth:`state_dict`, by task name, so that absent tasks keep their state.
    """

    def check_tasks(self, tasks: Sequence[str]) -> None:  # noqa: B027 - most have nothing to check
        """Check that arguments by task name refer to existing tasks.

        Raises:
            ValueError: a name is not a task.
        """

    def state_dict(self) -> State:
        """The state, serializable as JSON."""
        return {}

    def load_state_dict(self, state: State) -> None:  # noqa: B027 - most remember nothing
        """Restore a state."""


class GramianAggregator(Aggregator):
    """An aggregator that only needs the inner products of the gradients."""

    @abstractmethod
    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """The weight of each gradient in the sum, (K,).

        Args:
            gramian_KK: inner products of the gradients, float64 on the CPU.
            tasks: names of the K tasks.

        Raises:
            ArithmeticError: there is no solution, or none was found; the step then uses the plain sum.
        """


class VectorAggregator(Aggregator):
    """An aggregator that needs the gradients themselves, and processes each of their entries separately."""

    @abstractmethod
    def combine(
        self, gradients_KP: torch.Tensor, tasks: Sequence[str], draw: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """Combine the gradients of K tasks into one, (P,), for P entries of the shared parameters.

        Args:
            gradients_KP: the gradients.
            tasks: names of the K tasks.
            draw: returns a random number between 0 and 1 for each entry (P,), from the seed of the step. The numbers do
                not depend on which entries are passed at a time, all of an embedding or only the rows in use.
        """


def check_number(
    name: str, value: object, *, least: float | None = None, above: float | None = None, whole: bool = False
) -> None:
    """Check that an argument is a finite number within its bounds, and a whole number if ``whole``.

    Balancers have a separate function, so that neither package depends on the other.

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
    """The Gramian scaled to a mean squared norm of 1, for methods that do not depend on the scale.

    Constants that avoid division by zero are then small relative to gradients of any size.
    """
    return gramian_KK / gramian_KK.diagonal().mean()


def square_root(gramian_KK: torch.Tensor) -> torch.Tensor:
    """A matrix (K, K) whose rows have the inner products of the Gramian, and represent gradients of any length."""
    values_K, vectors_KK = torch.linalg.eigh(gramian_KK)
    return vectors_KK * values_K.clamp(min=0).sqrt()
