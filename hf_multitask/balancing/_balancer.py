"""The contract of a balancer: losses of the tasks in, weights of the tasks out. Legend: K tasks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

import torch


class Balancer(ABC):
    """Gives every task of a step the weight of its loss.

    The loss of a step is ``sum over tasks t of w_t * (mean loss of t over the step's items)``. Before a step
    :meth:`weights` is asked for the weights of the tasks that it has; after it :meth:`on_step` is told their losses,
    over all micro-batches and ranks. So weights come from the step before, unless ``exact=True`` lets a forward without
    gradient measure the losses of the very step first.

    A balancer is begun once per training, by :meth:`begin`. Everything that it learns stands in the attributes that
    ``remembered`` names: float64 tensors on the CPU, numbers, or objects with ``state_dict`` and ``load_state_dict`` of
    their own. They go into checkpoints as JSON. Weights are no parameters of the model's optimizer: descent on it would
    reward small ones. The state of a task is left alone while a step has none of its items.

    Args:
        exact: measure the losses of a step before its weights are asked for. Balancers whose weights do not depend on
            them do without, and nothing changes.
    """

    # Whether the weights of a step depend on its losses.
    reads_losses: ClassVar[bool] = False
    # Whether on_gradients is to be called.
    reads_gradients: ClassVar[bool] = False
    # Whether on_evaluate is to be called; there have to be evaluations then.
    reads_evaluations: ClassVar[bool] = False
    # Whether begin is to be told the loss of every task's best constant answer.
    reads_constants: ClassVar[bool] = False
    # Whether an exact run measures the losses of a step once more after it, for after_step.
    looks_back: ClassVar[bool] = False
    # Attributes that are the state.
    remembered: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, exact: bool = False) -> None:
        if not isinstance(exact, bool):
            raise ValueError(f"Parameter `exact` should be true or false. Found `exact = {exact!r}`.")
        self.exact = exact
        self.tasks: list[str] = []
        self.seed = 0

    def begin(self, tasks: Sequence[str], *, seed: int = 0, constants: Mapping[str, float] | None = None) -> None:
        """Start anew, for these tasks.

        Args:
            tasks: their names, in the order of all tensors.
            seed: of what is drawn.
            constants: by task, the loss of its best constant answer, for balancers that read it.

        Raises:
            ValueError: the balancer's arguments name other tasks.
        """
        del constants
        self.tasks, self.seed = list(tasks), seed
        self.reset()

    def reset(self) -> None:  # noqa: B027 - most have nothing to forget
        """Put what is remembered to its beginning, for ``self.tasks``."""

    @abstractmethod
    def weights(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> torch.Tensor:
        """Weights of the tasks of the step that comes next, (K,), 0 for those that it does not have.

        Changes nothing that is remembered: a step may ask twice.

        Args:
            losses_K: of each task, its loss in the last step that had it, the mean of the others' where there was none
                (1 where there was none at all); of the step itself where the balancer is exact.
            present_K: which tasks the step has.
        """

    # Told after a step: on_gradients first, then on_step, then after_step.

    def on_gradients(self, norms_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: B027
        """Take in the norm of each present task's gradient, not weighted, at the last shared layer."""

    def on_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: B027
        """Take in the finite losses of a step, of the tasks that were present."""

    def after_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: B027
        """Take in the losses of the same rows after the update; of exact balancers that look back."""

    def on_epoch(self) -> None:  # noqa: B027
        """An epoch is over."""

    def on_evaluate(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: B027
        """Take in the losses of an evaluation, of the tasks that it measured."""

    # State

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, as plain numbers and lists."""
        return {name: _plain(getattr(self, name)) for name in self.remembered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave; the balancer has begun, with the same tasks.

        Raises:
            ValueError: something is missing or foreign.
        """
        if set(state) != set(self.remembered):
            raise ValueError(
                f"The state of {type(self).__name__} should hold {', '.join(self.remembered) or 'nothing'}. "
                f"Found {', '.join(state) or 'nothing'}. Go on with the version that wrote it."
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
        """An argument by task as a tensor, (K,), the default where a task is not named.

        Raises:
            ValueError: a name is none of the tasks'.
        """
        for name in values or {}:
            if name not in self.tasks:
                close = get_close_matches(str(name), self.tasks, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else f" The tasks are {', '.join(self.tasks)}."
                raise ValueError(f"Parameter `{argument}` of the balancer names '{name}', which is no task.{hint}")
        return torch.tensor([(values or {}).get(name, default) for name in self.tasks], dtype=torch.float64)

    def zeros(self, value: float = 0.0) -> torch.Tensor:
        """A number for each task, (K,)."""
        return torch.full((len(self.tasks),), value, dtype=torch.float64)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value.state_dict() if hasattr(value, "state_dict") else value


def check_number(name: str, value: object, *, above: float | None = None, least: float | None = None) -> None:
    """See that an argument is a finite number within its bounds.

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
    """See that an argument holds numbers by task; none where it is None.

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
