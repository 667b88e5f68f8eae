"""Give scripts the media of their tasks as local files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

Fetch = Callable[[str, int | None], bytes]  # (the value in a task's data, the task's id) -> content


class MediaFiles:
    """Files with the content of media values, fetched when they are first needed.

    Args:
        fetch: fetches the content of a value; None where nothing can be fetched.
        folder: receives the files; its owner removes it.
    """

    def __init__(self, fetch: Fetch | None, folder: Path) -> None:
        self._fetch = fetch
        self._folder = folder

    def get_path(self, value: str, task_id: int | None = None) -> str:
        """Return the path of a file with the content of a value; it has the value's suffix.

        With `fetch`, `fetch` alone decides which local paths may be opened: a task may name any file of this machine.

        Raises:
            ValueError: the value cannot be fetched.
        """
        if Path(value).parent == self._folder and Path(value).is_file():  # a path that this method has returned
            return value
        if self._fetch is None:
            if "://" not in value and not value.startswith(("/data/", "data:")) and Path(value).is_file():
                return value
            raise ValueError(f"nothing here can fetch {value}")
        parts = urlsplit(value)
        file_name = parse_qs(parts.query).get("d", [parts.path])[0]
        suffix = Path(file_name).suffix if not value.startswith("data:") else ""
        path = self._folder / f"{hashlib.blake2b(value.encode(), digest_size=12).hexdigest()}{suffix}"
        if not path.exists():
            path.write_bytes(self._fetch(value, task_id))
        return str(path)
