"""Read and check the input of a push once: valid items wait in a spool on disk, the others are rejected."""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Self

import orjson

from lsml_cli.errors import OutputError
from lsml_cli.io.journal import JournalEntry
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import open_output
from lsml_cli.io.output_target import OutputTarget
from lsml_cli.io.source import RecordSource
from lsml_cli.progress import ProgressReporter
from lsml_cli.schema.failure_causes import MAX_SHOWN_CAUSES, FailureCauses
from lsml_cli.schema.json_codec import dumps, has_large_integers, loads, loads_exactly
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import as_id, describe_json_type

PROGRESS_INTERVAL = 100  # records
# What a new task takes over from its record: ids, annotations and drafts belong to another project.
COPIED_TASK_FIELDS = ("data", "meta")
_NO_TASK_ID = (
    "this task has no id: predict a table with --id-column ID, or make new tasks of the file with --create-tasks"
)
REQUIRED_REGION_FIELDS = ("id", "from_name", "to_name", "type", "value")
# A relation has none of the required fields.
RELATION_DEFAULTS: Mapping[str, Any] = {"id": "", "from_name": "", "to_name": "", "value": {}}

# Where an item was rejected: it is not JSON, does not fit the label config, names an unknown task, was not accepted.
Stage = Literal["read", "check", "task", "send"]


class SpoolItem(NamedTuple):
    """An item to send.

    Attributes:
        position: Position in the spool, from 0.
        index: Position of its record in the input, from 0.
        location: Where the record stands in the input: "line 12".
        body: The JSON to send.
    """

    position: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    location: str
    body: bytes


class Rejections:
    """Count rejected items by cause, show the first of each cause, and list all of them in the error file."""

    def __init__(self, path: Path | None, source: str, reporter: ProgressReporter) -> None:
        self.count = 0
        self.by_stage: Counter[Stage] = Counter()
        self.causes = FailureCauses()
        self.path = path
        self._source = source
        self._reporter = reporter
        target = OutputTarget(str(path), requested_format="jsonl", is_resumable=False)
        self._output = open_output(target) if path else None

    def add(self, stage: Stage, reason: str, task_id: int | None, index: int, location: str) -> None:
        """Reject an item; raise OutputError if the error file cannot be written."""
        self.count += 1
        self.by_stage[stage] += 1
        item_name = f"{self._source}, {location}" + (f", task {task_id}" if task_id is not None else "")
        cause = self.causes.add(stage, reason, item_name)
        if cause is not None and cause.count == 1 and len(self.causes) <= MAX_SHOWN_CAUSES:
            self._reporter.note(f"rejected: {item_name}: {reason}", important=True)
        if self._output:
            line = {
                "id": task_id,
                "index": index,
                "place": location,
                "stage": stage,
                "reason": reason,
                "transient": False,
            }
            self._output.write([orjson.dumps(line)], (), JournalEntry(self.count))

    def close(self) -> None:
        """Let the error file appear under its name, also if the run was not finished."""
        if self._output:
            self._output.finish()
            self._output.close()
            self._output = None


class Spool:
    """Items to send, in the order of the input: bodies in a temporary file, only task ids and counts in memory.

    Attributes:
        task_ids: The task of each item, eight bytes each; -1 for a task that is still to be created.
        version_counts: Items by model version.
        input_version_counts: Predictions of the input by model version, whether they are sent or not.
        counts: "records", "failed" (`lsml predict` had failed), "empty" (a task without a prediction), "other" (a
            prediction of another version).
    """

    def __init__(self) -> None:
        self.task_ids = array("q")
        self.version_counts: Counter[str] = Counter()
        self.input_version_counts: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="lsml-push-")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.task_ids)

    def add(self, task_id: int, body: bytes, record: Record) -> None:
        """Append an item; `body` is JSON on one line. Raises OutputError if the disk is full."""
        try:
            self._file.write(b"%d\t%s\t%s\n" % (record.index, record.location.encode(), body))
        except OSError as error:
            raise OutputError(
                f"The temporary file for what is to be sent cannot grow: {error.strerror}.",
                "Make room there, or set TMPDIR to a folder on another disk.",
            ) from None
        self.task_ids.append(task_id)

    def __iter__(self) -> Iterator[SpoolItem]:
        self._file.seek(0)
        for position, line in enumerate(self._file):
            index, location, body = line.rstrip(b"\n").split(b"\t", 2)
            yield SpoolItem(position, int(index), location.decode(), body)


def spool_records(
    source: RecordSource,
    config: LabelConfig,
    spool: Spool,
    rejections: Rejections,
    version: str | None,
    whole_tasks: bool,
    reporter: ProgressReporter,
) -> None:
    """Read all records; put valid items into the spool and reject the others.

    Args:
        source: The input.
        config: What the predictions have to fit.
        spool: Takes the items to send.
        rejections: Takes the others.
        version: Send only predictions of this version.
        whole_tasks: Whether items are tasks to be created, with their predictions, or predictions of existing tasks.
        reporter: Is told how far the file is read.
    """
    reporter.start_phase("checking", "records")
    for record in source:
        spool.counts["records"] += 1
        if spool.counts["records"] % PROGRESS_INTERVAL == 0:
            reporter.progress(spool.counts["records"], rejections.count, source.share(record.end))
        task_id: int | None = None
        try:
            raw = _parse_record(record)
            task_id = as_id(raw.get("id") if "data" in raw else raw.get("task"))
            if whole_tasks:
                _spool_task(raw, config, spool, record, version)
            else:
                _spool_predictions(raw, task_id, config, spool, record, version)
        except _RecordRejected as rejection:
            rejections.add(rejection.stage, str(rejection), task_id, record.index, record.location)


