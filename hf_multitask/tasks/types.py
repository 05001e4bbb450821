"""The task types by name; each file of a type adds its own, as a user's does."""

from .base import Task

TASK_TYPES: dict[str, type[Task]] = {}
