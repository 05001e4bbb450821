"""Transcripts that an encoder-decoder writes, as Whisper and SpeechT5 do: what they read, and their head.

Legend: B rows, S samples, F frames of the spectrogram, M bands of it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedTokenizerBase

from .aliases import Open, Settings
from .chunks import LENGTH, Chunking
from .examples import TRANSCRIBED, Example
from .generation import generation_kwargs
from .heads import IGNORE
from .inputs import InputEncoder
from .language import Text2TextHead
from .processors import Processors, extractor_of, tokenizer_of
from .readers import Reading, Row
from .speech import AudioReader


class SpeechToTextHead(Text2TextHead):
    """A transcript of a recording, by the decoder of a speech model. An item is a token, as of every text."""

    language_model: ClassVar[str] = "speech2text"
    reads_audio: ClassVar[bool] = True


class WhisperHead(SpeechToTextHead):
    """The same, of Whisper, whose tokenizer joins the tokens of chunks."""

    joins_chunks: ClassVar[bool] = True


class TranscribingReader(AudioReader):
    """A recording, as the waveform of which a model writes the transcript."""

    examples: ClassVar[tuple[Example, ...]] = (TRANSCRIBED,)
    writes: ClassVar[bool] = True

    def processor(self, given: object) -> Open:
        """The feature extractor and the tokenizer.

        Raises:
            ValueError: one is not there.
        """
        tokenizer = tokenizer_of(given)
        if tokenizer is None:
            raise ValueError(
                f"A task that writes transcripts needs a tokenizer, and {type(given).__name__} has none. Give the "
                "processor of the backbone, which holds a feature extractor and a tokenizer."
            )
        return Processors(tokenizer, extractor_of(given))

    def load(self, name: str, **kwargs: Open) -> Open:
        """See :class:`Reader`."""
        return AutoProcessor.from_pretrained(name, **kwargs)

    def write(
        self, model: Open, task: Row, batch: dict[str, torch.Tensor], processors: object, **kwargs: Any
    ) -> list[str]:
        """The transcripts that the model writes for some rows."""
        tokenizer: Open = tokenizer_of(processors)
        return transcripts(tokenizer, self.tokens(model, task, batch, tokenizer, **kwargs))

    def tokens(
        self, model: Open, task: Row, batch: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase, **kwargs: Any
    ) -> torch.Tensor:
        """The tokens (N, T) that the model writes for some rows."""
        given = {**generation_kwargs(tokenizer, task, model.config.backbone_config), **kwargs}
        known = {key: batch[key] for key in self.input_names if key in batch}
        tokens: torch.Tensor = model.generate(**known, task=task["name"], **given)
        return tokens.cpu()

    def text(self, task: Row, rest: Open, written: str) -> Open:  # noqa: ARG002
        """As ``automatic-speech-recognition``: the text."""
        return {"text": written}


class SpectrogramReader(AudioReader):
    """A recording, as the spectrogram that Whisper reads, which always has the length of its encoder.

    Of a shorter recording the frames after its end are all alike, and only the first of them is kept with the row.
    """

    input_names: ClassVar[tuple[str, ...]] = ("input_features",)
    dimensions: ClassVar[int] = 2

    def encoder(
        self, given: object, config: PreTrainedConfig, task: Row | None = None, format_version: int = 0
    ) -> InputEncoder:
        """See :class:`Reader`.

        Raises:
            ValueError: the feature extractor is of another model.
        """
        encoder = super().encoder(given, config, task, format_version)
        extractor = self.extractor(encoder)
        found = (extractor.feature_size, extractor.nb_max_frames)
        if found != (wanted := (config.num_mel_bins, 2 * config.max_source_positions)):
            raise ValueError(
                f"The feature extractor makes {found[0]} bands and {found[1]} frames of a recording, and the backbone "
                f"{config.model_type} reads {wanted[0]} and {wanted[1]}. Give the feature extractor of the backbone."
            )
        most = extractor.n_samples
        encoder.limit = most if encoder.limit is None else min(most, encoder.limit)
        return encoder

    def step(self, encoder: InputEncoder) -> int:  # noqa: ARG002
        """See :class:`AudioReader`: 1, as frames of a chunk are not counted."""
        return 1

    def least(self, encoder: InputEncoder) -> int:  # noqa: ARG002
        """See :class:`AudioReader`."""
        return 1

    def length(self, row: Row) -> int:  # noqa: ARG002
        """See :class:`Reader`: the same for every row, however long the recording is."""
        return 1

    def most(self, given: object) -> None:
        """See :class:`Reader`: none, as no row is longer than another."""

    def features(self, samples: np.ndarray, encoder: InputEncoder) -> tuple[np.ndarray, int]:
        """See :class:`AudioReader`: the spectrogram (F, M) up to the first frame after the recording."""
        extractor = self.extractor(encoder)
        made = extractor(samples, sampling_rate=extractor.sampling_rate)["input_features"][0]
        values_FM = np.asarray(made, np.float32).T
        sounding = np.flatnonzero((values_FM != values_FM[-1]).any(1))
        kept = int(sounding[-1]) + 2 if len(sounding) else 1
        return np.ascontiguousarray(values_FM[:kept]), encoder.config.max_source_positions

    def padded(self, given: object, rows: Sequence[Settings], side: str = "right") -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Spectrograms (B, M, F), their last frame repeated."""
        frames = extractor_of(given).nb_max_frames
        found = [torch.as_tensor(row["input_features"], dtype=torch.float32) for row in rows]
        filled = [torch.cat([one, one[-1:].expand(frames - len(one), -1)]) for one in found]
        return {"input_features": torch.stack(filled).transpose(1, 2).contiguous()}


