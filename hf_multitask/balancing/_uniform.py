"""The same weight for every task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ._scalarized import Scalarized

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class Uniform(Scalarized):
    r"""The same weight for every task: :math:`w_t = 1`.

    In Defense of the Unitary Scalarization for Deep Multi-Task Learning (NeurIPS 2022),
    https://arxiv.org/abs/2201.04122: the plain sum, :math:`\sum_t L_t`, tuned well, performs as well as methods
    with higher costs. The balancer equals ``balancing="none"``. Weights do not depend on the losses.

    .. note:: The mean of the losses has the same direction; with an optimizer such as Adam there is no difference.

    Args:
        exact: has no effect.
    """

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:  # noqa: ARG002
        """See :class:`Scalarized`."""
        from torchjd.scalarization import Sum

        return Sum()
