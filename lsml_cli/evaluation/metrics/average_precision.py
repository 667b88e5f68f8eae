"""Compute average precision (AP) of weighted images, as COCO defines it.

AP is the mean over 101 recalls of the highest precision at that recall or a higher one. The results equal those of
`pycocotools.cocoeval.COCOeval` on data where each image is repeated as often as its weight says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

RECALL_STEPS = 101  # recalls 0.00, 0.01, ..., 1.00
_EPSILON = 2.220446049250313e-16  # np.spacing(1), so that zero matches of zero detections divide to zero


def average_precision(weights: npt.NDArray[Any], matched: npt.NDArray[Any], support: FloatArray) -> FloatArray:
    """Return the AP of one class.

    Args:
        weights: How often the image of each detection counts, the detection with the highest score first; shape
            (resamples, detections).
        matched: Whether each detection matches a true region, 0 or 1; shape (IoUs, detections).
        support: Number of true regions, shape (resamples,).

    Returns:
        Shape (resamples, IoUs), NaN for a resample without true regions.
    """
    import numpy as np

    detected = np.cumsum(weights, axis=1, dtype=np.int64)
    hits = matched.any(axis=0)  # precision only falls at the other detections
    detected, weights, matched = detected[:, hits], weights[:, hits], matched[:, hits]
    if not matched.size:
        ap = np.zeros((len(weights), len(matched)))
    else:
        correct = np.cumsum(weights[:, None, :] * matched, axis=2, dtype=np.int64)
        precision = correct / (detected[:, None, :] + _EPSILON)
        # The highest precision at this recall or a higher one.
        precision = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
        reached_at = _first_index_reaching(correct, _required_matches(support))
        last = matched.shape[1] - 1
        at_recall = np.take_along_axis(precision, np.minimum(reached_at, last), axis=2)
        ap = np.where(reached_at <= last, at_recall, 0.0).mean(axis=2)
    ap[support == 0] = np.nan
    return ap


def _required_matches(support: FloatArray) -> npt.NDArray[np.int64]:
    """Return how many regions have to be matched for each recall, shape (resamples, RECALL_STEPS)."""
    import numpy as np

    recalls = np.linspace(0.0, 1.0, RECALL_STEPS)
    total = np.maximum(support, 1)[:, None]
    count = np.ceil(recalls * total)
    # A recall is a quotient, and its last bit decides: pycocotools compares the quotient, not the product.
    count -= (count - 1) / total >= recalls
    count += count / total < recalls
    required: npt.NDArray[np.int64] = count.astype(np.int64)
    return required


def _first_index_reaching(counts: npt.NDArray[np.int64], required: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the index of the first count that reaches the required one, or the length of the row if none does.

    Args:
        counts: Non-decreasing along each row; shape (resamples, IoUs, detections).
        required: Shape (resamples, RECALL_STEPS).

    Returns:
        Shape (resamples, IoUs, RECALL_STEPS).
    """
    import numpy as np

    resamples, ious, length = counts.shape
    rows = np.arange(resamples * ious).reshape(resamples, ious, 1)
    offset = max(int(counts.max()), int(required.max())) + 1  # keeps rows apart, so that one search covers all of them
    flat = np.searchsorted((counts + rows * offset).ravel(), (required[:, None, :] + rows * offset).ravel())
    index: npt.NDArray[np.int64] = flat.reshape(resamples, ious, -1).astype(np.int64) - rows * length
    return index
