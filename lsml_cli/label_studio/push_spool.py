"""What `lsml predict` wrote, read once and checked: what may be sent waits on disk, all else is told of."""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, Self

import orjson

from lsml_cli.errors import OutputError
from lsml_cli.io.json_records import Record
from lsml_cli.io.output_paths import resolve_output_path, sibling_path
from lsml_cli.io.source import RecordSource
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction, dumps
from lsml_cli.schema.tasks import describe_json_type

MAX_SHOWN_REJECTIONS = 3  # rejections that are said at once
COPIED_TASK_FIELDS = (
    "data",
    "meta",
)  # what a new task takes over from an old one: ids, annotations and drafts belong elsewhere

REQUIRED_REGION_FIELDS = ("id", "from_name", "to_name", "type", "value")
RELATION_DEFAULTS: Mapping[str, Any] = {
    "id": "",
    "from_name": "",
    "to_name": "",
    "value": {},
}  # a relation has none of these

Stage = Literal["read", "check", "task", "send"]  # not JSON; not what the config wants; no such task; not taken


class ProgressReporter(Protocol):
    def note(self, sentence: str, important: bool = False) -> None: ...

    def progress(self, tasks: int, failed: int, fraction: float | None) -> None: ...


class SpoolItem(NamedTuple):
    """Something to send. `number` is its position among them, `index` and `place` that of its record in the input."""

    position: int
    index: int  # type: ignore[assignment]  # the method of tuples goes, nobody misses it
    location: str
    body: bytes


class Rejections:
    """What is not sent, or not taken: counted, the first few said, all of it in the error file."""

    def __init__(self, path: Path | None, source: str, reporter: ProgressReporter) -> None:
        self.count = 0
        self.by_stage: Counter[Stage] = Counter()
        self.path = path
        self._source = source
        self._reporter = reporter
        self._part = sibling_path(resolve_output_path(str(path)), ".new") if path else None
        self._file = self._part.open("wb") if self._part else None

    def add(self, stage: Stage, reason: str, task_id: int | None, index: int, location: str) -> None:
        self.count += 1
        self.by_stage[stage] += 1
        if self.count <= MAX_SHOWN_REJECTIONS:
            named = f", task {task_id}" if task_id is not None else ""
            self._reporter.note(f"rejected: {self._source}, {location}{named}: {reason}", important=True)
        if self._file:
            line = {
                "id": task_id,
                "index": index,
                "place": location,
                "stage": stage,
                "reason": reason,
                "transient": False,
            }
            try:
                self._file.write(orjson.dumps(line) + b"\n")
            except OSError as error:
                raise OutputError(f"{self.path} cannot be written: {error.strerror}.") from None

    def close(self) -> None:
        """Let the error file appear, also when the run was not finished."""
        if self._file and self._part and self.path:
            self._file.close()
            self._part.replace(resolve_output_path(str(self.path)))


