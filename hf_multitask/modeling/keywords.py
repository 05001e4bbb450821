"""Keyword arguments that are passed on: each is known to who reads it, or refused with what to give instead."""

import inspect
from collections.abc import Iterable, Mapping

from torch import nn

from .aliases import Function
from .config import close_match

# What a decoder keeps from call to call, and reads of another model: one pass for all tasks has neither.
_NOT_OF_ONE_PASS = {
    "past_key_values",
    "use_cache",
    "cache",
    "mems",
    "use_mems",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "return_dict",  # read before the forward
}


def parameter_names(function: Function) -> list[str]:
    """The parameters of a function that can be given by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in found if parameter.kind in kinds and parameter.name != "self"]


def backbone_inputs(part: nn.Module) -> list[str]:
    """What the reading part of a backbone can be given in one pass for all tasks.

    The families' forwards end in ``**kwargs``, which accepts a mistyped name without an error, so their
    signatures count.
    """
    names = [name for name in parameter_names(part.forward) if name not in _NOT_OF_ONE_PASS]
    return list(dict.fromkeys([*names, "output_hidden_states", "output_attentions"]))


def check_whole(name: str, value: object, least: int) -> None:
    """Check that an argument, where it is given, is a whole number.

    Raises:
        ValueError: it is not one, or is below ``least``.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"`{name}` should be a whole number of {least} or more. Found `{name} = {value!r}`.")


def check_stride(stride: int, limit: int | None, special: int) -> None:
    """Check that windows of ``limit`` tokens, some of them special, overlap by less than the text in one.

    Raises:
        ValueError: they would have no new token.
    """
    if limit is not None and stride >= limit - special:
        raise ValueError(
            f"`stride` should be below {limit - special}, the tokens of a text in a window of {limit}. "
            f"Found `stride = {stride}`."
        )


def check_sizes(given: Mapping[str, object]) -> None:
    """Check the sizes among the arguments of a pipeline."""
    check_whole("batch_size", given.get("batch_size"), 1)
    check_whole("num_workers", given.get("num_workers"), 0)


def check_keywords(
    caller: str, given: Iterable[str], known: Iterable[str], hints: Mapping[str, str] | None = None
) -> None:
    """Check that all keywords of a call are known.

    Args:
        caller: what was called, as the message names it.
        given: the keywords.
        known: those that are read.
        hints: by keyword that is not, what to do instead, in a sentence.

    Raises:
        TypeError: one is not known.
    """
    known = list(known)
    for name in given:
        if name not in known:
            hint = (hints or {}).get(name) or close_match(name, known).strip() or f"It takes {', '.join(known)}."
            raise TypeError(f"{caller} takes no argument '{name}'. {hint}")
