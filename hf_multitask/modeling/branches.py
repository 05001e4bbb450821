r"""Branches: the top layers of the backbone once for each group of tasks, over lower layers that all tasks share.

.. math:: y_t = g_t(h_{b(t)}(f(x)))

All branches start as copies of the pretrained layers. Branched multi-task networks: Learning to Branch for Multi-Task
Learning (ICML 2020), https://arxiv.org/abs/2006.01895; here the groups are given, or follow from the types of tasks.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from inspect import ismethod
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .adapter_rows import Routing
from .aliases import Function, Open, TaskDict
from .config import check_branch_layers, check_branches, close_match, in_order
from .fitted import SINGLE
from .kinds import kind_of, num_labels
from .layers import number_of_layers
from .native import family_kind, reading_part
from .readers import TEXTS

AUTO, KIND, NONE = "auto", "kind", "none"
LEAST_LAYERS, MOST_BRANCHES = 6, 8  # of a backbone that has branches without being asked
_NUMBER = re.compile(r"(LABEL_)?\d+")
_BRANCH = re.compile(r"(?:^|\.)branches\.([^.]+)\.")


class BranchedLayer(nn.Module):
    """A layer of the backbone, with a copy for every branch, each of which runs over its own rows.

    Args:
        layer: the pretrained one.
        names: of the branches.
        routing: what says which rows these are.
    """

    def __init__(self, layer: nn.Module, names: Iterable[str], routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.branches = nn.ModuleDict({name: copied(layer) for name in names})

    def __getattr__(self, name: str) -> Open:
        """What a backbone asks of its layers, such as the kind of attention, is the same in all branches.

        What it calls, such as ``set_attention_type`` of BigBird, is called of all of them.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "branches":
                raise
            found = [getattr(branch, name) for branch in self.branches.values()]
            return _of_all(found) if all(map(ismethod, found)) else found[0]

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Open:
        """The layer of each branch over its rows: (B, L, D) or (U, L, D) to (U, L, D).

        Branches run in one order, whether they have rows or are idle, as processes that shard the weights gather those
        of a layer together.
        """
        fork = self.routing.fork
        if fork is None:
            raise RuntimeError(
                "The backbone has branches, and which one reads a row is known within the model only. Call the model, "
                "with `tasks`, in place of its backbone."
            )
        length = hidden.shape[1] if hidden.dim() > 1 else -1
        alone = len(fork.branches) == 1
        states = [hidden] if alone else fork.hidden(hidden)
        outputs: dict[str, Open] = {}
        idle: list[torch.Tensor] = []
        for name, branch in self.branches.items():
            if alone and name in fork.branches:
                outputs[name] = branch(hidden, *args, **kwargs)
            elif name in fork.branches:
                number = fork.branches.index(name)
                own, rest = (fork.part(number, given, length) for given in (args, kwargs))
                with self.routing.of(fork.blocks[number]):
                    outputs[name] = branch(states[number], *own, **rest)
            elif name in fork.idle:
                own, rest = (fork.part(None, given, length) for given in (args, kwargs))
                with self.routing.of(((None, 0, 1), *((task, 1, 1) for task in sorted(self.routing.tasks)))):
                    extra = branch(fork.first(hidden), *own, **rest)
                idle.append(((extra[0] if isinstance(extra, tuple) else extra) * 0).sum())
        found = [outputs[name] for name in fork.branches]
        output = found[0] if alone else fork.joined(found, length)
        for zero in idle:
            output = (output[0] + zero, *output[1:]) if isinstance(output, tuple) else output + zero
        return output


def _of_all(methods: Sequence[Function]) -> Function:
    def call(*args: Any, **kwargs: Any) -> Open:
        first, *_ = [method(*args, **kwargs) for method in methods]
        return first

    return call


def copied(layer: nn.Module) -> nn.Module:
    """A copy of a layer whose weights are marked as set where those of the layer are, with the same configuration.

    What is set there later, such as the attention, is set for all branches.
    """
    values = (value for module in layer.modules() for value in vars(module).values())
    copy = deepcopy(layer, {id(value): value for value in values if isinstance(value, PreTrainedConfig)})
    for module in copy.modules():
        tensors = (*module._parameters.items(), *module._buffers.items())
        if all(tensor is None or not tensor.is_meta for _, tensor in tensors):
            module._is_hf_initialized = True  # type: ignore[assignment]
    return copy


def branch_of(parameter: str) -> str | None:
    """The branch that a weight of the backbone, or one of its layers, belongs to; None for what all tasks share."""
    found = _BRANCH.search(parameter)
    return found[1] if found else None


def unbranched(parameter: str) -> str:
    """The name that a weight of a branch has in a backbone without branches."""
    return _BRANCH.sub(lambda found: "." if found[0].startswith(".") else "", parameter)


def layers_of(backbone: PreTrainedModel) -> nn.ModuleList:
    """The layers of a backbone's reading part, one after the other.

    Raises:
        ValueError: the family has no such list, as ALBERT, whose layers are one.
    """
    part, config = reading_part(backbone), backbone.config
    count = number_of_layers(config)
    found = [
        module
        for module in part.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _alike(module)
    ]
    if not found:
        raise ValueError(
            f"The backbone family '{config.model_type}' cannot have branches: its layers are not a list of "
            f"{count} that run one after the other. Set branches='none', or choose another backbone."
        )
    return found[-1]  # of Wav2Vec2's convolutions and layers, the latter


