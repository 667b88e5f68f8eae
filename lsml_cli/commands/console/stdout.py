"""Write reports to standard output, which is for data alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import OutputClosed, OutputError

if TYPE_CHECKING:
    pass


def emit(*lines: str) -> None:
    """Print lines to stdout.

    Raises:
        OutputClosed: The reader of a pipe has closed it.
        OutputError: The lines cannot be written, as on a full disk.
    """
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except OSError as error:
        # Python flushes its buffer once more when it exits, and would report the same error again.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from None
        raise OutputError(f"Standard output cannot be written: {error.strerror}.") from None


def print_json(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as one JSON array, for programs."""
    import orjson

    emit(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
