"""Names of the types whose values are of any kind, because a configuration, a family or a user decides them."""

from collections.abc import Callable, Mapping
from typing import Any

TaskDict = dict[str, Any]  # a task, as config.json has it
Values = dict[str, Any]  # arguments, model inputs, settings or an answer, by name
Settings = Mapping[str, Any]  # the same, to be read only
Function = Callable[..., Any]
Parts = tuple[Any, ...]  # of a task type: head, decode, and a reader if it has one of its own
AutoClass = Any  # such as AutoModelForTokenClassification, whose mapping of families is not typed
# What is decided by each reader: its processor, what it keeps for the answer, and the answer.
Open = Any
