"""Encode and decode masks as COCO stores them: run lengths down the columns, as numbers or packed into a text.

pycocotools does the same. It is an extra that has to be compiled, and its decoder warns with NumPy 2; the tests compare
with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lsml_cli.schema.brush_rle import MAX_PIXELS
from lsml_cli.schema.value_checks import is_integer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BITS = 5  # of a number in each character
_MORE = 1 << _BITS  # set in all characters of a number but its last
_OFFSET = 48  # of characters: "0" stands for 0


def encode_mask(mask: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return {"size": [height, width], "counts": text} for a mask of 0 and 1, shape (height, width)."""
    import numpy as np

    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = [0, *changes.tolist(), flat.size]
    counts = [end - start for start, end in pairwise(bounds)]
    if flat.size and flat[0]:  # the first run is one of zeros
        counts.insert(0, 0)
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": _pack(counts)}


def decode_mask(encoded: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Return a mask of 0 and 1, shape (height, width).

    Args:
        encoded: {"size": [height, width], "counts": text or list of numbers}.

    Raises:
        ValueError: It is no such mask; the message is the end of a sentence.
    """
    import numpy as np

    size, counts = encoded.get("size"), encoded.get("counts")
    is_size = isinstance(size, Sequence) and len(size) == 2 and all(is_integer(side) and side > 0 for side in size)
    if not is_size or size[0] * size[1] > MAX_PIXELS:  # type: ignore[index]
        raise ValueError(f"the size of its mask is {size!r}")
    height, width = size  # type: ignore[misc]
    runs = _unpack(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(is_integer(run) and run >= 0 for run in runs):
        raise ValueError("the runs of its mask are not numbers of pixels")
    if sum(runs) != height * width:
        raise ValueError(f"its mask has {sum(runs):,} pixels instead of {height} x {width}")
    values = np.arange(len(runs), dtype=np.uint8) % 2
    return np.repeat(values, runs).reshape((height, width), order="F")


def _pack(counts: Sequence[int]) -> str:
    """Write numbers in groups of 5 bits, the lowest first; from the fourth on, the difference to the last but one."""
    characters = bytearray()
    for position, count in enumerate(counts):
        number = count - counts[position - 2] if position > 2 else count
        while True:
            group = number & (_MORE - 1)
            number >>= _BITS
            is_last = number == (-1 if group & (_MORE >> 1) else 0)
            characters.append((group if is_last else group | _MORE) + _OFFSET)
            if is_last:
                break
    return characters.decode("ascii")


def _unpack(text: str) -> list[int]:
    counts: list[int] = []
    number = shift = 0
    for character in text:
        group = ord(character) - _OFFSET
        if not 0 <= group < 2 * _MORE or shift > 60:
            raise ValueError("the runs of its mask are no text of COCO's code")
        number |= (group & (_MORE - 1)) << shift
        shift += _BITS
        if group & _MORE:
            continue
        if group & (_MORE >> 1):
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = shift = 0
    return counts
