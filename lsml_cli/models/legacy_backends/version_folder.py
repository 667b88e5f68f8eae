"""Keep what a script reads of its trained version inside of the version's folder: scripts unpickle what they read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsml_cli.errors import UsageError

MODEL_DIR = "MODEL_DIR"  # the environment variable with the folder in which scripts keep their weights


def require_contained(state: Any, folder: Path) -> None:
    """Check every text in the state of a version that names an existing file.

    A plain word is a label, even where a folder of the same name exists.

    Raises:
        UsageError: The file lies outside of the version's folder, or a link leads out of it.
    """
    for text in _iter_texts(state):
        if _names_file(text):
            require_inside(text, folder)


def require_inside(path: str, folder: Path) -> None:
    """Raise UsageError for a path that lies, or leads, out of a version's folder."""
    root = os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(path)]) != root:
        raise UsageError(
            f"The version in {folder} names {path}, a file outside of its folder, which a version may not.",
            f"Train a new version; a script keeps its files in workdir, or in the folder that {MODEL_DIR} names.",
        )


def _names_file(text: str) -> bool:
    if "\0" in text or not text:
        return False
    return os.path.isfile(text) or (bool(set("/\\.") & set(text)) and os.path.lexists(text))  # noqa: PTH113


def _iter_texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _iter_texts(item)
