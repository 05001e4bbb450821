"""Aggregators with a fair distribution of progress: Nash-MTL and FairGrad, solved by Newton's method."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .base import GramianAggregator, check_number

_STEPS = 60  # about a dozen are usually enough
_NEAR, _END = 0.1, 1e-9  # relative sizes of a step


def fair_weights(gramian_KK: torch.Tensor, alpha: float) -> torch.Tensor:
    r"""The positive solution of :math:`G w = w^{-1/\alpha}`, (K,).

    It is the minimum of the strictly convex function :math:`\tfrac12 w^\top G w - \sum_i \int w_i^{-1/\alpha}`.

    Args:
        gramian_KK: G, positive semi-definite with a positive diagonal.
        alpha: :math:`\alpha`.

    Raises:
        ArithmeticError: there is no solution, for example if gradients cancel each other, or it was not found.
    """
    power = 1 / alpha
    scale = gramian_KK.diagonal().mean()
    matrix_KK = gramian_KK / scale

    def value(weights_K: torch.Tensor) -> torch.Tensor:
        gain_K = weights_K.log() if power == 1 else weights_K ** (1 - power) / (1 - power)
        return 0.5 * weights_K @ matrix_KK @ weights_K - gain_K.sum()

    weights_K = matrix_KK.diagonal() ** (-1 / (1 + power))  # the solution for orthogonal gradients
    for _ in range(_STEPS):
        slope_K = matrix_KK @ weights_K - weights_K**-power
        curvature_KK = matrix_KK + torch.diag(power * weights_K ** (-power - 1))
        step_K, singular = torch.linalg.solve_ex(curvature_KK, slope_K)
        if singular:
            break
        relative = float((step_K / weights_K).abs().max())
        if relative < _NEAR:
            size = (
                1.0  # close to the solution full steps converge, and values differ by less than their rounding errors
            )
        else:
            size = min(1.0, 0.99 / float((step_K / weights_K).max().clamp(min=1e-300)))  # weights stay positive
            slope, start = slope_K @ step_K, value(weights_K)
            while value(weights_K - size * step_K) > start - 1e-4 * size * slope and size > 1e-12:
                size /= 2
        weights_K = weights_K - size * step_K
        if relative < _END:
            return weights_K * scale ** (-1 / (1 + power))
    raise ArithmeticError("there are no fair weights, for example because gradients cancel each other")


def _to_mean_one(weights_K: torch.Tensor) -> torch.Tensor:
    return weights_K * len(weights_K) / weights_K.sum()


class NashMTL(GramianAggregator):
    r"""The bargaining solution: the weights for which :math:`G \alpha = 1 / \alpha`.

    Multi-Task Learning as a Bargaining Game (ICML 2022), https://arxiv.org/abs/2202.01017.

    .. note::
        The paper approximates the solution by a sequence of convex problems for ECOS, initialized with the previous
        step, and its code, like torchjd, stops at a residual of 1e-3. Here, Newton's method minimizes the strictly
        convex function whose minimum is the solution. It solves a few small linear systems, needs no solver and has no
        state. It uses the cosines, from which :math:`\alpha_i = \beta_i / \|g_i\|` follows exactly, so losses of very
        different sizes do not affect it.

    .. note::
        The solution is a direction. The code of the paper scales the combined gradient down to a norm of 1
        (``max_norm``). If the gradients of heads have norms in the thousands, and one limit applies to the norm of
        both, the shared parameters would then hardly change. Here, weights are scaled to a mean of 1 instead: equal
        gradients sum up as in the plain loss.
    """

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See :class:`GramianAggregator`."""
        norms_K = gramian_KK.diagonal().sqrt()
        return _to_mean_one(fair_weights(gramian_KK / torch.outer(norms_K, norms_K), 1.0) / norms_K)


class FairGrad(GramianAggregator):
    r"""The :math:`\alpha`-fair weights, for which :math:`G w = w^{-1/\alpha}`.

    Fair Resource Allocation in Multi-Task Learning (ICML 2024), equation 4, https://arxiv.org/abs/2402.15638.

    Args:
        alpha: 1 is proportional fairness, which equals :class:`NashMTL`; 2, the default, is minimum potential delay
            fairness; larger values approach max-min fairness.

    .. note::
        The code of the paper minimizes the squared residual with ``scipy.optimize.least_squares``; here Newton's method
        solves the equation, as in :class:`NashMTL`, and the weights, which are a direction, are scaled to a mean of 1.
    """

    def __init__(self, *, alpha: float = 2.0) -> None:
        check_number("alpha", alpha, above=0)
        self.alpha = alpha

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See :class:`GramianAggregator`."""
        return _to_mean_one(fair_weights(gramian_KK, self.alpha))
