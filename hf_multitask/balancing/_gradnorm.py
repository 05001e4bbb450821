"""Gradient normalization (GradNorm)."""

from __future__ import annotations

import torch

from ._adam import TaskAdam
from ._balancer import Balancer, check_number

_LEAST = 1e-8


class GradNorm(Balancer):
    r"""Weights that descend on :math:`\sum_t | G_t - \bar G r_t^\alpha |`, scaled to sum to K.

    GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks (ICML 2018), algorithm 1,
    https://arxiv.org/abs/1711.02257. :math:`G_t = \| w_t \nabla_W L_t \|` is the norm of task t's weighted gradient at
    W, the weights of the last shared layer, :math:`\bar G` the mean over tasks, :math:`r_t = \tilde L_t / \bar{\tilde
    L}` the task's inverse training rate, :math:`\tilde L_t = L_t / L_t(0)` its loss divided by the first one. The term
    after the minus sign is held constant. A task that learns more slowly than the others gets larger gradients.

    Weights come from the previous step: its losses and gradients update them after the step, as in the paper, so
    ``exact`` has no effect.

    .. note:: W is the last matrix of the top layer of the backbone. Its gradient is summed over all micro-batches and
        ranks of a step before the norm is computed.
    .. note:: A step only updates and scales the weights of its tasks, whose sum does not change. The minimum weight is
        1e-3, because the loss of a task with a weight below 0 would be maximized; the paper has no bound.
    .. note:: The first loss is that of the first step with the task; the paper allows the logarithm of the number of
        classes instead.

    Args:
        alpha: :math:`\alpha`, how strongly training rates are equalized. The default is the 1.5 of the paper for tasks
            that differ strongly, as in NYUv2; the paper uses 0.12 for similar tasks.
        lr: learning rate of the Adam optimizer of the weights. With the default, a weight changes by 1 in about 40
            steps.
        exact: has no effect.
    """

    reads_gradients = True
    remembered = ("weights_K", "first_K", "adam")

    def __init__(self, *, alpha: float = 1.5, lr: float = 0.025, exact: bool = False) -> None:
        super().__init__(exact=exact)
        check_number("alpha", alpha, least=0)
        check_number("lr", lr, least=0)
        self.alpha, self.lr = alpha, lr

    def reset(self) -> None:
        """See :class:`Balancer`."""
        self.weights_K = self.zeros(1.0)
        self.first_K = self.zeros(-1.0)  # not known yet
        self.norms_K = self.zeros()
        self.adam = TaskAdam(len(self.tasks), lr=self.lr)

    def weights(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See :class:`Balancer`."""
        return torch.where(present_K, self.weights_K, 0.0)

    def on_gradients(self, norms_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: ARG002
        """See :class:`Balancer`."""
        self.norms_K = norms_K

    def on_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:
        """See :class:`Balancer`."""
        losses_K = losses_K.clamp(min=_LEAST)
        self.first_K = torch.where(present_K & (self.first_K < 0), losses_K, self.first_K)
        moved_K = present_K & self.norms_K.isfinite()
        if moved_K.sum() < 2:
            return  # nothing to compare with
        weighted_K = self.weights_K * self.norms_K
        ratio_K = losses_K / self.first_K.clamp(min=_LEAST)
        target_K = weighted_K[moved_K].mean() * (ratio_K / ratio_K[moved_K].mean()) ** self.alpha
        gradient_K = torch.where(moved_K, torch.sign(weighted_K - target_K) * self.norms_K, 0.0)
        total = self.weights_K[moved_K].sum()
        new_K = self.adam.step(self.weights_K, gradient_K, moved_K).clamp(min=1e-3)
        self.weights_K = torch.where(moved_K, new_K * total / new_K[moved_K].sum(), self.weights_K)
