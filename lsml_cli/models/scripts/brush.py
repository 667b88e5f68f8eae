"""Masks as Label Studio's editor stores them: @thi.ng/rle-pack over RGBA. For scripts that import the converter's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsml_cli.metrics import geometry

WORD = 8  # bits of a value
LENGTHS = (3, 4, 8, 16)  # bits of the length of a run, of which each run chooses


def encode_rle(values: Any, *_: Any) -> list[int]:
    """The code of values in 0..255, flat: RGBA of a picture, row by row."""
    import numpy as np

    flat = np.asarray(values, np.uint8).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] ^ 1))
    bits = [f"{flat.size:032b}", f"{WORD - 1:05b}", *(f"{each - 1:04b}" for each in LENGTHS)]
    for start, end in zip(starts, np.append(starts[1:], flat.size), strict=True):
        for begun in range(start, end, 1 << LENGTHS[-1]):
            bits.append(_run(min(int(end - begun), 1 << LENGTHS[-1]), int(flat[start])))
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def _run(length: int, value: int) -> str:
    kind = next(i for i, each in enumerate(LENGTHS) if length <= 1 << each)
    return f"1{kind:02b}{length - 1:0{LENGTHS[kind]}b}{value:0{WORD}b}"


def mask_to_rle(mask: Any) -> list[int]:
    """The code of a mask, (height, width), 0 or 255."""
    import numpy as np

    return encode_rle(np.repeat(np.asarray(mask, np.uint8).ravel(), 4))


def decode_rle(code: Sequence[int], print_params: bool = False) -> Any:
    """What a code says, flat: RGBA whose four channels are the mask."""
    import numpy as np

    content = bytes(code)
    pixels = int.from_bytes(content[:4], "big") // 4
    return np.repeat(geometry.unpack_stroke(content, pixels, 1).ravel() * 255, 4)


EXPORTED = {"decode_rle": decode_rle, "encode_rle": encode_rle, "mask2rle": mask_to_rle}  # by the converter's names
