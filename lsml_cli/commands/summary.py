"""`--summary FILE`: what a command did, as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsml_cli.errors import OutputError, UsageError


def require_writable(path: Path | None) -> None:
    """Raises UsageError for a place where no file can be: before hours of work, not after them."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"--summary {path} is a folder.", "Name a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}.", f"Create it first: mkdir -p {path.parent}")


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write the summary; it appears when it is complete. Raises OutputError when it cannot be written."""
    import orjson

    if path is None:
        return
    body = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        if path.exists() and not path.is_file():  # /dev/stderr, a named pipe: nothing can take its place
            path.write_bytes(body)
            return
        try:
            aside.write_bytes(body)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"The summary {path} cannot be written: {error.strerror}.") from None
