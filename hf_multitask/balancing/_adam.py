"""The optimizer of balancers with learned weights: Adam, with a state for each task."""

from __future__ import annotations

import torch

from ._balancer import State

_BETAS, _EPS = (0.9, 0.999), 1e-8  # those of torch.optim.Adam


class TaskAdam:
    """Adam on one number per task, which only updates the numbers of present tasks and counts their steps.

    If all tasks are always present, it equals ``torch.optim.Adam``, whose momentum would also update absent tasks.

    Args:
        tasks: number of tasks.
        lr: learning rate.
        weight_decay: added to the gradient, as in ``torch.optim.Adam``.
    """

    def __init__(self, tasks: int, *, lr: float, weight_decay: float = 0.0) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self.mean_K, self.square_K, self.steps_K = (torch.zeros(tasks, dtype=torch.float64) for _ in range(3))

    def step(self, values_K: torch.Tensor, gradient_K: torch.Tensor, present_K: torch.Tensor) -> torch.Tensor:
        """The values after one step, (K,)."""
        gradient_K = gradient_K + self.weight_decay * values_K
        first, second = _BETAS
        self.steps_K = self.steps_K + present_K
        self.mean_K = torch.where(present_K, first * self.mean_K + (1 - first) * gradient_K, self.mean_K)
        self.square_K = torch.where(present_K, second * self.square_K + (1 - second) * gradient_K**2, self.square_K)
        counted_K = self.steps_K.clamp(min=1)
        mean_K = self.mean_K / (1 - first**counted_K)
        root_K = (self.square_K / (1 - second**counted_K)).sqrt()
        return torch.where(present_K, values_K - self.lr * mean_K / (root_K + _EPS), values_K)

    def state_dict(self) -> State:
        """Both means and the steps as lists."""
        return {"mean": self.mean_K.tolist(), "square": self.square_K.tolist(), "steps": self.steps_K.tolist()}

    def load_state_dict(self, state: State) -> None:
        """Restore the state of :meth:`state_dict`."""
        self.mean_K, self.square_K, self.steps_K = (
            torch.tensor(state[name], dtype=torch.float64) for name in ("mean", "square", "steps")
        )
