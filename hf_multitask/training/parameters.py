"""Which parameters train, and how fast: freezing, rates and decays by task, rates by layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

import torch
from transformers.utils import logging

from ..modeling.adapters import adapter_of
from ..modeling.branches import branch_of, branch_parameters
from ..modeling.chain import LinearChain
from ..modeling.config import SHARED
from ..modeling.layers import LayerMix
from ..modeling.precision import HALF

if TYPE_CHECKING:
    from ..modeling import Head, MultiTaskModel
    from .arguments import MultiTaskTrainingArguments

logger = logging.get_logger(__name__)

BACKBONE = "backbone"
SHARED_LAYERS = "shared_layers"  # what of the backbone is in no branch
SUBSAMPLER = "subsampler"
_WRAPPED = "base_model.model."  # of a model that peft.get_peft_model wrapped
_LAYER = re.compile(r"^(?:base_model\.model\.)?backbone\.[a-zA-Z_.0-9]*?\.(\d+)\.")
_NAMED = re.compile(r"(^|\.)(heads|branches|lora_[AB])$")  # modules that users name: by task or by branch
# Below all layers: embeddings, those that encoder and decoder share, and what makes features of recordings.
_BELOW = re.compile(
    r"emb|wte|wpe|relative_|(^|\.)shared\.|feature_(extractor|projection|encoder)|(^|\.)conv(\d|\.conv_layers)\."
)


def part_of(name: str) -> str:
    """The task whose head or adapter a parameter belongs to, ``subsampler``, or ``backbone``, with the adapter that all
    share.
    """
    first, _, rest = name.removeprefix(_WRAPPED).partition(".")
    adapter = None if name.startswith(_WRAPPED) else adapter_of(name)
    if adapter is not None:
        return BACKBONE if adapter == SHARED else adapter
    if first == SUBSAMPLER:
        return SUBSAMPLER
    return rest.partition(".")[0] if first == "heads" else BACKBONE


class _ByPart:
    """Values by task, ``shared_layers`` and ``backbone``, of which a parameter has the most specific one.

    Args:
        argument: its name.
        given: its value.
    """

    def __init__(self, argument: str, given: Mapping[str, float] | None) -> None:
        self._argument, self._given = argument, given or {}
        self._unread = set(self._given)

    def of(self, name: str, default: float) -> float:
        """The value of a parameter that trains."""
        part = part_of(name)
        if part == BACKBONE and SHARED_LAYERS in self._given and branch_of(name) is None:
            part = SHARED_LAYERS
        self._unread.discard(part)
        return self._given.get(part, default)

    def tell_unread(self) -> None:
        """Warn of values that no parameter has."""
        for part in sorted(self._unread):
            logger.warning(
                f"Parameter `{self._argument}` has a value for '{part}' that no weight in training uses. It has no "
                "effect."
            )


def shared_parameters(model: MultiTaskModel) -> list[torch.nn.Parameter]:
    """The parameters that train and that no task has for itself, without a walk over the heads, which may be many."""
    own = model.config.adapters["tasks"] if model.config.adapters else ()
    branches = own_branches(model)
    return [
        parameter
        for name, parameter in model.backbone.named_parameters()
        if parameter.requires_grad and adapter_of(name) not in own and branch_of(name) not in branches
    ]


def own_branches(model: MultiTaskModel) -> set[str]:
    """The branches that one task has for itself."""
    return {name for name, tasks in (model.config.branches or {}).items() if len(tasks) == 1}


def own_parameters(model: MultiTaskModel, task: str) -> Iterator[torch.nn.Parameter]:
    """The parameters that a task has for itself: its head, and a branch that no other task reads."""
    yield from model.heads[task].parameters()
    for branch in own_branches(model):
        if model.routing.branches[task] == branch:
            yield from branch_parameters(model.backbone, branch)


def freeze(model: MultiTaskModel, parts: Iterable[str], trained: Collection[str] | None = None) -> None:
    """Turn off the gradients of the parameters of the backbone, of its shared layers, or of heads with their adapters.

    Those that an earlier call turned off are turned on first; what the user or the model turned off stays so.

    The same for the heads of tasks that are not among the ``trained`` ones, unless that is None.

    Beside frozen tasks a frozen backbone leaves the pooler and a language model's last layers to the tasks that train,
    where no other reads them: those that came with a new task train with its head. Its branches are frozen with it.
    Frozen shared layers leave the branches to the tasks that train.

    Raises:
        ValueError: nothing is left to train.
    """
    model.unfreeze_parameters()
    frozen, found = set(parts), []
    tasks = frozen & set(model.heads)
    others = set() if trained is None else set(model.heads).difference(trained)
    spared = {id(parameter) for parameter in model.unread_parameters(tasks | others, layers=False)} if tasks else set()
    if model.config.backbone_config.is_encoder_decoder:
        spared -= {id(parameter) for parameter in model.backbone.get_decoder().parameters()}
    branches = {branch for branch, read in (model.config.branches or {}).items() if set(read) - tasks - others}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if part == BACKBONE and BACKBONE not in frozen and branch_of(name) not in branches:
            part = SHARED_LAYERS
        above = part in (BACKBONE, SHARED_LAYERS) and branch_of(name) is None and id(parameter) in spared
        if part in others or (part in frozen and not above):
            found.append(parameter)
    model.freeze_parameters(found)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.unfreeze_parameters()
        raise ValueError(f"Parameter `freeze` leaves nothing to train. Found `freeze = {sorted(frozen)}`.")


def check_precision(model: MultiTaskModel, *, fp16: bool) -> str:
    """What is lost where parameters that train are in half precision, in words; nothing where none are.

    Args:
        model: as it is to be trained.
        fp16: whether it trains with a scaled loss.

    Raises:
        ValueError: the loss is scaled, and its gradients could not be scaled back.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    half = {dtype: sum(one.numel() for one in trained if one.dtype == dtype) for dtype in HALF}
    if fp16 and half[torch.float16]:
        raise ValueError(
            f"Parameter `fp16` is for weights in float32, and {half[torch.float16]:,} of those that train are float16. "
            "Load the model with dtype=torch.float32."
        )
    total = sum(parameter.numel() for parameter in trained)
    kinds = " and ".join(f"{count:,} are {dtype}" for dtype, count in half.items() if count)
    return kinds and (
        f"Of {total:,} weights that train {kinds}: half precision rounds most updates of fine-tuning away, so they "
        "hardly train. Load the model with dtype=torch.float32, and set bf16=True for the speed of half precision."
    )


