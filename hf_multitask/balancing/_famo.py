"""Fast adaptive multitask optimization (FAMO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ._adam import TaskAdam
from ._balancer import check_number, check_numbers
from ._scalarized import Scalarized

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer

_EPSILON = 1e-8  # as in torchjd and in the official code


class FAMO(Scalarized):
    r"""Weights :math:`w_t = c \, z_t / (L_t - b_t)` with :math:`z = \mathrm{softmax}(\xi)` and a sum of 1.

    FAMO: Fast Adaptive Multitask Optimization (NeurIPS 2023), algorithm 2, https://arxiv.org/abs/2306.03792.
    :math:`L_t` is the loss of task t, :math:`b_t` its lower bound, :math:`c = (\sum_t z_t / (L_t - b_t))^{-1}`. After
    a step :math:`\xi` descends along :math:`J^\top \delta`, where J is the Jacobian of the softmax and
    :math:`\delta_t = \log (L_t - b_t) - \log (L_t' - b_t)` with :math:`L_t'` the loss of the same rows after the
    update: a task whose loss decreased more slowly than the others gets a larger weight.

    Weights come from the previous step: :math:`L_t` is the loss of t in the last step with this task, and :math:`L_t'`
    that in the next one, with other rows. This costs nothing, but :math:`\delta` also depends on the choice of rows.
    ``exact=True`` is the method of the paper: :math:`L_t` of the current step, and one more forward pass after the
    update for :math:`L_t'`.

    .. note:: The official code has a weight decay of 1e-5; the paper and torchjd have 1e-3.
    .. note:: :math:`z` is a softmax over the tasks in the step; in the paper, every step has all tasks. 1e-8 is added
        to :math:`L_t - b_t`, as in the official code.

    Args:
        lr: learning rate of the Adam optimizer of :math:`\xi`; 0.025 as in the paper.
        weight_decay: of this optimizer, :math:`\gamma` in the paper; 0.001.
        min_losses: :math:`b` by task; 0 by default.
        exact: see above.
    """

    reads_losses = True
    looks_back = True
    remembered = ("logits_K", "adam", "before_K", "known_K")

    def __init__(
        self,
        *,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        min_losses: Mapping[str, float] | None = None,
        exact: bool = False,
    ) -> None:
        super().__init__(exact=exact)
        check_number("lr", lr, least=0)
        check_number("weight_decay", weight_decay, least=0)
        self.lr, self.weight_decay = lr, weight_decay
        self.given = check_numbers("min_losses", min_losses)

    def begin(self, tasks: Sequence[str], **kwargs: Any) -> None:
        """See :class:`Balancer`."""
        super().begin(tasks, **kwargs)
        self.least_K = self.by_task("min_losses", self.given, 0.0)

    def reset(self) -> None:
        """See :class:`Balancer`."""
        self.logits_K, self.before_K, self.known_K = self.zeros(), self.zeros(), self.zeros()
        self.adam = TaskAdam(len(self.tasks), lr=self.lr, weight_decay=self.weight_decay)

    def values(self, losses_K: torch.Tensor, tasks_P: torch.Tensor) -> torch.Tensor:
        """See :class:`Scalarized`."""
        return torch.maximum(losses_K, self.least_K)[tasks_P]

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:
        """See :class:`Scalarized`."""
        from torchjd.scalarization import FAMO as Reference

        made = Reference(len(tasks_P)).double()
        made.load_state_dict({"_w": self.logits_K[tasks_P], "min_losses": self.least_K[tasks_P]})
        return made

    def on_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:
        """See :class:`Balancer`."""
        if not self.exact:
            self._learn(losses_K, present_K & (self.known_K > 0))
        self.before_K = torch.where(present_K, losses_K, self.before_K)
        self.known_K = torch.where(present_K, 1.0, self.known_K)

    def after_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:
        """See :class:`Balancer`."""
        self._learn(losses_K, present_K & (self.known_K > 0))

    def _learn(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:
        """One step of the logits of some tasks, whose previous and current losses are known."""
        if not present_K.any():
            return
        change_K = self._log(self.before_K) - self._log(losses_K)
        shares_P, change_P = torch.softmax(self.logits_K[present_K], 0), change_K[present_K]
        gradient_K = self.zeros()
        gradient_K[present_K] = shares_P * (change_P - (shares_P * change_P).sum())
        self.logits_K = self.adam.step(self.logits_K, gradient_K, present_K)

    def _log(self, losses_K: torch.Tensor) -> torch.Tensor:
        return ((losses_K - self.least_K).clamp(min=0) + _EPSILON).log()
