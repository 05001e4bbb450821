"""What the branches of a model cost, for the plan of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...modeling.branches import branch_of, layers_of

if TYPE_CHECKING:
    from ...modeling import MultiTaskModel

_MOST = 8  # tasks of a branch that are named


def describe_branches(model: MultiTaskModel, datasets: Mapping[str, str] | None = None) -> str:
    """Branches with their tasks, and their price in parameters, training and inference; nothing without branches.

    Args:
        model: that has them.
        datasets: by task that is trained, the dataset whose rows it reads.
    """
    branches, count = model.config.branches, model.config.branch_layers or 0
    if not branches or len(branches) == 1:
        return ""
    layers = len(layers_of(model.backbone))
    sizes = dict.fromkeys(branches, 0)
    shared, train = 0, False
    for name, parameter in model.backbone.named_parameters():
        branch = branch_of(name)
        if branch is None:
            shared += parameter.numel()
        else:
            sizes[branch] += parameter.numel()
            train = train or parameter.requires_grad
    first = next(iter(sizes.values()))
    added = sum(sizes.values()) - first
    passes = 1 + (len(branches) - 1) * count / layers
    named = ", ".join(f"{name} ({_listed(own)})" for name, own in branches.items())
    return (
        f"Branches: the top {count} of {layers} layers once for each of {named}. They add {added:,} parameters "
        f"({added / (shared + first):.0%} of the backbone). {_in_training(model, datasets or {}, count / layers)} "
        + (
            "A step updates these as well. "
            if train
            else "They are frozen in this run, and a model that never trains them needs none. "
        )
        + f"A text that all tasks read takes {passes:.2f} passes of the backbone in place of 1. To share all layers, "
        "set branches='none' in the model's arguments."
    )


def _in_training(model: MultiTaskModel, datasets: Mapping[str, str], share: float) -> str:
    branch = {task: name for name, own in (model.config.branches or {}).items() for task in own}
    read: dict[str, set[str]] = {}
    for task, dataset in datasets.items():
        read.setdefault(dataset, set()).add(branch[task])
    most = max(read, key=lambda dataset: len(read[dataset]), default=None)
    text = "In training a row runs through the branch of its task, so that a step computes as much as without branches"
    if most is None or len(read[most]) == 1:
        return f"{text}, in smaller pieces."
    times = 1 + (len(read[most]) - 1) * share
    return (
        f"{text}, in smaller pieces; a row of dataset '{most}' with labels of {len(read[most])} branches runs through "
        f"each of them, which is {times:.2f} times as much."
    )


def _listed(tasks: list[str]) -> str:
    more = f", {len(tasks) - _MOST} more" if len(tasks) > _MOST else ""
    return ", ".join(tasks[:_MOST]) + more
