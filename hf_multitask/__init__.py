"""Multi-task fine-tuning on the Hugging Face stack: one shared backbone, a head per task, one native model."""

from .balancing import Balancer
from .data import SamplingRates
from .modeling import MultiTaskConfig, MultiTaskModel, MultiTaskOutput, MultiTaskPipeline
from .tasks import (
    AudioClassification,
    AutomaticSpeechRecognition,
    DependencyParsing,
    FillMask,
    MultipleChoice,
    QuestionAnswering,
    SentenceSimilarity,
    SequenceClassification,
    SpanClassification,
    Summarization,
    Task,
    Text2TextGeneration,
    TextGeneration,
    TokenClassification,
    Translation,
    register_task,
)
from .training import MultiTaskTrainer, MultiTaskTrainingArguments
from .version import __version__

__all__ = [
    "AudioClassification",
    "AutomaticSpeechRecognition",
    "Balancer",
    "DependencyParsing",
    "FillMask",
    "MultiTaskConfig",
    "MultiTaskModel",
    "MultiTaskOutput",
    "MultiTaskPipeline",
    "MultiTaskTrainer",
    "MultiTaskTrainingArguments",
    "MultipleChoice",
    "QuestionAnswering",
    "SamplingRates",
    "SentenceSimilarity",
    "SequenceClassification",
    "SpanClassification",
    "Summarization",
    "Task",
    "Text2TextGeneration",
    "TextGeneration",
    "TokenClassification",
    "Translation",
    "__version__",
    "register_task",
]
