"""Weights that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ._balancer import check_numbers
from ._scalarized import Scalarized

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class Fixed(Scalarized):
    r"""Weights :math:`w_t` that stay as they are named, 1 for the others.

    Do Current Multi-Task Optimization Methods in Deep Learning Even Help? (NeurIPS 2022),
    https://arxiv.org/abs/2209.11379: weights that were searched for, and fixed, keep up with methods that change them.
    The argument ``task_weights`` does the same beside any balancer; both multiply. Weights do not come from the step
    before or any other.

    Args:
        weights: by task, 0 or more.
        exact: changes nothing.
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
