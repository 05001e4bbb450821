"""The loss balance of impartial multi-task learning (IMTL-L)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._scalarized import Learned

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class IMTLL(Learned):
    r"""Weights :math:`w_t = e^{s_t}`, where s descends on :math:`\sum_t (e^{s_t} L_t - s_t)`.

    Towards Impartial Multi-Task Learning (ICLR 2021), https://openreview.net/forum?id=IMPnRXEWpvr.
    :math:`L_t` is the loss of task t, :math:`s_t` its scale, 0 at first. At rest :math:`e^{s_t} L_t = 1`: all weighted
    losses are as large as each other. It is uncertainty weighting with twice the weight and without its noise.

    Weights come from the step before: they depend on the losses up to it, which is the paper's own order; so ``exact``
    changes nothing.

    .. note:: The paper trains s with the model's optimizer; here it has an Adam of its own, as in :class:`Uncertainty`.
    .. note:: The paper adds the gradient balance IMTL-G at the shared parameters; that one is an aggregator.
    .. note:: A loss below 1e-8 counts as 1e-8, so that the weight of a task that is done does not grow for ever.

    Args:
        lr: learning rate of that Adam. The default lets s move by 1 in some 40 steps; the paper names none.
        exact: changes nothing.
    """

    parameter = "log_scale"

    def fresh(self, tasks: int) -> Scalarizer:
        """See :class:`Learned`."""
        from torchjd.scalarization import IMTLL as Reference

        return Reference(tasks)
