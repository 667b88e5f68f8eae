"""Metrics computed from annotations and predictions.

choices            labels of whole tasks: accuracy, F1, per class, confusion
calibration        whether scores are the probabilities that they claim to be
regions            labelled regions of images: average precision as in COCO, precision and recall
average_precision  AP of weighted images
matching           which detection matches which true region
geometry           overlap of boxes, polygons and brush masks
texts              transcriptions: character and word error rates, detection as in ICDAR
agreement          agreement of people with each other
bootstrap          confidence intervals from resampling tasks
intervals          what intervals are at least, for few tasks
numeric            NumPy results as plain numbers

Each `*Counts` class accumulates one control over many tasks in compact arrays. It computes its `metrics`, and the
`weighted_values` of its headline metrics for given weights of the tasks, which is all that the bootstrap needs.
"""

from __future__ import annotations

from lsml_cli.evaluation.metrics.choices import ChoiceMetrics, ClassMetrics, classification_metrics

__all__ = ["ChoiceMetrics", "ClassMetrics", "classification_metrics"]