class Spool:
    """Bodies that may be sent, in a temporary file, in the order of the input; here is only what is counted.

    tasks     the task that each belongs to, eight bytes each; -1 for one that is still to be made
    versions  how many there are of each model version; named: of each one in the input, whether sent or not
    counts    "records", "failed" (predict said so), "empty" (a task without prediction), "other" (another version)
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
        """`body` is JSON on one line."""
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
        for number, line in enumerate(self._file):
            index, place, body = line.rstrip(b"\n").split(b"\t", 2)
            yield SpoolItem(number, int(index), place.decode(), body)


def spool_records(
    source: RecordSource,
    config: LabelConfig,
    spool: Spool,
    rejections: Rejections,
    version: str | None,
    whole_tasks: bool,
) -> None:
    """Read everything, and put what may be sent into `spool`.

    version  only predictions of this one
    whole    tasks with their predictions are to be sent, to be made anew; otherwise predictions of tasks that are there
    """
    for record in source:
        spool.counts["records"] += 1
        task: int | None = None
        try:
            raw = _parse_record(record)
            task = raw.get("id") if "data" in raw else raw.get("task")
            task = task if type(task) is int else None
            if whole_tasks:
                _spool_task(raw, config, spool, record, version)
            else:
                _spool_predictions(raw, task, config, spool, record, version)
        except _RecordRejected as wrong:
            rejections.add(wrong.stage, str(wrong), task, record.index, record.location)


class _RecordRejected(ValueError):
    def __init__(self, stage: Stage, reason: str) -> None:
        super().__init__(reason)
        self.stage: Stage = stage


def _parse_record(record: Record) -> dict[str, Any]:
    if record.problem:
        raise _RecordRejected("read", record.problem)
    try:
        raw = orjson.loads(record.body)
    except orjson.JSONDecodeError as error:
        raise _RecordRejected("read", f"not JSON: {str(error).split(':')[0]}") from None
    if not isinstance(raw, dict):
        raise _RecordRejected("read", f"expected a task or a prediction, an object, found {describe_json_type(raw)}")
    return raw


def _spool_predictions(
    raw: Mapping[str, Any], task_id: int | None, config: LabelConfig, spool: Spool, record: Record, version: str | None
) -> None:
    if raw.get("error") is not None and "data" not in raw:
        spool.counts["failed"] += 1
        return
    found: list[Mapping[str, Any]]
    if "data" in raw:
        found = _embedded_predictions(raw)
        if not found:
            spool.counts["empty"] += 1
            return
    elif "result" in raw:
        found = [raw]
    else:
        raise _RecordRejected("read", "this is neither a task nor a prediction: it has neither data nor a result")
    _tally_input_versions(found, spool)
    if task_id is None:
        raise _RecordRejected(
            "read", "this task has no id" if "data" in raw else "this prediction does not say of which task"
        )
    for prediction in found:
        if version is not None and prediction.get("model_version") != version:
            spool.counts["other"] += 1
            continue
        if wrong := find_prediction_problem(prediction, config):
            raise _RecordRejected("check", wrong)
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
    found = _embedded_predictions(raw)
    _tally_input_versions(found, spool)
    wanted = [each for each in found if version is None or each.get("model_version") == version]
    spool.counts["other"] += len(found) - len(wanted)
    for prediction in wanted:
        if wrong := find_prediction_problem(prediction, config):
            raise _RecordRejected("check", wrong)
    if not wanted:
        spool.counts["empty"] += 1
    kept = {key: raw[key] for key in COPIED_TASK_FIELDS if raw.get(key)} | {"data": raw["data"]}
    spool.add(-1, dumps(kept | {"predictions": [_stored_fields(each) for each in wanted]}), record)
    spool.version_counts.update(each["model_version"] for each in wanted)


def _tally_input_versions(predictions: Sequence[Mapping[str, Any]], spool: Spool) -> None:
    versions = (each.get("model_version") for each in predictions)
    spool.input_version_counts.update(version for version in versions if isinstance(version, str))


def _embedded_predictions(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The predictions that a task carries in full; an export has their ids only, which say nothing."""
    stored = task.get("predictions")
    return [each for each in stored if isinstance(each, dict)] if isinstance(stored, list) else []


def _stored_fields(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """What Label Studio keeps of a prediction."""
    return {
        "result": prediction["result"],
        "score": prediction.get("score"),
        "model_version": prediction["model_version"],
    }


def find_prediction_problem(prediction: Mapping[str, Any], config: LabelConfig) -> str | None:
    """None when Label Studio takes the prediction, else one sentence about what is wrong."""
    result = prediction.get("result")
    if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
        return f"its result is {describe_json_type(result)}, not a list of regions"
    if not isinstance(prediction.get("model_version"), str) or not prediction["model_version"]:
        return "it has no model_version, and without one nobody can tell predictions apart"
    if (version := prediction["model_version"]) != version.strip():
        return f"its model_version {version!r} begins or ends with a space, which Label Studio takes away"
    for number, region in enumerate(result):
        missing = next(
            (key for key in REQUIRED_REGION_FIELDS if key not in region and region.get("type") != "relation"), None
        )
        if missing:
            return f"region {number + 1} of {len(result)} has no {missing}"
    try:
        whole = [{**RELATION_DEFAULTS, **region} if region.get("type") == "relation" else region for region in result]
        return config.check(Prediction.from_json({**prediction, "result": whole}))
    except (KeyError, TypeError, ValueError) as error:
        return f"its regions cannot be read: {error}"
