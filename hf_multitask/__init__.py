"""Multi-task fine-tuning on the Hugging Face stack: one shared backbone, a head per task, one native model."""

from .data import SamplingRates
from .modeling import MultiTaskConfig, MultiTaskModel, MultiTaskOutput, MultiTaskPipeline
from .tasks import SequenceClassification, Task, TokenClassification, register_task
from .training import MultiTaskTrainer, MultiTaskTrainingArguments
from .version import __version__

__all__ = [
    "MultiTaskConfig",
    "MultiTaskModel",
    "MultiTaskOutput",
    "MultiTaskPipeline",
    "MultiTaskTrainer",
    "MultiTaskTrainingArguments",
    "SamplingRates",
    "SequenceClassification",
    "Task",
    "TokenClassification",
    "__version__",
    "register_task",
]
