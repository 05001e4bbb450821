"""How the tasks of a step act on the shared parameters: cosines of their gradients, and the affinity of TAG.

Legend: K tasks, S measured steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...aggregation import Blocks, collect_task
from ...modeling import Head, MultiTaskModel
from ..parameters import shared_parameters
from ..step.rows import Batch, only

if TYPE_CHECKING:
    from ..trainer import MultiTaskTrainer


@dataclass(frozen=True)
class Measured:
    """What one step says.

    Args:
        step: the optimizer step, counted from 1.
        tasks: those with items in it, K of them.
        losses: of each, over the step, (K,).
        gramian: inner products of their gradients of the shared parameters, (K, K).
        affinity: see :func:`affinities`, (K, K); None if it was not measured.
    """

    step: int
    tasks: tuple[str, ...]
    losses: np.ndarray
    gramian: np.ndarray
    affinity: np.ndarray | None = None

    def norms(self) -> np.ndarray:
        """Norms of the gradients, (K,)."""
        return np.sqrt(self.gramian.diagonal())

    def cosines(self) -> np.ndarray:
        """Cosines between the gradients, (K, K), NaN where one is zero."""
        norms_K = self.norms()
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.gramian / np.outer(norms_K, norms_K)


def measure_step(
    model: MultiTaskModel,
    forwards: Sequence[Batch],
    items: Mapping[str, float],
    *,
    step: int = 1,
    rates: Mapping[nn.Parameter, float] | None = None,
    seed: int = 0,
) -> Measured:
    """Measure the rows of a step; weights stay bit-identical, gradients are dropped.

    Losses are those of training: in its mode, with dropout, each the sum over a task's items divided by their number,
    unweighted. Random numbers are drawn alike for a task in all of its passes. Nothing is rounded to half precision.

    Args:
        model: on the device of the forwards.
        forwards: the batches of the step.
        items: by task, the number or weight of its items in the step.
        step: to be noted down.
        rates: learning rates of the shared parameters, for the affinity; none where None.
        seed: of what is drawn; the generators of the caller move.
    """
    tasks = [name for name, count in items.items() if count]
    model.train()
    blocks = Blocks(shared_parameters(model))
    blocks.begin(len(tasks))
    losses_K = np.zeros(len(tasks))
    for number, name in enumerate(tasks):
        with collect_task(model.backbone, blocks, number):
            losses_K[number] = _loss(model, forwards, name, items[name], seed, backward=True)
    model.zero_grad()
    blocks.close()
    affinity_KK = None
    if rates is not None:
        affinity_KK = affinities(model, forwards, items, blocks, losses_K, rates=rates, seed=seed)
    return Measured(step, tuple(tasks), losses_K, blocks.gramian().numpy(), affinity_KK)


@torch.no_grad()
def affinities(
    model: MultiTaskModel,
    forwards: Sequence[Batch],
    items: Mapping[str, float],
    blocks: Blocks,
    losses_K: np.ndarray,
    *,
    rates: Mapping[nn.Parameter, float],
    seed: int,
) -> np.ndarray:
    r"""Inter-task affinity: :math:`Z_{i \to j} = 1 - L_j(\theta_{|i}, \theta_j) / L_j(\theta, \theta_j)`, (K, K).

    :math:`\theta_{|i} = \theta - \eta g_i` are the shared parameters after a step along the gradient of task i
    alone, at the learning rate :math:`\eta` of the moment; heads stay as they are. Losses are those of the same
    training rows before and after. Above 0 the step of i lowers the loss of j. Efficiently Identifying Task Groupings
    for Multi-Task Learning (TAG, NeurIPS 2021), equation 1, https://arxiv.org/abs/2109.04617.

    .. note::
        The step is one of plain gradient descent whatever the run's own optimizer is, with neither momentum nor weight
        decay; the authors' code takes both over from their SGD, and divides Z by the learning rate. Dropout draws the
        same numbers before and after the step, in the authors' code others, so that what is compared is the step alone.
        The paper averages over every tenth step of a whole training, here over as many steps as are measured.

    Args:
        model: in the mode of training.
        forwards: the batches of the step.
        items: by task, the number or weight of its items in the step.
        blocks: the gradients of the tasks that have some, closed.
        losses_K: of these tasks.
        rates: :math:`\eta` of each shared parameter.
        seed: of what is drawn, the same as for the gradients.
    """
    tasks = [name for name, count in items.items() if count]
    before = {parameter: parameter.clone() for parameter in blocks.parameters}
    affinity_KK = np.full((len(tasks), len(tasks)), np.nan)
    try:
        for one in range(len(tasks)):
            for parameter in blocks.parameters:
                gradient = blocks.gradient(parameter, one)
                parameter.copy_(before[parameter])
                if gradient is not None:
                    parameter.sub_(gradient, alpha=rates[parameter])
            for other, name in enumerate(tasks):
                after = _loss(model, forwards, name, items[name], seed)
                affinity_KK[one, other] = 1 - after / losses_K[other] if losses_K[other] else np.nan
    finally:
        for parameter, value in before.items():
            parameter.copy_(value)
    return affinity_KK


def _loss(
    model: MultiTaskModel, forwards: Sequence[Batch], name: str, items: float, seed: int, *, backward: bool = False
) -> float:
    """A task's loss over its rows of a step; with its gradients where ``backward``."""
    torch.manual_seed(seed)
    heads = cast("Mapping[str, Head]", model.heads)
    total = 0.0
    for batch in forwards:
        if name in batch["labels"]:
            own, _ = only(batch, [name])
            # The class's own forward: mixed precision wraps the instance's, and would round away what is compared.
            output = type(model).forward(model, **own)
            # Summed in float64, as the steps that are compared differ in the seventh digit where they are small.
            weights = own.get("row_weights", {}).get(name)
            losses_N = heads[name].weighted_loss(output.logits[name], own["labels"][name], weights)
            loss = losses_N.double().sum() / items
            if backward:
                loss.backward()
            total += float(loss.detach())
    return total