def _alike(layers: nn.ModuleList) -> bool:
    kinds = {type(next(iter(one.branches.values())) if isinstance(one, BranchedLayer) else one) for one in layers}
    return len(kinds) == 1 and not isinstance(layers[0], nn.Linear | nn.LayerNorm | nn.Conv1d)


def heads_of(config: PreTrainedConfig) -> int:
    """The heads of the attention of a backbone; 1 where it does not say."""
    heads = getattr(config.get_text_config(), "num_attention_heads", None)
    return heads if isinstance(heads, int) else 1


def default_layers(config: PreTrainedConfig, *, automatic: bool = False) -> int:
    """How many layers branch where nobody says it: a third of them, and half where ``auto`` has chosen the branches."""
    return max(1, number_of_layers(config) // (2 if automatic else 3))


def kind_of_branch(task: TaskDict) -> str:
    """The branch that a task has by its kind.

    A branch for all tasks on single texts, one for all on pairs of texts, one for each task on words, and one for all
    of any other type.
    """
    branch = kind_of(task).branch
    return str(task["type"]) if branch is None else branch(task)


def decision(task: TaskDict, *, strict: bool = True) -> tuple[Open, ...]:
    """What a task decides: its kind with its labels, equal for tasks that decide the same on other texts.

    Args:
        task: its dict.
        strict: whether numbers and labels without names are those of the task alone; else they are those of all tasks
            with as many. Labels that are not known yet are those of the task alone.
    """
    names = task.get("label_names") or ()
    named = not all(_NUMBER.fullmatch(str(name)) for name in names)
    numbers = not named and (names or task.get("problem_type") == "regression")
    alone = not named and (not num_labels(task) or (numbers and strict))
    labels = frozenset(map(str, names)) if named else num_labels(task)
    problem = task.get("problem_type") or SINGLE  # which is filled in with the labels
    return kind_of_branch(task), problem, labels, task["name"] if alone else None


def groups_of(tasks: Iterable[TaskDict], key: Callable[[TaskDict], Hashable]) -> list[list[str]]:
    """The names of tasks with equal keys."""
    found: dict[Hashable, list[str]] = {}
    for task in tasks:
        found.setdefault(key(task), []).append(str(task["name"]))
    return list(found.values())


def chosen(
    tasks: Sequence[TaskDict], config: PreTrainedConfig, count: int, *, frozen: bool
) -> tuple[dict[str, list[str]] | str, str]:
    """What ``auto`` chooses, branches or ``none``, and why, as the plan of a run says it.

    Tasks that decide different things lose by sharing the top layers, on encoders of six layers
    (``benchmarks/learning.py``). A task that reads a layer below them has no branch of its own.

    Args:
        tasks: of the model.
        config: of the backbone.
        count: how many layers would branch.
        frozen: whether the backbone does not train.
    """
    layers = number_of_layers(config)
    low = [task for task in tasks if _reads_below(task, layers - count)]
    high = [task for task in tasks if task not in low]
    groups = groups_of(high, decision)
    if frozen:
        return NONE, "no branches, as the backbone is frozen under its adapters"
    if len(groups) < 2:
        which = "all tasks" if not low else f"all tasks that read the top {count} layers"
        return NONE, f"no branches, as {which} are of one kind and have the same labels"
    texts = all(kind_of(task).reader.modality == TEXTS for task in tasks)
    if not texts or family_kind(config) != "bidirectional":
        return NONE, f"no branches, which were not measured with backbones like {config.model_type}"
    if layers < LEAST_LAYERS:
        return NONE, f"no branches, as a backbone of {layers} layers has none to spare"
    if len(groups) > MOST_BRANCHES:
        groups = groups_of(high, partial(decision, strict=False))
    if 2 <= len(groups) <= MOST_BRANCHES:
        reason = "a branch for each kind of task and labels, as tasks that decide other things lose by sharing all"
        return _with({own[0]: own for own in groups}, low), f"{reason} layers"
    kinds = {str(task["name"]): kind_of_branch(task) for task in high}
    groups = groups_of(high, kind_of_branch)
    if 2 <= len(groups) <= MOST_BRANCHES:
        named = {kinds[own[0]]: own for own in groups}
        return _with(named, low), "branches by the kind of task, as tasks of different kinds lose by sharing all layers"
    if len(groups) == 1:
        return NONE, f"no branches, as all tasks are of one kind, with labels for more than {MOST_BRANCHES}"
    return NONE, f"no branches, as there would be {len(groups)}"


def _reads_below(task: TaskDict, shared: int) -> bool:
    """Whether a task reads no state above the layers that all tasks share."""
    return isinstance(task.get("layer"), int) and task["layer"] <= shared


def _with(branches: dict[str, list[str]], low: Sequence[TaskDict]) -> dict[str, list[str]]:
    """Branches with the tasks that read none of them in the first, as every task is in one."""
    first = next(iter(branches))
    return {**branches, first: [*branches[first], *(str(task["name"]) for task in low)]}


def resolved(
    branches: object,
    branch_layers: int | None,
    tasks: Sequence[TaskDict],
    config: PreTrainedConfig,
    *,
    frozen: bool = False,
) -> tuple[dict[str, list[str]] | None, int | None, str | None]:
    """Branches as the configuration has them, names of tasks by branch; the number of layers; the reason of ``auto``.

    Args:
        branches: the same, or ``auto``, ``kind``, ``none``, or None.
        branch_layers: as given; :func:`default_layers` where None.
        tasks: of the model.
        config: of the backbone.
        frozen: whether the backbone does not train.

    Raises:
        ValueError: neither is usable.
    """
    reason = None
    if branch_layers is not None:
        check_branch_layers(branch_layers)
    if branches == AUTO:
        count = default_layers(config, automatic=True) if branch_layers is None else branch_layers
        branches, reason = chosen(tasks, config, count, frozen=frozen)
    if branches is None or branches == NONE:
        if branch_layers is not None:
            said = f"branches = {branches!r}`" if reason is None else f"branches = 'auto'`, which chooses {reason}"
            raise ValueError(
                f"`branch_layers` is for a model with branches. Found `branch_layers = {branch_layers!r}` and "
                f"`{said}. Give `branches`, such as 'kind', or leave it out."
            )
        return None, None, reason
    names = [str(task["name"]) for task in tasks]
    if branches == KIND:
        kinds = {str(task["name"]): kind_of_branch(task) for task in tasks}
        found = {kinds[own[0]]: own for own in groups_of(tasks, kind_of_branch)}
        if len(found) == 1:
            if branch_layers is not None:
                raise ValueError(
                    f"`branch_layers` is for a model with branches. Found `branch_layers = {branch_layers!r}` and "
                    "`branches = 'kind'`, and all tasks are of one kind. Name the tasks of each branch, or leave both "
                    "out."
                )
            return None, None, reason
    elif isinstance(branches, Mapping):
        found = {name: _listed(own) for name, own in branches.items()}
    else:
        raise ValueError(
            "Parameter `branches` should be names of tasks by branch, such as {'tags': ['ner', 'pos'], 'texts': "
            f"['topic']}}, or 'auto', 'kind' or 'none'. Found `branches = {branches!r}`."
            + close_match(str(branches), [AUTO, KIND, NONE])
        )
    layers = default_layers(config, automatic=reason is not None) if branch_layers is None else branch_layers
    check_branches(found, layers, names)
    return in_order(found, names), layers, reason


def _listed(own: Open) -> Open:
    """The tasks of a branch as a list; what names none as it is, for the message that refuses it."""
    if isinstance(own, str):
        return [own]
    return list(own) if isinstance(own, Iterable) else own


class Branching:
    """The branches of a model, put into its backbone and taken out again."""

    def __init__(self, backbone: PreTrainedModel, routing: Routing, count: int) -> None:
        self.layers, self.routing = layers_of(backbone), routing
        if len(self.layers) == 1:
            raise ValueError(
                "`branches` are for a backbone of two layers or more, so that one is left for all tasks. Found one "
                "layer. Set branches='none', or choose another backbone."
            )
        if not 1 <= count < len(self.layers):
            raise ValueError(
                f"`branch_layers` should be from 1 to {len(self.layers) - 1}, so that a layer is left for all tasks. "
                f"Found `branch_layers = {count}`."
            )
        self.top = range(len(self.layers) - count, len(self.layers))

    def put(self, names: Iterable[str]) -> None:
        """Put copies of the top layers in their place."""
        for number in self.top:
            self.layers[number] = BranchedLayer(self.layers[number], list(names), self.routing)

    def take_out(self) -> None:
        """Put the first branch, of copies that do not differ yet, in the place of all."""
        for number in self.top:
            self.layers[number] = next(iter(self._of(number).values()))

    def open(self, name: str, like: str) -> None:
        """Add a branch that starts as a copy of another."""
        for number in self.top:
            branches = self._of(number)
            branches[name] = copied(branches[like])

    def close(self, name: str) -> None:
        """Remove a branch."""
        for number in self.top:
            del self._of(number)[name]

    def _of(self, number: int) -> nn.ModuleDict:
        return self.layers[number].branches  # type: ignore[return-value]


def branched_layers(backbone: nn.Module) -> Iterator[BranchedLayer]:
    """The layers of a backbone that have branches."""
    return (module for module in backbone.modules() if isinstance(module, BranchedLayer))


def branch_parameters(backbone: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """The parameters of one branch."""
    for layer in branched_layers(backbone):
        yield from layer.branches[name].parameters()


def of_branch(backbone: PreTrainedModel, name: str) -> PreTrainedModel:
    """A copy of a backbone with the layers of one branch in their place."""
    memo: dict[int, Any] = {}
    for layer in branched_layers(backbone):
        memo[id(layer)] = deepcopy(layer.branches[name])
    return deepcopy(backbone, memo)
