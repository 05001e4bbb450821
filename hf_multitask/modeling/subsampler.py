"""Recordings for encoder-decoders of texts: what is read, and the convolutions that make embeddings of it.

Legend: B rows, S samples, T frames of the input, F embeddings of a row, C channels, M bands, D hidden.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig
from transformers import initialization as init
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from .aliases import Open, Settings, Values
from .config import close_match
from .examples import SPOKEN, Example
from .inputs import InputEncoder, positions_of
from .language import Text2TextHead
from .processors import Processors
from .readers import Row
from .sound import SoundError
from .speech import MOST_SECONDS
from .speech_to_text import TranscribingReader

LOG_MEL, WAVEFORM = "log_mel", "waveform"
DEFAULTS: Values = {
    "input": LOG_MEL,
    "num_mel_bins": 80,
    "sampling_rate": 16000,
    "strides": [2, 2],
    "kernel_sizes": [3, 3],
    "channels": [256, 256],
}
_PER_SECOND = 100  # frames of a spectrogram; each is of 25 ms
_FLOOR = 1e-10  # of its energy
_LAYERS = ("strides", "kernel_sizes", "channels")


def subsampler_settings(given: object) -> Values:
    """The settings of a subsampler, with the defaults where they are left out.

    Raises:
        TypeError: they are no mapping.
        ValueError: a key is unknown, or a value not usable.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"`subsampler` should be a mapping of its settings. Found `subsampler = {given!r}`.")
    for key in given or {}:
        if key not in DEFAULTS:
            raise ValueError(
                f"`subsampler` has the unknown key '{key}'; it takes {', '.join(DEFAULTS)}."
                + close_match(str(key), list(DEFAULTS))
            )
    values = {**DEFAULTS, **(given or {})}
    if values["input"] not in (LOG_MEL, WAVEFORM):
        raise ValueError(
            f"`subsampler.input` should be {LOG_MEL} or {WAVEFORM}. Found `subsampler.input = {values['input']!r}`."
        )
    for key in ("num_mel_bins", "sampling_rate"):
        if not _whole(values[key], 1):
            raise ValueError(f"`subsampler.{key}` should be a whole number from 1. Found {values[key]!r}.")
    for key in _LAYERS:
        one = values[key]
        if not isinstance(one, list | tuple) or not one or not all(_whole(value, 1) for value in one):
            raise ValueError(
                f"`subsampler.{key}` should be a list of one whole number from 1 per layer. Found {one!r}."
            )
        values[key] = list(one)
    if len({len(values[key]) for key in _LAYERS}) > 1:
        found = ", ".join(f"{len(values[key])} {key}" for key in _LAYERS)
        raise ValueError(f"`subsampler` should have as many strides, kernel_sizes and channels. Found {found}.")
    if any(size % 2 == 0 for size in values["kernel_sizes"]):
        raise ValueError(f"`subsampler.kernel_sizes` should be odd. Found {values['kernel_sizes']}.")
    return values


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class Convolution(nn.Conv1d):
    """A layer of the subsampler."""

    def set_fresh(self) -> None:
        """Set weights that are not loaded, so that outputs have the variance of inputs."""
        init.xavier_uniform_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class ScaledNorm(nn.LayerNorm):
    """A layer norm that begins with the scale of the embeddings of a text.

    Args:
        config: of the backbone.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config.hidden_size)
        self.scale = embedding_scale(config)

    def set_fresh(self) -> None:
        """Set weights that are not loaded."""
        init.constant_(self.weight, self.scale)
        init.zeros_(self.bias)


class Subsampler(nn.Module):
    """Convolutions over the frames of a recording, each of which makes fewer of them, to embeddings of a text model.

    As in fairseq S2T (Wang et al., AACL 2020, https://arxiv.org/abs/2010.05171), section 2.2, with GELU in place of
    gated linear units. Frames behind the end of a recording are zero before and after every layer, so that a recording
    has the same embeddings whatever the padding of its batch.

    Args:
        settings: see :func:`subsampler_settings`.
        config: of the backbone, whose embeddings have a size and a scale.
    """

    def __init__(self, settings: Settings, config: PreTrainedConfig) -> None:
        super().__init__()
        bands = settings["num_mel_bins"] if settings["input"] == LOG_MEL else 1
        sizes = zip(settings["channels"], settings["kernel_sizes"], settings["strides"], strict=True)
        self.input_name = "input_features" if settings["input"] == LOG_MEL else "input_values"
        layers = []
        for channels, kernel, stride in sizes:
            layers.append(Convolution(bands, channels, kernel, stride, padding=kernel // 2))
            bands = channels
        self.layers, self.strides = nn.ModuleList(layers), list(settings["strides"])
        self.projection = nn.Linear(bands, config.hidden_size)
        self.norm = ScaledNorm(config)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Spectrograms (B, T, M) or samples (B, S), with their mask, to embeddings (B, F, D) and their mask (B, F)."""
        hidden_BCT = (frames.unsqueeze(1) if frames.dim() == 2 else frames.transpose(1, 2)).to(self.norm.weight.dtype)
        if mask is None:
            mask = torch.ones(frames.shape[:2], dtype=torch.long, device=frames.device)
        lengths_B = mask.sum(1)
        there_BT = mask
        for layer, stride in zip(self.layers, self.strides, strict=True):
            hidden_BCT = F.gelu(layer(hidden_BCT * there_BT.unsqueeze(1)))
            lengths_B = (lengths_B - 1) // stride + 1
            places_T = torch.arange(hidden_BCT.shape[-1], device=frames.device)
            there_BT = (places_T < lengths_B.unsqueeze(1)).long()
        return self.norm(self.projection(hidden_BCT.transpose(1, 2))), there_BT


def embedding_scale(config: PreTrainedConfig) -> float:
    """The standard deviation of the embeddings that a family begins with, as its encoder reads them."""
    scale = getattr(config, "init_std", None) or getattr(config, "initializer_factor", None) or 1.0
    return float(scale * (config.hidden_size**0.5 if getattr(config, "scale_embedding", False) else 1.0))


class SpokenHead(Text2TextHead):
    """A transcript, by the decoder that writes the texts of the other tasks. An item is a token, as of theirs."""

    reads_audio: ClassVar[bool] = True


class Features:
    """Inputs of a subsampler from samples, each normalized over the recording.

    Args:
        settings: see :func:`subsampler_settings`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sampling_rate: int = settings["sampling_rate"]
        self.hop = max(self.sampling_rate // _PER_SECOND, 1)
        width = 2 * self.hop + self.hop // 2
        self.window, self.filters = window_function(width, "hann"), None
        if settings["input"] == LOG_MEL:
            self.filters = mel_filter_bank(
                num_frequency_bins=1 + width // 2,
                num_mel_filters=settings["num_mel_bins"],
                min_frequency=0.0,
                max_frequency=self.sampling_rate / 2,
                sampling_rate=self.sampling_rate,
                norm="slaney",
                mel_scale="slaney",
            )

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Samples (S,) as they are, or their log-mel spectrogram (T, M), with mean 0 and variance 1 in every band."""
        if self.filters is None:
            found = np.asarray(samples, np.float32)
        else:
            made = spectrogram(
                np.asarray(samples, np.float64),
                self.window,
                frame_length=len(self.window),
                hop_length=self.hop,
                power=2.0,
                mel_filters=self.filters,
                mel_floor=_FLOOR,
                log_mel="log10",
            )
            found = made.T.astype(np.float32)
        return (found - found.mean(0)) / (found.std(0) + 1e-5)

    def to_dict(self) -> Settings:
        """Its settings."""
        return self.settings


class SpokenReader(TranscribingReader):
    """A recording for an encoder-decoder of texts, as a spectrogram."""

    examples: ClassVar[tuple[Example, ...]] = (SPOKEN,)
    input_names: ClassVar[tuple[str, ...]] = ("input_features", "attention_mask")
    grain: ClassVar[int] = 4
    dimensions: ClassVar[int] = 2

    def processor(self, given: object) -> Open:
        """The tokenizer: what makes inputs of recordings is a part of the configuration.

        Raises:
            ValueError: it is not there.
        """
        tokenizer = getattr(given, "tokenizer", given)
        if not hasattr(tokenizer, "batch_decode"):
            raise ValueError(
                f"A task that writes transcripts needs a tokenizer, and {type(given).__name__} is not one and has "
                "none. Give the tokenizer of the backbone."
            )
        return tokenizer

    def most(self, given: object) -> int:  # noqa: ARG002
        """See :class:`Reader`."""
        return MOST_SECONDS * _PER_SECOND

    def load(self, name: str, **kwargs: Open) -> Open:
        """See :class:`Reader`."""
        return AutoTokenizer.from_pretrained(name, **kwargs)

    def encoder(
        self,
        given: object,
        config: PreTrainedConfig,
        task: Row | None = None,
        format_version: int = 0,  # noqa: ARG002
    ) -> InputEncoder:
        """See :class:`Reader`."""
        settings = subsampler_settings((task or {}).get("subsampler"))
        held = Processors(self.processor(given), Features(settings))
        encoder = InputEncoder(held, config, self.input_names[:1], limit=(task or {}).get("max_length"))
        if (positions := positions_of(config)) is not None:
            most = positions
            for stride in settings["strides"]:
                most *= stride
            most *= held.feature_extractor.hop if settings["input"] == LOG_MEL else 1
            encoder.limit = most - 1 if encoder.limit is None else min(encoder.limit, most - 1)
        return encoder

    def features(self, samples: np.ndarray, encoder: InputEncoder) -> tuple[np.ndarray, int]:
        """See :class:`AudioReader`: frames (T, M), or samples (S,)."""
        features: Features = self.extractor(encoder)
        least = len(features.window)
        if len(samples) < least:
            raise SoundError(
                f"the recording has {len(samples)} samples at {features.sampling_rate} per second, and a frame needs "
                f"{least}. Remove it, or give a longer one."
            )
        found = features(samples)
        return found, len(found)

    def padded(self, given: object, rows: Sequence[Settings], side: str = "right") -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Frames (B, T, M) or samples (B, S), filled with zeros on the right, and their mask."""
        name = self.input_names[0]
        found = [torch.as_tensor(np.asarray(row[name], np.float32)) for row in rows]
        mask = [torch.ones(len(one), dtype=torch.long) for one in found]
        pad = nn.utils.rnn.pad_sequence
        return {name: pad(found, batch_first=True), "attention_mask": pad(mask, batch_first=True)}


class SpokenWaveReader(SpokenReader):
    """A recording for an encoder-decoder of texts, as a waveform."""

    input_names: ClassVar[tuple[str, ...]] = ("input_values", "attention_mask")
    grain: ClassVar[int] = 640
    dimensions: ClassVar[int] = 1

    def most(self, given: object) -> int:  # noqa: ARG002
        """See :class:`Reader`: at the default rate, whatever that of the settings is."""
        return MOST_SECONDS * int(DEFAULTS["sampling_rate"])


def embedded(subsampler: Subsampler, inputs: Values) -> Values:
    """Inputs of a backbone with the embeddings of recordings in place of their frames; others as they are."""
    if subsampler.input_name not in inputs:
        return inputs
    rest = {key: value for key, value in inputs.items() if key not in (subsampler.input_name, "input_ids")}
    made, mask = subsampler(inputs[subsampler.input_name], inputs.get("attention_mask"))
    return {**rest, "inputs_embeds": made, "attention_mask": mask}
