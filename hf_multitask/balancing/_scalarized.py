"""Scalarizers of torchjd as balancers: the weights are the gradient of the scalarizer at the losses.

A new scalarizer is created for the P tasks of a step from the state of the balancer. So the whole history can be saved,
and absent tasks keep theirs. torchjd 0.18 keeps history in attributes that its ``state_dict`` does not contain.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from ._adam import TaskAdam
from ._balancer import Balancer, check_number

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer

LEAST = 1e-8


class Scalarized(Balancer):
    """A balancer that uses a scalarizer of torchjd."""

    @abstractmethod
    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:
        """The scalarizer for some tasks, given by their indices."""

    def values(self, losses_K: torch.Tensor, tasks_P: torch.Tensor) -> torch.Tensor:
        """The values to scalarize, (P,): the losses, raised to the minimum that the method supports."""
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
    """A scalarizer with one parameter per task, which minimizes the scalarized loss with a separate Adam optimizer.

    A loss below 1e-8 counts as 1e-8, because the weight of a converged task would grow without bound.

    Args:
        lr: learning rate of this optimizer.
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
        """See :class:`Balancer`: zeros, as in torchjd."""
        self.learned_K = self.zeros()
        self.adam = TaskAdam(len(self.tasks), lr=self.lr)

    def values(self, losses_K: torch.Tensor, tasks_P: torch.Tensor) -> torch.Tensor:
        """See :class:`Scalarized`."""
        return losses_K[tasks_P].clamp(min=LEAST)

    @abstractmethod
    def fresh(self, tasks: int) -> Scalarizer:
        """A new scalarizer for this number of tasks."""

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
