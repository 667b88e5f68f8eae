"""Sorting records that may be more than fit into memory: sorted runs in temporary files, merged at the end."""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from lsml_cli.errors import OutputError

RUN = 64 << 20  # bytes of records in memory
MOST_RUNS = 64  # files that are open at a time
_HEAD = struct.Struct("<dQI")  # key, position, length of the body


class Keyed(NamedTuple):
    """A record by what it is sorted; `position` in the input breaks ties, so that equal ones keep their order."""

    key: float
    position: int
    body: bytes


def sorted_on_disk(records: Iterable[Keyed], folder: Path, *, run: int = RUN) -> Iterator[bytes]:
    """The bodies, the lowest key first. Memory holds `run` bytes of them; `folder` takes about as much as they are.

    Raises OutputError when there is no room for the temporary files.
    """
    runs: list[IO[bytes]] = []
    held: list[Keyed] = []
    size = 0
    try:
        for record in records:
            held.append(record)
            size += len(record.body) + 100  # what Python needs for it besides
            if size > run:
                runs.append(_written(sorted(held), folder))
                held, size = [], 0
                if len(runs) == MOST_RUNS:
                    merged = _written(heapq.merge(*map(_read, runs)), folder)
                    _close(runs)
                    runs.append(merged)
        for record in heapq.merge(*map(_read, runs), iter(sorted(held))):
            yield record.body
    finally:
        _close(runs)


def _written(records: Iterable[Keyed], folder: Path) -> IO[bytes]:
    """A sorted run, in a file without a name that is gone when it is closed."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with its run
    try:
        for key, position, body in records:
            file.write(_HEAD.pack(key, position, len(body)))
            file.write(body)
        file.flush()
    except OSError as error:
        file.close()
        raise OutputError(
            f"There is no room to sort in {folder}: {error.strerror}.", "Make room there, or write to another disk."
        ) from None
    return file


def _read(file: IO[bytes]) -> Iterator[Keyed]:
    file.seek(0)
    while head := file.read(_HEAD.size):
        key, position, length = _HEAD.unpack(head)
        yield Keyed(key, position, file.read(length))


def _close(runs: list[IO[bytes]]) -> None:
    for file in runs:
        file.close()
    runs.clear()
