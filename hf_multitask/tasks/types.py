"""The task types by name."""

from .base import Task
from .language_modelling import FillMask, TextGeneration
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .sentence_similarity import SentenceSimilarity
from .sequence_classification import SequenceClassification
from .text2text import Summarization, Text2TextGeneration, Translation
from .token_classification import TokenClassification

_OWN: tuple[type[Task], ...] = (
    SequenceClassification,
    TokenClassification,
    QuestionAnswering,
    MultipleChoice,
    SentenceSimilarity,
    FillMask,
    TextGeneration,
    Translation,
    Summarization,
    Text2TextGeneration,
)
TASK_TYPES: dict[str, type[Task]] = {task.type: task for task in _OWN}
