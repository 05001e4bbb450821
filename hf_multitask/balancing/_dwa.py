"""Dynamic weight average (DWA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ._balancer import check_number
from ._scalarized import Scalarized

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer

_LEAST = 1e-8


class DWA(Scalarized):
    r"""Weights :math:`w_t = K \, \mathrm{softmax}_t(r_t / T)` of the ratios :math:`r_t = L_t(e-1) / L_t(e-2)`.

    End-to-End Multi-Task Learning with Attention (CVPR 2019), https://arxiv.org/abs/1803.10704.
    :math:`L_t(e)` is the loss of task t averaged over epoch e, T the temperature, K the number of tasks of the step. A
    task whose loss falls more slowly gets a larger weight. During two epochs all weights are 1.

    Weights come from the two averages before a step, as in the paper, so ``exact`` has no effect.

    .. note:: Fine-tuning takes few epochs, so ``interval`` may average over a number of steps instead.
    .. note:: An average is over the steps with the task. A task that is absent in an epoch keeps its averages; a task
        with fewer than two averages has the ratio 1. Averages below 1e-8 count as 1e-8.

    Args:
        temperature: T; 2 as in the paper.
        interval: number of steps of an average; an epoch, as in the paper, if None.
        exact: has no effect.
    """

    remembered = ("older_K", "newer_K", "averages_K", "sum_K", "count_K", "steps")

    def __init__(self, *, temperature: float = 2.0, interval: int | None = None, exact: bool = False) -> None:
        super().__init__(exact=exact)
        check_number("temperature", temperature, above=0)
        if interval is not None and (not isinstance(interval, int) or isinstance(interval, bool) or interval < 1):
            raise ValueError(
                f"Parameter `interval` should be a whole number of steps, 1 or more. Found `interval = {interval!r}`."
            )
        self.temperature, self.interval = temperature, interval

    def reset(self) -> None:
        """See :class:`Balancer`."""
        self.older_K, self.newer_K = self.zeros(1.0), self.zeros(1.0)
        self.averages_K, self.sum_K, self.count_K = self.zeros(), self.zeros(), self.zeros()
        self.steps = 0

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:
        """See :class:`Scalarized`: that of torchjd, with the two averages of each task as epochs of one batch."""
        from torchjd.scalarization import DWA as Reference

        made = Reference(self.temperature)
        known_P = self.averages_K[tasks_P] >= 2
        for average_K in (self.older_K, self.newer_K):
            made(torch.where(known_P, average_K[tasks_P].clamp(min=_LEAST), 1.0))
            made.step()
        return made

    def on_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:
        """See :class:`Balancer`."""
        self.sum_K = torch.where(present_K, self.sum_K + losses_K, self.sum_K)
        self.count_K = self.count_K + present_K
        self.steps += 1
        if self.interval is not None and self.steps % self.interval == 0:
            self._roll()

    def on_epoch(self) -> None:
        """See :class:`Balancer`."""
        if self.interval is None:
            self._roll()

    def _roll(self) -> None:
        """Convert the sums to the newer average, and the newer average to the older one."""
        seen_K = self.count_K > 0
        self.older_K = torch.where(seen_K, self.newer_K, self.older_K)
        self.newer_K = torch.where(seen_K, self.sum_K / self.count_K.clamp(min=1), self.newer_K)
        self.averages_K = self.averages_K + seen_K
        self.sum_K, self.count_K = self.zeros(), self.zeros()
