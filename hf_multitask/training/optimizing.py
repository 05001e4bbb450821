"""The optimizer and the schedule of a run, checked when arguments and trainer are built, before anything trains."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Trainer, get_scheduler
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.utils import logging

from .plain import State

if TYPE_CHECKING:
    from .arguments import MultiTaskTrainingArguments

logger = logging.get_logger(__name__)

_BY_PART = ("learning_rates", "weight_decays", "layerwise_lr_decay")
_OTHER_VALUES = ("7", "0.7", "true", "float64")  # one of which changes what an optimizer reads


def check_optimizing(
    args: MultiTaskTrainingArguments,
    model: torch.nn.Module,
    given: tuple[object, object],
    own: tuple[type[torch.optim.Optimizer], Mapping[str, Any]] | None = None,
) -> None:
    """Check that the optimizer and the schedule of a run can be made, or that those that are given are of its model.

    Args:
        args: of the run.
        model: that trains.
        given: the user's own optimizer and schedule.
        own: the class of an optimizer, and its arguments, in place of ``args.optim``.

    Raises:
        ValueError: a package is missing, an argument has no effect, or what is given is not of this model.
    """
    optimizer, schedule = given
    for name in _BY_PART:
        if optimizer is not None and getattr(args, name):
            raise ValueError(
                f"Parameter `{name}` is for the optimizer that the trainer makes, and another is given in optimizers. "
                "Leave one of them out."
            )
    if schedule is not None and getattr(schedule, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            "Parameter `optimizers` should hold an optimizer and the schedule of its learning rates. Found a schedule "
            f"{'without an optimizer' if optimizer is None else 'of another optimizer'}, which would change no rate. "
            "Give both."
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        _check_parameters(optimizer, model)
    elif own is None:
        _check_kind(args, model)


def _check_parameters(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    left = [parameter for parameter in trained if id(parameter) not in held]
    if trained and len(left) == len(trained):
        raise ValueError(
            "Parameter `optimizers` should hold an optimizer of the weights of the model. Found one of others, so that "
            "nothing would train. Make it of `model.parameters()`."
        )
    if left:
        logger.warning(
            f"The optimizer that is given has no group for {len(left)} of {len(trained)} tensors that train, with "
            f"{sum(parameter.numel() for parameter in left):,} weights. They do not change."
        )


def _check_kind(args: MultiTaskTrainingArguments, model: torch.nn.Module) -> None:
    name = str(getattr(args.optim, "value", args.optim))
    try:
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, cast(Any, model))
    except (ImportError, ValueError, TypeError, AttributeError) as problem:
        said = " ".join(str(problem).split())
        if _outcome(args, model, optim_args=None):
            raise ValueError(
                f"Parameter `optim_args` should hold arguments of the optimizer '{name}', as name=value with commas "
                f"between. Found `optim_args = {args.optim_args!r}`: {said}. Change it."
            ) from None
        raise ValueError(
            f"Parameter `optim` should be an optimizer that can be made here. Found `optim = '{name}'`: {said} "
            "Install what it needs, or choose another, such as adamw_torch."
        ) from None
    for key in _keys(args.optim_args):
        if _has_no_effect(args, model, key):
            raise ValueError(
                f"Parameter `optim_args` should hold arguments that the optimizer '{name}' reads. Found `{key}`, which "
                "it does not. Leave it out, or use the training argument for it, such as adam_epsilon."
            )
    targets = args.optim_target_modules
    if targets is not None and _outcome(args, model, optim_target_modules=None) == _outcome(args, model):
        raise ValueError(
            f"Parameter `optim_target_modules` has no effect with the optimizer '{name}'. Found `optim_target_modules "
            f"= {targets!r}`. Leave it out."
        )
    if not is_optimizer_factory(kind):
        plain = {key: value for key, value in kwargs.items() if key not in ("params", "model", "optimizer_dict")}
        try:
            inspect.signature(kind).bind([], **plain)
        except TypeError as problem:
            raise ValueError(
                f"Parameter `optim_args` should hold arguments of the optimizer '{name}'. Found `optim_args = "
                f"{args.optim_args!r}`: {problem}. Change it."
            ) from None


def _keys(optim_args: str | None) -> list[str]:
    return [word.partition("=")[0].strip() for word in (optim_args or "").split(",") if word]


def _has_no_effect(args: MultiTaskTrainingArguments, model: torch.nn.Module, key: str) -> bool:
    """Whether another value of an argument of the optimizer, or none, makes the same optimizer."""
    others = [word for word in (args.optim_args or "").split(",") if word.partition("=")[0].strip() != key]
    made = {_outcome(args, model, optim_args=",".join(others) or None)}
    made |= {_outcome(args, model, optim_args=",".join([*others, f"{key}={value}"])) for value in _OTHER_VALUES}
    return len(made) == 1


def _outcome(args: MultiTaskTrainingArguments, model: torch.nn.Module, **changes: object) -> str:
    """What an optimizer is made of with other arguments, as text; empty where it cannot be made."""
    changed = copy(args)
    vars(changed).update(changes)
    try:
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(changed, cast(Any, model))
    except Exception:  # whatever the package of an optimizer makes of it
        return ""
    return json.dumps([kind.__name__, kwargs], default=lambda value: type(value).__name__, sort_keys=True)


def check_schedule(args: MultiTaskTrainingArguments) -> None:
    """Check that the schedule of the learning rates can be made.

    Raises:
        ValueError: an argument of it is missing, unknown or has no effect.
    """
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    given = cast("State | None", args.lr_scheduler_kwargs)
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"Parameter `lr_scheduler_kwargs` should be a mapping. Found {given!r}.")
    try:
        _make_schedule(args, given)
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as problem:
        said = " ".join(str(problem).split())
        raise ValueError(
            f"Parameter `lr_scheduler_kwargs` should hold the arguments of the schedule '{name}'. Found "
            f"`lr_scheduler_kwargs = {given!r}`: {said}. Change it, or lr_scheduler_type."
        ) from None
    if given and not _reads_arguments(args, given):
        raise ValueError(
            f"Parameter `lr_scheduler_kwargs` has no effect with the schedule '{name}'. Found `lr_scheduler_kwargs = "
            f"{given!r}`. Leave it out."
        )


def _reads_arguments(args: MultiTaskTrainingArguments, given: State) -> bool:
    try:
        _make_schedule(args, {**given, "an argument that no schedule has": 0})
    except TypeError:
        return True
    return False


def _make_schedule(args: MultiTaskTrainingArguments, kwargs: State | None) -> None:
    steps = args.max_steps if args.max_steps > 0 else 10**6
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=kwargs,
    )
