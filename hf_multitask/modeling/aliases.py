"""Names of the types whose values are of any kind, because a configuration, a family or a user decides them."""

from collections.abc import Callable, Mapping
from typing import Any

TaskDict = dict[str, Any]  # a task, as config.json has it
Values = dict[str, Any]  # arguments, model inputs, settings or an answer, by name
Settings = Mapping[str, Any]  # the same, to be read only
Function = Callable[..., Any]
Parts = tuple[Any, ...]  # of a task type: head, decode, and a reader if it has one of its own
Open = (
    Any  # what the contract of readers leaves to each of them: the processor, what is kept for the answer, the answer
)
