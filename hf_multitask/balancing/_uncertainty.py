"""Uncertainty weighting (UW)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._scalarized import Learned

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class Uncertainty(Learned):
    r"""Weights :math:`w_t = \frac{1}{2} e^{-s_t}`, where s descends on :math:`\sum_t \frac{1}{2} (e^{-s_t} L_t + s_t)`.

    Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics (CVPR 2018),
    https://arxiv.org/abs/1705.07115. :math:`L_t` is the loss of task t, :math:`s_t = \log \sigma_t^2` the logarithm of
    its noise, 0 at first. At rest :math:`e^{s_t} = L_t`: a task of large losses gets a small weight.

    Weights come from the step before: they depend on the losses up to it. That is the paper's own order, in which
    weights and s of a step are those before its update; so ``exact`` changes nothing.

    .. note:: The paper has :math:`\sigma_t^{-2} L_t + \log \sigma_t` for classifications, twice the weight. Here, as
        in torchjd and most implementations, all tasks have the form of a regression.
    .. note:: The paper trains s with the model's optimizer. Here it has an Adam of its own, so that neither weight
        decay nor the small rates of fine-tuning, which would leave s where it is, have a hand in it.
    .. note:: A loss below 1e-8 counts as 1e-8, so that the weight of a task that is done does not grow for ever.

    Args:
        lr: learning rate of that Adam. The default lets s move by 1 in some 40 steps; the paper names none.
        exact: changes nothing.
    """

    parameter = "log_var"

    def fresh(self, tasks: int) -> Scalarizer:
        """See :class:`Learned`."""
        from torchjd.scalarization import UW

        return UW(tasks)
