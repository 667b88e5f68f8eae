"""`--summary FILE`: what a command did, as JSON. For every command that has the option."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsml_cli.errors import OutputError, UsageError


def require_writable(path: Path | None, option: str = "--summary") -> None:
    """Raises UsageError for a place where no file can be: before hours of work, not after them."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder.", "Name a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}.", f"Create it first: mkdir -p {path.parent}")
    if path.is_file() and not _looks_like_summary(path):
        raise UsageError(f"{option} {path} is there already, and is no summary.", "Name another file.")


def _looks_like_summary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) in (b"", b"{")


def write_summary(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write the summary as JSON, if there is a place for one; it appears when it is complete.

    Text in it may hold the bytes of a path that are no UTF-8. Raises OutputError when it cannot be written.
    """
    if path is None:
        return
    body = _to_json(content)
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


def _to_json(content: Mapping[str, Any]) -> bytes:
    import json

    import orjson

    try:
        return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # no UTF-8, or a whole number beyond 64 bits
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")
