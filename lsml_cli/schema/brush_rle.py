"""Encode and decode brush masks as Label Studio stores them: @thi.ng/rle-pack over RGBA; the last channel is the mask.

The tests compare with `encode_rle` and `decode_rle` of label_studio_sdk.converter.brush.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_PIXELS = 128_000_000  # pixels of a mask that is decoded
_WORD_BITS = 8  # bits of a value
_RUN_LENGTH_BITS = (3, 4, 8, 16)  # sizes of the length of a run, in bits; each run uses the smallest that fits


def encode_rle(values: Any, repeat: int = 1) -> bytes:
    """Encode a flattened array.

    Args:
        values: Array of any shape, values in 0..255.
        repeat: How often each value is repeated: 4 for the mask of an RGBA image.
    """
    import numpy as np

    flat = np.asarray(values, np.uint8).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] ^ 1))
    lengths = np.diff(starts, append=flat.size) * repeat
    bits = [f"{flat.size * repeat:032b}", f"{_WORD_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _RUN_LENGTH_BITS)]
    for length, value in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        for start in range(0, length, 1 << _RUN_LENGTH_BITS[-1]):
            bits.append(_encode_run(min(length - start, 1 << _RUN_LENGTH_BITS[-1]), value))
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def _encode_run(length: int, value: int) -> str:
    index = next(i for i, size in enumerate(_RUN_LENGTH_BITS) if length <= 1 << size)
    return f"1{index:02b}{length - 1:0{_RUN_LENGTH_BITS[index]}b}{value:0{_WORD_BITS}b}"


def decode_rle(rle: bytes, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Decode a mask to 0 and 1, shape (height, width). Invalid code, or code of another size, is an empty mask."""
    import numpy as np

    total = width * height * 4
    bits = _BitReader(rle)
    empty = np.zeros((height, width), np.uint8)
    try:
        if total > 4 * MAX_PIXELS or bits.read(32) != total:
            return empty
        word_bits = bits.read(5) + 1
        length_bits = [bits.read(4) + 1 for _ in range(4)]
        values = np.zeros(total, np.uint8)
        start = 0
        while start < total:
            is_repeated = bits.read(1)
            end = start + 1 + bits.read(length_bits[bits.read(2)])
            if is_repeated:
                values[start:end] = bits.read(word_bits) & 255
            else:
                values[start:end] = [bits.read(word_bits) & 255 for _ in range(min(end, total) - start)]
            start = end
    except (IndexError, ValueError):
        return empty
    return (values.reshape(height, width, 4)[:, :, 3] > 0).astype(np.uint8)


class _BitReader:
    """Reads unsigned integers of any number of bits, highest bit first. Raises IndexError at the end."""

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
