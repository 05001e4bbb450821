"""Aggregators of torchjd with a state, which is kept here by task name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .base import GramianAggregator, State, check_number, trace_scaled


class GradVac(GramianAggregator):
    r"""Gradient Vaccine: raises the cosine of two gradients to a target if it is lower.

    The target :math:`\hat\phi_{ij}` is the exponential moving average of this cosine over earlier steps. Gradient
    Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual Models (ICLR 2021),
    https://arxiv.org/abs/2010.05874; ``torchjd.aggregation.GradVacWeighting``.

    Args:
        beta: weight of a step in this average; 0.01 as in the paper.
        eps: added to denominators.

    .. note::
        All shared parameters are one group. The default of ``beta`` is 0.5 in torchjd and 0.01 in the paper. torchjd
        resets its targets when the number of tasks changes; here pairs keep their target during steps in which one of
        them is absent.
    """

    def __init__(self, *, beta: float = 0.01, eps: float = 1e-8) -> None:
        from torchjd.aggregation import GradVacWeighting

        check_number("eps", eps, least=0)
        self.weighting: Any = GradVacWeighting(beta=beta, eps=eps)
        self.targets: dict[str, dict[str, float]] = {}

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """See :class:`GramianAggregator`."""
        rows = [[self.targets.get(one, {}).get(other, 0.0) for other in tasks] for one in tasks]
        self.weighting._phi_t = torch.tensor(rows, dtype=gramian_KK.dtype)
        self.weighting._state_key = (len(tasks), gramian_KK.dtype)
        weights_K = self.weighting(trace_scaled(gramian_KK))
        for one, row in zip(tasks, self.weighting._phi_t.tolist(), strict=True):
            self.targets.setdefault(one, {}).update(zip(tasks, row, strict=True))
        return weights_K

    def state_dict(self) -> State:
        """The targets, by pairs of tasks."""
        return {"targets": self.targets}

    def load_state_dict(self, state: State) -> None:
        """Restore the targets."""
        self.targets = {one: dict(row) for one, row in state["targets"].items()}


class PCD(GramianAggregator):
    r"""Follows the gradient of one task as closely as possible while the others still make some progress.

    Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical Multi-Objective Optimization (TMLR
    2026), https://arxiv.org/abs/2606.29521; ``torchjd.aggregation.PCDWeighting``.

    Args:
        primary: name of the task to follow.
        tau: the progress of the others, as a fraction of that of a step along their own normalized gradient.
        beta: decay of the moving average of the squared norms.
        eps: added to that average.

    .. note::
        A task that was absent returns with its last average, and a new task begins with its current norm. Steps without
        the primary task use the plain sum.
    """

    def __init__(self, *, primary: str, tau: float = 0.02, beta: float = 0.999, eps: float = 1e-8) -> None:
        from torchjd.aggregation import PCDWeighting

        check_number("eps", eps, least=0)
        self.primary = primary
        self.weighting: Any = PCDWeighting(tau=tau, beta=beta, eps=eps)
        self.averages: dict[str, float] = {}
        self.steps = 0

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """See :class:`Aggregator`."""
        if self.primary not in tasks:
            raise ValueError(f"Parameter `primary` should name a task: {', '.join(tasks)}. Found '{self.primary}'.")

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """See :class:`GramianAggregator`."""
        if self.primary not in tasks:
            raise ArithmeticError(f"the primary task '{self.primary}' has no gradient")
        first = tasks.index(self.primary)
        order = [first, *(number for number in range(len(tasks)) if number != first)]
        names = [tasks[number] for number in order]
        ordered_KK = gramian_KK[order][:, order]
        gone = 1 - self.weighting.beta**self.steps
        known = [
            self.averages.get(name, norm) for name, norm in zip(names, ordered_KK.diagonal().tolist(), strict=True)
        ]
        self.weighting._sq_norm_ema = torch.tensor(known, dtype=torch.float64) * gone
        self.weighting._n_steps = torch.tensor(self.steps)
        self.weighting._state_key = len(tasks)
        weights_K = torch.empty_like(ordered_KK[0])
        weights_K[order] = self.weighting(ordered_KK)
        self.steps += 1
        means = self.weighting._sq_norm_ema / (1 - self.weighting.beta**self.steps)
        self.averages.update(zip(names, means.tolist(), strict=True))
        return weights_K

    def state_dict(self) -> State:
        """The averages by task, and the number of steps."""
        return {"averages": self.averages, "steps": self.steps}

    def load_state_dict(self, state: State) -> None:
        """Restore the averages."""
        self.averages, self.steps = dict(state["averages"]), int(state["steps"])


class CRMOGM(GramianAggregator):
    r"""The weights of another method, smoothed over steps: :math:`\lambda_k = a \lambda_{k-1} + (1 - a) \hat\lambda_k`.

    On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond (NeurIPS 2022),
    https://openreview.net/forum?id=ScwfQ7hdwyP; ``torchjd.aggregation.CRMOGMWeighting``.

    Args:
        method: the other method, which uses the Gramian.
        alpha: a, constant; in the paper it increases as the learning rate decreases.

    .. note::
        The first weight of a task is not smoothed, and its weight does not change while the task is absent.
    """

    def __init__(self, method: GramianAggregator, *, alpha: float = 0.9) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"Parameter `alpha` should be from 0 to 1. Found `alpha = {alpha}`.")
        self.method = method
        self.alpha = alpha
        self.smoothed: dict[str, float] = {}

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """See :class:`Aggregator`."""
        self.method.check_tasks(tasks)

    def weights(self, gramian_KK: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """See :class:`GramianAggregator`."""
        found = self.method.weights(gramian_KK, tasks).tolist()
        for name, weight in zip(tasks, found, strict=True):
            self.smoothed[name] = self.alpha * self.smoothed.get(name, weight) + (1 - self.alpha) * weight
        return torch.tensor([self.smoothed[name] for name in tasks], dtype=gramian_KK.dtype)

    def state_dict(self) -> State:
        """The smoothed weights by task, and the state of the other method."""
        return {"smoothed": self.smoothed, "method": self.method.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Restore the weights."""
        self.smoothed = dict(state["smoothed"])
        self.method.load_state_dict(state["method"])
