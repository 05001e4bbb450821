"""Losses relative to those of the best constant answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ._balancer import check_numbers
from ._scalarized import Scalarized

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class Scale(Scalarized):
    r"""Weights :math:`w_t = 1 / C_t`, where :math:`C_t` is the loss of task t's best constant answer.

    The method is not from a paper; it is the plain sum of comparable losses. :math:`C_t` is the best loss without
    reading the input, computed from the labels of the training data: their entropy for classes, its mean over classes
    for sets, the variance for numbers, and the entropy of the single tags or tokens. So the weighted loss of every task
    is close to 1 at the beginning of training, and is the share of its uncertainty that is left.

    Weights do not depend on the losses of a step: they are fixed.

    Args:
        losses: by task, :math:`C_t` instead of the computed value, more than 0. It is required for streams, which are
            not read for it, and for user-defined task types that do not define it.
        exact: has no effect.
    """

    reads_constants = True

    def __init__(self, *, losses: Mapping[str, float] | None = None, exact: bool = False) -> None:
        super().__init__(exact=exact)
        self.given = check_numbers("losses", losses, above=0)

    def begin(self, tasks: Sequence[str], *, constants: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        """See :class:`Balancer`."""
        super().begin(tasks, **kwargs)
        self.by_task("losses", self.given, 1.0)  # for the names
        known = {**(constants or {}), **self.given}
        for name in self.tasks:
            if not known.get(name, 0.0) > 0:
                raise ValueError(
                    f"Task '{name}': balancing 'scale' needs the loss of its best constant answer, more than 0. "
                    f"Found {known.get(name)}. Set it with balancing_kwargs={{'losses': {{'{name}': ...}}}}."
                )
        self.weights_K = torch.tensor([1 / known[name] for name in self.tasks], dtype=torch.float64)

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:
        """See :class:`Scalarized`."""
        from torchjd.scalarization import Constant

        return Constant(self.weights_K[tasks_P])
