"""The balancer of a run beside what every balancer needs: the tasks' last losses, and a place in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from ...balancing import Balancer


class Balance:
    """Weights of the tasks by name, step by step.

    Args:
        balancer: of the run; None for the fixed weights alone.
        tasks: their names.
        fixed: by task, a weight that the balancer's is multiplied by.
        seed: of what the balancer draws.
        constants: measures the loss of every task's best constant answer; asked only by balancers that read it.
    """

    def __init__(
        self,
        balancer: Balancer | None,
        tasks: Sequence[str],
        fixed: Mapping[str, float],
        *,
        seed: int = 0,
        constants: Callable[[Collection[str]], dict[str, float]] | None = None,
    ) -> None:
        self.balancer, self.tasks, self.fixed = balancer, list(tasks), dict(fixed)
        self._losses: dict[str, float] = {}
        if balancer is not None:
            measured = constants(self.tasks) if constants is not None and balancer.reads_constants else None
            balancer.begin(self.tasks, seed=seed, constants=measured)

    @property
    def looks_ahead(self) -> bool:
        """Whether the losses of a step are to be measured before its weights are asked for."""
        return self.balancer is not None and self.balancer.exact and self.balancer.reads_losses

    @property
    def looks_back(self) -> bool:
        """Whether they are to be measured once more after the update."""
        return self.balancer is not None and self.balancer.exact and self.balancer.looks_back

    @property
    def reads_gradients(self) -> bool:
        """Whether the norms of the tasks' gradients are to be measured."""
        return self.balancer is not None and self.balancer.reads_gradients

    def weights(self, present: Collection[str], losses: Mapping[str, float] | None = None) -> dict[str, float]:
        """The weights of the tasks of a step.

        Args:
            present: those that it has.
            losses: of the step itself, where they were measured first; those of the last steps where None.

        Raises:
            ValueError: the balancer gives something else than finite weights.
        """
        if self.balancer is None:
            return {name: self.fixed[name] for name in present}
        known = self._losses | dict(losses or {})
        given = [known[name] for name in present if name in known]
        mean = sum(given) / len(given) if given else 1.0
        losses_K = self._tensor({name: known.get(name, mean) for name in self.tasks})
        weights_K = self.balancer.weights(losses_K, self._present(present))
        if not isinstance(weights_K, torch.Tensor) or weights_K.shape != losses_K.shape:
            raise ValueError(
                f"{type(self.balancer).__name__}.weights should give a tensor of {len(self.tasks)} weights, one for "
                f"each task. Found {weights_K}. Mend it."
            )
        if not weights_K.float().isfinite().all():  # in the precision of the losses that they multiply
            raise ValueError(
                f"{type(self.balancer).__name__} gives weights that are NaN or infinite: {weights_K.tolist()}, for the "
                f"losses {losses_K.tolist()}. Choose another balancing, or mend it."
            )
        return {
            name: self.fixed[name] * weight
            for name, weight in zip(self.tasks, weights_K.tolist(), strict=True)
            if name in present
        }

    def on_step(self, losses: Mapping[str, float], norms: Mapping[str, float] | None) -> None:
        """Tell the balancer of a step: losses of its tasks, and the norms of their gradients where it reads them."""
        self._losses |= losses
        if self.balancer is None:
            return
        if norms is not None:
            self.balancer.on_gradients(self._tensor(norms), self._present(norms))
        self.balancer.on_step(self._tensor(losses), self._present(losses))

    def after_step(self, losses: Mapping[str, float]) -> None:
        """Tell the balancer the losses of the same rows after the update."""
        if self.balancer is not None and losses:
            self.balancer.after_step(self._tensor(losses), self._present(losses))

    def on_epoch(self) -> None:
        """Tell the balancer that an epoch is over."""
        if self.balancer is not None:
            self.balancer.on_epoch()

    def on_evaluate(self, losses: Mapping[str, float]) -> None:
        """Tell the balancer the losses of an evaluation."""
        if self.balancer is not None and self.balancer.reads_evaluations:
            self.balancer.on_evaluate(self._tensor(losses), self._present(losses))

    def _tensor(self, values: Mapping[str, float]) -> torch.Tensor:
        return torch.tensor([values.get(name, 0.0) for name in self.tasks], dtype=torch.float64)

    def _present(self, names: Collection[str]) -> torch.Tensor:
        return torch.tensor([name in names for name in self.tasks])

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds, as plain values."""
        if self.balancer is None:
            return {}
        name = type(self.balancer).__name__
        return {"balancer": name, "tasks": self.tasks, "losses": self._losses, "state": self.balancer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], folder: str) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it has another balancer, or other tasks.
        """
        then, now = state.get("balancer", "none"), "none" if self.balancer is None else type(self.balancer).__name__
        if then != now:
            raise ValueError(
                f"The balancing of this run and of checkpoint '{folder}' differ: {now} now, {then} then. Put it back."
            )
        if self.balancer is None:
            return
        if state["tasks"] != self.tasks:
            raise ValueError(
                f"The tasks of this run and of checkpoint '{folder}' differ, or their order: {', '.join(self.tasks)} "
                f"now, {', '.join(state['tasks'])} then. Put them back."
            )
        self._losses = dict(state["losses"])
        self.balancer.load_state_dict(state["state"])
