"""Uncertainty weighting (UW)."""

from __future__ import annotations

import torch

from ._adam import TaskAdam
from ._balancer import Balancer, check_number
from ._scalarized import LEAST


class Uncertainty(Balancer):
    r"""Weights :math:`w_t = \frac{1}{2} e^{-s_t}`, where s descends on :math:`\sum_t \frac{1}{2} (e^{-s_t} L_t + s_t)`.

    Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics (CVPR 2018),
    https://arxiv.org/abs/1705.07115. :math:`L_t` is the loss of task t, :math:`s_t = \log \sigma_t^2` the logarithm of
    its noise, initially 0. At the optimum :math:`e^{s_t} = L_t`: a task with large losses gets a small weight.

    Weights come from the previous step: they depend on the losses up to it, as in the paper, where the weights and s of
    a step are those before its update. So ``exact`` has no effect.

    .. note:: The paper uses :math:`\sigma_t^{-2} L_t + \log \sigma_t` for classification, with twice the weight. Here,
        as in torchjd and most implementations, all tasks have the form for regression.
    .. note:: The paper trains s with the optimizer of the model. Here it has a separate Adam optimizer, so that neither
        weight decay nor the small learning rates of fine-tuning, with which s would hardly change, affect it.
    .. note:: A loss below 1e-8 counts as 1e-8, so that the weight of a converged task does not grow without bound.

    Args:
        lr: learning rate of this Adam optimizer. With the default, s changes by 1 in about 40 steps; the paper gives no
            value.
        exact: has no effect.
    """

    remembered = ("learned_K", "adam")

    def __init__(self, *, lr: float = 0.025, exact: bool = False) -> None:
        super().__init__(exact=exact)
        check_number("lr", lr, least=0)
        self.lr = lr

    def reset(self) -> None:
        """See :class:`Balancer`: s is 0."""
        self.learned_K = self.zeros()
        self.adam = TaskAdam(len(self.tasks), lr=self.lr)

    def weights(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See :class:`Balancer`."""
        return 0.5 * (-self.learned_K).exp() * present_K

    def on_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:
        """See :class:`Balancer`: one step of s."""
        gradient_K = 0.5 - 0.5 * (-self.learned_K).exp() * losses_K.clamp(min=LEAST)
        self.learned_K = self.adam.step(self.learned_K, gradient_K, present_K)
