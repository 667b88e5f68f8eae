"""Rows that wait until all are known: the columns of a table stand before its first row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from lsml_cli.io.formats.dataset_writer import Content, Example
from lsml_cli.io.formats.output_folder import OutputFolder
from lsml_cli.schema.json_codec import dumps, loads
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import DATA_PREFIX, EXPORT_ROW_FIELDS

MAX_BATCH_ROWS = 1_000
MAX_BATCH_BYTES = 16 << 20  # of rows as JSON
_FILE = ".rows"  # in the folder that is made: the rows need room on the same disk anyway
_PREDICTION_FIELDS = ("score", "model_version")
_ANNOTATION_FIELDS = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time")


class Row(NamedTuple):
    """A row of a table, in the parts that its columns come from.

    Attributes:
        data: Of the task.
        results: Of each control, by its name.
        fields: What is about the task, and about the annotation or prediction.
    """

    data: Mapping[str, Any]
    results: Mapping[str, Any]
    fields: Mapping[str, Any]


class RowSpool:
    """Keeps rows in a file of the folder that is written, and the names of their columns in memory.

    Args:
        folder: The folder.
        config: The label config; None: controls are known by their results.
        content: What the rows are about: a row of annotations always has the columns that tell an export of Label
            Studio from other tables.
    """

    def __init__(self, folder: OutputFolder, config: LabelConfig | None, content: Content) -> None:
        self._folder = folder
        self._file = folder.create(_FILE)
        self._data_keys: dict[str, None] = {}
        self._controls: dict[str, None] = dict.fromkeys(config.controls if config else ())
        self._result_keys: dict[str, None] = {}
        is_prediction = content == "predictions"
        self._fields: dict[str, None] = dict.fromkeys(() if is_prediction else _ANNOTATION_FIELDS)
        self._reserved = frozenset({"id", *_PREDICTION_FIELDS}) if is_prediction else EXPORT_ROW_FIELDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def add(self, row: Row) -> None:
        """Add a row.

        Raises:
            ValueError: It holds what is not JSON.
        """
        try:
            line = dumps([row.data, row.results, row.fields])
        except TypeError as error:
            raise ValueError(f"the task cannot be written as JSON: {error}") from None
        self._file.write(line + b"\n")
        for names, keys in ((self._data_keys, row.data), (self._result_keys, row.results), (self._fields, row.fields)):
            names.update(dict.fromkeys(keys))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows by column, in their order; what a row does not have is missing."""
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows in lists that are neither long nor large."""
        names = {key: self._data_column(key) for key in self._data_keys}
        self._file.seek(0)
        batch: list[dict[str, Any]] = []
        size = 0
        for line in self._file:
            row = Row(*loads(line))
            batch.append({names[key]: value for key, value in row.data.items()} | {**row.fields} | {**row.results})
            size += len(line)
            if len(batch) == MAX_BATCH_ROWS or size >= MAX_BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    @property
    def columns(self) -> list[str]:
        """The columns: the data, then the fields, then the controls, each in the order in which they came."""
        data = [self._data_column(key) for key in self._data_keys]
        return list(dict.fromkeys([*data, *self._fields, *self._result_keys]))

    @property
    def controls(self) -> list[str]:
        """The columns that hold results."""
        return list(self._result_keys)

    def remove(self) -> None:
        """Remove the file: the table is written."""
        self.close()
        self._folder.remove(_FILE)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _data_column(self, key: str) -> str:
        """Return the column of a key of the data; Label Studio's own prefix tells it from that of a control."""
        taken = (self._controls, self._result_keys, self._reserved)
        names = (key, key.removeprefix(DATA_PREFIX))
        return DATA_PREFIX + key if any(name in others for name in names for others in taken) else key


def row_fields(example: Example, content: Content) -> dict[str, Any]:
    """Return what a row holds about the task, and about its annotation or prediction."""
    identity = {} if example.task.id is None else {"id": example.task.id}
    source = example.source
    if content == "predictions":
        return {**identity, **{name: source.get(name) for name in _PREDICTION_FIELDS}}
    annotator = source.get("completed_by")
    if isinstance(annotator, Mapping):
        annotator = annotator.get("email") or annotator.get("id")
    kept = {key: source.get(key) for key in ("created_at", "updated_at", "lead_time")}
    return {**identity, "annotator": annotator, "annotation_id": source.get("id"), **kept}
