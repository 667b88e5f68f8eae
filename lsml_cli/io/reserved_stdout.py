"""Keep standard output for records."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_saved_stdout: io.FileIO | None = None  # the real standard output while descriptor 1 leads to stderr


@contextmanager
def reserve_stdout() -> Iterator[None]:
    """Redirect descriptor 1 to stderr: what a model or a library prints must not mix with the records.

    That holds below Python too, and in processes that are started meanwhile. `open_stdout` still reaches the real
    standard output.
    """
    global _saved_stdout
    sys.stdout.flush()
    _saved_stdout = io.FileIO(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(_saved_stdout.fileno(), 1)
        _saved_stdout.close()
        _saved_stdout = None


def open_stdout() -> io.FileIO:
    """Open the real standard output, whether or not it is reserved."""
    return io.FileIO(os.dup(_saved_stdout.fileno() if _saved_stdout else 1), "w")
