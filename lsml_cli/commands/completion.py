"""Complete names of models and formats when TAB is pressed in a shell."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path

from lsml_cli.errors import format_list
from lsml_cli.io.formats.registry import DATASETS, READABLE, WRITABLE
from lsml_cli.terminal import escape_controls

MAX_ENTRIES = 500  # entries read of a folder: TAB must answer at once, even beside a million images


def complete_models(incomplete: str) -> list[str]:
    """Return built-in models, plug-ins, and trained models and projects in folders up to two levels down."""
    from lsml_cli.registry.model_location import known_models

    typed, slash, _ = incomplete.rpartition("/")
    names = [name for name in sorted(known_models()) if not slash]
    for folder in _list_folders(typed + slash or "."):
        if _is_model(folder):
            names.append(folder)
        else:
            names += filter(_is_model, _list_folders(folder))
    # A shell prints the names, and a terminal would obey control characters in them.
    return [name for name in names if name.startswith(incomplete) and escape_controls(name) == name]


def name_models_hint() -> str:
    """Return a sentence with what --model could name: models in folders here, then those that are installed."""
    names = sorted(complete_models(""), key=lambda name: not Path(name).is_dir())
    return f"Name it with --model: {format_list(names)}; a folder that lsml fit wrote, or file.py:Class."


def complete_readable_formats(incomplete: str) -> list[str]:
    """Return the formats that data sets are read in."""
    return [name for name in READABLE if name.startswith(incomplete)]


def complete_input_kinds(incomplete: str) -> list[str]:
    """Return what `lsml predict` reads: tasks, lists of paths, lines of text, and data sets."""
    return [name for name in ("tasks", "paths", "lines", *DATASETS) if name.startswith(incomplete)]


def complete_writable_formats(incomplete: str) -> list[str]:
    """Return the formats that data sets are written in."""
    return [name for name in WRITABLE if name.startswith(incomplete)]


def _list_folders(parent: str) -> list[str]:
    """Return the visible folders below `parent`, spelled as they would be typed."""
    folders = []
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in islice(entries, MAX_ENTRIES):
            if not entry.name.startswith(".") and entry.is_dir():
                folders.append(entry.name if parent == "." else os.path.join(parent, entry.name))  # noqa: PTH118 - keeps ./
    return sorted(folders)


def _is_model(folder: str) -> bool:
    from lsml_cli.registry.project_file import PROJECT_FILE
    from lsml_cli.registry.versions import CURRENT_FILE

    return Path(folder, CURRENT_FILE).is_file() or Path(folder, PROJECT_FILE).is_file()
