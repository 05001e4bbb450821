"""The task types by name."""

from .base import Task
from .sequence_classification import SequenceClassification
from .token_classification import TokenClassification

TASK_TYPES: dict[str, type[Task]] = {task.type: task for task in (SequenceClassification, TokenClassification)}