class _RecordRejected(ValueError):
    """A record that is not sent, and why."""

    def __init__(self, stage: Stage, reason: str) -> None:
        super().__init__(reason)
        self.stage: Stage = stage


def _parse_record(record: Record) -> dict[str, Any]:
    if record.problem:
        raise _RecordRejected("read", record.problem)
    try:
        raw = loads_exactly(record.body) if has_large_integers(record.body) else loads(record.body)
    except ValueError as error:
        raise _RecordRejected("read", str(error)) from None
    if not isinstance(raw, dict):
        raise _RecordRejected("read", f"expected a task or a prediction, an object, found {describe_json_type(raw)}")
    return raw


def _spool_predictions(
    raw: Mapping[str, Any], task_id: int | None, config: LabelConfig, spool: Spool, record: Record, version: str | None
) -> None:
    if raw.get("error") is not None and "data" not in raw:
        spool.counts["failed"] += 1
        return
    predictions: list[Mapping[str, Any]]
    data: Mapping[str, Any] | None = None
    if "data" in raw:
        predictions = _embedded_predictions(raw)
        if not predictions:
            spool.counts["empty"] += 1
            return
        data = raw["data"] if isinstance(raw["data"], dict) else None
    elif "result" in raw:
        predictions = [raw]
    else:
        raise _RecordRejected("read", "this is neither a task nor a prediction: it has neither data nor a result")
    _tally_input_versions(predictions, spool)
    if task_id is None:
        raise _RecordRejected("read", _NO_TASK_ID if "data" in raw else "this prediction does not say of which task")
    for prediction in predictions:
        if version is not None and prediction.get("model_version") != version:
            spool.counts["other"] += 1
            continue
        if problem := find_prediction_problem(prediction, config, data):
            raise _RecordRejected("check", problem)
        spool.add(task_id, dumps({"task": task_id} | _stored_fields(prediction)), record)
        spool.version_counts[prediction["model_version"]] += 1


def _spool_task(raw: Mapping[str, Any], config: LabelConfig, spool: Spool, record: Record, version: str | None) -> None:
    if not isinstance(raw.get("data"), dict):
        raise _RecordRejected("read", "this is no whole task: it has no data")
    for obj in config.objects.values():
        try:
            obj.read(raw["data"])
        except ValueError as error:
            raise _RecordRejected("check", str(error)) from None
    predictions = _embedded_predictions(raw)
    _tally_input_versions(predictions, spool)
    selected = [
        prediction for prediction in predictions if version is None or prediction.get("model_version") == version
    ]
    spool.counts["other"] += len(predictions) - len(selected)
    for prediction in selected:
        if problem := find_prediction_problem(prediction, config, raw["data"]):
            raise _RecordRejected("check", problem)
    if not selected:
        spool.counts["empty"] += 1
    task = {key: raw[key] for key in COPIED_TASK_FIELDS if raw.get(key)} | {"data": raw["data"]}
    spool.add(-1, dumps(task | {"predictions": [_stored_fields(prediction) for prediction in selected]}), record)
    spool.version_counts.update(prediction["model_version"] for prediction in selected)


def _tally_input_versions(predictions: Sequence[Mapping[str, Any]], spool: Spool) -> None:
    versions = (prediction.get("model_version") for prediction in predictions)
    spool.input_version_counts.update(version for version in versions if isinstance(version, str))


def _embedded_predictions(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the predictions that a task holds in full; the ids in an export do not count."""
    stored = task.get("predictions")
    return [prediction for prediction in stored if isinstance(prediction, dict)] if isinstance(stored, list) else []


def _stored_fields(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a prediction that Label Studio stores."""
    return {
        "result": prediction["result"],
        "score": prediction.get("score"),
        "model_version": prediction["model_version"],
    }


def find_prediction_problem(
    prediction: Mapping[str, Any], config: LabelConfig, data: Mapping[str, Any] | None = None
) -> str | None:
    """Return what is wrong with a stored prediction as one sentence, None if Label Studio accepts it.

    Args:
        prediction: The prediction.
        config: The label config of its project.
        data: The data of its task, None if the prediction came without it.
    """
    result = prediction.get("result")
    if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
        return f"its result is {describe_json_type(result)}, not a list of regions"
    if not isinstance(prediction.get("model_version"), str) or not prediction["model_version"]:
        return "it has no model_version, and without one predictions cannot be told apart"
    if (version := prediction["model_version"]) != version.strip():
        return f"its model_version {version!r} begins or ends with a space, which Label Studio takes away"
    for number, region in enumerate(result):
        is_relation = region.get("type") == "relation"
        missing = next((key for key in REQUIRED_REGION_FIELDS if key not in region and not is_relation), None)
        if missing:
            return f"region {number + 1} of {len(result)} has no {missing}"
    try:
        completed = [
            {**RELATION_DEFAULTS, **region} if region.get("type") == "relation" else region for region in result
        ]
        return config.check(Prediction.from_json({**prediction, "result": completed}), data)
    except (KeyError, TypeError, ValueError) as error:
        return f"its regions cannot be read: {error}"
