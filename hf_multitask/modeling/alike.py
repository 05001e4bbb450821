"""Heads that differ in one linear layer only, run together: one product for the rows of several tasks.

Legend: T tasks, N rows of all of them, C classes of all of them, L tokens, D hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.func import functional_call

from .heads import Head, at_least_float32
from .losses import IGNORE, LossOptions, class_losses, divisor
from .native import States
from .precision import fitted
from .routing import states_of

_PLAIN = LossOptions()


def groups(heads: Mapping[str, Head], rows: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names of tasks whose heads run together: they have the same layers, of which one linear layer is their own.

    The product has the columns of all tasks for the rows of each, so that there are fewer columns than hidden states.

    Args:
        heads: by task.
        rows: by task that runs, its rows in the batch.
    """
    found: dict[object, list[str]] = {}
    columns: dict[object, int] = {}
    for name, table in rows.items():
        head = heads[name]
        layer = own_layer(head)
        if layer is None or table.dim() != 1:
            continue
        kind = (type(head), head.needs_pooler, layer[0], layer[1].weight.dtype, layer[1].bias is None)
        if columns.get(kind, 0) + layer[1].out_features <= layer[1].in_features:
            columns[kind] = columns.get(kind, 0) + layer[1].out_features
            found.setdefault(kind, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def own_layer(head: Head) -> tuple[str, nn.Linear] | None:
    """The linear layer by which a head differs from others of its class, with its name; None where there is more."""
    if "runs_together" not in vars(type(head)) or head.layer is not None or head.reads_decoder:
        return None
    if any(True for _ in head.loss_parameters()) or any(True for _ in head.buffers()):
        return None
    found = None
    for name, module in head.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None  # of a library that shards or watches it
        if module._parameters and any(one is not None for one in module._parameters.values()):
            if found is not None or type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
                return None
            found = name, module
    return found


@dataclass(frozen=True)
class Together:
    """Some tasks whose heads run together.

    Args:
        names: of the T tasks.
        heads: theirs.
        counts: of their rows.
    """

    names: Sequence[str]
    heads: Sequence[Head]
    counts: Sequence[int]

    def logits(
        self, shared: States, rows_N: torch.Tensor, ids: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Those of all tasks for the rows of each, (N, ..., C).

        Args:
            shared: states of the batch.
            rows_N: of the tasks, one after the other.
            ids: tokens of the batch.
            mask: of the batch.
        """
        first = self.heads[0]
        layers = [cast("tuple[str, nn.Linear]", own_layer(head)) for head in self.heads]
        name = layers[0][0]
        weights = {f"{name}.weight": torch.cat([layer.weight for _, layer in layers])}
        if layers[0][1].bias is not None:
            weights[f"{name}.bias"] = torch.cat([layer.bias for _, layer in layers])
        ids, mask = (None if one is None else one[rows_N] for one in (ids, mask))
        return functional_call(first, weights, (fitted(states_of(shared, rows_N), first), ids, mask))

    def of_tasks(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """By task, its logits, (N, ..., C), views of those of all."""
        parts = logits.split(list(self.counts))
        return {
            name: part[..., start : start + head.num_labels]
            for name, head, part, start in zip(self.names, self.heads, parts, self._starts, strict=True)
        }

    @property
    def _starts(self) -> list[int]:
        """The first column of each task."""
        return [sum(head.num_labels for head in self.heads[:number]) for number in range(len(self.heads))]

    def fits(
        self, labels: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor] | None, *, dims: int
    ) -> bool:
        """Whether the losses of all tasks are cross-entropies of classes without options, which one call computes.

        Args:
            labels: by task.
            weights: of rows, by task.
            dims: of the labels where each is a class.
        """
        return all(
            name not in (weights or {})
            and not labels[name].is_floating_point()
            and labels[name].dim() == dims
            and head.num_labels > 1
            and getattr(head, "problem_type", None) in (None, "single_label_classification")
            and (head.loss_options.loss or "cross_entropy", head.loss_options.smoothing) == ("cross_entropy", 0)
            and not (head.loss_options.class_weights or head.loss_options.balanced or head.loss_options.soft)
            for name, head in zip(self.names, self.heads, strict=True)
        )

    def losses(self, logits: torch.Tensor, labels: Mapping[str, torch.Tensor], items_T: torch.Tensor) -> torch.Tensor:
        """The sums of the cross-entropies of the tasks, each divided by its items, (T,).

        A row counts the columns of its own task only: the others are minus infinity, whose exponential adds 0.

        Args:
            logits: (N, C) or (N, L, C).
            labels: by task, (N,) or (N, L).
            items_T: of the tasks.
        """

        def by_row(values: Sequence[int]) -> torch.Tensor:
            rows = [value for value, count in zip(values, self.counts, strict=True) for _ in range(count)]
            return torch.tensor(rows, device=logits.device).view(-1, *[1] * (logits.dim() - 2))

        sizes = [head.num_labels for head in self.heads]
        others_TC = [
            [name != other for other, size in zip(self.names, sizes, strict=True) for _ in range(size)]
            for name in self.names
        ]
        others_NC = [row for row, count in zip(others_TC, self.counts, strict=True) for _ in range(count)]
        others = torch.tensor(others_NC, device=logits.device)
        others = others.view(len(others_NC), *[1] * (logits.dim() - 2), -1)
        own = at_least_float32(logits).masked_fill(others, -torch.inf)
        known = torch.cat([labels[name] for name in self.names])
        unknown = (known < 0) | (known >= by_row(sizes))
        places = (known + by_row(self._starts)).masked_fill(unknown, IGNORE)
        losses = class_losses(own.flatten(0, -2), places.flatten(), _PLAIN)
        if len(set(self.counts)) == 1:
            sums_T = losses.view(len(self.counts), -1).sum(1)
        else:
            owners = by_row(range(len(self.counts))).expand(places.shape).flatten()
            sums_T = losses.new_zeros(len(self.counts)).index_add(0, owners, losses)
        return sums_T / divisor(items_T)
