"""Recordings as waveforms: from files, bytes and arrays to mono samples at the rate of a model."""

import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from transformers import PreTrainedConfig

from .aliases import Open
from .endings import ending_of

# The keys of a recording that is a mapping, and of those that hold its samples.
KEYS = ("array", "raw", "bytes", "path")
_SAMPLES = ("array", "raw")
_UNKNOWN = 1 << 62  # samples from which on libsndfile does not know their number
_MOSTLY = 0.99  # of the samples of an mp3 file, less than which are not all: their number is estimated from its size


class SoundError(ValueError):
    """A recording that cannot be used; the message says why, and what to do."""


@dataclass(frozen=True)
class Sound:
    """A recording.

    Args:
        samples: float32, mono, at the rate of the model.
        mixed: whether it had several channels.
        resampled: whether it had another rate.
    """

    samples: np.ndarray
    mixed: bool = False
    resampled: bool = False


def read_sound(value: Open, rate: int) -> Sound:
    """A recording as a waveform; several channels are averaged, and another rate is resampled by soxr.

    Args:
        value: a file name; the bytes of a file; samples (L,), or (L, C) or (C, L) of C channels, at the model's rate;
            ``{"array": ..., "sampling_rate": ...}``; ``{"bytes": ..., "path": ...}``, one of which may be None; or a
            decoded cell of a ``datasets.Audio`` column.
        rate: samples per second of the model.

    Raises:
        SoundError: it is none of these, cannot be decoded, or is empty, silent or not finite.
    """
    found, own = _samples(value, rate)
    channels = 1
    if found.ndim == 2:
        axis = int(found.shape[0] > found.shape[1])
        channels = found.shape[axis]
        found = found.mean(axis) if channels else found[:0].reshape(-1)
    if found.ndim != 1:
        raise SoundError(f"the samples have {found.ndim} dimensions. Give one number per sample, or one per channel.")
    if not len(found):
        raise SoundError("the recording is empty. Fix or remove the row.")
    if not np.isfinite(found).all():
        raise SoundError("the recording has samples that are NaN or infinite. Fix or remove the row.")
    if found.min() == found.max():
        raise SoundError("the recording is silent: all its samples are equal. Fix or remove the row.")
    if own != rate:
        found = _package("soxr", "resampling audio").resample(found, own, rate)
    return Sound(np.ascontiguousarray(found, dtype=np.float32), channels > 1, own != rate)


def located(value: Open, folders: Sequence[Path]) -> Open:
    """A recording whose file name is relative to the first of some folders that has the file."""
    if isinstance(value, Mapping) and isinstance(value.get("path"), str) and not value.get("bytes"):
        return {**value, "path": located(value["path"], folders)}
    if not isinstance(value, str) or Path(value).is_absolute() or not folders:
        return value
    return str(next((folder / value for folder in folders if (folder / value).is_file()), folders[0] / value))


def frames_of(config: PreTrainedConfig, samples: int) -> int:
    """Frames that the convolutions of a backbone make of some samples; 0 or less for too few."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def samples_of(config: PreTrainedConfig, frames: int) -> int:
    """The fewest samples that the convolutions of a backbone make some frames of."""
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        frames = (frames - 1) * stride + kernel
    return frames


def _samples(value: Open, rate: int) -> tuple[np.ndarray, int]:
    """Samples as they are, float32, and their rate."""
    if value is None:
        raise SoundError("there is no audio. Fix or remove the row.")
    if isinstance(value, str | Path | bytes):
        return _decoded(value)
    if isinstance(value, Mapping):
        key = next((key for key in _SAMPLES if value.get(key) is not None), None)
        if key is not None:
            own = value.get("sampling_rate")
            if isinstance(own, bool) or not isinstance(own, int | float) or own <= 0:
                raise SoundError(
                    f"an array needs its rate, a number of samples per second. Found `sampling_rate = {own!r}`."
                )
            return _numbers(value[key]), int(own)
        given = value.get("bytes") or value.get("path")
        if given is None and any(key in value for key in KEYS):
            raise SoundError("there is no audio. Fix or remove the row.")
        if isinstance(given, str | Path | bytes):
            return _decoded(given)
        raise SoundError(
            f"a mapping should have 'array' and 'sampling_rate', 'bytes' or 'path'. Found {sorted(value)}."
        )
    if hasattr(value, "get_all_samples"):
        decoded = value.get_all_samples()
        return _numbers(decoded.data), int(decoded.sample_rate)
    return _numbers(value), rate


def _numbers(value: Open) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        found = np.asarray(value)
    except ValueError:  # channels of different lengths
        found = np.empty(0, dtype=object)
    if found.dtype.kind not in "fiu":
        raise SoundError(
            f"the {type(value).__name__} is no audio. Give a file name, the bytes of a file, or samples and their rate."
        )
    if found.dtype.kind == "i" and found.dtype.itemsize < 8:  # of a format of files
        return (found / -float(np.iinfo(found.dtype).min)).astype(np.float32)
    return found.astype(np.float32)


def _decoded(source: str | Path | bytes) -> tuple[np.ndarray, int]:
    soundfile: Open = _package("soundfile", "reading audio files")
    name = "the bytes" if isinstance(source, bytes) else f"'{source}'"
    if not isinstance(source, bytes):
        path = Path(source)
        if path.is_dir():
            raise SoundError(f"'{source}' is a folder. Give a file.")
        if not path.is_file():
            raise SoundError(f"there is no file '{source}'. Fix the path.")
        if not path.stat().st_size:
            raise SoundError(f"the file '{source}' is empty. Fix or remove the row.")
    elif not source:
        raise SoundError("the recording has no bytes. Fix or remove the row.")
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as content:
        ending = ending_of(content)
    if ending.missing:
        raise SoundError(f"{name}: the end is missing, {ending.missing}. Fix or remove the row.")
    samples, announced, rate = _read(soundfile, source, name)
    if len(samples) < announced and not ending.estimated:
        raise SoundError(
            f"{name}: the end is missing, {announced - len(samples)} of {announced} samples. Fix or remove the row."
        )
    if ending.samples is not None and len(samples) < _MOSTLY * ending.samples:
        raise SoundError(
            f"{name}: the mp3 file does not say how many samples it has, and libsndfile reads {len(samples)} of "
            f"{ending.samples}. Convert it to wav or flac, or to an mp3 file with a Xing header."
        )
    return samples[:, 0] if samples.shape[1] == 1 else samples, rate


def _read(soundfile: Open, source: str | Path | bytes, name: str) -> tuple[np.ndarray, int, int]:
    """The samples (L, C) of a file, how many it announces, and their rate."""
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            if file.frames < _UNKNOWN:
                return file.read(dtype="float32", always_2d=True), file.frames, int(file.samplerate)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as problem:
        said = " ".join(str(getattr(problem, "error_string", problem)).split()).rstrip(".")
        said = f"{name} cannot be read as audio ({said}). Give a whole file, of wav, flac, ogg or mp3."
        raise SoundError(said) from problem
    raise SoundError(f"{name}: the file does not say how many samples it has. Convert it to wav.")


def _package(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # the latter where libsndfile is missing
        raise SoundError(
            f"{what} needs the package '{name}', which is not installed. Run: pip install 'hf_multitask[speech]'"
        ) from None
