"""Aggregators that process every entry of the gradients separately."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from .base import VectorAggregator, check_number


class GradDrop(VectorAggregator):
    r"""Keeps, for each entry, either the positive or the negative parts of the gradients at random.

    Positive parts are kept with the probability :math:`\tfrac12 (1 + \sum_i g_i / \sum_i |g_i|)`. Just Pick a Sign:
    Optimizing Deep Multitask Models with Gradient Sign Dropout (NeurIPS 2020), https://arxiv.org/abs/2010.06808; as
    ``torchjd.aggregation.GradDrop``.

    Args:
        leak: the fraction of a gradient that is always kept, a number for all tasks or one by task; 0 by default.

    .. note::
        In the paper, the signs are those of the gradients at a shared activation, multiplied by the activation; here,
        as in torchjd, they are those of the gradients of the shared parameters.
    """

    def __init__(self, *, leak: float | Mapping[str, float] = 0.0) -> None:
        by_task = leak if isinstance(leak, Mapping) else {"": leak}
        for value in by_task.values():
            if not 0 <= value <= 1:
                raise ValueError(f"Parameter `leak` should be from 0 to 1. Found {value}.")
        self.leak = leak

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """See :class:`Aggregator`."""
        check_named("leak", self.leak if isinstance(self.leak, Mapping) else {}, tasks)

    def combine(
        self, gradients_KP: torch.Tensor, tasks: Sequence[str], draw: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """See :class:`VectorAggregator`."""
        leak = self.leak
        parts = [leak.get(name, 0.0) if isinstance(leak, Mapping) else leak for name in tasks]
        leak_K1 = gradients_KP.new_tensor(parts).unsqueeze(1)
        positive_P = 0.5 * (1 + gradients_KP.sum(0) / gradients_KP.abs().sum(0))  # NaN if all are zero
        drawn_P = draw()
        passes_KP = ((positive_P > drawn_P) & (gradients_KP > 0)) | ((positive_P < drawn_P) & (gradients_KP < 0))
        return ((leak_K1 + (1 - leak_K1) * passes_KP) * gradients_KP).sum(0)


class TrimmedMean(VectorAggregator):
    """The mean of every entry without its largest and smallest values, times K.

    Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates (ICML 2018),
    https://arxiv.org/abs/1803.01498; ``torchjd.aggregation.TrimmedMean``.

    Args:
        trim_number: number of the largest and of the smallest values that are left out.

    .. note::
        The mean is multiplied by K, so that equal gradients sum up as in the plain loss. Steps with too few tasks use
        the plain sum.
    """

    def __init__(self, *, trim_number: int = 1) -> None:
        check_number("trim_number", trim_number, least=0, whole=True)
        self.trim_number = trim_number

    def combine(
        self,
        gradients_KP: torch.Tensor,
        tasks: Sequence[str],
        draw: Callable[[], torch.Tensor],  # noqa: ARG002
    ) -> torch.Tensor:
        """See :class:`VectorAggregator`."""
        from torchjd.aggregation import TrimmedMean as TorchTrimmedMean

        if len(tasks) <= 2 * self.trim_number:
            raise ArithmeticError(f"{len(tasks)} tasks are too few to leave out {2 * self.trim_number}")
        return TorchTrimmedMean(self.trim_number)(gradients_KP) * len(tasks)


def check_named(argument: str, values: Mapping[str, float], tasks: Sequence[str]) -> None:
    """Check that the keys of an argument are tasks.

    Raises:
        ValueError: a key is not a task.
    """
    for name in values:
        if name not in tasks:
            raise ValueError(f"Parameter `{argument}` names '{name}'; the tasks are {', '.join(tasks)}. Fix it.")
