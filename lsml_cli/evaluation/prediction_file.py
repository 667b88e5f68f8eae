"""Look up the prediction of each task in a file of predictions.

Predictions in the order of the tasks, the usual case, are read side by side with them; those that come earlier than
their task wait on disk. So memory does not grow with either file.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from lsml_cli.errors import InputError, OutputError, UsageError, format_list
from lsml_cli.evaluation.prediction_records import EXPECTED_FILE_HINT, PredictionEntry, StoredPrediction, parse_entry
from lsml_cli.evaluation.unreadable_log import UnreadableLog
from lsml_cli.io.json_records import MAX_OUTPUT_RECORD_BYTES, Record
from lsml_cli.io.source import RecordSource
from lsml_cli.registry.versions import is_version_name
from lsml_cli.schema.annotations import content_digest, task_content
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task

INSERT_BATCH_SIZE = 1000  # records written to disk together


@dataclass
class _ReadStatistics:
    """What was read so far; `model_versions` counts all predictions, `used_versions` those that were looked up."""

    entries: int = 0
    unreadable: UnreadableLog = field(default_factory=UnreadableLog)
    model_versions: Counter[str | None] = field(default_factory=Counter)
    used_versions: Counter[str | None] = field(default_factory=Counter)


class PredictionFile:
    """A file of predictions, open for looking up one task after the other. Use it as a context manager."""

    def __init__(self, path: str, config: LabelConfig, model_version: str | None = None) -> None:
        """Open the file.

        Args:
            path: Of the file, or "-" for stdin.
            config: The label config; it says what a task shows.
            model_version: Take predictions of this version only.

        Raises:
            UsageError: There is no such file.
            InputError: It does not hold predictions.
        """
        self.name = path
        self._config = config
        self._model_version = model_version
        self._source = RecordSource(path, max_record_bytes=MAX_OUTPUT_RECORD_BYTES)
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
        return self._statistics.unreadable.is_truncated

    def warnings(self) -> Iterator[str]:
        """Yield sentences about unreadable records so far, and about mixed model versions."""
        statistics = self._statistics
        yield from statistics.unreadable.lines(self.name, "record")
        if len(statistics.used_versions) > 1:
            yield (
                f"What was measured of {self.name} are predictions of {len(statistics.used_versions)} versions, the "
                f"last one of each task: {_format_versions(statistics.used_versions)}. --model-version chooses one of "
                f"a file of --predictions."
            )

    def trained_versions(self) -> list[str]:
        """Return the names of trained versions ("news@20261120T213015") whose predictions were looked up."""
        return [name for name in self._statistics.used_versions if name is not None and is_version_name(name)]

    def require_version(self) -> None:
        """Check that the requested model version occurs in what was read.

        Raises:
            UsageError: It does not, but others do.
        """
        model_versions = self._statistics.model_versions
        if self._model_version is not None and model_versions and self._model_version not in model_versions:
            raise UsageError(
                f"{self.name} has no prediction of the version {self._model_version!r}.",
                f"It has those of: {_format_versions(model_versions)}.",
            )

    def lookup(self, task: Task) -> StoredPrediction | None:
        """Return the prediction of a task, by its id or else by its content; None if the file has none.

        The same id with other content is a task of another project, so it does not match.
        """
        prediction = self._find(task, task_content(task, self._config))
        if prediction is not None and prediction.failure is None:
            self._statistics.used_versions[prediction.model_version] += 1
        return prediction

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
                self._statistics.unreadable.add(record.location, str(error), truncated=record.truncated)
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
    """Records that came before their task, in an SQLite table in a temporary file that ends with the process."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None
        self._buffer: list[tuple[int | None, bytes | None, bytes]] = []

    def add(self, body: bytes, entry: PredictionEntry) -> None:
        digest = None if entry.content is None else content_digest(entry.content)
        self._buffer.append((entry.id, digest, body))
        if len(self._buffer) == INSERT_BATCH_SIZE:
            self._flush()

    def find(self, task_id: int | None, content: bytes, any_id: bool = False) -> bytes | None:
        """Return a record by id and content, else by content alone: one without an id, or with `any_id` any."""
        if self._database is None and not self._buffer:
            return None
        database = self._flush()
        digest = content_digest(content)
        queries: list[tuple[str, tuple[Any, ...]]] = []
        if task_id is not None:
            queries.append(("id = ? AND (digest IS NULL OR digest = ?)", (task_id, digest)))
        if task_id is None or any_id:
            queries.append(("digest = ?", (digest,)))
        else:
            queries.append(("digest = ? AND id IS NULL", (digest,)))
        for condition, values in queries:
            row = database.execute(f"SELECT body FROM record WHERE {condition} LIMIT 1", values).fetchone()
            if row is not None:
                return bytes(row[0])
        return None

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _flush(self) -> sqlite3.Connection:
        """Write what waits in memory to the table.

        Raises:
            OutputError: There is no room for it.
        """
        try:
            return self._write_buffer()
        except sqlite3.OperationalError as error:  # the disk is full, or the folder cannot be written
            folder = os.environ.get("SQLITE_TMPDIR") or tempfile.gettempdir()
            raise OutputError(
                f"Predictions in another order than the tasks wait on disk, and {folder} cannot take them: {error}.",
                "Make room there, or name another folder for temporary files: TMPDIR=/path lsml evaluate ...",
            ) from None

    def _write_buffer(self) -> sqlite3.Connection:
        if self._database is None:
            # The name "" stands for a temporary file that no other process can open.
            self._database = sqlite3.connect("", isolation_level=None)
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.execute("CREATE TABLE record (id INTEGER, digest BLOB, body BLOB)")
            self._database.execute("CREATE INDEX by_id ON record (id)")
            self._database.execute("CREATE INDEX by_digest ON record (digest)")
        if self._buffer:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO record VALUES (?, ?, ?)", self._buffer)
            self._database.execute("COMMIT")
            self._buffer.clear()
        return self._database
