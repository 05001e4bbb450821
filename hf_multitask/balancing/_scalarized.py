"""torchjd's scalarizers as balancers: the weights are the gradient of the scalarizer at the losses.

A scalarizer is made anew for the tasks of a step, of P tasks, and given what is remembered of them; so its whole
history is ours to save, and absent tasks keep theirs. torchjd 0.18 keeps history in attributes that its ``state_dict``
leaves out.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from ._adam import TaskAdam
from ._balancer import Balancer, check_number

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer

_LEAST = 1e-8


class Scalarized(Balancer):
    """A balancer of one of torchjd's scalarizers."""

    @abstractmethod
    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:
        """The scalarizer of the losses of some tasks, by their numbers."""

    def values(self, losses_K: torch.Tensor, tasks_P: torch.Tensor) -> torch.Tensor:
        """What is scalarized, (P,): the losses, raised to the least that the method can take."""
        return losses_K[tasks_P]

    def weights(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> torch.Tensor:
        """See :class:`Balancer`."""
        tasks_P = present_K.nonzero().flatten()
        weights_K = self.zeros()
        if len(tasks_P):
            with torch.enable_grad():
                values_P = self.values(losses_K, tasks_P).detach().requires_grad_()
                (weights_K[tasks_P],) = torch.autograd.grad(self.scalarizer(tasks_P)(values_P), values_P)
        return weights_K


class Learned(Scalarized):
    """A scalarizer with one parameter a task, which descends on the scalarized loss by an Adam of its own.

    A loss below 1e-8 counts as 1e-8: of a task that is done the weight would grow for ever.

    Args:
        lr: learning rate of that Adam.
        exact: see :class:`Balancer`.
    """

    # The name of the parameter in the scalarizer's state_dict.
    parameter: ClassVar[str]
    remembered = ("learned_K", "adam")

    def __init__(self, *, lr: float = 0.025, exact: bool = False) -> None:
        super().__init__(exact=exact)
        check_number("lr", lr, least=0)
        self.lr = lr

    def reset(self) -> None:
        """See :class:`Balancer`: zeros, as torchjd begins."""
        self.learned_K = self.zeros()
        self.adam = TaskAdam(len(self.tasks), lr=self.lr)

    def values(self, losses_K: torch.Tensor, tasks_P: torch.Tensor) -> torch.Tensor:
        """See :class:`Scalarized`."""
        return losses_K[tasks_P].clamp(min=_LEAST)

    @abstractmethod
    def fresh(self, tasks: int) -> Scalarizer:
        """The scalarizer of so many tasks, whatever its parameter is."""

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:
        """See :class:`Scalarized`."""
        made = self.fresh(len(tasks_P)).double()
        made.load_state_dict({self.parameter: self.learned_K[tasks_P]})
        return made

    def on_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:
        """See :class:`Balancer`: one step of the parameters."""
        tasks_P = present_K.nonzero().flatten()
        if not len(tasks_P):
            return
        made, gradient_K = self.scalarizer(tasks_P), self.zeros()
        with torch.enable_grad():
            total = made(self.values(losses_K, tasks_P))
            (gradient_K[tasks_P],) = torch.autograd.grad(total, list(made.parameters()))
        self.learned_K = self.adam.step(self.learned_K, gradient_K, present_K)