def _layer_of(name: str) -> int | None:
    """The number of the layer that a parameter is in; None above and below the layers."""
    found = _LAYER.match(name)
    return None if found is None or _BELOW.search(name[: found.start(1)]) else int(found[1])


def last_shared_matrix(model: MultiTaskModel) -> torch.nn.Parameter:
    """The last matrix of the top layer that all tasks read and that trains; of the encoder's where there is a decoder.

    All tasks read it, and a gradient reaches it by the shortest way.

    Raises:
        ValueError: nothing of the backbone's layers trains.
    """
    named = (name for name, _ in model.named_parameters() if branch_of(name) is None)
    shared = (name for name in named if part_of(name) == BACKBONE)
    layers = {name: layer for name in shared if (layer := _layer_of(name)) is not None}
    read = {name: cast("Head", head).layer for name, head in model.heads.items()}
    lowest = min((layer for layer in read.values() if isinstance(layer, int)), default=None)
    if lowest == 0:
        name = next(name for name, layer in read.items() if layer == 0)
        raise ValueError(
            f"The balancing reads gradients of a layer that all tasks read, and task '{name}' reads the embeddings "
            "(`layer = 0`). Choose another balancing, or another layer."
        )
    layers = {name: layer for name, layer in layers.items() if lowest is None or layer < lowest}
    encoders = {name: layer for name, layer in layers.items() if ".decoder." not in name} or layers
    top = max(encoders.values(), default=-1)
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if encoders.get(name) == top and parameter.requires_grad and parameter.dim() > 1
    ]
    if not matrices:
        raise ValueError("The balancing reads gradients of the backbone's top layer, which is frozen. Let it train.")
    return matrices[-1]


