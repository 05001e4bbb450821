"""Training: arguments, the trainer, evaluation."""

from .arguments import MultiTaskTrainingArguments
from .trainer import MultiTaskTrainer

__all__ = ["MultiTaskTrainer", "MultiTaskTrainingArguments"]
