"""Recordings as waveforms, whatever they are given as, and what is wrong with those that cannot be used."""

import sys

import numpy as np
import pytest
import torch
from sounds import COMMON, RATE, wav
from transformers import Wav2Vec2Config, Wav2Vec2Model

from hf_multitask.modeling.sound import SoundError, frames_of, read_sound, samples_of

WAVE = np.sin(np.arange(1600) / 7).astype(np.float32) / 2


@pytest.mark.parametrize(
    ("kind", "subtype", "precision"),
    [("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("WAV", "FLOAT", 0), ("FLAC", "PCM_16", 1e-4), ("OGG", None, 0.1), ("MP3", None, 0.2)],
)  # fmt: skip
def test_files_and_bytes_of_every_format_are_read(kind, subtype, precision, tmp_path):
    path = tmp_path / "one.any"
    path.write_bytes(wav(WAVE, kind=kind, subtype=subtype))
    for value in (str(path), path, path.read_bytes(), {"path": str(path)}, {"bytes": path.read_bytes(), "path": "gone.wav"}):  # fmt: skip
        sound = read_sound(value, RATE)
        assert sound.samples.dtype == np.float32 and not sound.mixed and not sound.resampled
        assert abs(len(sound.samples) - 1600) <= (1200 if kind == "MP3" else 0)
        assert precision == 0.2 or np.abs(sound.samples - WAVE).max() <= precision


@pytest.mark.parametrize("value", [WAVE, WAVE.astype(np.float64), WAVE.tolist(), torch.tensor(WAVE)])
def test_arrays_are_samples_at_the_rate_of_the_model_unless_one_is_given(value):
    assert np.array_equal(read_sound(value, RATE).samples, WAVE)
    assert np.array_equal(read_sound({"array": value, "sampling_rate": RATE}, RATE).samples, WAVE)
    assert np.array_equal(read_sound({"raw": value, "sampling_rate": RATE}, RATE).samples, WAVE)


def test_whole_numbers_of_a_format_become_numbers_up_to_1():
    found = read_sound((WAVE * 32768).round().astype(np.int16), RATE).samples
    assert np.abs(found - WAVE).max() < 1e-4


@pytest.mark.parametrize("channels_first", [True, False])
def test_channels_are_averaged(channels_first):
    both = np.stack([WAVE, np.zeros_like(WAVE)], axis=1)
    sound = read_sound(both.T if channels_first else both, RATE)
    assert sound.mixed and np.allclose(sound.samples, WAVE / 2)
    assert read_sound(wav(both), RATE).mixed


@pytest.mark.parametrize("rate", [4000, 16000, 11025])
def test_another_rate_is_resampled(rate):
    times = np.arange(rate) / rate
    sound = read_sound({"array": np.sin(2 * np.pi * 200 * times), "sampling_rate": rate}, RATE)
    wanted = np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)
    assert sound.resampled and abs(len(sound.samples) - RATE) <= 1
    middle = slice(1000, 7000)
    assert np.abs(sound.samples[middle] - wanted[middle]).max() < 1e-2


class Decoded:
    """A decoded cell of a column of datasets.Audio, in its two fields."""

    def get_all_samples(self):
        return type("Samples", (), {"data": torch.tensor(WAVE).unsqueeze(0), "sample_rate": RATE})


def test_a_decoded_cell_is_read():
    assert np.array_equal(read_sound(Decoded(), RATE).samples, WAVE)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "there is no audio"),
        ("gone.wav", "there is no file 'gone.wav'. Fix the path"),
        (b"", "the recording has no bytes"),
        (b"no audio at all", "the bytes cannot be read as audio"),
        (wav(WAVE)[:30], "the bytes cannot be read as audio"),
        (wav(WAVE)[:2000], "the bytes: the end is missing, 1244 bytes of samples. Fix or remove the row"),
        (wav(WAVE, subtype="PCM_24")[:-1], "the bytes: the end is missing, 1 bytes"),
        (wav(WAVE, kind="FLAC", subtype="PCM_16")[:1000], "the bytes cannot be read as audio"),
        ({"path": None}, "there is no audio. Fix or remove the row"),
        ([], "the recording is empty"),
        (wav(WAVE[:0]), "the recording is empty"),
        (np.zeros(900), "the recording is silent"),
        (np.full(900, np.nan), "NaN or infinite"),
        (np.array([0.1, np.inf]), "NaN or infinite"),
        (np.zeros((2, 2, 2)), "the samples have 3 dimensions"),
        (["a", "b"], "the list is no audio"),
        ([[0.1], [0.2, 0.3]], "the list is no audio"),
        (object(), "the object is no audio"),
        ({"array": WAVE}, "Found `sampling_rate = None`"),
        ({"array": WAVE, "sampling_rate": -1}, "Found `sampling_rate = -1`"),
        ({"bytes": None, "path": None}, "there is no audio. Fix or remove the row"),
        ({"sampling_rate": RATE}, r"a mapping should have .* Found \['sampling_rate'\]"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(value, said):
    with pytest.raises(SoundError, match=said) as caught:
        read_sound(value, RATE)
    assert str(caught.value).rstrip().endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_file_of_unknown_length_is_read_to_its_end(length):
    content = bytearray(wav(WAVE))
    place = content.index(b"data") + 4
    content[place : place + 4] = length.to_bytes(4, "little")
    found = read_sound(bytes(content), RATE).samples
    assert np.abs(found - WAVE).max() < 1e-4


def test_a_folder_is_named(tmp_path):
    with pytest.raises(SoundError, match=r"^'.*' is a folder. Give a file.$"):
        read_sound(str(tmp_path), RATE)


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.wav"
    path.write_bytes(b"")
    with pytest.raises(SoundError, match=r"^the file '.*empty.wav' is empty. Fix or remove the row.$"):
        read_sound(str(path), RATE)


@pytest.mark.parametrize(("package", "value"), [("soundfile", b"RIFF"), ("soxr", {"array": WAVE, "sampling_rate": 500})])  # fmt: skip
def test_a_package_that_is_missing_is_named(package, value, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SoundError, match=rf"needs the package '{package}'.* Run: pip install 'hf_multitask\[speech\]'"):
        read_sound(value, RATE)


def test_frames_are_those_of_the_convolutions():
    config = Wav2Vec2Config(**COMMON)
    model = Wav2Vec2Model(config)
    for samples in (samples_of(config, 1), 500, 1601):
        assert frames_of(config, samples) == model(torch.randn(1, samples)).last_hidden_state.shape[1]
    for frames in (1, 2, 9):
        assert (
            frames_of(config, samples_of(config, frames)) == frames > frames_of(config, samples_of(config, frames) - 1)
        )
