"""What a shell offers when TAB is pressed, where the options themselves don't say it."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path

MAX_ENTRIES = 500  # entries of a folder; TAB must answer at once, also beside a million pictures


def complete_models(incomplete: str) -> list[str]:
    """Models that come with lsml or as plug-ins, and trained ones in folders up to two levels down."""
    from lsml_cli.registry.resolve import known_models

    typed, slash, _ = incomplete.rpartition("/")
    found = [name for name in sorted(known_models()) if not slash]
    for folder in _list_folders(typed + slash or "."):
        if _is_model(folder):
            found.append(folder)
        else:
            found += filter(_is_model, _list_folders(folder))
    return [name for name in found if name.startswith(incomplete)]


def _list_folders(parent: str) -> list[str]:
    """Visible folders, spelled as somebody would type them."""
    found = []
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in islice(entries, MAX_ENTRIES):
            if not entry.name.startswith(".") and entry.is_dir():
                found.append(entry.name if parent == "." else os.path.join(parent, entry.name))  # noqa: PTH118 - keeps ./
    return sorted(found)


def _is_model(folder: str) -> bool:
    from lsml_cli.registry.versions import CURRENT_FILE

    return Path(folder, CURRENT_FILE).is_file()
