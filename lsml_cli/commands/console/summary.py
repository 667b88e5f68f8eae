"""Write the summary of a command as JSON: `--summary FILE`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsml_cli.errors import OutputError, UsageError


def require_writable(path: Path | None, option: str = "--summary") -> None:
    """Raise UsageError if no file can be written at `path`, before hours of work."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder.", "Name a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}.", f"Create it first: mkdir -p {path.parent}")
    if path.is_file() and not _looks_like_summary(path):
        raise UsageError(f"{option} {path} already exists and is not a summary.", "Name another file.")


def _looks_like_summary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) in (b"", b"{")


def write_summary(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write the summary as JSON; the file appears when it is complete.

    Args:
        path: Where to write; None: nowhere.
        content: The summary. A path in it may hold bytes that are not UTF-8.

    Raises:
        OutputError: The file cannot be written.
    """
    if path is None:
        return
    body = _to_json(content)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        if path.exists() and not path.is_file():  # /dev/stderr or a named pipe, which cannot be replaced
            path.write_bytes(body)
            return
        try:
            temporary.write_bytes(body)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"The summary {path} cannot be written: {error.strerror}.") from None


def _to_json(content: Mapping[str, Any]) -> bytes:
    import json

    import orjson

    try:
        return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # not UTF-8, or an integer beyond 64 bits
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")
