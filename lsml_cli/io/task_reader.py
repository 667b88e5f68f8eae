"""Parse the records of an input into tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lsml_cli.io.json_records import Record
from lsml_cli.io.source import RecordSource
from lsml_cli.io.task_source import TaskSource
from lsml_cli.progress import ProgressReporter
from lsml_cli.schema.json_codec import loads
from lsml_cli.schema.tasks import (
    DATA_PREFIX,
    EXPORT_ROW_FIELDS,
    MissingDataError,
    Task,
    UnreadableRecord,
    as_id,
    describe_json_type,
    is_export_row,
    parse_id,
)

REPORTED_TASKS = 100  # tasks from one report of the progress to the next


class TaskStream(Iterator[Task | UnreadableRecord]):
    """The tasks of a file, one at a time; see `read_tasks`."""

    def __init__(self, source: str | TaskSource, controls: frozenset[str], id_column: str | None) -> None:
        self._tasks = self._read(source, controls, id_column)
        self._records: TaskSource | None = None
        self._end = 0

    @property
    def share(self) -> float | None:
        """Which part (0..1) of the file was yielded; None for a pipe."""
        return self._records.share(self._end) if self._records else None

    def __next__(self) -> Task | UnreadableRecord:
        return next(self._tasks)

    def report(self, reporter: ProgressReporter, phase: str) -> Iterator[Task | UnreadableRecord]:
        """Yield the tasks, and report how far the file is read: for a caller that is done with one before the next."""
        reporter.start_phase(phase)
        for number, task in enumerate(self, 1):
            yield task
            if number % REPORTED_TASKS == 0:
                reporter.progress(number, 0, self.share)

    def _read(
        self, source: str | TaskSource, controls: frozenset[str], id_column: str | None
    ) -> Iterator[Task | UnreadableRecord]:
        with RecordSource(source, id_column) if isinstance(source, str) else source as records:
            self._records = records
            for record in records:
                self._end = record.end
                try:
                    yield parse_task(record, controls, id_column)
                except ValueError as error:
                    yield UnreadableRecord(record.index, record.location, str(error), record.truncated)


def read_tasks(source: str | TaskSource, *, controls: Iterable[str] = (), id_column: str | None = None) -> TaskStream:
    """Yield the tasks of a file, one at a time.

    Formats are detected by content: JSON array, JSON Lines, JSON_MIN, CSV, TSV, each also gzipped.

    Args:
        source: A path, or "-" for standard input; or an open source.
        controls: Names of the label config's controls: JSON_MIN and CSV exports put their results beside the data.
        id_column: The column (CSV) or key (items without `data`) that holds the id of tasks that have none.

    Returns:
        Tasks in input order; an `UnreadableRecord` where there is no task.

    Raises:
        UsageError: There is no such file.
        InputError: It holds nothing that could be tasks.

    Example:
        >>> for task in read_tasks("export.json"):
        ...     print(task.index, task.id)
    """
    return TaskStream(source, frozenset(controls), id_column)


def parse_task(
    record: Record,
    controls: frozenset[str] = frozenset(),
    id_column: str | None = None,
    loads: Callable[[bytes], Any] = loads,
) -> Task:
    """Parse a record: a whole task, a row of an export, or a bare item that is only data.

    Args:
        record: The bytes of one task.
        controls: See `read_tasks`.
        id_column: See `read_tasks`.
        loads: The JSON parser.

    Raises:
        MissingDataError: A task whose "data" is no object; it carries the task all the same.
        ValueError: There is no task; the message is a sentence.
    """
    if record.problem:
        raise ValueError(record.problem)
    raw = loads(record.body)
    if not isinstance(raw, dict):
        raise ValueError(f"expected a task, an object, found {describe_json_type(raw)}")
    is_row = is_export_row(raw)
    is_task = "data" in raw and not is_row
    data = raw["data"] if is_task else row_data(raw, controls) if is_row else raw
    if not isinstance(data, dict):
        raise MissingDataError(
            f'"data" is {describe_json_type(data)}, expected an object',
            Task(record.index, as_id(raw.get("id")), {}, raw),
        )
    task_id = parse_id(raw.get("id")) if is_row else as_id(raw.get("id")) if is_task else None
    if id_column is not None and (is_row or task_id is None):
        task_id = _read_id(raw if is_row else data, id_column)
        raw = {**raw, "id": task_id} if is_task else raw
    project = raw.get("project") if is_task else None
    return Task(
        record.index,
        task_id,
        data,
        raw,
        str(project) if project is not None else None,
    )


def row_data(row: Mapping[str, Any], controls: frozenset[str]) -> dict[str, Any]:
    """Return the data of a row of an export, without its results and what is about the annotation."""
    names = controls | EXPORT_ROW_FIELDS
    data = {key: value for key, value in row.items() if key not in names}
    for key in [key for key in data if key.startswith(DATA_PREFIX) and key.removeprefix(DATA_PREFIX) in names]:
        data[key.removeprefix(DATA_PREFIX)] = data.pop(key)
    return data


def _read_id(item: Mapping[str, Any], key: str) -> int:
    if key not in item:
        raise ValueError(f'this item has no "{key}", which --id-column names')
    if (task_id := parse_id(item[key])) is None:
        value = repr(item[key]) if isinstance(item[key], str) else describe_json_type(item[key])
        raise ValueError(f'the id under "{key}" is {value}, expected a whole number')
    return task_id
