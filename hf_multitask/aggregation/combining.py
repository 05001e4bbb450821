"""One step of an aggregator: the combination of the gradients, and the fallback if it fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from .base import Aggregator, GramianAggregator, VectorAggregator
from .blocks import Blocks, Products


@dataclass(frozen=True)
class Outcome:
    """The result of a step.

    Args:
        tasks: the K tasks with rows in the step.
        gramian: inner products of their gradients, (K, K).
        weights: of their gradients, (K,); None if the method has none.
        problem: the reason why the step used the plain sum instead; None if it did not.
        values: of the Gramian, where they have been read.
    """

    tasks: tuple[str, ...]
    gramian: torch.Tensor
    weights: torch.Tensor | None
    problem: str | None = None
    values: Products | None = None

    @property
    def rows(self) -> Products:
        """The values of the Gramian."""
        return self.gramian.tolist() if self.values is None else self.values

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


def combine(
    aggregator: Aggregator,
    blocks: Blocks,
    tasks: Sequence[str],
    *,
    seed: int,
    scale: float = 1.0,
    products: Products | None = None,
) -> Outcome:
    """Write the update of a step into the gradients of the shared parameters.

    Args:
        aggregator: the method.
        blocks: the gradients, after :meth:`Blocks.close`.
        tasks: names of its tasks.
        seed: for random numbers of the method; the random state of the caller does not change.
        scale: factor of all gradients, as in mixed precision.
        products: the values of :meth:`Blocks.products` where the caller has read them.
    """
    rows = blocks.by_task(blocks.products().tolist() if products is None else products)
    rows = [[value / scale**2 for value in row] for row in rows]
    gramian_KK = torch.tensor(rows, dtype=torch.float64)
    active = [number for number, row in enumerate(rows) if row[number] != 0]
    weights = [1.0] * len(tasks)
    problem = None
    if not all(map(math.isfinite, chain(*rows))):
        broken = [name for number, name in enumerate(tasks) if not 0 <= rows[number][number] < float("inf")]
        problem = f"the gradient of {', '.join(broken) or 'a task'} is not finite"
    devices = {parameter.device for parameter in blocks.parameters if parameter.device.type == "cuda"}
    if problem is None and len(active) > 1:
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            torch.manual_seed(seed)
            try:
                if isinstance(aggregator, VectorAggregator):
                    return _combine_vectors(aggregator, blocks, tuple(tasks), active, gramian_KK)
                own_KK = gramian_KK if len(active) == len(tasks) else gramian_KK[active][:, active]
                found = _weights(aggregator, own_KK, [tasks[number] for number in active])
                for number, weight in zip(active, found, strict=True):
                    weights[number] = weight
            except Exception as problem_found:  # any error of a solver is reported, and the step continues
                problem = _words(problem_found)
    blocks.write_sum(weights)
    return Outcome(tuple(tasks), gramian_KK, torch.tensor(weights, dtype=torch.float64), problem, rows)


def _words(problem: Exception) -> str:
    return str(problem).strip().rstrip(".") or type(problem).__name__


def _weights(aggregator: Aggregator, gramian_KK: torch.Tensor, names: Sequence[str]) -> list[float]:
    if not isinstance(aggregator, GramianAggregator):
        raise TypeError(f"{type(aggregator).__name__} is neither a GramianAggregator nor a VectorAggregator")
    weights_K = aggregator.weights(gramian_KK, names)
    found = weights_K.tolist()
    if weights_K.shape != (len(names),) or not all(map(math.isfinite, found)):
        raise ArithmeticError(f"the weights are {found}")
    return found


def _combine_vectors(
    aggregator: VectorAggregator,
    blocks: Blocks,
    tasks: tuple[str, ...],
    active: Sequence[int],
    gramian_KK: torch.Tensor,
) -> Outcome:
    slots = sorted(blocks.slots[number] for number in active)  # rows of the matrices
    by_slot = dict(zip(blocks.slots, tasks, strict=True))
    names = [by_slot[slot] for slot in slots]

    def combined(matrix_KP: torch.Tensor, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        return aggregator.combine(matrix_KP if len(slots) == len(tasks) else matrix_KP[slots], names, draw)

    blocks.write(combined)
    return Outcome(tasks, gramian_KK, None)
