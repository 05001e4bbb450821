"""Aggregators that share the progress of a step fairly: Nash-MTL and FairGrad, by Newton's method."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .base import GramianAggregator, check_number

_STEPS = 60  # a dozen is usual
_NEAR, _END = 0.1, 1e-9  # relative sizes of a step


def fair_weights(gramian_KK: torch.Tensor, alpha: float) -> torch.Tensor:
    r"""The positive solution of :math:`G w = w^{-1/\alpha}`, (K,).

    It is where the strictly convex :math:`\tfrac12 w^\top G w - \sum_i \int w_i^{-1/\alpha}` has its minimum.

    Args:
        gramian_KK: G, positive semi-definite with a positive diagonal.
        alpha: :math:`\alpha`.

    Raises:
        ArithmeticError: there is no solution, as where some gradients cancel each other, or it was not found.
    """
    power = 1 / alpha
    scale = gramian_KK.diagonal().mean()
    matrix_KK = gramian_KK / scale

    def value(weights_K: torch.Tensor) -> torch.Tensor:
        gain_K = weights_K.log() if power == 1 else weights_K ** (1 - power) / (1 - power)
        return 0.5 * weights_K @ matrix_KK @ weights_K - gain_K.sum()

    weights_K = matrix_KK.diagonal() ** (-1 / (1 + power))  # the solution for gradients at right angles
    for _ in range(_STEPS):
        slope_K = matrix_KK @ weights_K - weights_K**-power
        curvature_KK = matrix_KK + torch.diag(power * weights_K ** (-power - 1))
        step_K, singular = torch.linalg.solve_ex(curvature_KK, slope_K)
        if singular:
            break
        relative = float((step_K / weights_K).abs().max())
        if relative < _NEAR:
            size = 1.0  # from here on it converges by itself, and values differ by less than their rounding
        else:
            size = min(1.0, 0.99 / float((step_K / weights_K).max().clamp(min=1e-300)))  # weights stay positive
            slope, start = slope_K @ step_K, value(weights_K)
            while value(weights_K - size * step_K) > start - 1e-4 * size * slope and size > 1e-12:
                size /= 2
        weights_K = weights_K - size * step_K
        if relative < _END:
            return weights_K * scale ** (-1 / (1 + power))
    raise ArithmeticError("no fair weights, as where gradients cancel each other")


def _to_mean_one(weights_K: torch.Tensor) -> torch.Tensor:
    return weights_K * len(weights_K) / weights_K.sum()


class NashMTL(GramianAggregator):
    r"""The bargaining solution: the weights for which :math:`G \alpha = 1 / \alpha`.

    Multi-Task Learning as a Bargaining Game (ICML 2022), https://arxiv.org/abs/2202.01017.

    .. note::
        The paper approaches the solution by a sequence of convex problems for ECOS, started from the step before, and
        its code, as torchjd's, stops at a residual of 1e-3. Newton's method on the strictly convex function whose
        minimum the solution is takes a few small linear systems, needs no solver and remembers nothing. It works on
        the cosines, of which :math:`\alpha_i = \beta_i / \|g_i\|` follows exactly, so losses in the thousands beside
        small ones make no difference.

    .. note::
        The solution is a direction. The paper's code scales the combined gradient down to a norm of 1
        (``max_norm``). Beside heads whose gradients are in the thousands, and with one limit on the norm of both, the
        shared parameters would then hardly move. Weights are scaled to a mean of 1 instead: gradients that are alike
        sum as in the plain loss.
    """

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See :class:`GramianAggregator`."""
        norms_K = gramian_KK.diagonal().sqrt()
        return _to_mean_one(fair_weights(gramian_KK / torch.outer(norms_K, norms_K), 1.0) / norms_K)


class FairGrad(GramianAggregator):
    r"""The :math:`\alpha`-fair weights, for which :math:`G w = w^{-1/\alpha}`.

    Fair Resource Allocation in Multi-Task Learning (ICML 2024), equation 4, https://arxiv.org/abs/2402.15638.

    Args:
        alpha: 1 is proportional fairness, and with it :class:`NashMTL`; 2 minimum potential delay fairness, the
            default; the larger, the nearer to the largest progress of the task that has the least.

    .. note::
        The paper's code minimises the squared residual by ``scipy.optimize.least_squares``; here Newton's method
        solves the equation, as in :class:`NashMTL`, and the weights, a direction as there, are scaled to a mean of 1.
    """

    def __init__(self, *, alpha: float = 2.0) -> None:
        check_number("alpha", alpha, above=0)
        self.alpha = alpha

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See :class:`GramianAggregator`."""
        return _to_mean_one(fair_weights(gramian_KK, self.alpha))
