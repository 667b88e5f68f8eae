"""A file of predictions, and the prediction of each task in it.

Both shapes that `lsml predict` writes are read, and exports that hold predictions in full. Predictions in the order of
the tasks, which is the common case, are read side by side with them; those that come earlier wait on disk until their
task does. So memory does not grow with either file.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from lsml_cli.errors import InputError, UsageError, format_list
from lsml_cli.io.json_records import Record
from lsml_cli.io.source import RecordSource
from lsml_cli.io.task_reader import parse_task
from lsml_cli.schema.annotations import task_content
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.tasks import Task

EXPECTED_FILE_HINT = "Name a file that `lsml predict` wrote, or an export that holds predictions in full."
INSERT_BATCH_SIZE = 1000  # records that are put on disk together


class StoredPrediction(NamedTuple):
    """What was predicted for a task: regions as they are stored, or why there are none."""

    result: Sequence[Mapping[str, Any]]
    failure: str | None = None
    model_version: str | None = None


class PredictionEntry(NamedTuple):
    """One record of the file. `data` is what its task is about; None where only its id is known.

    answer    None where the record is a prediction of another version than the wanted one
    versions  of all predictions in the record
    """

    id: int | None
    content: bytes | None
    prediction: StoredPrediction | None
    model_versions: Sequence[str | None] = ()


def parse_entry(record: Record, config: LabelConfig, model_version: str | None = None) -> PredictionEntry:
    """The prediction in a record: the last one that the task has, or the last one of a `version`.

    Raises ValueError with a sentence where there is no record, InputError where it cannot be one of a prediction.
    """
    if record.problem:
        raise ValueError(record.problem)
    try:
        raw = orjson.loads(record.body)
    except orjson.JSONDecodeError:
        raise ValueError("not JSON") from None
    if not isinstance(raw, dict):
        raise ValueError("no object")
    if "task" in raw and "data" not in raw:
        task_id = raw["task"] if type(raw["task"]) is int else None
        return PredictionEntry(
            task_id,
            None,
            _parse_prediction_record(raw, model_version),
            () if "error" in raw else (_get_model_version(raw),),
        )
    if "data" not in raw or not isinstance(raw.get("predictions"), list):
        raise InputError(f"{record.location}: there is no prediction, nor a list of them.", EXPECTED_FILE_HINT)
    if any(not isinstance(each, dict) for each in raw["predictions"]):
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
        [_get_model_version(each) for each in stored],
    )


def _parse_prediction_record(raw: Mapping[str, Any], model_version: str | None) -> StoredPrediction | None:
    if (error := raw.get("error")) is not None:
        reason = error.get("reason") if isinstance(error, Mapping) else None
        return StoredPrediction((), str(reason or "failed"))
    if not isinstance(raw.get("result"), list):
        raise ValueError("there is no result")
    if model_version is not None and raw.get("model_version") != model_version:
        return None
    return StoredPrediction(_filter_regions(raw["result"]), model_version=_get_model_version(raw))


def _select_prediction(stored: Sequence[Mapping[str, Any]], model_version: str | None) -> StoredPrediction:
    """A task that is in the file was to be predicted: one without a prediction of the version has failed."""
    if model_version is not None:
        stored = [each for each in stored if each["model_version"] == model_version]
    if not stored:
        return StoredPrediction((), "no prediction" if model_version is None else "no prediction of this version")
    return StoredPrediction(_filter_regions(stored[-1]["result"]), model_version=_get_model_version(stored[-1]))


def _get_model_version(prediction: Mapping[str, Any]) -> str | None:
    found = prediction.get("model_version")
    return found if isinstance(found, str) else None


def _filter_regions(result: Sequence[Any]) -> list[Mapping[str, Any]]:
    return [region for region in result if isinstance(region, Mapping)]


@dataclass
class _ReadStatistics:
    """What has been read; `versions` of all predictions, `given` of those that tasks were given."""

    entries: int = 0
    unreadable: int = 0
    first_problem: str = ""
    truncated: bool = False
    model_versions: Counter[str | None] = field(default_factory=Counter)
    used_versions: Counter[str | None] = field(default_factory=Counter)


class PredictionFile:
    """Gives the prediction of one task after the other. Use it as a context manager."""

    def __init__(self, path: str, config: LabelConfig, model_version: str | None = None) -> None:
        """Raises UsageError when there is no such file, InputError when it holds no predictions."""
        self.name = path
        self._config = config
        self._model_version = model_version
        self._source = RecordSource(path)
        if self._source.format == "csv":
            self._source.__exit__(None, None, None)
            raise InputError(f"{path} is a table, not a file of predictions.", EXPECTED_FILE_HINT)
        self._records = self._read()
        self._statistics = _ReadStatistics()
        self._pending = _RecordStore()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._source.__exit__(kind, error, tb)
        self._pending.close()

    @property
    def truncated(self) -> bool:
        return self._statistics.truncated

    def warnings(self) -> Iterator[str]:
        """What could not be read so far, and whether predictions of several versions were mixed."""
        if self._statistics.unreadable:
            count = f"{self._statistics.unreadable:,} records" if self._statistics.unreadable > 1 else "1 record"
            yield f"{count} of {self.name} could not be read: {self._statistics.first_problem}."
        if len(self._statistics.used_versions) > 1:
            yield (
                f"What was measured of {self.name} are predictions of {len(self._statistics.used_versions)} versions, the last one of"
                f" each task: {_format_versions(self._statistics.used_versions)}. --model-version chooses one of a file of --predictions."
            )

    def require_version(self) -> None:
        """Raises UsageError where predictions of one version are wanted, and there are only others."""
        if (
            self._model_version is not None
            and self._statistics.model_versions
            and self._model_version not in self._statistics.model_versions
        ):
            raise UsageError(
                f"{self.name} has no prediction of the version {self._model_version!r}.",
                f"It has those of: {_format_versions(self._statistics.model_versions)}.",
            )

    def lookup(self, task: Task) -> StoredPrediction | None:
        """The prediction of a task: by its id, else by what the task is about. None where the file has none.

        The same id with other data is another task, of another project.
        """
        answer = self._find(task, task_content(task, self._config))
        if answer is not None and answer.failure is None:
            self._statistics.used_versions[answer.model_version] += 1
        return answer

    def _find(self, task: Task, content: bytes) -> StoredPrediction | None:
        if (body := self._pending.find(task.id, content)) is not None:
            return self._parse(body).prediction
        for record, entry in self._records:
            if _is_same_task(task, content, entry):
                return entry.prediction
            self._pending.add(record.body, entry)
        body = self._pending.find(task.id, content, any_id=True)
        return self._parse(body).prediction if body is not None else None

    def _parse(self, body: bytes) -> PredictionEntry:
        return parse_entry(Record(0, "", body), self._config, self._model_version)

    def _read(self) -> Iterator[tuple[Record, PredictionEntry]]:
        for record in self._source:
            try:
                entry = parse_entry(record, self._config, self._model_version)
            except InputError as error:
                raise InputError(f"{self.name}, {error.message}", error.hint) from None
            except ValueError as error:
                self._statistics.unreadable += 1
                self._statistics.first_problem = self._statistics.first_problem or f"{record.location}: {error}"
                self._statistics.truncated = self._statistics.truncated or record.truncated
                continue
            self._statistics.entries += 1
            self._statistics.model_versions.update(entry.model_versions)
            if entry.prediction is not None:
                yield record, entry


def _format_versions(versions: Counter[str | None]) -> str:
    return format_list(f"{version or 'no version'} ({count:,})" for version, count in versions.most_common())


def _is_same_task(task: Task, content: bytes, entry: PredictionEntry) -> bool:
    if entry.content is not None and entry.content != content:
        return False
    if task.id is None or entry.id is None:
        return entry.content is not None
    return task.id == entry.id


class _RecordStore:
    """Records that came before their task did, on disk. A table in a temporary file, which is gone with the process."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None
        self._buffer: list[tuple[int | None, bytes | None, bytes]] = []

    def add(self, body: bytes, entry: PredictionEntry) -> None:
        about = None if entry.content is None else _digest(entry.content)
        self._buffer.append((entry.id, about, body))
        if len(self._buffer) == INSERT_BATCH_SIZE:
            self._flush()

    def find(self, task_id: int | None, content: bytes, any_id: bool = False) -> bytes | None:
        """The record of that id about the same data, else one without an id; with `whatever_id` also of another id."""
        if self._database is None and not self._buffer:
            return None
        found = self._flush()
        digest = _digest(content)
        queries: list[tuple[str, tuple[Any, ...]]] = []
        if task_id is not None:
            queries.append(("id = ? AND (about IS NULL OR about = ?)", (task_id, digest)))
        if task_id is None or any_id:
            queries.append(("about = ?", (digest,)))
        else:
            queries.append(("about = ? AND id IS NULL", (digest,)))
        for condition, values in queries:
            row = found.execute(f"SELECT body FROM record WHERE {condition} LIMIT 1", values).fetchone()
            if row is not None:
                return bytes(row[0])
        return None

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _flush(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect("", isolation_level=None)  # "": a file, which nobody else sees
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.execute("CREATE TABLE record (id INTEGER, about BLOB, body BLOB)")
            self._database.execute("CREATE INDEX by_id ON record (id)")
            self._database.execute("CREATE INDEX by_data ON record (about)")
        if self._buffer:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO record VALUES (?, ?, ?)", self._buffer)
            self._database.execute("COMMIT")
            self._buffer.clear()
        return self._database


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()
