"""The task types: by name, all that the package knows of one beside its columns, labels and metrics."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, PreTrainedConfig

from .aliases import AutoClass, Settings, TaskDict, Values
from .choice import ChoiceReader, MultipleChoiceHead
from .config import close_match
from .entries import load_entries
from .extensions import EXTENSIONS
from .fitted import check_decisions
from .heads import Head, SequenceClassificationHead, TokenClassificationHead
from .keywords import parameter_names
from .language import (
    ContinuingReader,
    FillMaskHead,
    MaskReader,
    Text2TextHead,
    TextGenerationHead,
    WritingReader,
)
from .native import LANGUAGE_MODELS, backbone_class
from .parsing import DependencyParsingHead, ParseReader
from .readers import TEXTS, Decoder, Reader
from .sequences import SequenceReader, decode_sequence
from .similarity import SentenceSimilarityHead, SimilarityReader
from .span_classification import SpanClassificationHead, SpanReader
from .spans import QuestionAnsweringHead, QuestionReader
from .speech import (
    AudioClassificationHead,
    AudioReader,
    FrameReader,
    SpeechRecognitionHead,
    decode_label,
    decode_speech,
)
from .speech_to_text import (
    SpectrogramReader,
    SpeechToTextHead,
    TranscribingReader,
    TranscribingSpectrogramReader,
    WhisperHead,
)
from .subsampler import LOG_MEL, WAVEFORM, SpokenHead, SpokenReader, SpokenWaveReader, subsampler_settings
from .tags import TagReader, decode_tokens


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A task type.

    Args:
        head: its layers and its loss.
        reader: makes model inputs of a raw row, and an answer of the logits.
        decode: the answer to a row, for readers that leave it to the type.
        hub: the name that the Hub has for it, which is the pipeline tag of a card; None where it has none.
        stock: the name of the pipeline of Transformers that serves an exported model, where it is another.
        columns: what a task of an imported model reads, as the task's class has it by default.
        branch: the branch of a task, where branches follow from kinds; by the name of its type where None.
        aliases: names that others give to it: pipelines and repositories of the Hub, and common words.
        architectures: what differs by the ``architecture`` of a task, which the backbone decides; see :func:`fitted`.
    """

    head: type[Head]
    reader: Reader
    decode: Decoder | None = None
    hub: str | None = None
    stock: str | None = None
    columns: Settings = field(default_factory=dict)
    branch: Callable[[TaskDict], str] | None = None
    aliases: tuple[str, ...] = ()
    architectures: Mapping[str, "Kind"] = field(default_factory=dict)

    @property
    def stock_class(self) -> AutoClass | None:
        """The class of Transformers that makes a stock model of a family; None where that is the backbone alone."""
        language_model = self.head.language_model
        return LANGUAGE_MODELS[language_model][0] if language_model else getattr(self.head, "auto_class", None)


def _by_texts(task: TaskDict) -> str:
    return "texts" if task.get("text_pair_column") is None else "pairs"


def _by_task(task: TaskDict) -> str:
    return str(task["name"]) if task["name"] not in ("texts", "pairs", *KINDS) else f"{task['name']}_tags"


_READ = {TEXTS: "texts"}  # what is read, by modality, where it has another name
_WRITING = WritingReader()
_AUDIO, _FRAMES = AudioReader(), FrameReader()

# The architectures of speech recognition, of which a backbone has one.
CTC, SEQ2SEQ, WHISPER = "ctc", "seq2seq", "seq2seq_whisper"
FRAMES = "ctc_frames"  # of encoders that read frames in place of samples
SPOKEN, SPOKEN_WAVE = f"subsampled_{LOG_MEL}", f"subsampled_{WAVEFORM}"  # on an encoder-decoder of texts
SUBSAMPLED = (SPOKEN, SPOKEN_WAVE)
_CLASSIFIES: Values = {
    "head": AudioClassificationHead,
    "decode": decode_label,
    "hub": "audio-classification",
    "columns": {"audio_column": "audio", "label_column": "label"},
}
_TRANSCRIBES: Values = {
    "hub": "automatic-speech-recognition",
    "columns": {"audio_column": "audio", "text_column": "text"},
}

