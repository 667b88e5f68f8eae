"""CSV and TSV: written as Label Studio exports them; read with a column of labels, or as such an export."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lsml_cli.errors import InputError
from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, WriteOptions
from lsml_cli.io.formats.json_min import shorten_results
from lsml_cli.io.formats.label_column import TableRow, TableSource
from lsml_cli.io.formats.row_spool import Row, RowSpool, row_fields
from lsml_cli.io.source import RecordSource
from lsml_cli.io.task_reader import row_data
from lsml_cli.schema.json_codec import dumps, loads
from lsml_cli.schema.tasks import is_export_row


class CsvWriter(DatasetWriter):
    """Writes `tasks.csv`, a row for each annotation or prediction, with the columns of Label Studio's own export.

    Cells are written as they are, also those that a spreadsheet takes for a formula: whoever reads them back gets what
    the annotators saw.
    """

    file = "tasks.csv"
    delimiter = ","

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        super().__init__(folder, options)
        self._rows = RowSpool(self.folder, options.config, options.content)

    def write(self, example: Example) -> None:
        results = shorten_results(example.regions, _is_plain_text)
        cells = {name: _to_cell(value) for name, value in results.items()}
        data = {key: _to_cell(value) for key, value in example.task.data.items()}
        fields = row_fields(example, self.options.content)
        if fields.get("annotator") is not None:
            fields["annotator"] = str(fields["annotator"])  # Label Studio's own export has it as text
        self._rows.add(Row(data, cells, fields))
        self.written += len(example.regions)

    def _finish(self) -> None:
        with (
            self.folder.create(self.file) as binary,
            io.TextIOWrapper(binary, encoding="utf-8", newline="", write_through=True) as file,
        ):
            columns = sorted(self._rows.columns)
            writer = csv.DictWriter(file, columns, delimiter=self.delimiter, quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(self._rows)
        self._rows.remove()

    def _close(self) -> None:
        self._rows.close()


class TsvWriter(CsvWriter):
    """Writes `tasks.tsv`: the same with tabs between the cells."""

    file = "tasks.tsv"
    delimiter = "\t"


class CsvSource(TableSource):
    """Reads a table of text; its delimiter is the most frequent of tab, comma and semicolon in the header."""

    title = "CSV"

    def _iter_rows(self) -> Iterator[TableRow]:
        with RecordSource(str(self.path)) as source:
            if source.format != "csv":
                raise InputError(f"{self.path} is JSON, not a table.", "Leave --from out: tasks are read as they are.")
            for record in source:
                share = source.share(record.end) or 0.0
                if record.problem:
                    yield TableRow(record.location, {}, share, record.problem)
                    continue
                fields = loads(record.body)
                values = row_data(fields, frozenset()) if is_export_row(fields) else fields["data"]
                yield TableRow(record.location, values, share)


class TsvSource(CsvSource):
    """The same: what stands between the cells is seen in the header."""

    title = "TSV"


def _to_cell(value: Any) -> Any:
    """Return what a cell holds: texts and numbers as they are, everything else as JSON."""
    return dumps(value).decode() if isinstance(value, Mapping | list | tuple) else value


def _is_plain_text(text: str) -> bool:
    """Return whether a reader takes a cell for this text, not for JSON or for nothing."""
    if not text.startswith(("{", "[")):
        return bool(text)
    try:
        loads(text.encode())
    except ValueError:
        return True
    return False
