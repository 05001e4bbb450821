"""Masks of SpecAugment, drawn for each recording by itself, as training repeats them on resume and for any padding.

Legend: B rows, F frames, D hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

from .aliases import Open, Values
from .sound import frames_of

_METHOD = "_mask_hidden_states"  # by which all families of encoders mask their frames


@contextmanager
def masking(backbone: nn.Module, seeds_B: torch.Tensor | None, mask_BS: torch.Tensor | None) -> Iterator[None]:
    """Within it, a backbone in training draws the masks of its configuration from a seed for each row.

    Frames are masked as ``mask_time_prob``, ``mask_time_length`` and ``mask_time_min_masks`` have it, and components of
    the hidden states as ``mask_feature_prob`` and its like do. SpecAugment (Interspeech 2019,
    https://arxiv.org/abs/1904.08779).

    .. note:: The families' own models draw from the global generator of NumPy, and the masks of a recording depend on
       the longest of its batch. Here every row has the masks that these would draw for it alone, with equal
       probability; a recording shorter than a mask has none, where they raise an error.

    Args:
        backbone: reads the samples.
        seeds_B: of the rows; None to leave the family's own masks.
        mask_BS: which samples are there; all of them where None.
    """
    if seeds_B is None or not backbone.training:
        yield
        return
    owner: Open = next((module for module in backbone.modules() if hasattr(type(module), _METHOD)), None)
    if owner is None:
        yield
        return
    owner.__dict__[_METHOD] = partial(_masked, owner, seeds_B, mask_BS)
    try:
        yield
    finally:
        del owner.__dict__[_METHOD]


def _masked(
    owner: Open,
    seeds_B: torch.Tensor,
    mask_BS: torch.Tensor | None,
    hidden_BFD: torch.Tensor,
    **_: object,  # the stock arguments: indices, and the mask of the frames
) -> torch.Tensor:
    config: Open = owner.config
    if not getattr(config, "apply_spec_augment", True):  # not an option of every family
        return hidden_BFD
    frames, width = hidden_BFD.shape[1:]
    lengths = [frames] * len(hidden_BFD)
    if mask_BS is not None:
        lengths = mask_BS.sum(1).tolist()  # of frames, where these are what the backbone reads
        if mask_BS.shape[1] != frames:
            lengths = [frames_of(config, samples) for samples in lengths]
    drawn = [draw_masks(config, seed, length, width) for seed, length in zip(seeds_B.tolist(), lengths, strict=True)]
    if config.mask_time_prob > 0:
        time_BF = torch.stack([nn.functional.pad(time, (0, frames - len(time))) for time, _ in drawn])
        hidden_BFD = torch.where(
            time_BF.to(hidden_BFD.device).unsqueeze(-1), owner.masked_spec_embed.to(hidden_BFD.dtype), hidden_BFD
        )
    if config.mask_feature_prob > 0:
        feature_BD = torch.stack([feature for _, feature in drawn])
        hidden_BFD = hidden_BFD.masked_fill(feature_BD.to(hidden_BFD.device).unsqueeze(1), 0)
    return hidden_BFD


def masked_spectrogram(config: Open, inputs: Values, seeds_B: torch.Tensor | None) -> Values:
    """The inputs of Whisper in training, with the masks of its configuration on its spectrograms (B, M, F)."""
    if seeds_B is None or config.model_type != "whisper" or not config.apply_spec_augment:
        return inputs
    bands_BMF = inputs["input_features"]
    drawn = [draw_masks(config, seed, bands_BMF.shape[2], bands_BMF.shape[1]) for seed in seeds_B.tolist()]
    time_BF, band_BM = (torch.stack(masks).to(bands_BMF.device) for masks in zip(*drawn, strict=True))
    return {**inputs, "input_features": bands_BMF.masked_fill(time_BF.unsqueeze(1) | band_BM.unsqueeze(2), 0)}


def draw_masks(config: Open, seed: int, frames: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which frames (F,) and which components (D,) of a recording are masked.

    Args:
        config: of the backbone.
        seed: of the row.
        frames: F, without padding.
        width: D.
    """
    generator = np.random.default_rng(seed)
    least = getattr(config, "mask_feature_min_masks", 0)  # WavLM has none
    time_F = _spans(generator, frames, config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks)
    feature_D = _spans(generator, width, config.mask_feature_prob, config.mask_feature_length, least)
    return torch.from_numpy(time_F), torch.from_numpy(feature_D)


def _spans(generator: np.random.Generator, length: int, prob: float, span: int, least: int) -> np.ndarray:
    """Spans that may overlap and begin at different places, their number rounded up or down at random."""
    masked = np.zeros(length, dtype=bool)
    rounding = generator.random()
    places = length - span + 1
    if prob <= 0 or places < 1:
        return masked
    count = min(max(int(prob * length / span + rounding), least), length // span, places)
    starts = generator.choice(places, count, replace=False)
    masked[(starts[:, None] + np.arange(span)).ravel()] = True
    return masked
