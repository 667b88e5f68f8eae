"""Sort records that may not fit into memory: sorted runs in temporary files, merged at the end."""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from lsml_cli.errors import OutputError

RUN_BYTES = 64 << 20  # bytes of records in memory
MAX_OPEN_RUNS = 64  # files that are open at a time
RECORD_OVERHEAD = 100  # bytes that Python needs for a record beside its body
_RECORD_HEADER = struct.Struct("<dQI")  # key, position, length of the body


class KeyedRecord(NamedTuple):
    """A record and its sort key; `position` in the input breaks ties, so that equal keys keep their order."""

    key: float
    position: int
    body: bytes


def sort_on_disk(records: Iterable[KeyedRecord], folder: Path, *, run_bytes: int = RUN_BYTES) -> Iterator[bytes]:
    """Yield the bodies of records, lowest key first.

    Args:
        records: What to sort.
        folder: Where the temporary files go; they take about as much space as the records.
        run_bytes: Bytes of records to hold in memory.

    Raises:
        OutputError: There is no room for the temporary files.
    """
    runs: list[IO[bytes]] = []
    in_memory: list[KeyedRecord] = []
    size = 0
    try:
        for record in records:
            in_memory.append(record)
            size += len(record.body) + RECORD_OVERHEAD
            if size > run_bytes:
                runs.append(_write_run(sorted(in_memory), folder))
                in_memory, size = [], 0
                if len(runs) == MAX_OPEN_RUNS:
                    merged = _write_run(heapq.merge(*map(_read_run, runs)), folder)
                    _close_runs(runs)
                    runs.append(merged)
        for record in heapq.merge(*map(_read_run, runs), iter(sorted(in_memory))):
            yield record.body
    finally:
        _close_runs(runs)


def _write_run(records: Iterable[KeyedRecord], folder: Path) -> IO[bytes]:
    """Write a sorted run to a file without a name, which is gone when it is closed."""
    file: IO[bytes] | None = None
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with its run
        for key, position, body in records:
            file.write(_RECORD_HEADER.pack(key, position, len(body)))
            file.write(body)
        file.flush()
    except OSError as error:
        if file is not None:
            file.close()
        raise OutputError(
            f"There is no room to sort in {folder}: {error.strerror}.", "Make room there, or write to another disk."
        ) from None
    return file


def _read_run(file: IO[bytes]) -> Iterator[KeyedRecord]:
    file.seek(0)
    while head := file.read(_RECORD_HEADER.size):
        key, position, length = _RECORD_HEADER.unpack(head)
        yield KeyedRecord(key, position, file.read(length))


def _close_runs(runs: list[IO[bytes]]) -> None:
    for file in runs:
        file.close()
    runs.clear()
