"""The geometric mean of the losses (GLS)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ._scalarized import Scalarized

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer

LEAST = 1e-8


class GeometricMean(Scalarized):
    r"""The gradient of the geometric mean: :math:`w_t = \frac{1}{K L_t} \left( \prod_i L_i \right)^{1/K}`.

    MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning (CVPR Workshops
    2019), https://arxiv.org/abs/1904.08492. :math:`L_t` is the loss of task t, K the number of tasks of the step. All
    weighted losses are equal, whatever their scales.

    Weights come from the previous step: :math:`L_t` is the loss of t in the last step with this task. ``exact=True``
    uses that of the current step, as in the paper.

    .. note:: The mean is over the tasks in the step; in the paper, every step has all tasks.
    .. note:: A loss below 1e-8 counts as 1e-8, so that a converged task does not get an infinite weight.

    Args:
        exact: see above.
    """

    reads_losses = True

    def values(self, losses_K: torch.Tensor, tasks_P: torch.Tensor) -> torch.Tensor:
        """See :class:`Scalarized`."""
        return losses_K[tasks_P].clamp(min=LEAST)

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:  # noqa: ARG002
        """See :class:`Scalarized`."""
        from torchjd.scalarization import GeometricMean as Reference

        return Reference()
