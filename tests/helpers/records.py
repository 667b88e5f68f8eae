"""Read the records of a file, for the suites of the readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck

from lsml_cli.io.json_records import Record
from lsml_cli.io.source import RecordSource

# Settings for tests whose examples write one file over and over; they share nothing else.
REUSES_FILE: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def read_records(path: Path, **options: Any) -> list[Record]:
    with RecordSource(str(path), **options) as source:
        return list(source)


def parse_bodies(records: list[Record]) -> list[Any]:
    """Return the parsed body of each record, or its problem; the indices must count up from 0."""
    assert [record.index for record in records] == list(range(len(records)))
    return [json.loads(record.body) if record.body else record.problem for record in records]
