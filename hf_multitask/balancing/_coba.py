"""The convergence balancer (CoBa)."""

from __future__ import annotations

import torch

from ._balancer import Balancer, check_number


class CoBa(Balancer):
    r"""Weights from the slopes of the evaluation losses: :math:`w = DF \cdot RCS + (1 - DF) \cdot ACS`.

    CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models (EMNLP 2024),
    https://arxiv.org/abs/2410.06741. :math:`\alpha_t(s)` is the slope of a line through the last N evaluation losses of
    task t, each divided by the first, at evaluation s; :math:`\alpha_{max}` is the largest slope of an evaluation. At
    the current evaluation n,

    - :math:`RCS_t = \mathrm{softmax}_t(K \alpha_t(n) / \sum_i |\alpha_i(n)|)`: a task that converges more slowly
      than others gets a larger weight;
    - :math:`ACS_t = \mathrm{softmax}_t(-N \alpha_t(n) / \sum_s |\alpha_t(s)|)`, over the last N evaluations: a
      task that diverges, relative to its own past, gets a smaller weight;
    - :math:`DF = \min(n \, \mathrm{softmax}_s(-\tau n \alpha_{max}(s) / \sum_s |\alpha_{max}(s)|) [n], 1)`, over all
      evaluations: 1 while all tasks converge.

    Weights come from the evaluations before a step, as in the paper, so ``exact`` has no effect. Choose ``eval_steps``
    so that a run has many evaluations.

    .. note:: The code of the authors evaluates one batch of M after every step, and recommends a history of 2 M to 5 M
        and a warm-up of M such steps. Here an evaluation covers all rows, at the steps set by the training arguments,
        so the history is 5 evaluations, and the warm-up is the two that a slope needs.
    .. note:: The official code applies another softmax to K w and a minimum weight; here w is that of the paper.

    Args:
        history: N, in evaluations, 2 or more.
        warmup: number of evaluations before which all weights are :math:`1 / K`; 2 or more.
        tau: :math:`\tau`; 5, as recommended in the code of the authors.
        exact: has no effect.
    """

    reads_evaluations = True
    remembered = ("weights_K", "first_K", "ratios_SK", "slopes_SK", "largest_S")

    def __init__(self, *, history: int = 5, warmup: int = 2, tau: float = 5.0, exact: bool = False) -> None:
        super().__init__(exact=exact)
        for name, value in (("history", history), ("warmup", warmup)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 2:
                raise ValueError(
                    f"Parameter `{name}` should be a whole number of evaluations, 2 or more. Found "
                    f"`{name} = {value!r}`."
                )
        check_number("tau", tau, above=0)
        self.history, self.warmup, self.tau = history, warmup, tau

    def reset(self) -> None:
        """See :class:`Balancer`."""
        count = len(self.tasks)
        self.weights_K = self.zeros(1 / max(count, 1))
        self.first_K = self.zeros(-1.0)  # not known yet
        self.ratios_SK, self.slopes_SK = (torch.zeros(0, count, dtype=torch.float64) for _ in range(2))
        self.largest_S = torch.zeros(0, dtype=torch.float64)

    def weights(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See :class:`Balancer`."""
        return torch.where(present_K, self.weights_K, 0.0)

    def on_evaluate(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:
        """See :class:`Balancer`. A task that was not measured keeps its last ratio."""
        self.first_K = torch.where(present_K & (self.first_K < 0), losses_K.clamp(min=1e-8), self.first_K)
        last_K = self.ratios_SK[-1] if len(self.ratios_SK) else self.zeros(1.0)
        ratios_K = torch.where(present_K, losses_K / self.first_K, last_K)
        self.ratios_SK = torch.cat([self.ratios_SK, ratios_K.unsqueeze(0)])[-self.history :]
        if len(self.ratios_SK) < 2:
            return
        slopes_K = _slopes(self.ratios_SK)
        self.slopes_SK = torch.cat([self.slopes_SK, slopes_K.unsqueeze(0)])[-self.history :]
        self.largest_S = torch.cat([self.largest_S, slopes_K.max().unsqueeze(0)])
        if len(self.largest_S) + 1 >= self.warmup:
            self.weights_K = self._weigh()

    def _weigh(self) -> torch.Tensor:
        slopes_K, evaluations = self.slopes_SK[-1], len(self.largest_S)
        relative_K = torch.softmax(len(self.tasks) * _over(slopes_K, slopes_K.abs().sum()), 0)
        own_K = _over(slopes_K, self.slopes_SK.abs().sum(0))
        absolute_K = torch.softmax(-len(self.slopes_SK) * own_K, 0)
        largest_S = _over(self.largest_S, self.largest_S.abs().sum())
        factor = evaluations * torch.softmax(-self.tau * evaluations * largest_S, 0)[-1]
        factor = factor.clamp(max=1.0)
        return factor * relative_K + (1 - factor) * absolute_K


def _slopes(ratios_SK: torch.Tensor) -> torch.Tensor:
    """Slopes of the least-squares lines through each column, (K,)."""
    places_S = torch.arange(len(ratios_SK), dtype=torch.float64)
    places_S = places_S - places_S.mean()
    return (places_S.unsqueeze(1) * ratios_SK).sum(0) / (places_S**2).sum()


def _over(values: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Values divided by their total, 0 if all slopes are zero."""
    return torch.where(total > 0, values / total.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
