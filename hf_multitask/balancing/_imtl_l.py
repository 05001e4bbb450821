"""The loss balance of impartial multi-task learning (IMTL-L)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._scalarized import Learned

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class IMTLL(Learned):
    r"""Weights :math:`w_t = e^{s_t}`, where s descends on :math:`\sum_t (e^{s_t} L_t - s_t)`.

    Towards Impartial Multi-Task Learning (ICLR 2021), https://openreview.net/forum?id=IMPnRXEWpvr.
    :math:`L_t` is the loss of task t, :math:`s_t` its scale, initially 0. At the optimum :math:`e^{s_t} L_t = 1`: all
    weighted losses are equal. It is uncertainty weighting with twice the weight and without its noise.

    Weights come from the previous step: they depend on the losses up to it, as in the paper, so ``exact`` has no
    effect.

    .. note:: The paper trains s with the optimizer of the model; here it has a separate Adam optimizer, as in
        :class:`Uncertainty`.
    .. note:: The paper adds the gradient balance IMTL-G at the shared parameters; here, that is an aggregator.
    .. note:: A loss below 1e-8 counts as 1e-8, so that the weight of a converged task does not grow without bound.

    Args:
        lr: learning rate of this Adam optimizer. With the default, s changes by 1 in about 40 steps; the paper gives no
            value.
        exact: has no effect.
    """

    parameter = "log_scale"

    def fresh(self, tasks: int) -> Scalarizer:
        """See :class:`Learned`."""
        from torchjd.scalarization import IMTLL as Reference

        return Reference(tasks)