def evenly(steps: int, count: int) -> list[int]:
    """At most so many of the steps of a run, numbered from 0, each in the middle of its part."""
    count = min(steps, count)
    return [(2 * number + 1) * steps // (2 * count) for number in range(count)]


class StepProbe(TrainerCallback):
    """Measures some steps of a training before they are made; the training is not changed.

    Args:
        trainer: that trains.
        steps: which ones, numbered from 0.
        lookahead: whether to measure the affinity too.
    """

    def __init__(self, trainer: MultiTaskTrainer, steps: Collection[int], *, lookahead: bool) -> None:
        self.trainer, self.steps, self.lookahead = trainer, frozenset(steps), lookahead
        self.measured: list[Measured] = []

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Measure the step that begins, if it is one of them."""
        if state.global_step not in self.steps:
            return
        trainer = self.trainer
        rates = None
        if self.lookahead:
            groups = trainer.optimizer.param_groups  # type: ignore[union-attr]
            rates = {parameter: float(group["lr"]) for group in groups for parameter in group["params"]}
            rates = rates if any(rates.values()) else None  # a step of 0 at the beginning of a warm-up says nothing
        engine, step = trainer.engine, trainer.engine.step
        with engine.undone():
            forwards = [engine.runtime.prepare(forward) for forward in step.forwards]
            items = {name: step.items[name] for name in step.present}
            seed = (args.seed * 1_000_003 + state.global_step) % 2**63
            number = state.global_step + 1
            self.measured.append(measure_step(trainer.model, forwards, items, step=number, rates=rates, seed=seed))


def by_step(measured: Iterable[Measured], tasks: Sequence[str], what: str) -> np.ndarray:
    """``norms``, ``cosines`` or ``affinity`` of all measured steps, (S, K) or (S, K, K), NaN for absent tasks."""
    tables = []
    for one in measured:
        places = [tasks.index(name) for name in one.tasks]
        value = one.affinity if what == "affinity" else getattr(one, what)()
        if value is None:
            value = np.full((len(places),) * 2, np.nan)
        table = np.full((len(tasks),) * value.ndim, np.nan)
        table[np.ix_(*[places] * value.ndim)] = value
        tables.append(table)
    return np.array(tables)
