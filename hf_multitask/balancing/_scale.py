"""Losses over those of the best constant answer."""

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

    Of no paper; it is the plain sum of losses that are comparable. :math:`C_t` is what one can reach without reading
    the input, measured on the labels of the training data: their entropy for classes, the mean over classes for sets,
    the variance for numbers, the entropy of the tags or tokens, one by one, for those. So every task's weighted loss
    is near 1 when training begins in earnest and says which part of its uncertainty is left.

    Weights do not come from the step before or any other: they are fixed.

    Args:
        losses: by task, :math:`C_t` in place of the measured one, more than 0. Streams are not read for it, and types
            of one's own may not know it, so they need theirs here.
        exact: changes nothing.
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
                    f"Found {known.get(name)}. Give one, balancing_kwargs={{'losses': {{'{name}': ...}}}}."
                )
        self.weights_K = torch.tensor([1 / known[name] for name in self.tasks], dtype=torch.float64)

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:
        """See :class:`Scalarized`."""
        from torchjd.scalarization import Constant

        return Constant(self.weights_K[tasks_P])
