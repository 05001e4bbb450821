"""Speech recognition, by CTC or by a decoder that writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from ..modeling.generation import target_positions, transcribing
from ..modeling.inputs import one_at_a_time
from ..modeling.kinds import CTC, FRAMES
from ..modeling.processors import tokenizer_of
from ..modeling.speech import PAD, written
from ..modeling.speech_to_text import transcripts
from ..modeling.symbols import is_symbol
from ..modeling.values import shown
from . import labels as lab
from .audio import AudioTask
from .registration import register_task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset

    from ..modeling.aliases import Open
    from ..modeling.inputs import InputEncoder
    from .audio import Recordings
    from .base import Task
    from .columns import Cells, Columns, Labels, References


@dataclass(kw_only=True)
class AutomaticSpeechRecognition(AudioTask):
    """Write what is said in a recording: by CTC on the frames of a speech encoder, or by the decoder of Whisper and
    SpeechT5, whose tokens are those of the tokenizer and which evaluation generates.

    A transcript is read as it is, in its own case, with single spaces between its words.

    Args:
        audio_column: see :class:`AudioClassification`.
        text_column: column of the transcript; None in a row without one.
        vocabulary: of CTC, the symbols of the head, in the order of its outputs: single characters, and ``"<pad>"`` for
            the blank, which comes first if it is left out; further special tokens such as ``"<unk>"`` that no
            transcript has, for heads of checkpoints. The characters of the transcripts, sorted, if None.
        max_target_length: of a decoder, tokens to which a transcript is truncated, and maximum number of generated
            tokens.
        num_beams: of a decoder, beams of the search.
        architecture: ``"ctc"``, ``"ctc_frames"``, ``"seq2seq"`` or ``"seq2seq_whisper"``; set by the model, as its
            backbone has it.
        subsampler: on an encoder-decoder of texts, how it reads recordings; set by the model, see ``from_backbone``.
        dataset: see :class:`Task`.
        max_length: samples, at the rate of the backbone, to which a recording is truncated; not truncated if None.
        language: of the recordings, for the model card; a multilingual Whisper is prompted with it.
        weight_column: see :class:`Task`.

    Example::

        AutomaticSpeechRecognition(audio_column="audio", text_column="transcript")
    """

    type: ClassVar[str] = "automatic-speech-recognition"
    text_column: str = "text"
    vocabulary: list[str] | None = None
    max_target_length: int = 128
    num_beams: int | None = None
    subsampler: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("max_target_length", 1, none=False)
        self.check_number("num_beams", 1)
        if self.vocabulary is None:
            return
        if self.writes:
            raise self.error("`vocabulary` is for CTC, and the backbone writes tokens of its tokenizer. Leave it out.")
        symbols = [self.vocabulary] if isinstance(self.vocabulary, str) else list(self.vocabulary)
        wrong = next((one for one in symbols if not is_symbol(one)), None)
        if wrong is not None:
            raise self.error(
                f"`vocabulary` should be a list of single characters, '{PAD}' and other special tokens, such as "
                f"'<unk>'. Found {wrong!r} in it."
            )
        symbols = symbols if PAD in symbols else [PAD, *symbols]
        if len(set(symbols)) < len(symbols) or len(symbols) < 2:
            raise self.error(f"`vocabulary` should be different symbols, one or more. Found {self.vocabulary!r}.")
        self.vocabulary = symbols

    @property
    def writes(self) -> bool:
        """Whether a decoder writes the transcript."""
        return self.architecture not in (None, CTC, FRAMES)

    @property
    def unknown(self) -> str | None:
        """See :class:`Task`."""
        return "vocabulary" if self.vocabulary is None and not self.writes else None

    @property
    def target_column(self) -> str:
        """Column of the transcript."""
        return self.text_column

    def check_extras(self) -> None:
        """See :meth:`Task.check_extras`: jiwer."""
        self.text_metrics(["text"], ["text"])

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`: the characters of the transcripts."""
        data = [dataset for dataset in (train, *others) if dataset is not None]
        self.reading(data)
        if self.unknown is None:
            return self
        texts = (self.normal(text) for dataset in data for text in lab.values(dataset, self.text_column))
        found = sorted({symbol for text in texts for symbol in text})
        if not found:
            raise self.error(f"column '{self.text_column}' contains no transcript. Check the column.")
        return replace(self, vocabulary=[PAD, *found])

    def reading(self, data: Sequence[Dataset]) -> Task:
        """See :meth:`Task.reading`.

        Raises:
            ValueError: the column has no texts.
        """
        for dataset in data:
            found, depth = lab.kind(dataset, self.text_column)
            if depth or not (found == "nothing" or lab.holds_strings(dataset, self.text_column)):
                raise self.error(
                    f"column '{self.text_column}' contains {lab.describe(found, depth)}, but {self.type} needs a "
                    "transcript per row. Set another text_column."
                )
        return self

    @staticmethod
    def normal(text: str) -> str:
        """A transcript with single spaces between its words."""
        return " ".join(text.split())

    def placeholder(self, row: Columns) -> object:  # noqa: ARG002
        """See :meth:`Task.placeholder`."""
        return next((symbol for symbol in self.vocabulary or () if len(symbol) == 1 and symbol.strip()), "a")

    def encode_labels(
        self,
        rows: Columns,
        indices: list[int],
        encoding: Recordings,
        unseen: Cells,  # noqa: ARG002
        split: str,
    ) -> Labels:
        """See :meth:`Task.encode_labels`: the symbols of the transcript, or its tokens.

        Raises:
            ValueError: a transcript is empty, or, by CTC, has an unknown symbol or is longer than its recording.
        """
        numbers = {symbol: number for number, symbol in enumerate(self.vocabulary or ())}
        labels: Labels = []
        for value, index, reading in zip(rows[self.text_column], indices, encoding.readings, strict=True):
            if value is None:
                labels.append(None)
                continue
            text = self.normal(value)
            if not text:
                said = f"column '{self.text_column}': the transcript is empty. Fix the row, or leave it None."
                raise self.row_error(index, split, said)
            if self.writes:
                labels.append(self._tokens(text, encoding.encoder))
            else:
                labels.append(self._symbols(text, numbers, index, reading.rest.frames, split))
        return labels

    def _tokens(self, text: str, encoder: InputEncoder, *, whole: bool = False) -> list[int]:
        """The tokens of a transcript, up to the limit or all of them, without the one that the decoder begins with."""
        tokenizer: Open = tokenizer_of(encoder.processor)
        config = encoder.config
        most = min(self.max_target_length, target_positions(config) or self.max_target_length)
        with one_at_a_time(), transcribing(tokenizer, self.to_dict()):
            ids = tokenizer(text_target=text, truncation=not whole, max_length=most, verbose=False)["input_ids"]
        return ids[int(ids[:1] == [config.decoder_start_token_id]) :]

    def _symbols(self, text: str, numbers: dict[str, int], index: int, frames: int, split: str) -> list[int]:
        """The numbers of the symbols of a transcript, which its recording has frames for."""
        where = f"column '{self.text_column}'"
        unknown = next((symbol for symbol in text if symbol not in numbers), None)
        if unknown is not None:
            raise self.row_error(
                index,
                split,
                f"{where}: the transcript {shown(text)} has the symbol {unknown!r}, which is not in the vocabulary "
                f"({''.join(symbol for symbol in numbers if len(symbol) == 1)!r}). Fix the row, or the vocabulary.",
            )
        needed = len(text) + sum(one == other for one, other in pairwise(text))
        if needed > frames:
            raise self.row_error(
                index,
                split,
                f"{where}: the transcript {shown(text)} needs {needed} frames, one per symbol and one between equal "
                f"ones, and its recording has {frames}. Fix or remove the row.",
            )
        return [numbers[symbol] for symbol in text]

    def more_columns(self, rows: Columns, labels: Labels, encoding: Recordings, *, training: bool) -> Columns:
        """See :meth:`Task.more_columns`: the transcripts, and which were truncated."""
        gold = [None if text is None else self.normal(text) for text in rows[self.text_column]]
        columns = {"gold": gold, **super().more_columns(rows, labels, encoding, training=training)}
        if self.writes:
            pairs = zip(gold, labels, strict=True)
            columns["cut"] = [
                text is not None and len(self._tokens(text, encoding.encoder, whole=True)) > len(ids)
                for text, ids in pairs
            ]
        return columns

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:  # noqa: ARG002
        """Symbols or tokens (N, T), padded with -100."""
        return lab.padded(labels, max(map(len, labels)), "right")

    def reduced(self, predictions: torch.Tensor) -> torch.Tensor:
        """See :meth:`Task.reduced`: by CTC, the best symbol of each frame, (N, F, V) to (N, F)."""
        return predictions if self.writes else predictions.argmax(-1)

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return ["word_accuracy", "wer", "cer"]

    def score(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,  # noqa: ARG002
        *,
        unseen: Cells,  # noqa: ARG002
        references: References,
        loss: float,  # noqa: ARG002
        tokenizer: Open,
    ) -> dict[str, float]:
        """Metrics of the texts that are generated, or read greedily, as the pipeline does, and the transcripts."""
        if self.writes:
            own: Open = tokenizer_of(tokenizer)
            return self.text_metrics(transcripts(own, predictions), list(references))
        best = predictions.argmax(-1) if predictions.ndim == 3 else predictions
        texts = [written(symbols, self.vocabulary or ()) for symbols in best.tolist()]
        return self.text_metrics(texts, list(references))

    def text_metrics(self, texts: list[str], wanted: list[str]) -> dict[str, float]:
        """``word_accuracy``, ``wer`` and ``cer``."""
        from .metrics import WordErrors

        return WordErrors().compute(predictions=texts, references=wanted)

    def measure(self, predictions: np.ndarray, labels: np.ndarray, unseen: Cells) -> dict[str, float]:
        """Not defined, because the transcripts are needed; see :meth:`score`."""
        raise NotImplementedError


register_task(AutomaticSpeechRecognition)
