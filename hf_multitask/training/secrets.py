"""Secrets in arguments: everything that is written gets a copy without them."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from .plain import State

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
A = TypeVar("A", bound="DataclassInstance")

BLANK = "<secret>"
_SHORTEST = 6  # characters of a secret that is looked for in other strings

# Names whose values are secrets. A tokenizer, max_new_tokens and average_tokens_across_devices are none.
_NAME = re.compile(
    r"(^|[_\-. ])(token|secret|password|passwd|passphrase|credentials?|auth|authorization|bearer|pat|sas)$"
    r"|(api|access|account|private|secret|signing|connection|encryption)[_\-. ]?(key|secret|string)([_\-. ]?id)?$"
    r"|secret|password|^storage_options$",
    re.IGNORECASE,
)
# Strings that are secrets whatever their name: Hub tokens, and the password in an address.
_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b|\bapi_org_[A-Za-z0-9]{16,}\b|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")


def without_secrets(value: T, *, told: object = None) -> T:
    """A copy of plain values, dicts and lists, without the secrets in them.

    Values whose names are those of secrets are replaced, there and wherever else they occur.

    Args:
        value: to be written.
        told: values that name secrets; those of ``value`` itself where None.
    """
    return cast(T, _blanked(value, sorted(set(_secrets(value if told is None else told)), key=len, reverse=True)))


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and _NAME.search(name) is not None


def _secrets(value: object, *, named: bool = False) -> Iterator[str]:
    """The strings in a value that its names say are secrets."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets(inner, named=named or _is_secret(name))
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _secrets(inner, named=named)
    elif named and isinstance(value, str) and len(value) >= _SHORTEST and not _is_blank(value):
        yield value


def _is_blank(value: object) -> bool:
    """Whether there is nothing to hide, or it is hidden: Transformers writes <HUB_TOKEN>."""
    if isinstance(value, str):
        return not value or (value.startswith("<") and value.endswith(">"))
    return value is None or isinstance(value, bool | int | float)


def _blanked(value: object, secrets: list[str]) -> object:
    if isinstance(value, Mapping):
        return {
            name: BLANK if _is_secret(name) and not _is_blank(inner) else _blanked(inner, secrets)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_blanked(inner, secrets) for inner in value)
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, BLANK)
        return _VALUE.sub(BLANK, value)
    return value


def arguments_without_secrets(arguments: A) -> A:
    """A copy of training arguments without the secrets in them, to be written."""
    written = copy.copy(arguments)
    fields = _fields(arguments)
    for name, value in without_secrets(fields).items():
        if value != fields[name]:
            setattr(written, name, None if _is_secret(name) else value)
    return written


def dict_without_secrets(arguments: DataclassInstance, values: State) -> State:
    """Training arguments as a dict, without the secrets in them.

    Args:
        arguments: of which the secrets are.
        values: as Transformers writes them, which blanks some of their names.
    """
    return without_secrets(values, told=_fields(arguments))


def _fields(arguments: DataclassInstance) -> State:
    return {one.name: getattr(arguments, one.name, None) for one in dataclasses.fields(arguments)}