def drop_gradients(model: MultiTaskModel, items: Mapping[str, float]) -> None:
    """Drop the gradients of what the tasks of a step do not train, so that the optimizer does not change it.

    With a gradient of zero, as of a head that ran only because other processes needed it, momentum and weight decay
    would change it.

    Args:
        model: after the backward pass.
        items: of every task in the step; without an item of any, nothing trains.
    """
    present = [name for name in model.heads if items.get(name)]
    for parameter in model.unread_parameters(present) if present else model.parameters():
        parameter.grad = None


def layer_factors(names: Iterable[str], decay: float) -> dict[str, float]:
    r"""Factors of the learning rates of the backbone's parameters: :math:`\lambda^{n - 1 - l}` in layer l of n.

    Revisiting Few-sample BERT Fine-tuning (ICLR 2021), section 5, https://arxiv.org/abs/2006.05987: the top layer has
    the learning rate itself, every layer below it the :math:`\lambda`-fold of the one above. Embeddings, and what makes
    features of recordings, count as the layer below the lowest; what stands above the layers, such as a pooler, has the
    learning rate itself.

    Args:
        names: of all parameters.
        decay: :math:`\lambda`.
    """
    layers = {name: layer for name in names if (layer := _layer_of(name)) is not None}
    top = max(layers.values(), default=-1)
    factors = {}
    for name in names:
        if part_of(name) == BACKBONE:
            lowest = -1 if _BELOW.search(name) else top
            factors[name] = decay ** (top - layers.get(name, lowest))
    return factors


def decaying_names(of_module: Callable[[torch.nn.Module], list[str]], model: torch.nn.Module) -> list[str]:
    """The names of the parameters that weight decay is for, whatever tasks and branches are called.

    Biases and norms are found by their names, and with them the whole head of a task such as ``gender_bias``, and a
    branch or an adapter of this name. These are looked at by themselves.

    Args:
        of_module: the names for a module, by the Trainer's rule.
        model: that trains.
    """
    found = dict.fromkeys(of_module(model))
    for where, module in model.named_modules():
        for name, part in module.named_children() if _NAMED.search(where) else ():
            own = of_module(torch.nn.ModuleList([part]))
            found |= dict.fromkeys(f"{where}.{name}.{one.removeprefix('0.')}" for one in own)
    return list(found)


def regroup(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, decaying: Iterable[str], args: MultiTaskTrainingArguments
) -> torch.optim.Optimizer:
    """Split the groups of a fresh optimizer by the learning rates and weight decays of the arguments.

    Args:
        optimizer: as the Trainer made it.
        model: whose parameters it has.
        decaying: names of the parameters that weight decay is for, which biases and norms are not.
        args: with ``learning_rates`` and ``weight_decays`` by task, ``backbone`` or ``shared_layers``, in place of the
            group's own, and ``layerwise_lr_decay``, see :func:`layer_factors`. The scores of a :class:`LinearChain` and
            the numbers of a :class:`LayerMix` have a multiple of the rate of their head.
    """
    chains = [module for module in model.modules() if isinstance(module, LinearChain | LayerMix)]
    if not (chains or args.learning_rates or args.weight_decays or args.layerwise_lr_decay is not None):
        return optimizer
    learning_rates = _ByPart("learning_rates", cast("Mapping[str, float] | None", args.learning_rates))
    weight_decays = _ByPart("weight_decays", cast("Mapping[str, float] | None", args.weight_decays))
    layerwise_decay = args.layerwise_lr_decay
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays = set(decaying)
    factors = layer_factors(list(names.values()), layerwise_decay) if layerwise_decay is not None else {}
    factors |= {names[parameter]: chain.rate for chain in chains for parameter in chain.parameters()}
    groups = []
    for group in optimizer.param_groups:
        split: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names[parameter]
            rate = learning_rates.of(name, group["lr"]) * factors.get(name, 1.0)
            decay = weight_decays.of(name, group["weight_decay"]) if name in decays else group["weight_decay"]
            split.setdefault((rate, decay), []).append(parameter)
        for (rate, decay), parameters in split.items():
            groups.append({**group, "params": parameters, "lr": rate, "weight_decay": decay})
    optimizer.param_groups = groups
    learning_rates.tell_unread()
    weight_decays.tell_unread()
    return optimizer
