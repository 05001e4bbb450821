"""Aggregators without a state that compute weights from the Gramian with torchjd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from .base import GramianAggregator, check_number, square_root, trace_scaled
from .vectors import check_named


class Weighting(GramianAggregator):
    """A weighting of torchjd.

    Args:
        weighting: a callable on the Gramian, or on a matrix of gradients if ``on_matrix``.
        on_matrix: whether it needs the gradients. It receives a (K, K) matrix with the same inner products.
        times_tasks: whether its weights are those of a mean, which are multiplied by K to be those of a sum.
    """

    def __init__(
        self, weighting: Callable[[torch.Tensor], torch.Tensor], *, on_matrix: bool = False, times_tasks: bool = False
    ) -> None:
        self.weighting = weighting
        self.on_matrix = on_matrix
        self.times_tasks = times_tasks

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """See :class:`GramianAggregator`."""
        given_KK = trace_scaled(gramian_KK)
        weights_K = self.weighting(square_root(given_KK) if self.on_matrix else given_KK)
        return weights_K * len(tasks) if self.times_tasks else weights_K


class PCGrad(GramianAggregator):
    r"""Gradients without their projections onto those that they conflict with, one after the other at random.

    Gradient Surgery for Multi-Task Learning (NeurIPS 2020), algorithm 1, https://arxiv.org/abs/2001.06782;
    ``torchjd.aggregation.PCGradWeighting``, whose random numbers are drawn here as well. All gradients are processed
    together, and no value is read on the way.
    """

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """See :class:`GramianAggregator`."""
        count = len(tasks)
        orders_KK = torch.stack([torch.randperm(count) for _ in tasks])
        norms_K, own_K = gramian_KK.diagonal(), torch.arange(count)
        parts_KK = torch.eye(count, dtype=gramian_KK.dtype)  # of each gradient, the weights of all that it is made of
        for others_K in orders_KK.unbind(1):
            inner_K = (gramian_KK[others_K] * parts_KK).sum(1).clamp(max=0).masked_fill(others_K == own_K, 0)
            parts_KK[own_K, others_K] -= inner_K / norms_K[others_K]
        return parts_KK.sum(0)


class Projected(GramianAggregator):
    """The weights of UPGrad, or of DualProj, whose gradients are projected onto the cone without conflict.

    Jacobian Descent for Multi-Objective Optimization, https://arxiv.org/abs/2406.16232, proposition 1;
    ``torchjd.aggregation.UPGradWeighting`` and ``DualProjWeighting`` with ``QuadprogProjector``, times K. The solver
    runs on the CPU, and reads the Gramian once.

    Args:
        together: whether the mean of the gradients is projected, as in DualProj, instead of each of them.
        reg_eps: added to the diagonal of the Gramian, relative to the sum of the squared norms, for the solver.
            Conflicts with a gradient whose squared norm is not far above it are hardly avoided.
    """

    def __init__(self, *, together: bool, reg_eps: float) -> None:
        import quadprog  # noqa: F401 - the solver of qpsolvers
        from qpsolvers import solve_qp

        check_number("reg_eps", reg_eps, least=0)
        self.together, self.reg_eps, self._solve = together, reg_eps, solve_qp

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """See :class:`GramianAggregator`."""
        count, gramian = len(tasks), gramian_KK.numpy()
        matrix = gramian / gramian.trace() + self.reg_eps * np.eye(count)
        found = np.zeros(count)
        for least in [np.ones(count)] if self.together else np.eye(count):
            solved = self._solve(matrix, np.zeros(count), -np.eye(count), -least, solver="quadprog")
            if solved is None:
                raise ArithmeticError("the quadratic program has no solution")
            found += solved
        return torch.from_numpy(found)


class ConFIG(GramianAggregator):
    r"""The direction with the same cosine to all gradients, whose length is the sum of their projections onto it.

    ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks (ICLR 2025), equation 2,
    https://arxiv.org/abs/2408.11104; ``torchjd.aggregation.ConFIG``. With the cosines :math:`C` and norms :math:`n`
    the direction is :math:`\sum_i (C^+ 1)_i g_i / n_i`: the gradients themselves are not needed.
    """

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See :class:`GramianAggregator`."""
        norms_K = gramian_KK.diagonal().sqrt()
        cosines_KK = gramian_KK / torch.outer(norms_K, norms_K)
        direction_K = (torch.linalg.pinv(cosines_KK, hermitian=True) @ torch.ones_like(norms_K)) / norms_K
        squared_length = direction_K @ gramian_KK @ direction_K
        if squared_length <= 0:
            raise ArithmeticError("no direction has the same positive cosine with all gradients")
        return direction_K * (gramian_KK @ direction_K).sum() / squared_length


class Constant(GramianAggregator):
    """Constant weights.

    Args:
        weights: by task; 1 by default.
    """

    def __init__(self, *, weights: Mapping[str, float]) -> None:
        if not isinstance(weights, Mapping):
            raise ValueError(f"Parameter `weights` should be a mapping from tasks to numbers. Found {weights!r}.")
        for name, weight in weights.items():
            check_number(f"weights['{name}']", weight)
        self.by_task = dict(weights)

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """See :class:`Aggregator`."""
        check_named("weights", self.by_task, tasks)

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """See :class:`GramianAggregator`."""
        return gramian_KK.new_tensor([self.by_task.get(name, 1.0) for name in tasks])


# By name, weightings of torchjd without a state: the class, arguments in addition to those of the user, whether they
# need a matrix, and whether their weights are those of a mean.
_TORCHJD: dict[str, tuple[str, dict[str, object], bool, bool]] = {
    "cagrad": ("CAGradWeighting", {"c": 0.4}, False, True),
    "mgda": ("MGDAWeighting", {}, False, True),
    "imtl_g": ("IMTLGWeighting", {}, False, True),
    "aligned_mtl": ("AlignedMTLWeighting", {}, False, True),
    "krum": ("KrumWeighting", {"n_byzantine": 0}, False, True),
    "sum": ("SumWeighting", {}, True, False),
    "mean": ("MeanWeighting", {}, True, False),
    "random": ("RandomWeighting", {}, True, True),
}


def torchjd_weighting(name: str, **kwargs: object) -> Weighting:
    """A weighting of torchjd, by the name in this package."""
    import torchjd.aggregation

    kind, defaults, on_matrix, times_tasks = _TORCHJD[name]
    weighting = getattr(torchjd.aggregation, kind)(**{**defaults, **kwargs})
    return Weighting(weighting, on_matrix=on_matrix, times_tasks=times_tasks)
