"""The engine of an optimizer step: its denominators, its forwards, its loss, and what is done with its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import cast

import torch
from torch import nn

from ...modeling import Head, MultiTaskOutput
from ...modeling.aliases import Open
from ...modeling.losses import precise
from ..parameters import last_shared_matrix
from ..plain import Saved, State
from ..runtime import Figure, Inputs, Items, Part, Reporting, Runtime
from .apart import random_state_kept, undone
from .distill import Distillation
from .guard import Guard
from .matrix import MatrixGradients
from .probe import Probe, build_probe
from .rows import Batch, Step, drop, labelled_by
from .tally import Tally
from .update import PlainUpdate
from .weights import TaskWeights


class Engine:
    """Runs the steps of one training.

    The loss of a step is ``sum over tasks t of w_t * (sum of t's item losses) / (number of t's items)``, over its
    micro-batches and processes; where rows or classes have weights, the items count by these. What it measures is
    summed over micro-batches and, at its end, over processes. A task whose loss or gradient is NaN or infinite is left
    out: the gradients are dropped, and the step runs again without its rows.

    Args:
        runtime: where it runs.
        tasks: names of the K tasks.
        weights: of their losses.
        update: what is made of their gradients.
        guard: keeps out what is not finite.
        probe: measures gradients.
        tally: counts.
        distillation: mixes the losses of tasks that have a teacher; None if there are none.

    Attributes:
        step: the one at hand, or the last one.
    """

    def __init__(
        self,
        runtime: Runtime,
        tasks: Sequence[str],
        *,
        weights: TaskWeights,
        update: PlainUpdate,
        guard: Guard,
        probe: Probe,
        tally: Tally,
        distillation: Distillation | None = None,
    ) -> None:
        self.runtime, self.tasks, self.distillation = runtime, list(tasks), distillation
        self.weights, self.update, self.guard, self.probe, self.tally = weights, update, guard, probe, tally
        self._numbers = {name: number for number, name in enumerate(self.tasks)}
        self._matrix: MatrixGradients | None = None
        self._token_operations: int | None = None
        self.step = Step(self.tasks, [], [], {}, runtime.device)

    # A step, from its beginning to its end

    def open(self, batches: Sequence[Batch], finished: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """Begin a step.

        Args:
            batches: its micro-batches in this process, as the loader returns them.
            finished: tasks that have stopped training, whose labels are dropped.

        Returns:
            By task with rows in the step, the number or weight of its items over all micro-batches and processes.
        """
        heads = cast("Mapping[str, Head]", self.runtime.model.heads)
        tasks, datasets = self.tasks, self.tally.datasets
        items_K, rows_K, rows_D = [0.0] * len(tasks), [0] * len(tasks), [0] * len(datasets)
        soft_K = [0.0] * len(tasks)  # items that a teacher answers
        counted: list[tuple[int, torch.Tensor]] = []
        for batch in batches:
            for name, rows in batch["rows"].items():
                rows_D[datasets.index(name)] += rows
            for forward in batch["forwards"]:
                drop(forward, finished)
                for name, labels in forward["labels"].items():
                    weights = forward.get("row_weights", {}).get(name)
                    counted.append((self._numbers[name], heads[name].weighted_items(labels, weights).flatten()))
                    rows_K[self._numbers[name]] += len(labels)
                if self.distillation is not None:
                    found_K = self.distillation.count(forward, tasks)
                    soft_K = [count + found for count, found in zip(soft_K, found_K, strict=True)]
        every = [items_N for _, items_N in counted]
        found = iter((torch.cat(every) if len(every) > 1 else every[0]).tolist() if every else ())
        for number, items_N in counted:
            items_K[number] += math.fsum(islice(found, len(items_N)))
        in_step: list[float] = [*items_K, *rows_K, *soft_K, *rows_D]
        counts = torch.tensor(in_step, dtype=precise(self.runtime.device), device=self.runtime.device)
        if self.runtime.processes > 1:
            counts = self.runtime.reduce(counts)
            in_step = counts.tolist()
        items, _, soft, _ = counts.split([len(tasks)] * 3 + [len(datasets)])
        self.tally.count(in_step[len(tasks) : 2 * len(tasks)], in_step[3 * len(tasks) :])
        self.step = Step(
            tasks,
            [forward for batch in batches for forward in batch["forwards"]],
            [numbers for batch in batches for numbers in batch["row_numbers"]],
            {name: in_step[2 * len(tasks) + k] or in_step[k] for k, name in enumerate(tasks)},
            self.runtime.device,
        )
        if self.distillation is not None:
            self.distillation.items = dict(zip(tasks, soft, strict=True))
            self.distillation.begin()
        self._collect()
        return {name: items[k] for k, name in enumerate(tasks) if in_step[len(tasks) + k]}

    def run(self, model: nn.Module, forwards: Sequence[Batch], items: Items | None) -> torch.Tensor:
        """Forward and backward of each part of a micro-batch; the loss of the step with its last one, 0 before."""
        step = self.step
        if not step.forwards:
            raise RuntimeError("There is no open step. Call get_batch_samples first, which returns its micro-batches.")
        step.num_items = items
        if not step.begun:
            self._begin()
        self.update.run(step, model, forwards)
        if not self.runtime.is_last_part:
            return torch.zeros((), device=step.device)
        self._close(model)
        return step.loss

    def _collect(self) -> None:
        """Begin to collect the gradients of the step."""
        self.update.begin(self.step)
        if self._matrix is not None:
            self._matrix.begin()

    def _begin(self) -> None:
        """Find the weights, unless the only forward of the step gives its losses itself."""
        step = self.step
        step.begun = True
        if not self.weights.looks_ahead:
            step.weights = self.weights.weights(step.present)
        elif not self.update.runs_once(step):
            step.weights = self.weights.by_own_losses(self._measured())

    def _close(self, model: nn.Module) -> None:
        """See what the step was, after its last backward pass."""
        step = self.step
        while failed := self.update.close(step, self.guard) or self.guard.failed(step, model):
            self.guard.leave_out(step, failed)
            if self.weights.looks_ahead:
                step.weights = self.weights.by_own_losses({name: step.losses[name] for name in step.present})
            else:
                step.weights = self.weights.weights(step.present)
            step.clear()
            self._collect()
            if step.present:
                self.update.run(step, model, step.forwards)
        self.guard.passed(step)
        norms = self._norms() if self.weights.reads_gradients else None
        self.tally.add(step)
        self.weights.on_step(step.losses, norms)
        self.probe.on_step(step)

    def after_update(self) -> None:
        """Measure the losses again after the optimizer has moved the weights, if the balancer reads them."""
        if self.weights.looks_back:
            losses = self._measured()
            self.weights.after_step({name: loss for name, loss in losses.items() if math.isfinite(loss)})
        self.step.forwards = []

    # The loss of a forward

    def loss(self, model: nn.Module, inputs: Batch, items: Items | None) -> tuple[torch.Tensor, MultiTaskOutput]:
        """The weighted sum of the task losses of a forward, each divided by the items of the whole step.

        Distributed training averages gradients over processes, so the loss is multiplied by their number.

        Returns:
            The loss, and the outputs of the model.
        """
        step, apart = self.step, self.step.apart
        if apart is None:
            with self._read_matrix().watched() if self.weights.reads_gradients else nullcontext():
                outputs = self._outputs(model, inputs, items, all_heads=self.update.waits_for_heads)
            weights = self._weights_of(outputs.losses)
        else:
            if apart.task is not None:
                inputs = labelled_by(inputs, apart.task)
            outputs = self._outputs(model, inputs, items)
            weights = self._weights_of(outputs.losses) if apart.weights is None else apart.weights
        loss = self._weighted(outputs, weights)
        if apart is None:
            step.add(outputs.losses, step.losses_K)
            if self._matrix is not None and outputs.losses:
                self._matrix.take_in(outputs.losses, step.weights or {}, inputs)
        if items is not None and self.runtime.processes > 1:
            loss = loss * self.runtime.processes
        return loss, outputs

    def _weighted(self, outputs: Open, weights: Mapping[str, float]) -> torch.Tensor:
        """The weighted sum of the losses of a forward; the model's own, where all weigh 1 and no teacher changes it.

        Outputs of a wrapper of distributed training do not lead to each other, so that there it is made of the losses.
        """
        losses = {name: loss for name, loss in outputs.losses.items() if name in weights}
        whole = len(losses) == len(outputs.losses) > 0 and self.runtime.processes == 1
        if whole and self.distillation is None and all(weights[name] == 1 for name in losses):
            return outputs.loss
        total = _weighted_sum(losses, weights) if losses else None
        if total is not None and whole and total.requires_grad:
            return total
        rest = outputs.loss * 0  # the model's own loss reaches parameters that no term may reach
        return rest if total is None else rest + total

    def _outputs(self, model: nn.Module, inputs: Batch, items: Items | None, **kwargs: object) -> Open:
        """The outputs of the model for a forward, whose losses are those that train."""
        if self.distillation is not None and "soft_labels" in inputs:
            return self.distillation.run(model, inputs, items, **kwargs)
        return model(**inputs, num_items_in_batch=items, **kwargs)

    def _weights_of(self, losses: Mapping[str, torch.Tensor]) -> Mapping[str, float]:
        """The weights of the step that a forward belongs to, which found these losses."""
        step = self.step
        if not step.forwards:  # a pass outside of any step
            return self.weights.fixed
        if step.weights is None:
            present = set(step.present)
            own = {name: float(loss.detach()) for name, loss in losses.items() if name in present}
            step.weights = self.weights.by_own_losses(own)
        return step.weights

    def _measured(self) -> dict[str, float]:
        """By task, its loss over the whole step, as the model is now. No random state moves."""
        step, runtime = self.step, self.runtime
        totals_K = torch.zeros_like(step.losses_K)
        sharded = runtime.engine is not None
        # Processes may have different numbers of forwards, so a wrapper that waits for the others is left out.
        model = runtime.wrapped if sharded else runtime.model
        runtime.model.train()
        with random_state_kept(step.device), torch.no_grad(), runtime.autocast():
            for forward in step.forwards:
                given = runtime.prepare(forward)
                step.add(self._outputs(model, given, step.num_items, all_heads=sharded).losses, totals_K)
        return step.by_task(runtime.reduce(totals_K).tolist())

    # The last matrix that the tasks share, whose gradients GradNorm reads

    def _read_matrix(self) -> MatrixGradients:
        """The gradients of the step for the last matrix that the tasks share."""
        if self._matrix is None:
            model = self.runtime.model
            self._matrix = MatrixGradients(model, last_shared_matrix(model), self.tasks)
        return self._matrix

    def _norms(self) -> dict[str, float]:
        matrix = self._read_matrix()
        norms_K = self.runtime.reduce(matrix.gradients()).flatten(1).norm(dim=1).tolist()
        matrix.begin()
        return self.step.by_task(norms_K)

    # What is known of it

    def describe(self) -> str | None:
        """How the gradients of single tasks are found, where they are, in a sentence."""
        if self.update.aggregator is not None:
            return f"Aggregation: {self.update.method}, {self.update.gradients.describe()}"
        if self.probe.interval:
            return f"Gradient logging: every {self.probe.interval:,} steps, {self.update.gradients.describe()}"
        return None

    def operations(self, forwards: Sequence[Batch], estimate: Callable[[Inputs], int]) -> int:
        """Estimated floating-point operations of some forwards.

        Args:
            forwards: of a micro-batch.
            estimate: that of a pass, which counts the parameters of all heads at every call, and is called once.
        """
        name = self.runtime.model.main_input_name
        if self._token_operations is None:
            self._token_operations = estimate({name: torch.zeros(1, 1)})
        return sum(forward[name].numel() for forward in forwards if name in forward) * self._token_operations

    def figures(self) -> Iterator[Figure]:
        """What a log reports of the steps since the last one; the next log then starts from zero.

        ``<task>_loss``, its mean loss, and ``<task>_share`` of the rows; ``<task>_rows``, all that training has seen;
        with a balancer ``<task>_weight``, its mean weight; ``<task>_left_out``, steps that had to do without it because
        its loss or gradient was NaN or infinite; ``aggregation_failures``, steps that took the plain sum of the task
        gradients; and where gradients were measured, ``<task>_grad_norm`` and ``cosine/<task>/<other>``.
        """
        reporting: tuple[Reporting, ...] = (self.tally, self.probe, self.update)
        for part in reporting:
            yield from part.figures()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Within it, passes leave no trace in training."""
        with undone(self.runtime.model, self.step.device):
            yield

    # Checkpoints

    @property
    def _parts(self) -> tuple[Part, ...]:
        return self.weights, self.update, self.tally, self.guard, self.probe

    def state_dict(self) -> State:
        """The keys of its parts in the state of a checkpoint."""
        return {key: value for part in self._parts for key, value in part.state_dict().items()}

    def load_state_dict(self, state: Saved) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it is of another balancer or aggregator, or of other tasks.
        """
        for part in self._parts:
            part.load_state_dict(state)


def _weighted_sum(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    losses_T = torch.stack(list(losses.values()))
    weights_T = torch.tensor([weights[name] for name in losses], dtype=losses_T.dtype, device=losses_T.device)
    return (losses_T * weights_T).sum()


def build_engine(
    runtime: Runtime,
    sources: Mapping[str, str],
    datasets: Sequence[str],
    *,
    weights: TaskWeights,
    update: PlainUpdate,
    distillation: Distillation | None = None,
) -> Engine:
    """An engine at the beginning of a training.

    Args:
        runtime: where it runs.
        sources: by task, the dataset that it reads.
        datasets: names of those that train.
        weights: of the task losses.
        update: what is made of their gradients.
        distillation: mixes the losses of tasks that have a teacher, if there are any.
    """
    tasks = list(sources)
    tally = Tally(tasks, datasets, weighed=weights.balancer is not None)
    guard, probe = Guard(runtime, sources, tally), build_probe(runtime, tasks, update)
    return Engine(
        runtime,
        tasks,
        weights=weights,
        update=update,
        guard=guard,
        probe=probe,
        tally=tally,
        distillation=distillation,
    )
