"""Whether a file of audio has its end: libsndfile reads what is there, and seldom says what is not."""

import io
from dataclasses import dataclass
from typing import BinaryIO

_ENDLESS = 0x7FFF0000  # bytes of a wav file from which on its length is unknown
_PAGE = 27 + 255 + 255 * 255  # bytes of an ogg page at most
# Of the third layer of MPEG audio, by version: kbit/s by number, samples per second by number, samples in a frame.
_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_VERSIONS = {
    3: ((32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320), (44100, 48000, 32000), 1152),
    2: (_LOW, (22050, 24000, 16000), 576),
    0: (_LOW, (11025, 12000, 8000), 576),
}
_HEADERS = (b"Xing", b"Info", b"VBRI")  # in the first frame of an mp3 file, which then says how many there are
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")  # behind the last frame


@dataclass(frozen=True)
class Ending:
    """What is known of the end of a file.

    Args:
        missing: what is not there, in words; empty where nothing is known to be missing.
        samples: those of an mp3 file that does not say how many it has, up to what is no frame.
        estimated: whether the number of samples that libsndfile announces is an estimate.
    """

    missing: str = ""
    samples: int | None = None
    estimated: bool = False


def ending_of(file: BinaryIO) -> Ending:
    """The end of a file of audio, of wav, ogg and mp3 files; of others nothing is known."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        missing = _missing_of_wav(file, size)
        return Ending(f"{missing} bytes of samples" if missing else "")
    if head[:4] == b"OggS":
        file.seek(max(size - _PAGE, 0))
        return Ending("" if _ends_stream(file.read()) else "the page that ends the stream")
    if head[:3] == b"ID3" or _mp3_frame(head, 0) is not None:
        file.seek(0)
        return _ending_of_mp3(file.read())
    return Ending()


def _missing_of_wav(file: BinaryIO, size: int) -> int:
    """Bytes of samples that a wav file declares and does not have.

    Files of unknown length, which are written to a pipe, declare none or the most that there can be.
    """
    while len(chunk := file.read(8)) == 8:
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            return max(file.tell() + length - size, 0) if length < _ENDLESS else 0
        file.seek(length + length % 2, io.SEEK_CUR)
    return 0


def _ends_stream(tail: bytes) -> bool:
    """Whether the last page in the last bytes of an ogg file is whole and ends its stream."""
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    if len(page) < 27 or not page[5] & 4:
        return False
    segments = page[27 : 27 + page[26]]
    return 27 + page[26] + sum(segments) <= len(page)


def _ending_of_mp3(content: bytes) -> Ending:
    place, samples = 0, 0
    if content[:3] == b"ID3" and len(content) > 10:  # its length has seven bits in a byte
        place = 10 + sum((byte & 127) << 7 * power for power, byte in enumerate(reversed(content[6:10])))
    frame = _mp3_frame(content, place)
    if frame is None:
        return Ending(estimated=True)
    if any(header in content[place : place + frame[0]] for header in _HEADERS):
        return Ending()
    while place < len(content) and not content.startswith(_TAGS, place):
        frame = _mp3_frame(content, place)
        if frame is None:
            break
        place, samples = place + frame[0], samples + frame[1]
    lost = place - len(content)
    return Ending(f"{lost} bytes of its last frame" if lost > 0 else "", samples, estimated=True)


def _mp3_frame(content: bytes, place: int) -> tuple[int, int] | None:
    """Bytes and samples of the frame of an mp3 file at a place; None where there is none."""
    head = int.from_bytes(content[place : place + 4], "big")
    version, layer, kbits, rate, padding = (
        head >> 19 & 3,
        head >> 17 & 3,
        head >> 12 & 15,
        head >> 10 & 3,
        head >> 9 & 1,
    )
    if place + 4 > len(content) or head >> 21 != 0x7FF or layer != 1 or version == 1 or kbits in (0, 15) or rate == 3:
        return None
    of_kbits, of_rate, samples = _VERSIONS[version]
    return samples // 8 * of_kbits[kbits - 1] * 1000 // of_rate[rate] + padding, samples
