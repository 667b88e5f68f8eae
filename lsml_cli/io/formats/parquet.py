"""Parquet: a typed table, as `datasets` and pandas read it. Needs the extra `parquet` (pyarrow)."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsml_cli.errors import InputError
from lsml_cli.io.formats.dataset_source import ReadOptions
from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, Region, WriteOptions
from lsml_cli.io.formats.label_column import TableRow, TableSource
from lsml_cli.io.formats.row_spool import MAX_BATCH_ROWS, Row, RowSpool, row_fields
from lsml_cli.schema.json_codec import dumps, loads
from lsml_cli.schema.value_checks import is_number

FILE = "tasks.parquet"

# Types of regions whose results are plain values, and the key that holds them: lists of texts, and numbers.
_TEXT_KEYS = {"choices": "choices", "textarea": "text"}
_NUMBER_KEYS = {"rating": "rating", "number": "number"}
# Coordinates are fractional, whether or not those of a data set are whole numbers.
_FRACTIONAL_KEYS = frozenset({"x", "y", "width", "height", "rotation", "radiusX", "radiusY", "points"})
_FIELD_TYPES = {"id": pa.int64(), "annotation_id": pa.int64(), "lead_time": pa.float64(), "score": pa.float64()}


class ParquetWriter(DatasetWriter):
    """Writes `tasks.parquet`, a row for each annotation or prediction, in groups of rows.

    Columns have the types of their values: texts, numbers, lists of them. A column of choices or texts holds lists
    where the control takes several or some row has several, else single ones. Regions are lists of structs. What has
    no common type, and nested data, is JSON in a text.
    """

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        super().__init__(folder, options)
        self._rows = RowSpool(self.folder, options.config, options.content)
        self._most_texts: Counter[str] = Counter()  # in one row, by control
        self._regions: set[str] = set()  # controls whose results are regions
        for control in options.config.controls.values() if options.config else ():
            if control.type == "choices" and not control.is_single_choice:
                self._most_texts[control.name] = 2

    def write(self, example: Example) -> None:
        results = self._collect_results(example.regions)
        data = {key: _to_column(value) for key, value in example.task.data.items()}
        fields = row_fields(example, self.options.content)
        if fields.get("annotator") is not None:
            fields["annotator"] = str(fields["annotator"])
        self._rows.add(Row(data, results, fields))
        self.written += len(example.regions)

    def _collect_results(self, regions: Sequence[Region]) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for region in regions:
            name, kind, value = region.get("from_name"), str(region.get("type")), region.get("value")
            if not isinstance(name, str) or not isinstance(value, Mapping):
                continue
            if kind in _NUMBER_KEYS:
                results[name] = value.get(_NUMBER_KEYS[kind])
            elif kind in _TEXT_KEYS:
                texts = value.get(_TEXT_KEYS[kind])
                results.setdefault(name, []).extend([texts] if isinstance(texts, str) else texts or ())
                self._most_texts[name] = max(self._most_texts[name], len(results[name]))
            else:
                kept = ("original_width", "original_height", "original_length", "score", "id")
                extra = {key: region[key] for key in kept if region.get(key) is not None}
                shape = {key: _to_floats(item) if key in _FRACTIONAL_KEYS else item for key, item in value.items()}
                results.setdefault(name, []).append({**shape, **extra})
                self._regions.add(name)
        return results

    def _finish(self) -> None:
        schema = self._infer_schema()
        with self.folder.create(FILE) as file, pq.ParquetWriter(file, schema) as writer:
            for batch in self._rows.batches():
                columns = [self._make_array(batch, field.name, field.type) for field in schema]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        self._rows.remove()

    def _infer_schema(self) -> Any:
        """Return the schema that all rows fit; a column without a common type is text."""
        columns = self._rows.columns
        types: dict[str, Any] = {column: _FIELD_TYPES.get(column, pa.null()) for column in columns}
        for batch in self._rows.batches():
            for column in columns:
                types[column] = _unify(types[column], self._values(batch, column))
        return pa.schema([(column, _complete(types[column])) for column in columns])

    def _values(self, batch: Sequence[Mapping[str, Any]], column: str) -> list[Any]:
        """Return the values of a column: for controls of texts, single ones or lists."""
        values = [row.get(column) for row in batch]
        if column in self._regions:
            return [value or [] for value in values]
        if column not in self._most_texts or column not in self._rows.controls:
            return values
        if self._most_texts[column] > 1:
            return [value or [] for value in values]
        return [value[0] if value else None for value in values]

    def _make_array(self, batch: Sequence[Mapping[str, Any]], column: str, kind: Any) -> Any:
        values = self._values(batch, column)
        if pa.types.is_string(kind):
            values = [value if value is None or isinstance(value, str) else dumps(value).decode() for value in values]
        return pa.array(values, type=kind)

    def _close(self) -> None:
        self._rows.close()


def _to_column(value: Any) -> Any:
    """Return a value of the data; nested ones as JSON, since tasks need not agree on their keys."""
    is_nested = isinstance(value, Mapping) or (
        isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value)
    )
    return dumps(value).decode() if is_nested else value


def _to_floats(value: Any) -> Any:
    """Return a number as a fractional one; lists of them likewise."""
    if isinstance(value, list):
        return [_to_floats(item) for item in value]
    return float(value) if is_number(value) else value


def _unify(known: Any, values: list[Any]) -> Any:
    """Return a type for a column with further values; text where there is no common one."""
    try:
        found = pa.array(values).type  # not infer_type, which overlooks values of another type
        fields = [pa.schema([("column", kind)]) for kind in (known, found)]
        return pa.unify_schemas(fields, promote_options="permissive").field("column").type
    except (pa.ArrowException, TypeError, OverflowError):  # of pyarrow, for values of several types
        return pa.string()


def _complete(kind: Any) -> Any:
    """Return a type that can be written: texts where all values are missing."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_complete(kind.value_type))
    if pa.types.is_struct(kind):
        fields = [(field.name, _complete(field.type)) for field in kind]
        return pa.struct(fields) if fields else pa.string()
    return kind


