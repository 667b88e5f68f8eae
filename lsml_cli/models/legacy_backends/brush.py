"""Provide the functions for brush masks that scripts import from label_studio_converter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsml_cli.schema import brush_rle


def encode_rle(values: Any, *_: Any) -> list[int]:
    """Encode the flat RGBA values of an image, row by row, each in 0..255."""
    return list(brush_rle.encode_rle(values))


def mask_to_rle(mask: Any) -> list[int]:
    """Encode a mask of shape (height, width) with values 0 and 255."""
    return list(brush_rle.encode_rle(mask, 4))


def decode_rle(code: Sequence[int], print_params: bool = False) -> Any:
    """Decode to a flat array of RGBA values; each channel is the mask, 0 or 255."""
    import numpy as np

    content = bytes(code)
    pixels = int.from_bytes(content[:4], "big") // 4
    return np.repeat(brush_rle.decode_rle(content, pixels, 1).ravel() * 255, 4)


# By the names in label_studio_converter.brush.
BRUSH_FUNCTIONS = {"decode_rle": decode_rle, "encode_rle": encode_rle, "mask2rle": mask_to_rle}
