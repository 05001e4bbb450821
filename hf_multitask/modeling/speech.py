"""Types that read recordings: their reader, and the stock heads over the frames of a speech encoder.

Legend: N rows of one task, S samples, F frames, D hidden, C classes, V symbols, T symbols of the longest transcript.
"""

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, AutoModelForCTC, PreTrainedConfig

from .aliases import AutoClass, Open, Settings, TaskDict, Values
from .chunks import Chunking
from .config import FORMAT_VERSION
from .examples import AUDIO, Example
from .fitted import scaled
from .heads import Head, SequenceClassificationHead, at_least_float32
from .inputs import InputEncoder
from .keywords import parameter_names
from .native import Over, States, base_name, stock_head
from .processors import extractor_of
from .readers import Reader, Reading, Row, TokenWords
from .sound import KEYS, Sound, SoundError, frames_of, read_sound, samples_of

PAD = "<pad>"  # the blank of CTC
# Of recordings in a forward pass of training: 3.2 million samples at 16 kHz, as wav2vec 2.0 (NeurIPS 2020, appendix B,
# https://arxiv.org/abs/2006.11477) has on one GPU.
MOST_SECONDS = 200
_HOP = 160  # samples between two frames of the feature extractor of Wav2Vec2-BERT
_FILL = -1e4  # of a symbol in a frame of padding, whose probability is 0 in every dtype


@dataclass(frozen=True)
class Heard:
    """What is known of a recording beside its samples.

    Args:
        frames: of the backbone.
        mixed: whether it had several channels.
        resampled: whether it had another rate.
    """

    frames: int
    mixed: bool
    resampled: bool