class ParquetSource(TableSource):
    """Reads a table in Parquet, one batch of rows after the other. Columns of bytes are left out."""

    title = "Parquet"

    def __init__(self, path: str, options: ReadOptions) -> None:
        self._binary: list[str] = []
        self._class_names: Mapping[str, Sequence[str]] = {}
        super().__init__(path, options)
        if self._binary:
            self.notes = (f"Columns of bytes are left out, since a task points to files: {', '.join(self._binary)}.",)

    def _iter_rows(self) -> Iterator[TableRow]:
        try:
            file = pq.ParquetFile(self.path, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path} is no Parquet that can be read: {_first_line(error)}.") from None
        with file:
            self._binary = [field.name for field in file.schema_arrow if _has_bytes(field.type)]
            self._class_names = _read_class_names(file.schema_arrow)
            columns = [field.name for field in file.schema_arrow if field.name not in self._binary]
            total = max(1, file.metadata.num_rows)
            done = 0
            for group in range(file.num_row_groups):
                end = done + file.metadata.row_group(group).num_rows
                try:
                    for batch in file.iter_batches(MAX_BATCH_ROWS, row_groups=[group], columns=columns):
                        for values in batch.to_pylist():
                            done += 1
                            yield self._make_row(values, f"row {done}", done / total)
                except (pa.ArrowException, OSError) as error:
                    reason = f"rows {done + 1:,} to {end:,} cannot be read: {_first_line(error)}"
                    yield TableRow(f"row {done + 1}", {}, end / total, reason)
                    done = end

    def _make_row(self, values: Mapping[str, Any], location: str, share: float) -> TableRow:
        for column, names in self._class_names.items():
            if column in values:
                values = {**values, column: _name_classes(values[column], names)}
        try:
            return TableRow(location, {key: _to_json(value) for key, value in values.items()}, share)
        except ValueError as error:
            return TableRow(location, {}, share, str(error))


def _has_bytes(kind: Any) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return pa.types.is_nested(kind) and any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _read_class_names(schema: Any) -> dict[str, Sequence[str]]:
    """Return the names of the classes that `datasets` stores as numbers (ClassLabel), by column."""
    try:
        features = loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found: dict[str, Sequence[str]] = {}
        for column, feature in features.items():
            inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
            if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and isinstance(inner.get("names"), list):
                found[column] = [str(name) for name in inner["names"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}
    return found


def _name_classes(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class by its number, None for -1, which stands for no label."""
    if isinstance(value, list):
        return [_name_classes(item, names) for item in value]
    if isinstance(value, int) and -1 <= value < len(names):
        return names[value] if value >= 0 else None
    return value


def _to_json(value: Any) -> Any:
    """Return a value as JSON has it; raise ValueError for one that has no counterpart."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    raise ValueError(f"a value of type {type(value).__name__} has no counterpart in JSON")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
