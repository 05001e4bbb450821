"""What the branches of a model cost, for the plan of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...modeling.branches import branch_of, layers_of

if TYPE_CHECKING:
    from ...modeling import MultiTaskModel

_MOST = 8  # tasks of a branch that are named


def describe_branches(model: MultiTaskModel) -> str:
    """Branches with their tasks, and their price in parameters, training and inference; nothing without branches."""
    branches, count = model.config.branches, model.config.branch_layers or 0
    if not branches or len(branches) == 1:
        return ""
    layers = len(layers_of(model.backbone))
    sizes = dict.fromkeys(branches, 0)
    shared = 0
    for name, parameter in model.backbone.named_parameters():
        branch = branch_of(name)
        if branch is None:
            shared += parameter.numel()
        else:
            sizes[branch] += parameter.numel()
    first = next(iter(sizes.values()))
    added = sum(sizes.values()) - first
    passes = 1 + (len(branches) - 1) * count / layers
    named = ", ".join(f"{name} ({_listed(own)})" for name, own in branches.items())
    return (
        f"Branches: the top {count} of {layers} layers once for each of {named}. They add {added:,} parameters "
        f"({added / (shared + first):.0%} of the backbone). In training a row runs through the branch of its task, so "
        f"that a step computes as much as without branches, in smaller pieces, and updates these as well. A text that "
        f"all tasks read takes {passes:.2f} passes of the backbone in place of 1. To share all layers, set "
        "branches='none' in the model's arguments."
    )


def _listed(tasks: list[str]) -> str:
    more = f", {len(tasks) - _MOST} more" if len(tasks) > _MOST else ""
    return ", ".join(tasks[:_MOST]) + more