class AudioReader(Reader):
    """A recording, as the waveform that a speech encoder reads."""

    modality: ClassVar[str] = "audio"
    fields: ClassVar[tuple[str, ...]] = ("audio",)
    input_names: ClassVar[tuple[str, ...]] = ("input_values", "attention_mask")
    unit: ClassVar[str] = "samples"
    grain: ClassVar[int] = 320
    examples: ClassVar[tuple[Example, ...]] = (AUDIO,)
    reads_words: ClassVar[bool] = False
    masked: ClassVar[bool] = True

    def processor(self, given: object) -> Open:
        """The feature extractor.

        Raises:
            ValueError: it is not there.
        """
        return extractor_of(given)

    def load(self, name: str, **kwargs: Open) -> Open:
        """See :class:`Reader`."""
        return AutoFeatureExtractor.from_pretrained(name, **kwargs)

    def encoder(
        self,
        given: object,
        config: PreTrainedConfig,
        task: Row | None = None,
        format_version: int = FORMAT_VERSION,  # noqa: ARG002
    ) -> InputEncoder:
        """See :class:`Reader`."""
        limit = (task or {}).get("max_length")
        return InputEncoder(self.processor(given), config, self.input_names[:1], limit=limit)

    def most(self, given: object) -> int | None:
        """See :class:`Reader`."""
        return int(MOST_SECONDS * extractor_of(given).sampling_rate)

    def padded(self, given: object, rows: Sequence[Settings], side: str = "right") -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Samples (B, S) and their mask, filled with zeros on the right."""
        waves = [torch.as_tensor(row["input_values"], dtype=torch.float32) for row in rows]
        mask = [torch.ones(len(wave), dtype=torch.long) for wave in waves]
        pad = nn.utils.rnn.pad_sequence
        return {"input_values": pad(waves, batch_first=True), "attention_mask": pad(mask, batch_first=True)}

    def row_of(self, value: object) -> Row | None:
        """See :class:`Reader`."""
        if isinstance(value, Mapping):
            return {"audio": value} if any(key in value for key in KEYS) else None
        return {"audio": value}

    def read(self, task: Row, row: Row, encoder: InputEncoder) -> Reading:
        """See :class:`Reader`.

        Raises:
            SoundError: the recording cannot be used.
        """
        extractor = self.extractor(encoder)
        sound = read_sound(row["audio"], extractor.sampling_rate)
        return self._whole(task, sound, encoder)

    def read_chunks(self, task: Row, row: Row, encoder: InputEncoder, chunking: Chunking) -> Reading:
        """A recording in chunks, whatever its length; one that is no longer than a chunk as :meth:`read` has it.

        Raises:
            SoundError: the recording cannot be used.
        """
        rate, least = self.extractor(encoder).sampling_rate, self.least(encoder)
        sound = read_sound(row["audio"], rate)
        chunks = list(chunking.cut(len(sound.samples), rate, self.step(encoder)))
        if len(chunks) == 1:
            return self._whole(task, sound, encoder, cuts=False)
        chunks = [chunk for chunk in chunks if chunk.samples[1] - chunk.samples[0] >= least]
        rows = [self._keyed(sound.samples[slice(*chunk.samples)], encoder)[0] for chunk in chunks]
        frames = sum(end - start for start, end in (chunk.frames for chunk in chunks))
        heard = Heard(frames, sound.mixed, sound.resampled)
        return Reading(rows, heard, chunks=chunks)

    def _whole(self, task: Row, sound: Sound, encoder: InputEncoder, *, cuts: bool = True) -> Reading:
        limit = encoder.limit if cuts else None
        cut = limit is not None and len(sound.samples) > limit
        samples = sound.samples[:limit]
        if cut:
            encoder.tell(
                f"Task '{task['name']}': a recording is longer than {encoder.limit} samples and was cut; this is said "
                "once. The task's max_length sets the limit."
            )
        row, frames = self._keyed(samples, encoder)
        return Reading([row], Heard(frames, sound.mixed, sound.resampled), cut)

    def _keyed(self, samples: np.ndarray, encoder: InputEncoder) -> tuple[tuple[Hashable, Values], int]:
        """Samples as a model input, under its key, and the frames that the backbone makes of it."""
        values, frames = self.features(samples, encoder)
        key = ("audio", hashlib.blake2b(values.tobytes(), digest_size=16).digest())
        return (key, {self.input_names[0]: values}), frames

    def extractor(self, encoder: InputEncoder) -> Open:
        """The feature extractor of an encoder."""
        return extractor_of(encoder.processor)

    def step(self, encoder: InputEncoder) -> int:
        """Samples from a frame of the backbone to the next, of which chunks have whole numbers."""
        return math.prod(encoder.config.conv_stride)

    def least(self, encoder: InputEncoder) -> int:
        """The fewest samples that can be read."""
        return samples_of(encoder.config, 1)

    def features(self, samples: np.ndarray, encoder: InputEncoder) -> tuple[np.ndarray, int]:
        """The model input of some samples, and the frames that the backbone makes of it.

        Raises:
            SoundError: they are too few for a frame.
        """
        extractor = self.extractor(encoder)
        frames = frames_of(encoder.config, len(samples))
        if frames < 1:
            raise SoundError(
                f"the recording has {len(samples)} samples at {extractor.sampling_rate} per second, and a frame of the "
                f"backbone needs {self.least(encoder)}. Remove it, or give a longer one."
            )
        values = extractor(samples, sampling_rate=extractor.sampling_rate)["input_values"][0]
        return np.asarray(values, np.float32), frames

    def stock_example(self, task: Row, tokenizer: Open) -> tuple[str, str]:  # noqa: ARG002
        """See :class:`Reader`."""
        return "recording.wav", ""

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:  # noqa: ARG002
        """See :class:`Reader`: the decoder of the type reads no text."""
        return model.decode(task["name"], logits, "", [])


class FrameReader(AudioReader):
    """A recording, as the frames that the feature extractor makes of it and a frame of the backbone each."""

    input_names: ClassVar[tuple[str, ...]] = ("input_features", "attention_mask")
    grain: ClassVar[int] = 1
    dimensions: ClassVar[int] = 2

    def encoder(
        self, given: object, config: PreTrainedConfig, task: Row | None = None, format_version: int = FORMAT_VERSION
    ) -> InputEncoder:
        """See :class:`Reader`.

        Raises:
            ValueError: the feature extractor is of another model.
        """
        encoder = super().encoder(given, config, task, format_version)
        extractor = self.extractor(encoder)
        made = extractor.feature_size * getattr(extractor, "stride", 1)
        if made != config.feature_projection_input_dim:
            raise ValueError(
                f"The feature extractor makes frames of {made} numbers, and the backbone {config.model_type} reads "
                f"{config.feature_projection_input_dim}. Give the feature extractor of the backbone."
            )
        return encoder

    def most(self, given: object) -> int:
        """See :class:`Reader`."""
        extractor = extractor_of(given)
        return MOST_SECONDS * extractor.sampling_rate // (_HOP * getattr(extractor, "stride", 1))

    def padded(self, given: object, rows: Sequence[Settings], side: str = "right") -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Frames (B, F, M) and their mask, filled with zeros on the right."""
        found = [torch.as_tensor(np.asarray(row["input_features"], np.float32)) for row in rows]
        mask = [torch.ones(len(one), dtype=torch.long) for one in found]
        pad = nn.utils.rnn.pad_sequence
        return {"input_features": pad(found, batch_first=True), "attention_mask": pad(mask, batch_first=True)}

    def step(self, encoder: InputEncoder) -> int:
        """See :class:`AudioReader`."""
        return _HOP * getattr(self.extractor(encoder), "stride", 1)

    def least(self, encoder: InputEncoder) -> int:
        """See :class:`AudioReader`."""
        return 2 * len(self.extractor(encoder).window)

    def features(self, samples: np.ndarray, encoder: InputEncoder) -> tuple[np.ndarray, int]:
        """See :class:`AudioReader`: frames (F, M), without the one that has less than a whole step."""
        extractor, least = self.extractor(encoder), self.least(encoder)
        if len(samples) < least:
            raise SoundError(
                f"the recording has {len(samples)} samples at {extractor.sampling_rate} per second, and the backbone "
                f"needs {least}. Remove it, or give a longer one."
            )
        made = extractor(samples, sampling_rate=extractor.sampling_rate)
        values = np.asarray(made["input_features"][0], np.float32)[np.asarray(made["attention_mask"][0]) > 0]
        return values, len(values)


