"""Turn the outputs of a detector into detections, and their masks into polygons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

from lsml_cli.models.openmmlab.geometry import Box, to_percent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OUTLINE_TOLERANCE = 1.0  # pixels by which a polygon may differ from the outline of its mask
MATCH_IOU = 0.8  # overlap from which two boxes are the same detection
SCORE_TOLERANCE = 0.05  # by which a score may be below the threshold in another precision


@dataclass(frozen=True)
class Mask:
    """A mask of an object, cropped to its bounding box and packed: a few kilobytes.

    Args:
        box: Left, top, right, bottom of the crop, in pixels of the upright image.
        bits: The crop row by row, eight pixels per byte.
    """

    box: tuple[int, int, int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def from_array(cls, array: NDArray[np.bool_]) -> Mask | None:
        """Pack a mask (H, W) of the full image; None if it is empty."""
        import numpy as np

        rows, columns = np.flatnonzero(array.any(axis=1)), np.flatnonzero(array.any(axis=0))
        if not len(rows):
            return None
        left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        return cls((left, top, right, bottom), np.packbits(array[top:bottom, left:right]))

    def to_array(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask (H, W) of an image of (width, height)."""
        import numpy as np

        left, top, right, bottom = self.box
        width, height = right - left, bottom - top
        array = np.zeros((size[1], size[0]), dtype=np.bool_)
        array[top:bottom, left:right] = np.unpackbits(self.bits, count=width * height).reshape(height, width)
        return array


@dataclass(frozen=True)
class Detection:
    """An object in an image.

    Args:
        box: Left, top, right, bottom, in pixels of the upright image.
        class_index: Position in the model's classes.
        score: 0..1.
        mask: Only of a model with masks.
    """

    box: Box
    class_index: int
    score: float
    mask: Mask | None = None


@dataclass(frozen=True)
class ImageDetections:
    """The objects in one image of (width, height)."""

    size: tuple[int, int]
    detections: Sequence[Detection]


def extract_detections(sample: Any, min_scores: Sequence[float]) -> ImageDetections:
    """Convert a data sample of the toolkit.

    Args:
        sample: With `pred_instances`. SOLO's heads give masks with empty boxes; these get the boxes of their masks.
        min_scores: For each class, the score below which detections are dropped.
    """
    height, width = sample.ori_shape[:2]
    instances = sample.pred_instances
    instances = instances[instances.scores >= instances.scores.new_tensor(min_scores)[instances.labels]].cpu()
    boxes, labels = instances.bboxes.float().tolist(), instances.labels.tolist()
    scores = instances.scores.float().tolist()
    masks = map(Mask.from_array, instances.masks.numpy()) if "masks" in instances else repeat(None)
    detections = [
        Detection(mask.box if mask is not None and _is_empty(box) else tuple(box), label, score, mask)
        for box, label, score, mask in zip(boxes, labels, scores, masks, strict=False)
    ]
    return ImageDetections((width, height), detections)


def drop_masks(sample: Any) -> Any:
    """Remove from a data sample of the toolkit what `agreement` does not compare, in place."""
    sample.pred_instances.pop("masks", None)
    return sample


def agreement(reference: Sequence[Any], candidate: Sequence[Any], threshold: float) -> float | None:
    """Compare the detections of two precisions.

    Args:
        reference: Data samples of the toolkit.
        candidate: Those of the same images in another precision.
        threshold: The score from which detections count.

    Returns:
        The share (0..1) of detections that have a counterpart of the same class in the same place; None if there are
        no detections.
    """
    import torch
    from torchvision.ops import box_iou

    num_matched = num_detections = 0
    for first, second in zip(reference, candidate, strict=True):
        for instances, others in (
            (first.pred_instances, second.pred_instances),
            (second.pred_instances, first.pred_instances),
        ):
            instances = instances[instances.scores >= threshold]
            others = others[others.scores >= threshold - SCORE_TOLERANCE]
            num_detections += len(instances)
            if len(instances) and len(others):
                overlap = box_iou(instances.bboxes.float(), others.bboxes.float())
                overlap = torch.where(instances.labels[:, None] == others.labels[None, :], overlap, 0)
                num_matched += int((overlap.amax(dim=1) >= MATCH_IOU).sum())
    return num_matched / num_detections if num_detections else None


def mask_outline(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Return the corners of the largest part of a mask (H, W) in percent, in order; none if it is too small."""
    import cv2
    import numpy as np

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    largest = max(contours, key=cv2.contourArea)
    corners = cv2.approxPolyDP(largest, OUTLINE_TOLERANCE, True).reshape(-1, 2)
    if len(corners) < 3:
        return []
    height, width = mask.shape
    # A contour runs through the centers of its pixels.
    return [[to_percent(x + 0.5, width), to_percent(y + 0.5, height)] for x, y in corners.tolist()]


def _is_empty(box: Sequence[float]) -> bool:
    return box[2] <= box[0] or box[3] <= box[1]
