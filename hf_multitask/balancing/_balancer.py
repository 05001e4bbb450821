"""The base class of balancers, which compute the weights of tasks from their losses. Legend: K tasks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

import torch

State = dict[str, Any]  # of a balancer, serializable as JSON


class Balancer(ABC):
    """Computes the weight of the loss of every task in a step.

    The loss of a step is ``sum over tasks t of w_t * (mean loss of t over the step's items)``. Before a step,
    :meth:`weights` returns the weights of its tasks; after the step, :meth:`on_step` receives their losses, over all
    micro-batches and ranks. So weights come from the previous step, unless ``exact=True`` measures the losses of the
    current step first, in a forward pass without gradients.

    :meth:`begin` is called once per training. The state of a balancer is in the attributes that ``remembered`` lists:
    float64 tensors on the CPU, numbers, or objects with ``state_dict`` and ``load_state_dict``. They are saved in
    checkpoints as JSON. Weights are not parameters of the optimizer of the model, because minimizing the loss would
    reward small weights. The state of a task does not change in steps without its items.

    Args:
        exact: measure the losses of a step before its weights are computed. It has no effect on balancers whose weights
            do not depend on these losses.
    """

    # Whether the weights of a step depend on its losses.
    reads_losses: ClassVar[bool] = False
    # Whether on_gradients is called.
    reads_gradients: ClassVar[bool] = False
    # Whether on_evaluate is called, which requires evaluations.
    reads_evaluations: ClassVar[bool] = False
    # Whether begin receives the loss of the best constant answer of every task.
    reads_constants: ClassVar[bool] = False
    # Whether an exact balancer also measures the losses after the update, for after_step.
    looks_back: ClassVar[bool] = False
    # Names of the attributes that form the state.
    remembered: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, exact: bool = False) -> None:
        if not isinstance(exact, bool):
            raise ValueError(f"Parameter `exact` should be true or false. Found `exact = {exact!r}`.")
        self.exact = exact
        self.tasks: list[str] = []
        self.seed = 0

    def begin(self, tasks: Sequence[str], *, seed: int = 0, constants: Mapping[str, float] | None = None) -> None:
        """Start a training with these tasks.

        Args:
            tasks: their names, in the order of all tensors.
            seed: for random numbers.
            constants: by task, the loss of its best constant answer, for balancers that use it.

        Raises:
            ValueError: an argument of the balancer names an unknown task.
        """
        del constants
        self.tasks, self.seed = list(tasks), seed
        self.reset()

    def reset(self) -> None:  # noqa: B027 - most have nothing to forget
        """Reset the state, for ``self.tasks``."""

    @abstractmethod
    def weights(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> torch.Tensor:
        """Weights of the tasks for the next step, (K,), 0 for absent tasks.

        The method must not change the state, because a step may call it twice.

        Args:
            losses_K: by task, its loss in the last step with this task, or the mean of the other losses if there was
                none (1 if there was no loss at all); the losses of the current step if the balancer is exact.
            present_K: which tasks are present in the step.
        """

    # Called after a step: on_gradients first, then on_step, then after_step.

    def on_gradients(self, norms_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: B027
        """Receive the norm of the unweighted gradient of each present task at the last shared layer."""

    def on_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: B027
        """Receive the finite losses of the tasks that were present in a step."""

    def after_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: B027
        """Receive the losses of the same rows after the update, if the balancer is exact and ``looks_back``."""

    def on_epoch(self) -> None:  # noqa: B027
        """Called at the end of an epoch."""

    def on_evaluate(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: B027
        """Receive the losses of the tasks in an evaluation."""

    # State

    def state_dict(self) -> State:
        """The state as plain numbers and lists."""
        return {name: _plain(getattr(self, name)) for name in self.remembered}

    def load_state_dict(self, state: State) -> None:
        """Restore the state of :meth:`state_dict`, after :meth:`begin` with the same tasks.

        Raises:
            ValueError: a value is missing or unknown.
        """
        if set(state) != set(self.remembered):
            raise ValueError(
                f"The state of {type(self).__name__} should contain {', '.join(self.remembered) or 'nothing'}. "
                f"Found {', '.join(state) or 'nothing'}. Use the version that saved it."
            )
        for name, value in state.items():
            own = getattr(self, name)
            if isinstance(own, torch.Tensor):
                setattr(self, name, torch.tensor(value, dtype=torch.float64).reshape(-1, *own.shape[1:]))
            elif hasattr(own, "load_state_dict"):
                own.load_state_dict(value)
            else:
                setattr(self, name, value)

    # For subclasses

    def by_task(self, argument: str, values: Mapping[str, float] | None, default: float) -> torch.Tensor:
        """An argument by task as a tensor, (K,), with a default for tasks that are not named.

        Raises:
            ValueError: a name is not a task.
        """
        for name in values or {}:
            if name not in self.tasks:
                close = get_close_matches(str(name), self.tasks, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else f" The tasks are {', '.join(self.tasks)}."
                raise ValueError(f"Parameter `{argument}` of the balancer names '{name}', which is not a task.{hint}")
        return torch.tensor([(values or {}).get(name, default) for name in self.tasks], dtype=torch.float64)

    def zeros(self, value: float = 0.0) -> torch.Tensor:
        """A tensor with one number per task, (K,)."""
        return torch.full((len(self.tasks),), value, dtype=torch.float64)


def _plain(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value.state_dict() if hasattr(value, "state_dict") else value


def check_number(name: str, value: object, *, above: float | None = None, least: float | None = None) -> None:
    """Check that an argument is a finite number within its bounds.

    Raises:
        ValueError: it is not.
    """
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not numeric or (above is not None and value <= above) or (least is not None and value < least):  # type: ignore[operator]
        bound = f" above {above:g}" if above is not None else "" if least is None else f" of {least:g} or more"
        raise ValueError(f"Parameter `{name}` should be a number{bound}. Found `{name} = {value!r}`.")


def check_numbers(
    name: str, values: object, *, above: float | None = None, least: float | None = None
) -> dict[str, float]:
    """Check that an argument maps tasks to numbers, and return it; empty if it is None.

    Raises:
        ValueError: it does not.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ValueError(f"Parameter `{name}` should be a mapping from tasks to numbers. Found `{name} = {values!r}`.")
    for task, value in values.items():
        check_number(f"{name}['{task}']", value, above=above, least=least)
    return dict(values)
