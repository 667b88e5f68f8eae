"""Parse the records of a file of predictions, in either of the shapes that `lsml predict` writes.

A record is a prediction object (`{"task": 7, "result": [...]}`) or a whole task with its predictions, as in exports
that hold predictions in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lsml_cli.errors import InputError
from lsml_cli.io.json_records import Record
from lsml_cli.io.task_reader import parse_task
from lsml_cli.schema.annotations import task_content
from lsml_cli.schema.json_codec import loads
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.tasks import as_id, parse_regions
from lsml_cli.schema.value_checks import is_number

EXPECTED_FILE_HINT = "Name a file that `lsml predict` wrote, or an export that holds predictions in full."


class StoredPrediction(NamedTuple):
    """The prediction of one task: regions as Label Studio stores them, or the reason why there is none."""

    result: Sequence[Mapping[str, Any]]
    failure: str | None = None
    model_version: str | None = None
    stage: str = ""  # that failed


class PredictionEntry(NamedTuple):
    """One record of the file.

    Attributes:
        id: Of the task.
        content: What the task shows, see `task_content`; None if only its id is known.
        prediction: None if the record is a prediction of another than the requested version.
        model_versions: Of all predictions in the record.
    """

    id: int | None
    content: bytes | None
    prediction: StoredPrediction | None
    model_versions: Sequence[str | None] = ()


def parse_entry(record: Record, config: LabelConfig, model_version: str | None = None) -> PredictionEntry:
    """Parse a record: the last prediction of the task, or its last one of `model_version`.

    Raises:
        ValueError: The record is unreadable; the message says why.
        InputError: The file does not hold predictions.
    """
    if record.problem:
        raise ValueError(record.problem)
    raw = loads(record.body)
    if not isinstance(raw, dict):
        raise ValueError("no object")
    if is_prediction_object(raw):
        task_id = as_id(raw["task"])
        model_versions = () if "error" in raw else (_get_model_version(raw),)
        return PredictionEntry(task_id, None, _parse_prediction_object(raw, model_version), model_versions)
    if "data" not in raw or not isinstance(raw.get("predictions"), list):
        raise InputError(f"{record.location}: there is no prediction, nor a list of them.", EXPECTED_FILE_HINT)
    if any(not isinstance(prediction, dict) for prediction in raw["predictions"]):
        raise InputError(
            f"{record.location}: there are only the ids of predictions.",
            "Export a snapshot with predictions in full, or use the file that `lsml predict` wrote.",
        )
    task = parse_task(record)
    stored = stored_predictions(raw)
    return PredictionEntry(
        task.id,
        task_content(task, config),
        _select_prediction(stored, model_version),
        [_get_model_version(prediction) for prediction in stored],
    )


def is_prediction_object(raw: Mapping[str, Any]) -> bool:
    """Return whether a record is a prediction that refers to its task by id, rather than a task."""
    return "task" in raw and "data" not in raw


def parse_score(value: object) -> float | None:
    """Return a stored score as a float; None if it is not a finite number."""
    return float(value) if is_number(value) else None


def _parse_prediction_object(raw: Mapping[str, Any], model_version: str | None) -> StoredPrediction | None:
    if (error := raw.get("error")) is not None:
        details = error if isinstance(error, Mapping) else {}
        return StoredPrediction((), str(details.get("reason") or "failed"), stage=str(details.get("stage") or ""))
    if not isinstance(raw.get("result"), list):
        raise ValueError("there is no result")
    if model_version is not None and raw.get("model_version") != model_version:
        return None
    return StoredPrediction(parse_regions(raw["result"]), model_version=_get_model_version(raw))


def _select_prediction(stored: Sequence[Mapping[str, Any]], model_version: str | None) -> StoredPrediction:
    """Return the last prediction of a task. Without one the task has failed: it was meant to be predicted."""
    if model_version is not None:
        stored = [prediction for prediction in stored if prediction["model_version"] == model_version]
    if not stored:
        return StoredPrediction((), "no prediction" if model_version is None else "no prediction of this version")
    return StoredPrediction(parse_regions(stored[-1]["result"]), model_version=_get_model_version(stored[-1]))


def _get_model_version(prediction: Mapping[str, Any]) -> str | None:
    version = prediction.get("model_version")
    return version if isinstance(version, str) else None
