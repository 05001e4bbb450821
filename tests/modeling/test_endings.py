"""Files of audio whose end is missing, and whole ones that look like it."""

import io

import numpy as np
import pytest
import soundfile
from sounds import RATE, wav

from hf_multitask.modeling.sound import SoundError, read_sound

NOISE = np.random.default_rng(0)
WAVE = ((np.sin(np.arange(24000) / 7) + 0.1 * NOISE.standard_normal(24000)) / 2).astype(np.float32)
END = "^the bytes: the end is missing, .*. Fix or remove the row.$"
ID3 = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)


def mp3(rate=RATE, **settings):
    file = io.BytesIO()
    soundfile.write(file, WAVE, rate, format="MP3", **settings)
    return file.getvalue()


def bare(content):
    """The same without its first frame, which says how many there are."""
    return content[content.index(content[:2], 4) :]


def last(content):
    """The place of the last page or frame."""
    return content.rfind(content[:4] if content[:4] == b"OggS" else content[:2])


CONSTANT = bare(mp3(bitrate_mode="CONSTANT", compression_level=0.5))
CUT = {
    "vorbis": wav(WAVE, kind="OGG")[:-1],
    "vorbis half": wav(WAVE, kind="OGG")[:6000],
    "vorbis page": (lambda whole: whole[: last(whole)])(wav(WAVE, kind="OGG")),
    "opus": wav(WAVE, kind="OGG", subtype="OPUS")[:-100],
    "mp3": mp3()[:-1],
    "mp3 half": mp3()[:3000],
    "mp3 frame": (lambda whole: whole[: last(whole)])(mp3()),
    "mp3 tagged": (ID3 + mp3())[:-40],
    "bare mp3": CONSTANT[:-1],
    "bare mp3 tagged": (ID3 + CONSTANT)[:-40],
    "wide mp3": bare(mp3(44100, bitrate_mode="CONSTANT", compression_level=0.5))[:-3],
    "wav": wav(WAVE)[:-2],
}
WHOLE = {
    "vorbis": wav(WAVE, kind="OGG"),
    "opus": wav(WAVE, kind="OGG", subtype="OPUS"),
    "ogg and more": wav(WAVE, kind="OGG") + b"TAG" + bytes(125),
    "mp3": mp3(),
    "mp3 tagged": ID3 + mp3() + b"TAG" + bytes(125),
    "mp3 and more": mp3() + bytes(300),
    "bare mp3": CONSTANT,
    "bare mp3 tagged": ID3 + CONSTANT + b"TAG" + bytes(125),
    "bare mp3 and more": CONSTANT + bytes(300),
    "wide mp3": bare(mp3(44100, bitrate_mode="CONSTANT", compression_level=0.5)),
    "wav": wav(WAVE),
    "flac": wav(WAVE, kind="FLAC"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_missing_end_is_named(name):
    with pytest.raises(SoundError, match=END):
        read_sound(CUT[name], RATE)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_read_whole(name):
    assert len(read_sound(WHOLE[name], 44100 if "wide" in name else RATE).samples) >= len(WAVE)


def test_a_cut_at_the_border_of_a_frame_cannot_be_told_without_a_header():
    assert last(CONSTANT) > 0
    assert len(read_sound(CONSTANT[: last(CONSTANT)], RATE).samples) == len(read_sound(CONSTANT, RATE).samples) - 576


@pytest.mark.parametrize("more", [b"", b"TAG" + bytes(125), bytes(300)])
def test_an_mp3_file_of_which_libsndfile_reads_a_part_is_refused(more):
    with pytest.raises(
        SoundError, match=r"libsndfile reads \d+ of 25344. Convert it to wav or flac, or to an mp3 file with"
    ):
        read_sound(bare(mp3()) + more, RATE)


def test_flac_without_its_end_or_its_length_is_refused(tmp_path):
    content = bytearray(wav(WAVE, kind="FLAC"))
    path = tmp_path / "cut.flac"
    path.write_bytes(content[:-1])
    with pytest.raises(
        SoundError, match=r"^'.*cut.flac' cannot be read as audio .* Give a whole file, of wav, flac, ogg"
    ):
        read_sound(path, RATE)
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
    with pytest.raises(
        SoundError, match=r"^the bytes: the file does not say how many samples it has. Convert it to wav.$"
    ):
        read_sound(bytes(content), RATE)