# In the order in which a card shows an input. Of the types of one stock class, the first is the one that it means.
KINDS: dict[str, Kind] = {
    "sequence-classification": Kind(
        head=SequenceClassificationHead,
        reader=SequenceReader(),
        decode=decode_sequence,
        hub="text-classification",
        columns={"text_column": "text", "label_column": "label"},
        branch=_by_texts,
        aliases=(
            *("text-classification", "sentiment-analysis", "zero-shot-classification", "natural-language-inference"),
            *("nli", "regression"),
        ),
    ),
    "token-classification": Kind(
        head=TokenClassificationHead,
        reader=TagReader(),
        decode=decode_tokens,
        hub="token-classification",
        columns={"tokens_column": "tokens", "tags_column": "ner_tags"},
        branch=_by_task,
        aliases=("ner", "named-entity-recognition", "pos", "tagging"),
    ),
    "dependency-parsing": Kind(
        head=DependencyParsingHead,
        reader=ParseReader(),
        hub="token-classification",  # which has none of its own
        columns={"tokens_column": "tokens", "heads_column": "head", "deprels_column": "deprel"},
        aliases=("parsing", "parser", "dependency-parser", "depparse", "biaffine"),
    ),
    "span-classification": Kind(
        head=SpanClassificationHead,
        reader=SpanReader(),
        hub="token-classification",
        columns={"text_column": "text", "spans_column": "spans"},
        branch=_by_task,
        aliases=("nested-ner", "nested-named-entity-recognition", "spancat", "span-categorization"),
    ),
    "sentence-similarity": Kind(
        head=SentenceSimilarityHead,
        reader=SimilarityReader(),
        hub="sentence-similarity",
        columns={"text_column": "sentence1", "text_pair_column": "sentence2"},
        aliases=("text-ranking", "feature-extraction", "semantic-textual-similarity", "sts"),
    ),
    "question-answering": Kind(
        head=QuestionAnsweringHead,
        reader=QuestionReader(),
        hub="question-answering",
        columns={
            **{"question_column": "question", "context_column": "context", "answers_column": "answers"},
            "doc_stride": 128,
        },
        aliases=("qa", "extractive-qa", "extractive-question-answering"),
    ),
    "fill-mask": Kind(
        head=FillMaskHead,
        reader=MaskReader(),
        hub="fill-mask",
        columns={"text_column": "text"},
        aliases=("masked-lm", "masked-language-modeling", "mlm"),
    ),
    "multiple-choice": Kind(
        head=MultipleChoiceHead,
        reader=ChoiceReader(),
        hub="multiple-choice",
        columns={"question_column": "question", "choices_column": "choices", "label_column": "label"},
    ),
    "text-generation": Kind(
        head=TextGenerationHead,
        reader=ContinuingReader(),
        hub="text-generation",
        columns={"text_column": "text"},
        aliases=("causal-lm", "language-modeling", "clm"),
    ),
    "text2text-generation": Kind(
        head=Text2TextHead,
        reader=_WRITING,
        hub="text-generation",  # which has none of its own any more
        stock="text2text-generation",
        columns={"source_column": "source", "target_column": "target"},
        aliases=("text2text", "seq2seq"),
    ),
    "translation": Kind(
        head=Text2TextHead,
        reader=_WRITING,
        hub="translation",
        columns={"source_column": "source", "target_column": "target"},
    ),
    "summarization": Kind(
        head=Text2TextHead,
        reader=_WRITING,
        hub="summarization",
        columns={"source_column": "document", "target_column": "summary"},
    ),
    "automatic-speech-recognition": Kind(
        head=SpeechRecognitionHead,
        reader=_AUDIO,
        decode=decode_speech,
        hub="automatic-speech-recognition",
        columns={"audio_column": "audio", "text_column": "text"},
        aliases=("asr", "speech-recognition", "speech-to-text", "ctc"),
        architectures={
            CTC: Kind(head=SpeechRecognitionHead, reader=_AUDIO, decode=decode_speech, **_TRANSCRIBES),
            FRAMES: Kind(head=SpeechRecognitionHead, reader=_FRAMES, decode=decode_speech, **_TRANSCRIBES),
            SEQ2SEQ: Kind(head=SpeechToTextHead, reader=TranscribingReader(), **_TRANSCRIBES),
            WHISPER: Kind(head=WhisperHead, reader=TranscribingSpectrogramReader(), **_TRANSCRIBES),
            SPOKEN: Kind(head=SpokenHead, reader=SpokenReader(), **_TRANSCRIBES),
            SPOKEN_WAVE: Kind(head=SpokenHead, reader=SpokenWaveReader(), **_TRANSCRIBES),
        },
    ),
    "audio-classification": Kind(
        reader=_AUDIO,
        aliases=("speaker-identification", "keyword-spotting", "speech-emotion-recognition"),
        architectures={
            FRAMES: Kind(reader=_FRAMES, **_CLASSIFIES),
            WHISPER: Kind(reader=SpectrogramReader(), **_CLASSIFIES),
        },
        **_CLASSIFIES,
    ),
}


def add_extension(name: str, head: type[Head], decode: Decoder | None, reader: type[Reader] | None = None) -> None:
    """Add a type from outside the package.

    Without a reader of its own it reads as the built-in type that answers by the same decoder does.
    """
    alike = (kind.reader for kind in KINDS.values() if decode is not None and kind.decode is decode)
    KINDS[name] = Kind(head=head, reader=reader() if reader is not None else next(alike, Reader()), decode=decode)


for _name, _parts in EXTENSIONS.items():  # of a saved model, whose code is beside this file
    add_extension(_name, *_parts)


