"""Write the summary of a command as JSON: `--summary FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsml_cli.errors import UsageError
from lsml_cli.io.output import write_document
from lsml_cli.io.output_paths import is_stdout


def require_writable(path: Path | None, option: str = "--summary") -> None:
    """Raise UsageError if no file can be written at `path`, before hours of work."""
    if path is None or is_stdout(path):
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
        path: Where to write; None: nowhere; "-": standard output.
        content: The summary. A path in it may hold bytes that are not UTF-8.

    Raises:
        OutputClosed: The reader of standard output has closed it.
        OutputError: The summary cannot be written.
    """
    if path is None:
        return
    write_document(path, to_json(content), "The summary")


def to_json(content: Any) -> bytes:
    """Return indented JSON with a line break at its end; bytes of a path that are not UTF-8 are replaced."""
    import json

    import orjson

    try:
        return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # not UTF-8, or an integer beyond 64 bits
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")
