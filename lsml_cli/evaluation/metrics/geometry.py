"""Compute how much regions of an image overlap.

Boxes that are not rotated are compared by their coordinates, everything else by the pixels of the image at its own
size, with the masks of pycocotools: object detectors are usually compared by its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import UsageError
from lsml_cli.runtime import install_hint
from lsml_cli.schema.shapes import DEFAULT_IMAGE_SIZE, Shape, decode_brush, to_pixels

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ImageSize = tuple[int, int]  # (width, height) in pixels


def iou_matrix(
    first: Sequence[Shape], second: Sequence[Shape], image_size: ImageSize | None
) -> npt.NDArray[np.float64]:
    """Return the intersection over union of each of `first` with each of `second`.

    Args:
        first: Shapes.
        second: Shapes on the same image.
        image_size: Of the image; None if unknown.

    Returns:
        Values in 0..1, shape (len(first), len(second)).

    Raises:
        UsageError: pycocotools is not installed.
    """
    import numpy as np

    if not first or not second:
        return np.zeros((len(first), len(second)))
    mask = _import_pycocotools()
    if all(shape.box for shape in (*first, *second)):
        # Width and height of the image cancel out, so boxes in percent have the IoU of boxes in pixels.
        operands: list[Any] = [np.array([shape.box for shape in shapes], np.float64) for shapes in (first, second)]
    else:
        operands = [
            [_encode_mask(shape, image_size or DEFAULT_IMAGE_SIZE, mask) for shape in shapes]
            for shapes in (first, second)
        ]
    iou: npt.NDArray[np.float64] = np.asarray(mask.iou(*operands, [0] * len(second)), np.float64)
    return iou.reshape(len(first), len(second))


def require_pycocotools() -> None:
    """Check that regions can be compared.

    Raises:
        UsageError: pycocotools is not installed.
    """
    _import_pycocotools()


def _import_pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise UsageError(
            "Measuring regions of images needs the package pycocotools.", install_hint("lsml[evaluate]")
        ) from None
    return mask


def _encode_mask(shape: Shape, image_size: ImageSize, mask_api: Any) -> Any:
    """Return the pixels of a shape in COCO's run-length encoding."""
    import numpy as np

    width, height = image_size
    if shape.brush_rle is not None:
        return mask_api.encode(np.asfortranarray(decode_brush(shape.brush_rle, image_size)))
    coordinates = [value for point in to_pixels(shape.outline(), image_size) for value in point]
    return mask_api.frPyObjects([coordinates], height, width)[0]