def all_kinds() -> Iterator[Kind]:
    """The types, and what they are on backbones of another architecture."""
    for kind in KINDS.values():
        yield kind
        yield from kind.architectures.values()


def fitted(task: TaskDict, config: PreTrainedConfig, subsampler: object = None) -> TaskDict:
    """The dict of a task with what the backbone decides: the architecture of a type that has several.

    Args:
        task: its dict.
        config: the backbone's configuration.
        subsampler: settings of the model's, see :func:`subsampler_settings`.

    Raises:
        ValueError: there is no such type, or the task was made for another backbone, or has an unusable option that its
            answers depend on.
    """
    kind = _kind_named(task)
    if issubclass(kind.head, SequenceClassificationHead | TokenClassificationHead):
        check_decisions(task)
    if not kind.architectures:
        return task
    found: str | None = _architecture(config, task.get("subsampler") if subsampler is None else subsampler)
    if found not in kind.architectures:
        found = None
    if task.get("architecture") not in (None, found):
        raise ValueError(
            f"Task '{task.get('name')}': `architecture` is {found!r} on the backbone {config.model_type}. Found "
            f"`architecture = {task['architecture']!r}`. Leave it out."
        )
    settings = None
    if found in SUBSAMPLED:
        own = task.get("subsampler")
        settings = subsampler_settings(own if subsampler is None else subsampler)
        if own is not None and subsampler_settings(own) != settings:
            raise ValueError(
                f"Task '{task.get('name')}': `subsampler` is the model's, of which there is one. Found `subsampler = "
                f"{own}` and {settings}. Leave it out of the task."
            )
    return {**task, "architecture": found, **({"subsampler": settings} if settings or "subsampler" in task else {})}


def _architecture(config: PreTrainedConfig, subsampler: object) -> str:
    """How a backbone recognizes speech."""
    if config.model_type == "whisper":
        return WHISPER
    if config.model_type == "wav2vec2-bert":
        return FRAMES
    if type(config) in AutoModelForSpeechSeq2Seq._model_mapping:
        return SEQ2SEQ
    if config.is_encoder_decoder and type(config) in AutoModelForSeq2SeqLM._model_mapping:
        return f"subsampled_{subsampler_settings(subsampler)['input']}"
    return CTC


def kind_of(task: Settings) -> Kind:
    """The type of a task, which an installed package may have.

    Raises:
        ValueError: there is no such type.
    """
    kind = _kind_named(task)
    return kind.architectures.get(task.get("architecture") or "", kind)


def _kind_named(task: Settings) -> Kind:
    name = task["type"]
    if name in KINDS:
        return KINDS[name]
    failed = load_entries(name, KINDS)
    if name not in KINDS:
        unknown = f"Task '{task.get('name')}' has the unknown type '{name}'"
        raise ValueError(
            f"{unknown}{failed}."
            if failed
            else f"{unknown}; the types are {', '.join(sorted(KINDS))}."
            + suggested_type(name, KINDS)
            + " A type of your own needs register_task first, or trust_remote_code=True to run the code saved with it."
        )
    return KINDS[name]


def head_class(task: Settings) -> type[Head]:
    """The head of a task's type; see :func:`kind_of`."""
    return kind_of(task).head


def reader_of(task: Settings) -> Reader:
    """The reader of a task's type; see :func:`kind_of`."""
    return kind_of(task).reader


def loading_reader(tasks: Iterable[Settings]) -> Reader:
    """The reader of those of some tasks that loads what all of them read with: one that needs two, or the first."""
    readers = [reader_of(task) for task in tasks]
    return next((reader for reader in readers if reader.writes and reader.modality != TEXTS), readers[0])


def check_input(task: Settings, config: PreTrainedConfig) -> None:
    """Check that a backbone takes what the reader of a task makes.

    Raises:
        ValueError: it does not.
    """
    reader, wanted = reader_of(task), reader_of(task).input_names[0]
    taken = parameter_names(backbone_class(config).forward)
    if wanted not in taken and task.get("architecture") not in SUBSAMPLED:
        raise ValueError(
            f"Task '{task.get('name')}': {task['type']} reads {_READ.get(reader.modality, reader.modality)} "
            f"({wanted}), and the backbone {config.model_type} takes {taken[0]}. Choose another backbone for it."
        )


def num_labels(task: Settings) -> int:
    """Outputs of a task's head, see :meth:`Head.outputs`."""
    return head_class(task).outputs(dict(task))


def suggested_type(found: object, known: Iterable[str]) -> str:
    """The end of an error sentence about an unknown type: what it may mean; empty where nothing is similar."""
    word = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_ ]+", "-", str(found)).lower()
    types = list(known)
    meant = next((name for name, kind in KINDS.items() if word in kind.aliases), None)
    return f" Did you mean '{meant}'?" if meant in types else close_match(word, types)
