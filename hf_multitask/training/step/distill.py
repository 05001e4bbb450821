"""The loss of tasks with a teacher: gold and soft losses, mixed by a weight that is a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ...modeling import Head
from ...modeling.aliases import Open
from ...modeling.config import close_match
from ...modeling.heads import IGNORE, at_least_float32
from ...modeling.losses import divisor, precise
from ..runtime import Items, Runtime
from .rows import Batch

if TYPE_CHECKING:
    from ..arguments import MultiTaskTrainingArguments

SCHEDULES = ("annealed", "fixed")
ROWS = ("own", "all")
_KWARGS = ("temperature", "rows", "weight")


def check_distillation(distillation: object, kwargs: Mapping[str, object] | None) -> None:
    """Check the arguments ``distillation`` and ``distillation_kwargs``.

    Raises:
        ValueError: one is not usable.
    """
    if distillation not in SCHEDULES:
        raise ValueError(
            f"Parameter `distillation` should be one of {', '.join(SCHEDULES)}. Found `distillation = "
            f"{distillation!r}`." + close_match(str(distillation), list(SCHEDULES))
        )
    given = kwargs or {}
    for name in given:
        if name not in _KWARGS:
            raise ValueError(
                f"Parameter `distillation_kwargs` has the unknown key '{name}'; known keys are {', '.join(_KWARGS)}."
                + close_match(str(name), list(_KWARGS))
            )
    temperature, rows, weight = (given.get(name) for name in _KWARGS)
    if temperature is not None and not (_is_number(temperature) and cast(float, temperature) > 0):
        raise ValueError(
            f"`temperature` of `distillation_kwargs` should be a number above 0. Found {temperature!r}. Set 1 or more."
        )
    if rows is not None and rows not in ROWS:
        raise ValueError(
            f"`rows` of `distillation_kwargs` should be one of {', '.join(ROWS)}. Found {rows!r}."
            + close_match(str(rows), list(ROWS))
        )
    if weight is not None and not (_is_number(weight) and 0 <= cast(float, weight) <= 1):
        raise ValueError(
            f"`weight` of `distillation_kwargs`, that of the labels, should be a number from 0 to 1. Found {weight!r}."
        )
    if weight is not None and distillation != "fixed":
        raise ValueError(
            f"`weight` of `distillation_kwargs` is for `distillation = 'fixed'`. Found `distillation = "
            f"{distillation!r}`, which grows from 0 to 1. Leave one of them out."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Distillation:
    r"""Mixes the losses of tasks that have a teacher.

    With the gold weight g, a task's loss is :math:`g L_{gold} + (1 - g) L_{soft}`, each divided by its items in the
    whole step. The items of the soft loss are those of the gold loss, and with ``rows: all`` those that only the
    teacher answers. Weights of rows count in both, class weights in the gold loss only. The weight grows linearly from
    0 to 1 over training (BAM! Born-Again Multi-Task Networks, ACL 2019, section 3.2, https://arxiv.org/abs/1907.04829),
    or is fixed.

    Args:
        runtime: where it runs.
        forms: by task with a teacher, the form of its outputs; see :data:`SOFT_LOSSES`.

    Attributes:
        gold: the weight of the labels in the step at hand.
        items: by task, the number or weight of the items of its soft loss in the step, in all processes.
    """

    def __init__(self, runtime: Runtime, forms: Mapping[str, str]) -> None:
        self.runtime, self.forms = runtime, dict(forms)
        args = runtime.args
        given = cast("dict[str, Any]", args.distillation_kwargs or {})
        self.temperature = float(given.get("temperature", 1.0))
        self._fixed = float(given.get("weight", 0.5)) if args.distillation == "fixed" else None
        self.items: dict[str, torch.Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Set the weight of the step that begins, which all of its passes have."""
        steps = self.runtime.total_steps
        annealed = min(1.0, self.runtime.step / steps) if steps > 0 else 0.0
        self.gold = annealed if self._fixed is None else self._fixed

    def count(self, forward: Batch, tasks: Sequence[str]) -> list[float]:
        """For each task, the number or weight of the items of its soft loss in a forward."""
        counts = [0.0] * len(tasks)
        for name, soft in forward.get("soft_labels", {}).items():
            weights = forward.get("soft_weights", {}).get(name)
            counts[tasks.index(name)] = float(self._count(name, forward["labels"].get(name), soft, weights))
        return counts

    def _count(
        self, name: str, labels: torch.Tensor | None, soft: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        head, labelled = cast(Head, self.runtime.model.heads[name]), 0 if labels is None else len(labels)
        own = None if weights is None else weights[:labelled]
        items = [] if labels is None else [head.weighted_items(labels, own, classes=False)]
        more = _answered(soft[labelled:], self.forms[name])
        if weights is not None:
            more = more * weights[labelled:].flatten().to(precise(weights.device))
        return torch.cat([*items, more]).sum()

    def run(self, model: nn.Module, inputs: Batch, items: Items | None, **kwargs: object) -> Open:
        """The outputs of the model, with mixed losses.

        Args:
            model: that trains.
            inputs: of a forward, with soft labels.
            items: by task, the items of the whole step; those of the forward where None.
            kwargs: of the model.
        """
        given = dict(inputs)
        soft, more = given.pop("soft_labels", {}), given.pop("soft_rows", {})
        weights, labels = given.pop("soft_weights", {}), given["labels"]
        if more:  # rows without a label come behind those that have one, and the model would want one for all
            rows = dict(given["task_rows"])
            for name, own in more.items():
                rows[name] = torch.cat([rows[name], own]) if name in rows else own
            given |= {"task_rows": rows, "labels": {name: own for name, own in labels.items() if name not in more}}
        outputs: Any = model(**given, num_items_in_batch=items, **kwargs)
        for name in outputs.logits:
            if name in soft and (name in labels or name in more):
                gold, own, told = outputs.losses.get(name), labels.get(name), (soft[name], weights.get(name))
                outputs.losses[name] = self._mixed(name, outputs.logits[name], own, *told, items, gold)
        return outputs

    def _mixed(
        self,
        name: str,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        soft: torch.Tensor,
        weights: torch.Tensor | None,
        items: Items | None,
        gold: torch.Tensor | None,
    ) -> torch.Tensor:
        """A task's loss.

        Args:
            name: of the task.
            logits: of the N items with a label, and then of the M without.
            labels: of the former; None if there are none.
            soft: see :func:`hf_multitask.data.soft.collate_soft`.
            weights: of the items.
            items: by task, of the whole step.
            gold: the loss of the labels, if the model has found it.
        """
        head = cast(Head, self.runtime.model.heads[name])
        scores, labelled = at_least_float32(logits), 0 if labels is None else len(labels)
        total = SOFT_LOSSES[self.forms[name]](head, scores, labels, soft.to(scores.dtype), weights, self.temperature)
        count = self._count(name, labels, soft, weights) if items is None else self.items.get(name, 0)
        loss = (1 - self.gold) * total / divisor(torch.as_tensor(count, device=scores.device))
        if labels is None:
            return loss
        if gold is None:
            own = None if weights is None else weights[:labelled]
            count = head.weighted_items(labels, own).sum() if items is None else items.get(name, 0)
            summed = head.weighted_loss(logits[:labelled], labels, own).sum()
            gold = summed / divisor(torch.as_tensor(count, device=scores.device))
        return self.gold * gold + loss


def _answered(soft: torch.Tensor, form: str) -> torch.Tensor:
    """The items that a teacher answers, of each row."""
    if form == "tags":
        return (~soft[..., 0].isnan()).flatten(1).sum(1)
    return torch.ones(len(soft), dtype=torch.long, device=soft.device)


def _total(losses: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The sum of the losses of N rows, (N, ...), each times the weight of its row."""
    return losses.sum() if weights is None else (losses.flatten(1).sum(1) * weights.flatten()).sum()


# The sums of the soft losses of a batch, by the form of a task's outputs. Cross-entropies are multiplied by the square
# of the temperature, so that their gradients stay as large as those of the labels (Distilling the Knowledge in a Neural
# Network, 2015, section 2, https://arxiv.org/abs/1503.02531).
_Loss = Callable[[Head, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None, float], torch.Tensor]


def _classes(
    head: Head,  # noqa: ARG001
    logits: torch.Tensor,
    labels: torch.Tensor | None,  # noqa: ARG001
    soft: torch.Tensor,
    weights: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """Cross-entropy of (N, C); minus infinity where there is no choice."""
    wanted = (soft / temperature).softmax(-1)
    found = (logits / temperature).log_softmax(-1).masked_fill(soft.isneginf(), 0.0)
    return -_total(wanted * found, weights) * temperature**2


def _sets(
    head: Head,  # noqa: ARG001
    logits: torch.Tensor,
    labels: torch.Tensor | None,  # noqa: ARG001
    soft: torch.Tensor,
    weights: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """The mean over classes of the binary cross-entropies of (N, C)."""
    wanted = (soft / temperature).sigmoid()
    losses = F.binary_cross_entropy_with_logits(logits / temperature, wanted, reduction="none")
    return _total(losses.mean(1, keepdim=True), weights) * temperature**2


def _numbers(
    head: Head,  # noqa: ARG001
    logits: torch.Tensor,
    labels: torch.Tensor | None,  # noqa: ARG001
    soft: torch.Tensor,
    weights: torch.Tensor | None,
    temperature: float,  # noqa: ARG001
) -> torch.Tensor:
    """The mean over outputs of the squared errors of (N, C)."""
    return _total(F.mse_loss(logits, soft, reduction="none").mean(1, keepdim=True), weights)


def _tags(
    head: Head,  # noqa: ARG001
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    soft: torch.Tensor,
    weights: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """Cross-entropy of the tokens of (N, L, C) or (N, G, L, C); a labeled one without an answer has its label."""
    answered, classes = ~soft[..., 0].isnan(), logits.shape[-1]
    wanted = (soft.nan_to_num() / temperature).softmax(-1)
    counts = answered
    if labels is not None:
        known = labels != IGNORE
        of_label = F.one_hot(labels.clamp(min=0, max=classes - 1), classes).to(wanted.dtype)
        first = torch.where(answered[: len(labels), ..., None], wanted[: len(labels)], of_label)
        wanted = torch.cat([first, wanted[len(labels) :]])
        counts = torch.cat([known, answered[len(labels) :]])
    losses = -(wanted * (logits / temperature).log_softmax(-1)).sum(-1)
    return _total(losses.masked_fill(~counts, 0.0), weights) * temperature**2


def _scores(
    head: Head,
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    soft: torch.Tensor,
    weights: torch.Tensor | None,
    temperature: float,  # noqa: ARG001
) -> torch.Tensor:
    """Squared errors of the cosines of the pairs of (N, G, D)."""
    cosines = head.predictions(logits, soft if labels is None else labels)
    return _total(F.mse_loss(cosines, soft, reduction="none"), weights)


SOFT_LOSSES: dict[str, _Loss] = {
    "classes": _classes,
    "sets": _sets,
    "numbers": _numbers,
    "tags": _tags,
    "choices": _classes,
    "scores": _scores,
}


def describe(args: MultiTaskTrainingArguments) -> str:
    """How the losses are mixed, in words."""
    given = cast("dict[str, Any]", args.distillation_kwargs or {})
    weight = "grows from 0 to 1" if args.distillation != "fixed" else f"is {given.get('weight', 0.5):g}"
    return (
        f"the weight of the labels {weight}, temperature {given.get('temperature', 1):g}, "
        f"rows: {given.get('rows', ROWS[0])}"
    )
