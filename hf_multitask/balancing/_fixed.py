"""Weights that the user sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ._balancer import check_numbers
from ._scalarized import Scalarized

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class Fixed(Scalarized):
    r"""Constant weights :math:`w_t`, 1 by default.

    Do Current Multi-Task Optimization Methods in Deep Learning Even Help? (NeurIPS 2022),
    https://arxiv.org/abs/2209.11379: fixed weights that are found by search perform as well as methods that change
    them. The argument ``task_weights`` does the same in addition to any balancer; both are multiplied. Weights do not
    depend on the losses.

    Args:
        weights: by task, 0 or more.
        exact: has no effect.
    """

    def __init__(self, *, weights: Mapping[str, float] | None = None, exact: bool = False) -> None:
        super().__init__(exact=exact)
        self.given = check_numbers("weights", weights, least=0)
        if not self.given:
            raise ValueError("Balancing 'fixed' needs `weights` by task. Add them to balancing_kwargs.")

    def begin(self, tasks: Sequence[str], **kwargs: Any) -> None:
        """See :class:`Balancer`."""
        super().begin(tasks, **kwargs)
        self.weights_K = self.by_task("weights", self.given, 1.0)

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:
        """See :class:`Scalarized`."""
        from torchjd.scalarization import Constant

        return Constant(self.weights_K[tasks_P])
