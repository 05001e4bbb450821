"""Smooth Tchebycheff scalarization (STCH)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ._balancer import check_number, check_numbers
from ._scalarized import Scalarized

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class STCH(Scalarized):
    r"""The gradient of a smooth maximum: :math:`w_t = \lambda_t \, \mathrm{softmax}_t(\lambda_t (L_t - z_t) / \mu)`.

    Smooth Tchebycheff Scalarization for Multi-Objective Optimization (ICML 2024), https://arxiv.org/abs/2402.19078:
    the gradient of :math:`\mu \log \sum_t \exp(\lambda_t (L_t - z_t) / \mu)`. :math:`L_t` is the loss of task t,
    :math:`\lambda_t` its preference, :math:`z_t` the loss that it could reach alone. The worst task gets the largest
    weight, and more so for smaller :math:`\mu`.

    Weights come from the previous step: :math:`L_t` is the loss of t in the last step with this task. ``exact=True``
    uses that of the current step, as in the paper.

    .. note:: With losses of different kinds, the task with the largest scale is the worst; preferences or ``z`` can
        compensate for that. LibMTL uses logarithms of losses relative to those of a warm-up instead.
    .. note:: Preferences are divided by their sum over the tasks in the step; in the paper, every step has all tasks.

    Args:
        mu: :math:`\mu`. The paper tests 0.01, 0.1, 0.5 and 1, recommends small values, and gives no default.
        weights: :math:`\lambda` by task, more than 0; equal for all if None.
        reference: :math:`z` by task; 0 by default.
        exact: see above.
    """

    reads_losses = True

    def __init__(
        self,
        *,
        mu: float = 0.1,
        weights: Mapping[str, float] | None = None,
        reference: Mapping[str, float] | None = None,
        exact: bool = False,
    ) -> None:
        super().__init__(exact=exact)
        check_number("mu", mu, above=0)
        self.mu = mu
        self.given = check_numbers("weights", weights, above=0), check_numbers("reference", reference)

    def begin(self, tasks: Sequence[str], **kwargs: Any) -> None:
        """See :class:`Balancer`."""
        super().begin(tasks, **kwargs)
        self.preference_K = self.by_task("weights", self.given[0], 1.0)
        self.reference_K = self.by_task("reference", self.given[1], 0.0)

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:
        """See :class:`Scalarized`."""
        from torchjd.scalarization import STCH as Reference

        preference_P = self.preference_K[tasks_P]
        return Reference(self.mu, preference_P / preference_P.sum(), self.reference_K[tasks_P])
