"""Numbers from pairs of truth and prediction.

choices      labels of whole tasks: accuracy, F1, per class, confusion
calibration  whether scores are the probabilities that they claim to be
regions      labelled regions of pictures: average precision as in COCO, precision and recall
geometry     boxes, polygons and brush strokes -> how much they overlap
texts        transcriptions: character and word error rates, detection as in ICDAR
agreement    people against people
bootstrap    how far a number may be off, from resampling tasks

Whatever measures one control over many tasks keeps compact arrays and answers two questions: its `metrics`, and the
`values` of its headline numbers if every task counted as often as some weights say, which is all that a bootstrap asks.
"""

from __future__ import annotations

from lsml_cli.evaluation.metrics.choices import ChoiceMetrics, ClassMetrics, classification_metrics

__all__ = ["ChoiceMetrics", "ClassMetrics", "classification_metrics"]
