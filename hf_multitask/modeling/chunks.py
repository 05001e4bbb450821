"""Chunks of a long recording, whose outputs are joined where they overlap."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from .aliases import Settings

# Arguments of a call that say how a recording is cut.
LENGTH, STRIDE = "chunk_length_s", "stride_length_s"


@dataclass(frozen=True)
class Chunk:
    """Some samples of a recording, and which frames of it count.

    Args:
        samples: the first sample, and the one after the last.
        frames: the first frame that counts, and the one after the last.
    """

    samples: tuple[int, int]
    frames: tuple[int, int]


@dataclass(frozen=True)
class Chunking:
    """How a recording is cut, as Transformers' pipeline for speech recognition cuts it.

    Args:
        length: of a chunk, in seconds.
        left: seconds at its beginning whose frames do not count, except in the first chunk.
        right: seconds at its end, except in the last chunk.
    """

    length: float
    left: float
    right: float

    @classmethod
    def of(cls, given: Settings) -> "Chunking | None":
        """How the arguments of a call have it; None where a recording stays whole.

        Raises:
            ValueError: a value cannot be used, or is there without the other.
        """
        length, stride = given.get(LENGTH), given.get(STRIDE)
        if length is None:
            if stride is not None:
                raise ValueError(f"`{STRIDE}` is the overlap of chunks. Give `{LENGTH}` as well, or leave it out.")
            return None
        if not _is_number(length) or length <= 0:
            raise ValueError(f"`{LENGTH}` should be a number of seconds above 0. Found `{LENGTH} = {length!r}`.")
        if stride is None:
            stride = length / 6
        pair = [stride, stride] if _is_number(stride) else stride
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(_is_number(one) and one >= 0 for one in pair):
            raise ValueError(
                f"`{STRIDE}` should be a number of seconds of 0 or more, or two, left and right. Found `{STRIDE} = "
                f"{stride!r}`."
            )
        if sum(pair) >= length:
            raise ValueError(
                f"`{STRIDE}`, left and right together, should be below `{LENGTH} = {length}`. Found `{STRIDE} = "
                f"{stride!r}`."
            )
        return cls(length, *pair)

    def cut(self, samples: int, rate: int, stride: int) -> Iterator[Chunk]:
        """The chunks of a recording, whose borders are borders of frames.

        Args:
            samples: their number.
            rate: samples per second.
            stride: samples per frame.

        Raises:
            ValueError: nothing is left of a chunk at this rate.
        """
        length, left, right = (
            round(seconds * rate / stride) * stride for seconds in (self.length, self.left, self.right)
        )
        if length <= left + right:
            raise ValueError(
                f"`{LENGTH} = {self.length}` leaves no frame of {stride} samples between its strides at {rate} samples "
                "per second. Give longer chunks."
            )
        for start in count(0, length - left - right):
            end = min(start + length, samples)
            frames = round((end - start) / stride)
            lead, trail = (0 if start == 0 else left), (0 if start + length >= samples else right)
            first, last = (round(part / (end - start) * frames) for part in (lead, trail))
            yield Chunk((start, end), (first, frames - last))
            if start + length >= samples:
                return


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
