"""The weights of the task losses: the balancer of a run, and the last losses that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from ...balancing import Balancer
from ...data import Mixture, Stream
from ...data.encoding import label_column
from ...tasks import Task
from ..parameters import last_shared_matrix
from ..plain import Saved, State
from ..preparation.processors import Processing
from ..runtime import Runtime

_LARGEST = torch.finfo(torch.float32).max  # the precision of the losses that weights multiply


class TaskWeights:
    """Weights of the task losses by name, step by step.

    Args:
        balancer: of the run; None for the fixed weights alone.
        tasks: their names.
        fixed: by task, a weight that the balancer's is multiplied by.
        seed: of what the balancer draws.
        constants: measures the loss of every task's best constant answer; called only for balancers that read it.

    Attributes:
        looks_ahead: whether the losses of a step are to be measured before its weights are computed.
        looks_back: whether they are to be measured once more after the update.
        reads_gradients: whether the norms of the tasks' gradients are to be measured.
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
        exact = balancer is not None and balancer.exact
        self.looks_ahead = balancer is not None and exact and balancer.reads_losses
        self.looks_back = balancer is not None and exact and balancer.looks_back
        self.reads_gradients = balancer is not None and balancer.reads_gradients
        if balancer is not None:
            measured = constants(self.tasks) if constants is not None and balancer.reads_constants else None
            balancer.begin(self.tasks, seed=seed, constants=measured)

    def weights(self, present: Collection[str], losses: Mapping[str, float] | None = None) -> dict[str, float]:
        """The weights of the tasks of a step.

        Args:
            present: those that it has.
            losses: of the step itself, where they were measured first; those of the last steps where None.

        Raises:
            ValueError: the balancer returns something other than finite weights.
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
                f"{type(self.balancer).__name__}.weights should return a tensor of {len(self.tasks)} weights, one for "
                f"each task. Found {weights_K}. Correct its method."
            )
        found = weights_K.tolist()
        if not all(abs(weight) <= _LARGEST for weight in found):  # NaN is not
            raise ValueError(
                f"{type(self.balancer).__name__} returns weights that are NaN or infinite: {found}, for "
                f"the losses {losses_K.tolist()}. Choose another balancing, or correct its method."
            )
        return {
            name: self.fixed[name] * weight for name, weight in zip(self.tasks, found, strict=True) if name in present
        }

    def by_own_losses(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The weights of a step by its own losses; a task whose loss is not finite gets none."""
        finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
        return self.weights(list(finite), finite)

    def on_step(self, losses: Mapping[str, float], norms: Mapping[str, float] | None) -> None:
        """Pass a step to the balancer: the losses of its tasks, and the norms of their gradients if it reads them."""
        self._losses |= losses
        if self.balancer is None:
            return
        if norms is not None:
            self.balancer.on_gradients(self._tensor(norms), self._present(norms))
        self.balancer.on_step(self._tensor(losses), self._present(losses))

    def after_step(self, losses: Mapping[str, float]) -> None:
        """Pass the losses of the same rows after the update to the balancer."""
        if self.balancer is not None and losses:
            self.balancer.after_step(self._tensor(losses), self._present(losses))

    def on_epoch(self) -> None:
        """Notify the balancer of the end of an epoch."""
        if self.balancer is not None:
            self.balancer.on_epoch()

    def on_evaluate(self, losses: Mapping[str, float]) -> None:
        """Pass the losses of an evaluation to the balancer."""
        if self.balancer is not None and self.balancer.reads_evaluations:
            self.balancer.on_evaluate(self._tensor(losses), self._present(losses))

    def _tensor(self, values: Mapping[str, float]) -> torch.Tensor:
        return torch.tensor([values.get(name, 0.0) for name in self.tasks], dtype=torch.float64)

    def _present(self, names: Collection[str]) -> torch.Tensor:
        return torch.tensor([name in names for name in self.tasks])

    # Checkpoints

    def state_dict(self) -> State:
        """The key ``balancing`` of the state of a checkpoint, as plain values."""
        if self.balancer is None:
            return {"balancing": {}}
        name, state = type(self.balancer).__name__, self.balancer.state_dict()
        return {"balancing": {"balancer": name, "tasks": self.tasks, "losses": self._losses, "state": state}}

    def load_state_dict(self, state: Saved) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it has another balancer, or other tasks.
        """
        saved, folder = state["balancing"], state["folder"]
        then, now = saved.get("balancer", "none"), "none" if self.balancer is None else type(self.balancer).__name__
        if then != now:
            raise ValueError(
                f"The balancing of this run and of checkpoint '{folder}' differ: {now} now, {then} then. Put it back."
            )
        if self.balancer is None:
            return
        if saved["tasks"] != self.tasks:
            raise ValueError(
                f"The tasks of this run and of checkpoint '{folder}' differ, or their order: {', '.join(self.tasks)} "
                f"now, {', '.join(saved['tasks'])} then. Put them back."
            )
        self._losses = dict(saved["losses"])
        self.balancer.load_state_dict(saved["state"])


def constant_losses(mixture: Mixture, tasks: Mapping[str, Task], given: Processing) -> dict[str, float]:
    """By task, the loss of its best constant answer on the training data: how much there is to learn.

    Streams are not read, and task types without a constant answer are left out.

    Args:
        mixture: the training data.
        tasks: by name.
        given: the trainer's ``processing_class``.
    """
    losses: dict[str, float] = {}
    for dataset in mixture.datasets:
        if isinstance(dataset, Stream):
            continue
        for name in [name for name in dataset.tasks if name in tasks]:
            rows = dataset.rows
            labels = [label for label in rows[label_column(name)] if label is not None]
            loss = tasks[name].constant_loss(labels, rows, tasks[name].reader.processor(given))
            if loss is not None:
                losses[name] = loss
    return losses


class Constants:
    """The losses of :func:`constant_losses`, measured at the first call; 1 for tasks without rows.

    Args:
        mixture: the training data.
        tasks: by name.
        given: the trainer's ``processing_class``.
    """

    def __init__(self, mixture: Mixture, tasks: Mapping[str, Task], given: Processing) -> None:
        self._mixture, self._tasks, self._given = mixture, dict(tasks), given
        self._losses: dict[str, float] | None = None

    def __call__(self, names: Collection[str]) -> dict[str, float]:
        """By task, its loss."""
        if self._losses is None:
            trained = {name for readers in self._mixture.tasks.values() for name in readers}
            self._losses = dict.fromkeys(set(names) - trained, 1.0) | constant_losses(  # frozen ones have no rows
                self._mixture, {name: self._tasks[name] for name in names}, self._given
            )
        return self._losses


def check_balancer(balancer: Balancer | None, runtime: Runtime, *, aggregates: bool) -> None:
    """Check that a run provides what a balancer reads.

    Args:
        balancer: of the run.
        runtime: where it runs.
        aggregates: whether an aggregator separates the gradients of the tasks as well.

    Raises:
        ValueError: it does not.
    """
    if balancer is None:
        return
    name = type(balancer).__name__
    if balancer.reads_evaluations and runtime.args.eval_strategy == "no":
        raise ValueError(f"{name} weighs tasks by their evaluations. Set eval_strategy to 'epoch' or 'steps'.")
    if not balancer.reads_gradients:
        return
    if runtime.engine:
        raise ValueError(
            f"{name} reads gradients, which FSDP and DeepSpeed shard. Choose another balancing, or train without them."
        )
    if runtime.compiles:
        raise ValueError(
            f"{name} reads gradients, which the layers of a compiled backbone do not show. Choose another balancing, "
            "or leave out torch_compile."
        )
    last_shared_matrix(runtime.model)
    if aggregates:
        raise ValueError(
            "GradNorm and an aggregator both separate the gradients of single tasks. Set either balancing or "
            "aggregation to 'none'."
        )
