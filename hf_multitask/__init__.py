"""Multi-task fine-tuning on the Hugging Face stack: one shared backbone, a head per task, one native model.

Importing the package registers configuration, model and pipeline with Transformers. What is needed for training only is
imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .modeling import MultiTaskConfig, MultiTaskModel, MultiTaskOutput, MultiTaskPipeline
from .version import __version__

if TYPE_CHECKING:
    from .balancing import Balancer
    from .data import SamplingRates
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

_ELSEWHERE = {
    "Balancer": "balancing",
    "MultiTaskTrainer": "training",
    "MultiTaskTrainingArguments": "training",
    "SamplingRates": "data",
}  # the package of a public name; the others are in `tasks`
_PACKAGES = ("aggregation", "balancing", "data", "hub", "tasks", "training")


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """A package, or a public name of one, when it is first used."""
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    value = getattr(import_module(f".{_ELSEWHERE.get(name, 'tasks')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
