"""Values of arguments: whether they fit the annotations, and how an error shows them."""

import inspect
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence

from .aliases import Function, Settings, Values

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", type(None): "nothing"}
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 120
_SHOWN.maxlist = _SHOWN.maxdict = _SHOWN.maxtuple = 8


def shown(value: object) -> str:
    """A value as an error sentence shows it, of bounded length."""
    return _SHOWN.repr(value)


def hints_of(thing: object) -> Values:
    """The annotations of a class's fields or of a function's parameters; none where they cannot be resolved."""
    try:
        hints = typing.get_type_hints(thing)
    except (NameError, TypeError, AttributeError):  # of names that are imported for type checkers only
        return {}
    return {name: hint for name, hint in hints.items() if name != "return"}


def parameters_of(function: Function) -> list[str]:
    """The names of a function's parameters, without ``*args`` and ``**kwargs``."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def fits(value: object, hint: object) -> bool:
    """Whether a value is of an annotated kind; every value is where the annotation is not a plain type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    if hint is bool or hint is str:
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    if hint in (list, Sequence) or origin in (list, Sequence):
        items = typing.get_args(hint)
        return isinstance(value, list | tuple) and (not items or all(fits(one, items[0]) for one in value))
    if hint in (dict, Mapping) or origin in (dict, Mapping):
        return isinstance(value, Mapping)
    return True


def check_value(name: str, value: object, hint: object) -> None:
    """Check that the value of an argument is of its annotated kind.

    Raises:
        ValueError: it is not.
    """
    if fits(value, hint):
        return
    quoted = isinstance(value, str) and (
        (fits(True, hint) and value.lower() in ("true", "false", "yes", "no", "on", "off"))
        or (fits(1, hint) and value.replace(".", "", 1).isdigit())
    )
    fix = " Leave out the quotes." if quoted else ""
    raise ValueError(f"`{name}` should be {_in_words(hint)}. Found `{name} = {shown(value)}`.{fix}")


def check_values(values: Settings, hints: Settings) -> None:
    """Check that arguments are of the kinds that are annotated, each as in :func:`check_value`."""
    for name, value in values.items():
        if name in hints:
            check_value(name, value, hints[name])


def _in_words(hint: object) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [one for one in typing.get_args(hint) if one is not type(None)]
        return " or ".join(dict.fromkeys(map(_in_words, parts)))
    if hint in _WORDS:
        return _WORDS[hint]
    if hint in (list, Sequence) or origin in (list, Sequence):
        items = {str: " of strings", float: " of numbers", int: " of whole numbers"}
        return "a list" + next((items[one] for one in typing.get_args(hint) if one in items), "")
    if hint in (dict, Mapping) or origin in (dict, Mapping):
        return "a mapping"
    return getattr(hint, "__name__", str(hint))
