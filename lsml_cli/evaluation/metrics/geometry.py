"""Regions of a picture -> how much they overlap.

Boxes that are not turned are compared as they are, everything else as pixels of the picture in its own size, with the
masks of pycocotools: what it says is what people compare their detectors by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import UsageError
from lsml_cli.schema import brush_rle
from lsml_cli.schema.shapes import DEFAULT_IMAGE_SIZE, Shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def iou_matrix(
    first: Sequence[Shape], second: Sequence[Shape], image_size: tuple[int, int] | None
) -> npt.NDArray[np.float64]:
    """Intersection over union of each of `first` with each of `second`, in 0..1, shape (len(first), len(second)).

    size  (width, height) of the picture in pixels; None: not known

    Raises UsageError with the command that installs pycocotools when it is missing.
    """
    import numpy as np

    if not first or not second:
        return np.zeros((len(first), len(second)))
    mask = _import_pycocotools()
    if all(shape.box for shape in (*first, *second)):
        # The union of boxes in percent of both sides is that of boxes in pixels: both sides cancel out.
        sides: list[Any] = [np.array([shape.box for shape in shapes], np.float64) for shapes in (first, second)]
    else:
        sides = [
            [_encode_mask(shape, image_size or DEFAULT_IMAGE_SIZE, mask) for shape in shapes]
            for shapes in (first, second)
        ]
    found: npt.NDArray[np.float64] = np.asarray(mask.iou(sides[0], sides[1], [0] * len(second)), np.float64)
    return found.reshape(len(first), len(second))


def require_pycocotools() -> None:
    """Raises UsageError when regions cannot be compared here."""
    _import_pycocotools()


def _import_pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise UsageError(
            "Measuring regions of pictures needs the package pycocotools.", "pip install 'lsml[evaluate]'"
        ) from None
    return mask


def _encode_mask(shape: Shape, image_size: tuple[int, int], mask_api: Any) -> Any:
    """The pixels of a shape in COCO's own run-length code."""
    import numpy as np

    width, height = image_size
    if shape.brush_rle is not None:
        code, (across, down) = shape.brush_rle
        pixels = brush_rle.decode_rle(code, across, down)
        if (across, down) != image_size:  # nearest neighbours
            rows, columns = np.arange(height) * down // height, np.arange(width) * across // width
            pixels = pixels[rows][:, columns]
        return mask_api.encode(np.asfortranarray(pixels))
    flat = [part for x, y in shape.outline() for part in (x * width / 100, y * height / 100)]
    return mask_api.frPyObjects([flat], height, width)[0]
