"""One step of an aggregator: the combination of the gradients, and the fallback if it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .base import Aggregator, GramianAggregator, VectorAggregator
from .blocks import Blocks


@dataclass(frozen=True)
class Outcome:
    """The result of a step.

    Args:
        tasks: the K tasks with rows in the step.
        gramian: inner products of their gradients, (K, K).
        weights: of their gradients, (K,); None if the method has none.
        problem: the reason why the step used the plain sum instead; None if it did not.
    """

    tasks: tuple[str, ...]
    gramian: torch.Tensor
    weights: torch.Tensor | None
    problem: str | None = None

    @property
    def cosines(self) -> torch.Tensor:
        """Cosines between the gradients, (K, K); 0 if one of them is zero."""
        norms_K = self.gramian.diagonal().sqrt()
        return torch.nan_to_num(self.gramian / torch.outer(norms_K, norms_K), nan=0.0)

    @property
    def broken(self) -> tuple[str, ...]:
        """The tasks whose gradient is not finite."""
        squares = zip(self.tasks, self.gramian.diagonal().tolist(), strict=True)
        return tuple(name for name, square in squares if not 0 <= square < float("inf"))


def combine(aggregator: Aggregator, blocks: Blocks, tasks: Sequence[str], *, seed: int, scale: float = 1.0) -> Outcome:
    """Write the update of a step into the gradients of the shared parameters.

    Args:
        aggregator: the method.
        blocks: the gradients, after :meth:`Blocks.close`.
        tasks: names of its tasks.
        seed: for random numbers of the method; the random state of the caller does not change.
        scale: factor of all gradients, as in mixed precision.
    """
    gramian_KK = blocks.gramian() / scale**2
    norms = gramian_KK.diagonal().tolist()
    active = [number for number, norm in enumerate(norms) if norm != 0]
    names = [tasks[number] for number in active]
    weights_K = torch.ones(len(tasks), dtype=torch.float64)
    problem = None
    if not gramian_KK.isfinite().all():
        broken = [name for name, norm in zip(tasks, norms, strict=True) if not 0 <= norm < float("inf")]
        problem = f"the gradient of {', '.join(broken) or 'a task'} is not finite"
    devices = {parameter.device for parameter in blocks.parameters if parameter.device.type == "cuda"}
    if problem is None and len(active) > 1:
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            torch.manual_seed(seed)
            try:
                if isinstance(aggregator, VectorAggregator):
                    return _combine_vectors(aggregator, blocks, tuple(tasks), active, gramian_KK)
                weights_K[active] = _weights(aggregator, gramian_KK[active][:, active], names)
            except Exception as problem_found:  # any error of a solver is reported, and the step continues
                problem = _words(problem_found)
    blocks.write(lambda matrix_KP, _draw: _weighted(weights_K, matrix_KP))
    return Outcome(tuple(tasks), gramian_KK, weights_K, problem)


def _words(problem: Exception) -> str:
    return str(problem).strip().rstrip(".") or type(problem).__name__


def _weights(aggregator: Aggregator, gramian_KK: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    if not isinstance(aggregator, GramianAggregator):
        raise TypeError(f"{type(aggregator).__name__} is neither a GramianAggregator nor a VectorAggregator")
    weights_K = aggregator.weights(gramian_KK, names).to(dtype=torch.float64, device="cpu")
    if weights_K.shape != (len(names),) or not weights_K.isfinite().all():
        raise ArithmeticError(f"the weights are {weights_K.tolist()}")
    return weights_K


def _combine_vectors(
    aggregator: VectorAggregator,
    blocks: Blocks,
    tasks: tuple[str, ...],
    active: Sequence[int],
    gramian_KK: torch.Tensor,
) -> Outcome:
    names = [tasks[number] for number in active]
    every = len(active) == len(tasks)

    def combined(matrix_KP: torch.Tensor, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        return aggregator.combine(matrix_KP if every else matrix_KP[list(active)], names, draw)

    blocks.write(combined)
    return Outcome(tasks, gramian_KK, None)


def _weighted(weights_K: torch.Tensor, matrix_KP: torch.Tensor) -> torch.Tensor:
    return weights_K.to(dtype=matrix_KP.dtype, device=matrix_KP.device) @ matrix_KP
