"""Masks by the functions that scripts import from the SDK's converter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsml_cli.schema import brush_rle


def encode_rle(values: Any, *_: Any) -> list[int]:
    """The code of values in 0..255, flat: RGBA of a picture, row by row."""
    return list(brush_rle.encode_rle(values))


def mask_to_rle(mask: Any) -> list[int]:
    """The code of a mask, (height, width), 0 or 255."""
    return list(brush_rle.encode_rle(mask, 4))


def decode_rle(code: Sequence[int], print_params: bool = False) -> Any:
    """What a code says, flat: RGBA whose four channels are the mask."""
    import numpy as np

    content = bytes(code)
    pixels = int.from_bytes(content[:4], "big") // 4
    return np.repeat(brush_rle.decode_rle(content, pixels, 1).ravel() * 255, 4)


BRUSH_FUNCTIONS = {
    "decode_rle": decode_rle,
    "encode_rle": encode_rle,
    "mask2rle": mask_to_rle,
}  # by the converter's names
