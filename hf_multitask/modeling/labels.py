"""More labels for a trained head: what it says of the labels that it has stays, and the rest is as in a fresh one.

Legend: N rows, D hidden, C labels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .aliases import Settings, TaskDict, Values
from .config import MultiTaskConfig
from .fitted import SETS, fitted_values
from .heads import Head
from .kinds import head_class
from .schemes import scheme_in
from .values import shown

OF_CLASSES = ("threshold", "fitted")  # the options that fit the classes of single labels as long as these stay


class GroupedLinear(nn.Linear):
    """A linear layer that computes groups of its outputs one after the other.

    A product of matrices may be rounded in another way if one of them has more columns, so outputs that came together
    are computed together, and more of them do not change those that there are. The weights are those of a linear layer.

    Args:
        layer: a linear layer, whose weights it has.
        groups: numbers of outputs; their sum is C.
    """

    def __init__(self, layer: nn.Linear, groups: Sequence[int]) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        self.groups = list(groups)
        self.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # the name is torch's
        """(..., D) to (..., C)."""
        weights = self.weight.split(self.groups)
        biases = [None] * len(weights) if self.bias is None else self.bias.split(self.groups)
        return torch.cat([F.linear(input, *pair) for pair in zip(weights, biases, strict=True)], -1)


def build_head(config: MultiTaskConfig, task: TaskDict) -> Head:
    """The head of a task, with its labels in the groups in which they came."""
    head = head_class(task)(task, config.backbone_config, pooling=config.pooling)
    groups = (config.label_groups or {}).get(task["name"])
    if groups is not None:
        last = [
            (name, layer)
            for name, layer in head.named_modules()
            if isinstance(layer, nn.Linear) and layer.out_features == sum(groups)
        ][-1:]
        for name, layer in last:
            owner, _, key = name.rpartition(".")
            setattr(head.get_submodule(owner), key, GroupedLinear(layer, groups))
    return head


def more_labels(task: Settings, names: Sequence[str]) -> Values:
    """The dict of a task with more labels behind those that it has, and options that fit them.

    A label that is new has the class weight 1 and, in label sets, the threshold 0.5. What was fitted to the classes of
    single labels, and a threshold of two classes, is left out.

    Raises:
        ValueError: the task has no named labels, or the names cannot be added.
    """
    name, known = task["name"], list(task.get("label_names") or [])
    if not known or task.get("problem_type") == "regression":
        why = "its outputs are numbers" if task.get("problem_type") == "regression" else "it has no named labels"
        raise ValueError(
            f"Task '{name}' of type {task['type']} takes no more labels: {why}. Name a task with label_names."
        )
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"`names` should be a list of labels, one or more. Found `names = {shown(names)}`.")
    whole = [*known, *names]
    for label in names:
        if not isinstance(label, str):
            raise ValueError(f"`names` should be strings. Found {label!r}. Put it in quotes.")
        if whole.count(label) > 1:
            where = "has the label" if label in known else "is given the label"
            again = "already" if label in known else "twice"
            raise ValueError(f"Task '{name}' {where} '{label}' {again}. Leave it out of `names`.")
    new: Values = {**task, "label_names": whole}
    if (before := scheme_in(task)) != (after := scheme_in(new)):
        raise ValueError(
            f"Task '{name}' has tags of the scheme {before or 'none'}, and with {', '.join(names)} they would be of "
            f"{after or 'none'}, which changes what its tags mean. Add labels of the same scheme, or set `scheme` of "
            "the task first."
        )
    if isinstance(weights := task.get("class_weights"), dict):
        new["class_weights"] = {**weights, **dict.fromkeys(names, 1.0)}
    fitted = fitted_values(task)
    if task.get("problem_type") == SETS:
        if "threshold" in fitted:
            new["fitted"] = {**fitted, "threshold": {**fitted["threshold"], **dict.fromkeys(names, 0.5)}}
        return new
    return new | {key: None for key in OF_CLASSES if task.get(key)}


@torch.no_grad()
def take_labels(new: Head, old: Head) -> None:
    """Copy the weights of a head into one of the same task with more labels, whose new weights stay.

    Raises:
        ValueError: the heads differ in more than the number of labels.
    """
    theirs, mine = old.state_dict(keep_vars=True), new.state_dict(keep_vars=True)
    for name in theirs.keys() | mine.keys():
        one, other = theirs.get(name), mine.get(name)
        sizes = [] if one is None or other is None else list(zip(one.shape, other.shape, strict=False))
        grown = {(old.num_labels, new.num_labels)}
        if one is None or other is None or one.dim() != other.dim() or {(a, b) for a, b in sizes if a != b} - grown:
            raise ValueError(
                f"{type(new).__name__} has other weights '{name}' for {new.num_labels} labels than a row more for each "
                "label, so none can be added to a trained one. Add a task in its place."
            )
    for name, value in mine.items():
        value[tuple(slice(size) for size in theirs[name].shape)] = theirs[name]
        value.requires_grad_(theirs[name].requires_grad)
