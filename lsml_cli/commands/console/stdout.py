"""Write reports to standard output: sentences for people, JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lsml_cli.errors import OutputClosed, OutputError
from lsml_cli.terminal import escape_controls


def emit(*lines: str) -> None:
    """Print lines for people to stdout; control characters in them are shown escaped.

    Raises:
        OutputClosed: The reader of a pipe has closed it.
        OutputError: The lines cannot be written, as on a full disk.
    """
    write_stdout(*map(escape_controls, lines))


def print_json(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as one JSON array, for programs."""
    from lsml_cli.commands.console.summary import to_json

    write_stdout(to_json(rows).decode().removesuffix("\n"))


def write_stdout(*lines: str) -> None:
    """Write lines to stdout as they are: data for programs, or lines whose parts were escaped.

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