class TranscribingSpectrogramReader(SpectrogramReader, TranscribingReader):
    """The same, of which Whisper writes the transcript."""

    def read_chunks(self, task: Row, row: Row, encoder: InputEncoder, chunking: Chunking) -> Reading:
        """See :class:`AudioReader`.

        Raises:
            ValueError: a chunk is longer than what the encoder reads.
        """
        extractor = self.extractor(encoder)
        if round(chunking.length * extractor.sampling_rate) > extractor.n_samples:
            raise ValueError(
                f"Task '{task['name']}': `{LENGTH}` should be at most {extractor.chunk_length}, the seconds that "
                f"{encoder.config.model_type} reads. Found `{LENGTH} = {chunking.length}`."
            )
        return super().read_chunks(task, row, encoder, chunking)

    def write_chunks(
        self, model: Open, task: Row, reading: Reading, processors: object, most: int, **kwargs: Any
    ) -> str:
        """The transcript of a recording in chunks, of which the model reads so many at a time.

        The tokenizer joins them where tokens of two neighbors agree, as in Transformers' pipeline.
        """
        tokenizer: Open = tokenizer_of(processors)
        extractor = extractor_of(processors)
        rows, written = [row for _, row in reading.rows], list[torch.Tensor]()
        for start in range(0, len(rows), most):
            batch = self.padded(processors, rows[start : start + most])
            batch = {key: value.to(model.device) for key, value in batch.items()}
            written += self.tokens(model, task, batch, tokenizer, **kwargs)
        outputs = []
        for tokens, chunk in zip(written, reading.chunks or (), strict=True):
            (start, end), (first, last) = chunk.samples, chunk.frames
            stride = (end - start, first, end - start - last)
            outputs.append({"tokens": tokens[None], "stride": tuple(part / extractor.sampling_rate for part in stride)})
        precision = extractor.chunk_length / model.config.backbone_config.max_source_positions
        text, _ = tokenizer._decode_asr(outputs, return_timestamps=None, return_language=None, time_precision=precision)
        return " ".join(text.split())


def transcripts(tokenizer: PreTrainedTokenizerBase, tokens: Open) -> list[str]:
    """The texts of some written tokens (N, T), padded with -100 or not, with single spaces between their words."""
    ids = np.where(np.asarray(tokens) == IGNORE, tokenizer.pad_token_id, np.asarray(tokens)).astype(np.int64)
    return [" ".join(text.split()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
