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

from lsml_cli.errors import InputError, UsageError, listed
from lsml_cli.io.json_records import Record
from lsml_cli.io.source import Source
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.tasks import Task, parse_task
from lsml_cli.training.splits import content

EXPECTED = "Name a file that `lsml predict` wrote, or an export that holds predictions in full."
AT_A_TIME = 1000  # records that are put on disk together


class Answer(NamedTuple):
    """What was predicted for a task: regions as they are stored, or why there are none."""

    result: Sequence[Mapping[str, Any]]
    failure: str | None = None
    version: str | None = None


class Entry(NamedTuple):
    """One record of the file. `data` is what its task is about; None where only its id is known.

    answer    None where the record is a prediction of another version than the wanted one
    versions  of all predictions in the record
    """

    id: int | None
    data: bytes | None
    answer: Answer | None
    versions: Sequence[str | None] = ()


def read_entry(record: Record, config: LabelConfig, version: str | None = None) -> Entry:
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
        return Entry(task_id, None, _alone(raw, version), () if "error" in raw else (_version(raw),))
    if "data" not in raw or not isinstance(raw.get("predictions"), list):
        raise InputError(f"{record.place}: there is no prediction, nor a list of them.", EXPECTED)
    if any(not isinstance(each, dict) for each in raw["predictions"]):
        raise InputError(
            f"{record.place}: there are only the ids of predictions.",
            "Export a snapshot with predictions in full, or use the file that `lsml predict` wrote.",
        )
    task = parse_task(record)
    stored = stored_predictions(raw)
    return Entry(task.id, content(task, config), _of_task(stored, version), [_version(each) for each in stored])


def _alone(raw: Mapping[str, Any], version: str | None) -> Answer | None:
    if (error := raw.get("error")) is not None:
        reason = error.get("reason") if isinstance(error, Mapping) else None
        return Answer((), str(reason or "failed"))
    if not isinstance(raw.get("result"), list):
        raise ValueError("there is no result")
    if version is not None and raw.get("model_version") != version:
        return None
    return Answer(_regions(raw["result"]), version=_version(raw))


def _of_task(stored: Sequence[Mapping[str, Any]], version: str | None) -> Answer:
    """A task that is in the file was to be predicted: one without a prediction of the version has failed."""
    if version is not None:
        stored = [each for each in stored if each["model_version"] == version]
    if not stored:
        return Answer((), "no prediction" if version is None else "no prediction of this version")
    return Answer(_regions(stored[-1]["result"]), version=_version(stored[-1]))


def _version(prediction: Mapping[str, Any]) -> str | None:
    found = prediction.get("model_version")
    return found if isinstance(found, str) else None


def _regions(result: Sequence[Any]) -> list[Mapping[str, Any]]:
    return [region for region in result if isinstance(region, Mapping)]


@dataclass
class _Seen:
    """What has been read; `versions` of all predictions, `given` of those that tasks were given."""

    entries: int = 0
    unreadable: int = 0
    first: str = ""
    torn: bool = False
    versions: Counter[str | None] = field(default_factory=Counter)
    given: Counter[str | None] = field(default_factory=Counter)


class PredictionFile:
    """Gives the prediction of one task after the other. Use it as a context manager."""

    def __init__(self, path: str, config: LabelConfig, version: str | None = None) -> None:
        """Raises UsageError when there is no such file, InputError when it holds no predictions."""
        self.name = path
        self._config = config
        self._version = version
        self._source = Source(path)
        if self._source.form == "csv":
            self._source.__exit__(None, None, None)
            raise InputError(f"{path} is a table, not a file of predictions.", EXPECTED)
        self._records = self._read()
        self._seen = _Seen()
        self._stash = _Stash()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._source.__exit__(kind, error, tb)
        self._stash.close()

    @property
    def torn(self) -> bool:
        return self._seen.torn

    def notes(self) -> Iterator[str]:
        """What could not be read so far, and whether predictions of several versions were mixed."""
        if self._seen.unreadable:
            count = f"{self._seen.unreadable:,} records" if self._seen.unreadable > 1 else "1 record"
            yield f"{count} of {self.name} could not be read: {self._seen.first}."
        if len(self._seen.given) > 1:
            yield (
                f"What was measured of {self.name} are predictions of {len(self._seen.given)} versions, the last one of"
                f" each task: {_counted(self._seen.given)}. --model-version chooses one of a file of --predictions."
            )

    def require_version(self) -> None:
        """Raises UsageError where predictions of one version are wanted, and there are only others."""
        if self._version is not None and self._seen.versions and self._version not in self._seen.versions:
            raise UsageError(
                f"{self.name} has no prediction of the version {self._version!r}.",
                f"It has those of: {_counted(self._seen.versions)}.",
            )

    def take(self, task: Task) -> Answer | None:
        """The prediction of a task: by its id, else by what the task is about. None where the file has none.

        The same id with other data is another task, of another project.
        """
        answer = self._find(task, content(task, self._config))
        if answer is not None and answer.failure is None:
            self._seen.given[answer.version] += 1
        return answer

    def _find(self, task: Task, about: bytes) -> Answer | None:
        if (body := self._stash.find(task.id, about)) is not None:
            return self._entry(body).answer
        for record, entry in self._records:
            if _same(task, about, entry):
                return entry.answer
            self._stash.put(record.body, entry)
        body = self._stash.find(task.id, about, whatever_id=True)
        return self._entry(body).answer if body is not None else None

    def _entry(self, body: bytes) -> Entry:
        return read_entry(Record(0, "", body), self._config, self._version)

    def _read(self) -> Iterator[tuple[Record, Entry]]:
        for record in self._source:
            try:
                entry = read_entry(record, self._config, self._version)
            except InputError as error:
                raise InputError(f"{self.name}, {error.message}", error.hint) from None
            except ValueError as error:
                self._seen.unreadable += 1
                self._seen.first = self._seen.first or f"{record.place}: {error}"
                self._seen.torn = self._seen.torn or record.torn
                continue
            self._seen.entries += 1
            self._seen.versions.update(entry.versions)
            if entry.answer is not None:
                yield record, entry


def _counted(versions: Counter[str | None]) -> str:
    return listed(f"{version or 'no version'} ({count:,})" for version, count in versions.most_common())


def _same(task: Task, about: bytes, entry: Entry) -> bool:
    if entry.data is not None and entry.data != about:
        return False
    if task.id is None or entry.id is None:
        return entry.data is not None
    return task.id == entry.id


class _Stash:
    """Records that came before their task did, on disk. A table in a temporary file, which is gone with the process."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None
        self._waiting: list[tuple[int | None, bytes | None, bytes]] = []

    def put(self, body: bytes, entry: Entry) -> None:
        about = None if entry.data is None else _digest(entry.data)
        self._waiting.append((entry.id, about, body))
        if len(self._waiting) == AT_A_TIME:
            self._flush()

    def find(self, task: int | None, about: bytes, whatever_id: bool = False) -> bytes | None:
        """The record of that id about the same data, else one without an id; with `whatever_id` also of another id."""
        if self._database is None and not self._waiting:
            return None
        found = self._flush()
        digest = _digest(about)
        queries: list[tuple[str, tuple[Any, ...]]] = []
        if task is not None:
            queries.append(("id = ? AND (about IS NULL OR about = ?)", (task, digest)))
        if task is None or whatever_id:
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
        if self._waiting:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO record VALUES (?, ?, ?)", self._waiting)
            self._database.execute("COMMIT")
            self._waiting.clear()
        return self._database


def _digest(about: bytes) -> bytes:
    return blake2b(about, digest_size=16).digest()