class AudioClassificationHead(SequenceClassificationHead):
    """A class for a recording, by the family's stock class. An item is a row; its loss is the cross-entropy."""

    auto_class: ClassVar[AutoClass] = AutoModelForAudioClassification
    reads_audio: ClassVar[bool] = True

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:
        """See :meth:`Head.build`."""
        check_speech(task, config, pooling)
        super().build({**task, "problem_type": None}, config, pooling)
        self.reads_decoder = False  # as that of an encoder-decoder of texts does

    def adopt(self, task: TaskDict) -> None:
        """See :meth:`Head.adopt`."""
        super().adopt({**task, "problem_type": None})

    def forward(
        self,
        states: States,
        input_ids: torch.Tensor | None,  # noqa: ARG002
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Frames (N, F, D), with the mask of the samples (N, S), to (N, C)."""
        return stock_logits(self.native, states, attention_mask)


def decode_label(task: TaskDict, logits: torch.Tensor, _: str, __: TokenWords) -> Open:
    """As ``audio-classification``: the best label and its score."""
    score, best = scaled(task, logits).softmax(-1).max(-1)
    return {"label": task["label_names"][int(best)], "score": float(score)}


def stock_logits(native: Open, states: States, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """What a stock model makes of the states of its base model."""
    over, taken = Over(native, base_name(native), states), parameter_names(type(native).forward)
    if "attention_mask" not in taken:  # Whisper's, whose recordings have one length
        return over.forward().logits
    return over.forward(**{taken[0]: None, "attention_mask": attention_mask}).logits


def check_speech(task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:
    """Check that the stock head of a family reads the frames of its last layer.

    Raises:
        ValueError: it does not, or another head is set.
    """
    if pooling != "native":
        raise ValueError(
            f"Task '{task['name']}': {task['type']} has the head of the backbone's family only. Found `pooling = "
            f"{pooling!r}`. Leave it out."
        )
    for option in ("add_adapter", "use_weighted_layer_sum"):
        if getattr(config, option, False):
            raise ValueError(
                f"Task '{task['name']}': {task['type']} reads the last layer of the backbone, and its configuration "
                f"has {option}. Set {option}=False in its config.json, or choose another backbone."
            )


class SpeechRecognitionHead(Head):
    r"""Symbols for the frames of a recording, by the family's stock class for CTC.

    An item is a row. Its loss is the negative log-likelihood of its transcript, divided by the number of symbols in it,
    as ``ctc_loss_reduction="mean"`` has it. Connectionist Temporal Classification (ICML 2006, section 4.1,
    https://www.cs.toronto.edu/~graves/icml_2006.pdf).

    In a frame of padding the blank has probability 1, which leaves the likelihood of every transcript as it is.
    """

    auto_class: ClassVar[AutoClass] = AutoModelForCTC
    reads_audio: ClassVar[bool] = True
    joins_chunks: ClassVar[bool] = True

    @classmethod
    def outputs(cls, task: TaskDict) -> int:
        """See :meth:`Head.outputs`: the symbols, of which the blank is one."""
        return len(task.get("vocabulary") or ())

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:
        """See :meth:`Head.build`."""
        check_speech(task, config, pooling)
        own: Open = deepcopy(config)
        own.vocab_size, own.pad_token_id = self.num_labels, task["vocabulary"].index(PAD)
        own.ctc_loss_reduction = "mean"
        self.blank, self.zero_infinity = own.pad_token_id, bool(own.ctc_zero_infinity)
        self.native, self.needs_pooler = stock_head(own, self.auto_class, num_labels=self.num_labels, problem_type=None)

    def adopt(self, task: TaskDict) -> None:
        """See :meth:`Head.adopt`: nothing."""

    def forward(
        self,
        states: States,
        input_ids: torch.Tensor | None,  # noqa: ARG002
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Frames (N, F, D), with the mask of the samples (N, S), to (N, F, V)."""
        logits_NFV = stock_logits(self.native, states, attention_mask)
        if attention_mask is None:
            return logits_NFV
        native: Open = self.native
        there_NF = attention_mask.bool()
        if there_NF.shape[1] != logits_NFV.shape[1]:
            there_NF = native._get_feature_vector_attention_mask(logits_NFV.shape[1], attention_mask)
        padding_V = logits_NFV.new_full((self.num_labels,), _FILL)
        padding_V[self.blank] = 0
        return torch.where(there_NF.unsqueeze(-1), logits_NFV, padding_V)

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """1 per row."""
        return torch.ones(labels.shape[0], dtype=torch.long, device=labels.device)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (N, F, V) and symbols (N, T), padded with -100, to (N,)."""
        others_NF = torch.cat([logits[..., : self.blank], logits[..., self.blank + 1 :]], -1).amax(-1)
        there_NT = labels >= 0
        lengths_N = there_NT.sum(1)
        log_probs_FNV = F.log_softmax(at_least_float32(logits), -1).transpose(0, 1)
        with torch.backends.cudnn.flags(enabled=False):  # whose loss is not deterministic
            losses_N = F.ctc_loss(
                log_probs_FNV,
                labels[there_NT],
                (others_NF > _FILL).sum(1),
                lengths_N,
                blank=self.blank,
                reduction="none",
                zero_infinity=self.zero_infinity,
            )
        return losses_N / lengths_N.clamp(min=1)


def written(symbols: Sequence[int], vocabulary: Sequence[str]) -> str:
    """The text of the best symbol of each frame: repetitions once, without blanks, and single spaces between words."""
    runs = [symbol for symbol, _ in groupby(symbols)]
    text = "".join(vocabulary[symbol] for symbol in runs if symbol >= 0 and vocabulary[symbol] != PAD)
    return " ".join(text.split())


def decode_speech(task: TaskDict, logits: torch.Tensor, _: str, __: TokenWords) -> Open:
    """As ``automatic-speech-recognition``: the text, read greedily."""
    return {"text": written(logits.argmax(-1).tolist(), task["vocabulary"])}
