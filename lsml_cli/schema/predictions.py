"""Predictions, failures, and the JSON records in which they are written.

A `Prediction` is Label Studio's prediction object; a `Failure` takes its place if a task could not be predicted.
`task_record` and `prediction_record` are the two output shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from lsml_cli.schema.tasks import Task, is_export_row

Stage = Literal["read", "fetch", "encode", "forward", "decode", "check"]
OutputShape = Literal["tasks", "predictions"]

SCORE_DIGITS = 4  # scores are rounded, so that another BLAS or batch size does not change the output


@dataclass(frozen=True, slots=True)
class Region:
    """One result of one control.

    Attributes:
        id: Made by `region_id`; regions that belong together (OCR: box, label, text) share one.
        from_name: Name of the control.
        to_name: Name of the object.
        type: The control's tag in lower case.
        value: Label Studio's value object, geometry in percent of the image, 0..100.
        score: Probability in 0..1.
        extra: Further fields at the top level: `original_width` and `original_height` in pixels, `image_rotation` in
            degrees, ...
    """

    id: str
    from_name: str
    to_name: str
    type: str
    value: Mapping[str, Any]
    score: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return Label Studio's region object."""
        region: dict[str, Any] = {
            "id": self.id,
            "from_name": self.from_name,
            "to_name": self.to_name,
            "type": self.type,
            "value": self.value,
        }
        if self.score is not None:
            region["score"] = round(self.score, SCORE_DIGITS)
        if self.extra:
            region.update(self.extra)
        return region


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model predicts for one task.

    Attributes:
        result: The regions; empty if nothing was found.
        score: Mean over the regions that have a score, None without any.
        model_version: Name and version of the model: "news@20261120T213015".

    Example:
        >>> region = binding.config.only("Choices").region(task, {"choices": ["Sports"]}, score=0.9)
        >>> Prediction.of((region,), self.version).score
        0.9
    """

    result: tuple[Region, ...]
    score: float | None
    model_version: str

    @classmethod
    def of(cls, regions: tuple[Region, ...], model_version: str) -> Prediction:
        """Create a prediction; its score is the mean of the regions' scores."""
        scores = [region.score for region in regions if region.score is not None]
        mean = sum(scores) / len(scores) if scores else None
        return cls(regions, mean, model_version)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Prediction:
        """Parse a stored prediction; raise ValueError, TypeError or KeyError if it is none."""
        regions = []
        for region in stored["result"]:
            fields = dict(region)
            known = {name: fields.pop(name) for name in ("id", "from_name", "to_name", "type", "value")}
            regions.append(Region(**known, score=fields.pop("score", None), extra=fields))
        return cls(tuple(regions), stored.get("score"), stored["model_version"])

    def drop_low_scores(self, min_score: float) -> Prediction:
        """Drop regions with a lower score, and those that share their id."""
        dropped_ids = {region.id for region in self.result if region.score is not None and region.score < min_score}
        if not dropped_ids:
            return self
        kept = tuple(region for region in self.result if region.id not in dropped_ids)
        return Prediction.of(kept, self.model_version)

    def to_json(self) -> dict[str, Any]:
        """Return Label Studio's prediction object."""
        return {
            "result": [region.to_json() for region in self.result],
            "score": None if self.score is None else round(self.score, SCORE_DIGITS),
            "model_version": self.model_version,
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no prediction.

    Attributes:
        stage: The step that failed: "read", "fetch", "encode", "forward", "decode", "check".
        reason: One sentence.
        transient: Another try may succeed.
    """

    stage: Stage
    reason: str
    transient: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class ExistingPrediction:
    """A prediction of the same version that the task holds already; it is kept."""

    prediction: Mapping[str, Any]


Outcome = Prediction | Failure | ExistingPrediction


def region_id(task: Task, control: str, ordinal: int) -> str:
    """Return the id of a region: ten hexadecimal digits, the same in every run.

    A suggestion for what somebody has drawn gets another id than the one before: the editor would take both for one
    region, and replace the one that was accepted.

    Args:
        task: The task; it counts by its id, or by its position in the input if it has none.
        control: Name of the control.
        ordinal: Number of the region among those of the control.
    """
    name = f"{task.index if task.id is None else task.id}\0{control}\0{ordinal}".encode()
    if task.context is not None:
        name += b"\0" + json.dumps(task.context).encode()
    return blake2b(name, digest_size=5).hexdigest()


def task_record(
    task: Task, outcome: Outcome, other_predictions: Sequence[Mapping[str, Any]], keep_annotations: bool
) -> dict[str, Any]:
    """Return the whole task with a `predictions` list, ready for Label Studio's import.

    Args:
        task: The task.
        outcome: Its prediction or failure.
        other_predictions: Predictions of other versions that the task keeps.
        keep_annotations: Whether to keep annotations and drafts. One foreign `completed_by` id fails a whole import.
    """
    raw = task.raw
    if "data" not in raw or is_export_row(raw):  # a bare item or a row of an export
        raw = {"data": task.data} if task.id is None else {"id": task.id, "data": task.data}
    record = dict(raw)
    for key in _DROPPED_KEYS if not keep_annotations else ("predictions",):
        record.pop(key, None)
    record["predictions"] = [*other_predictions, *_outcome_to_json(outcome)]
    return record


def _outcome_to_json(outcome: Outcome) -> list[Mapping[str, Any]]:
    if isinstance(outcome, Failure):
        return []
    return [outcome.to_json() if isinstance(outcome, Prediction) else outcome.prediction]


_DROPPED_KEYS = ("predictions", "annotations", "completions", "drafts")


def prediction_record(task: Task | None, outcome: Outcome) -> dict[str, Any]:
    """Return `{"task", "result", "score", "model_version"}` for `import/predictions`; a failure has an `error`."""
    record: dict[str, Any] = {"task": task.id if task else None}
    if isinstance(outcome, Failure):
        return record | {"result": [], "error": outcome.to_json()}
    return record | (outcome.to_json() if isinstance(outcome, Prediction) else dict(outcome.prediction))


def stored_predictions(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the predictions that a task holds in full, with the fields that an import keeps; ids do not count."""
    stored = raw.get("predictions")
    return [
        {
            "result": prediction["result"],
            "score": prediction.get("score"),
            "model_version": prediction.get("model_version"),
        }
        for prediction in (stored if isinstance(stored, list) else ())
        if isinstance(prediction, dict) and isinstance(prediction.get("result"), list)
    ]
