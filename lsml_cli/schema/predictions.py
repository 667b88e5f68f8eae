"""What a model says about a task, and how it is written down.

A `Prediction` is Label Studio's prediction object; a `Failure` stands in its place when a task could not
be predicted. `task_record` and `prediction_record` are the two shapes in which they are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import orjson

from lsml_cli.schema.tasks import Task, is_export_row

Stage = Literal["read", "fetch", "encode", "forward", "decode", "check"]
OutputShape = Literal["tasks", "predictions"]

SCORE_DIGITS = 4  # scores are rounded, so that another BLAS or batch size does not change a byte


@dataclass(frozen=True, slots=True)
class Region:
    """One result of one control.

    `type` is the control's tag in lower case; `value` is Label Studio's value object, geometry in percent of
    the picture (0..100); `score` is a probability in 0..1; `extra` holds what else belongs to the region at
    its top level: `original_width` and `original_height` in pixels, `image_rotation` in degrees, ...
    `id` is given by `region_id`; regions that belong together (OCR: box, label, text) share one.
    """

    id: str
    from_name: str
    to_name: str
    type: str
    value: Mapping[str, Any]
    score: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
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
    """All regions of one task. `score` is the mean over the regions, None when there is none."""

    result: tuple[Region, ...]
    score: float | None
    model_version: str

    @classmethod
    def of(cls, regions: tuple[Region, ...], model_version: str) -> Prediction:
        scores = [region.score for region in regions if region.score is not None]
        mean = sum(scores) / len(scores) if scores else None
        return cls(regions, mean, model_version)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Prediction:
        """A prediction as it is stored. Raises ValueError, TypeError or KeyError when it is none."""
        regions = []
        for each in stored["result"]:
            fields = dict(each)
            known = {name: fields.pop(name) for name in ("id", "from_name", "to_name", "type", "value")}
            regions.append(Region(**known, score=fields.pop("score", None), extra=fields))
        return cls(tuple(regions), stored.get("score"), stored["model_version"])

    def drop_low_scores(self, min_score: float) -> Prediction:
        """Without the regions that have a lower score, and without those that belong to them (share their id)."""
        unsure = {region.id for region in self.result if region.score is not None and region.score < min_score}
        if not unsure:
            return self
        return Prediction.of(tuple(region for region in self.result if region.id not in unsure), self.model_version)

    def to_json(self) -> dict[str, Any]:
        return {
            "result": [region.to_json() for region in self.result],
            "score": None if self.score is None else round(self.score, SCORE_DIGITS),
            "model_version": self.model_version,
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no prediction. `transient` failures may succeed when tried again later."""

    stage: Stage
    reason: str
    transient: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class ExistingPrediction:
    """A prediction of this very version that the task carried already; it stays as it is."""

    prediction: Mapping[str, Any]


Outcome = Prediction | Failure | ExistingPrediction


def region_id(task: int | str, control: str, ordinal: int) -> str:
    """A region's id: ten hexadecimal digits, the same in every run.

    `task` is the task's id, or its position in the input when it has none.
    """
    return blake2b(f"{task}\0{control}\0{ordinal}".encode(), digest_size=5).hexdigest()


def dumps(value: Any) -> bytes:
    """JSON on one line; numbers of numpy are numbers."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def dumps_exactly(value: Any) -> bytes:
    """The same, several times slower, for what orjson cannot do: whole numbers beyond 64 bits, deep nesting."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def task_record(
    task: Task, outcome: Outcome, other_predictions: Sequence[Mapping[str, Any]], keep_annotations: bool
) -> dict[str, Any]:
    """The whole task with a `predictions` list, ready for Label Studio's import.

    older             predictions of other versions that the task carries and keeps
    keep_annotations  annotations and drafts are left out otherwise, because one foreign `completed_by` id fails a
                      whole import
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
    """`{"task", "result", "score", "model_version"}` for `import/predictions`; a failure has an `error` instead."""
    record: dict[str, Any] = {"task": task.id if task else None}
    if isinstance(outcome, Failure):
        return record | {"result": [], "error": outcome.to_json()}
    return record | (outcome.to_json() if isinstance(outcome, Prediction) else dict(outcome.prediction))


def stored_predictions(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The predictions that a task carries in full, with the fields that an import keeps; ids alone do not count."""
    stored = raw.get("predictions")
    return [
        {"result": old["result"], "score": old.get("score"), "model_version": old.get("model_version")}
        for old in (stored if isinstance(stored, list) else ())
        if isinstance(old, dict) and isinstance(old.get("result"), list)
    ]
