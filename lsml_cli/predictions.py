"""What a model says about a task, and how it is written down.

A `Prediction` is Label Studio's prediction object; a `Failure` stands in its place when a task could not
be predicted. `render` turns one of them into the bytes of one record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import orjson

from lsml_cli.tasks import Task

Stage = Literal["read", "fetch", "encode", "forward", "decode", "check"]
Shape = Literal["tasks", "predictions"]

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
class Stored:
    """A prediction of this very version that the task carried already; it stays as it is."""

    prediction: Mapping[str, Any]


Outcome = Prediction | Failure | Stored


def region_id(task: int | str, control: str, ordinal: int) -> str:
    """A region's id: ten hexadecimal digits, the same in every run.

    `task` is the task's id, or its position in the input when it has none.
    """
    return blake2b(f"{task}\0{control}\0{ordinal}".encode(), digest_size=5).hexdigest()


def render(
    task: Task | None,
    outcome: Outcome,
    shape: Shape,
    keep_annotations: bool,
    dumps: Callable[[Any], bytes] = orjson.dumps,
) -> bytes:
    """One record of the output as JSON on one line, empty when there is nothing that could be written.

    tasks        the whole task with a `predictions` list, ready for Label Studio's import. Annotations and drafts
                 are left out unless `keep_annotations`, because one foreign `completed_by` id fails a whole import.
                 Predictions of other versions stay if the export carried them in full; exported ids of predictions
                 are dropped, because they break the import. Something unreadable is no task: nothing is written.
    predictions  `{"task", "result", "score", "model_version"}` for `import/predictions`
    """
    if shape == "predictions":
        return dumps(_prediction_record(task, outcome))
    if task is None:
        return b""
    return dumps(_task_record(task, outcome, keep_annotations))


_NOT_WRITTEN = ("predictions", "annotations", "completions", "drafts")


def _task_record(task: Task, outcome: Outcome, keep_annotations: bool) -> dict[str, Any]:
    raw = task.raw
    if "data" not in raw:  # a row of JSON_MIN or a bare item
        raw = {"data": task.data} if task.id is None else {"id": task.id, "data": task.data}
    record = dict(raw)
    for key in _NOT_WRITTEN if not keep_annotations else ("predictions",):
        record.pop(key, None)
    new = outcome if isinstance(outcome, Prediction) else None
    kept = [old for old in stored_predictions(raw) if new is None or old["model_version"] != new.model_version]
    record["predictions"] = [*kept, new.to_json()] if new else kept
    return record


def stored_predictions(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The predictions that a task carries in full, with the fields that an import keeps; ids alone do not count."""
    return [
        {"result": old["result"], "score": old.get("score"), "model_version": old.get("model_version")}
        for old in raw.get("predictions") or ()
        if isinstance(old, dict) and isinstance(old.get("result"), list)
    ]


def _prediction_record(task: Task | None, outcome: Outcome) -> dict[str, Any]:
    record: dict[str, Any] = {"task": task.id if task else None}
    if isinstance(outcome, Failure):
        return record | {"result": [], "error": outcome.to_json()}
    return record | (outcome.to_json() if isinstance(outcome, Prediction) else dict(outcome.prediction))
