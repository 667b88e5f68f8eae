"""The model of one project: which version is promoted, which one is loaded, and why a load failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.models.spec import ModelSpec
from lsml_cli.registry import versions
from lsml_cli.server.served_model import ServedModel


@dataclass(frozen=True)
class LoadFailure:
    """A version that could not be loaded.

    Attributes:
        file_stamp: Stamp of its files before the load, see `ModelSlot.file_stamp`.
        failed_at: Seconds on the monotonic clock.
    """

    version: str | None
    file_stamp: object
    error: LsmlError
    failed_at: float

    def is_same_failure(self, other: LoadFailure | None) -> bool:
        """Tell whether the same version failed with the same message."""
        return other is not None and (self.version, str(self.error)) == (other.version, str(other.error))


class ModelSlot:
    """The model that serves one project, or all projects without a version of their own.

    Attributes:
        root: Folder whose promoted version is served; None when the version never changes.
        find_spec: Returns the spec of the version to load.
        model: The loaded model, None before the first one is loaded.
        load_task: The load in progress.
        last_requested_at: Seconds on the monotonic clock.
        waiting_requests: Number of requests that wait for the first load.
    """

    def __init__(self, root: Path | None, find_spec: Callable[[], ModelSpec]) -> None:
        self.root = root
        self.find_spec = find_spec
        self.model: ServedModel | None = None
        self.load_task: asyncio.Task[ServedModel] | None = None
        self.load_failure: LoadFailure | None = None
        self.last_requested_at = time.monotonic()
        self.waiting_requests = 0

    @property
    def can_unload(self) -> bool:
        """Tell whether a model is loaded that no request is about to use."""
        return self.model is not None and self.load_task is None and not self.waiting_requests

    def promoted_version(self) -> str | None:
        """Return the name of the promoted version, None when there is none."""
        try:
            return versions.current_version(self.root) if self.root else None
        except ModelError:
            return None

    def record_load_failure(self, version: str | None, file_stamp: object, error: LsmlError) -> None:
        """Remember why a version could not be loaded."""
        self.load_failure = LoadFailure(version, file_stamp, error, time.monotonic())

    def recent_load_error(self, max_age: float) -> LsmlError | None:
        """Return the error of the last load, None when the promoted version is worth another try.

        It is when another version was promoted, when its files were changed, and in any case after `max_age` seconds:
        the cause may have been a full disk, or a network folder.
        """
        failure = self.load_failure
        if failure is None or time.monotonic() - failure.failed_at >= max_age:
            return None
        version = self.promoted_version()
        is_unchanged = (failure.version, failure.file_stamp) == (version, self.file_stamp(version))
        return failure.error if is_unchanged else None

    def file_stamp(self, version: str | None) -> object:
        """Return a value that changes when a version's files change; None when they cannot be examined."""
        if self.root is None or version is None:
            return None
        folder = self.root / version
        try:
            return folder.stat().st_mtime_ns, (folder / versions.METADATA_FILE).stat().st_mtime_ns
        except (OSError, ValueError):  # ValueError: the file `current` may contain anything
            return None
