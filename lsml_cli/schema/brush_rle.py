"""Brush strokes as Label Studio's editor stores them: @thi.ng/rle-pack over RGBA, of which the last channel counts.

See `encode_rle` and `decode_rle` of label_studio_sdk.converter.brush, which the tests ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_PIXELS = 128_000_000  # pixels of a stroke that is unpacked
_WORD_BITS = 8  # bits of a value
_RUN_LENGTH_BITS = (3, 4, 8, 16)  # bits of the length of a run, of which each run chooses


def encode_rle(values: Any, repeat: int = 1) -> bytes:
    """The code of values in 0..255, flat. Each stands for `repeat` in a row: 4 for the mask of a picture in RGBA."""
    import numpy as np

    flat = np.asarray(values, np.uint8).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] ^ 1))
    lengths = np.diff(starts, append=flat.size) * repeat
    bits = [f"{flat.size * repeat:032b}", f"{_WORD_BITS - 1:05b}", *(f"{each - 1:04b}" for each in _RUN_LENGTH_BITS)]
    for length, value in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        for begun in range(0, length, 1 << _RUN_LENGTH_BITS[-1]):
            bits.append(_encode_run(min(length - begun, 1 << _RUN_LENGTH_BITS[-1]), value))
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def _encode_run(length: int, value: int) -> str:
    kind = next(i for i, each in enumerate(_RUN_LENGTH_BITS) if length <= 1 << each)
    return f"1{kind:02b}{length - 1:0{_RUN_LENGTH_BITS[kind]}b}{value:0{_WORD_BITS}b}"


def decode_rle(rle: bytes, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Which pixels a brush covered, 0 or 1, shape (height, width).

    Code that is no such code covers nothing.
    """
    import numpy as np

    total = width * height * 4
    bits = _BitReader(rle)
    nothing = np.zeros((height, width), np.uint8)
    try:
        if total > 4 * MAX_PIXELS or bits.read(32) != total:
            return nothing
        word = bits.read(5) + 1
        lengths = [bits.read(4) + 1 for _ in range(4)]
        found = np.zeros(total, np.uint8)
        at = 0
        while at < total:
            same = bits.read(1)
            end = at + 1 + bits.read(lengths[bits.read(2)])
            if same:
                found[at:end] = bits.read(word) & 255
            else:
                found[at:end] = [bits.read(word) & 255 for _ in range(min(end, total) - at)]
            at = end
    except (IndexError, ValueError):
        return nothing
    return (found.reshape(height, width, 4)[:, :, 3] > 0).astype(np.uint8)


class _BitReader:
    """Reads numbers of any number of bits, the highest first. Raises IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read(self, bits: int) -> int:
        first, last = self._position // 8, (self._position + bits + 7) // 8
        if last > len(self._data):
            raise IndexError
        number = int.from_bytes(self._data[first:last], "big") >> (last * 8 - self._position - bits)
        self._position += bits
        return number & ((1 << bits) - 1)
