"""What pushing predictions and creating tasks have in common: inputs, batches, the request that activates a version."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lsml_cli.label_studio.client import LabelStudioClient
from lsml_cli.label_studio.push_options import PushOptions, PushResult
from lsml_cli.label_studio.push_spool import Rejections, Spool, SpoolItem
from lsml_cli.progress import ProgressReporter


class SettleTime(NamedTuple):
    """How long a server may work on a request whose answer was lost: seconds, and seconds for each item."""

    base: float
    per_item: float

    def seconds(self, items: int) -> float:
        return self.base + self.per_item * items


@dataclass(frozen=True)
class PushContext:
    """What a push works with.

    Attributes:
        client: The Label Studio.
        options: What to push, and where to.
        project: The project as Label Studio describes it.
        version: The version of everything in the spool, None if it holds no prediction.
        spool: The items to send.
        rejections: Takes the items that are not sent or not accepted.
        reporter: Shows progress.
    """

    client: LabelStudioClient
    options: PushOptions
    project: Mapping[str, Any]
    version: str | None
    spool: Spool
    rejections: Rejections
    reporter: ProgressReporter
    started_at: float = field(default_factory=time.monotonic)

    @property
    def task_count(self) -> int:
        """Tasks that the project had at the start."""
        return int(self.project.get("task_number") or 0)

    @property
    def active_version(self) -> str:
        """The version that the project showed at the start, "" for none."""
        return self.project.get("model_version") or ""

    def activate_version(self) -> None:
        """Make the version the one that the project shows."""
        self.client.show_version(self.options.project, self.version or "")

    def describe_activation(self, versions: Container[str]) -> str | None:
        """Say what the project showed before its version was activated, and what follows; None if it showed nothing.

        Args:
            versions: The versions that the project has predictions of; what else it shows is an ML backend.
        """
        previous = self.active_version
        if previous in ("", self.version):
            return None
        before = f"The project shows predictions of {self.version} now; before: {previous}"
        if previous in versions:
            return f"{before}."
        return (
            f"{before}, a connected ML backend, which Label Studio no longer asks for the annotators' next task until"
            " it is selected again (Settings -> Annotation)."
        )

    def build_result(
        self, item_type: Literal["predictions", "tasks"], *, sending_seconds: float, notes: Iterable[str], **counts: Any
    ) -> PushResult:
        """Return the result with these counts, and those of the spool and the rejections."""
        spooled = self.spool.counts
        return PushResult(
            project=self.options.project,
            version=self.version or None,
            records=spooled["records"],
            failed=spooled["failed"],
            empty=spooled["empty"],
            other=spooled["other"],
            rejected=self.rejections.count,
            rejection_causes=self.rejections.causes,
            sending_seconds=round(sending_seconds, 3),
            seconds=round(time.monotonic() - self.started_at, 3),
            dry_run=self.options.dry_run,
            item_type=item_type,
            errors=str(self.options.errors) if self.options.errors else None,
            notes=tuple(notes),
            **counts,
        )


def iter_batches(items: Iterable[SpoolItem], max_items: int, max_bytes: int) -> Iterator[list[SpoolItem]]:
    """Split items into batches of at most `max_items`, and of `max_bytes` unless a single item has more."""
    batch: list[SpoolItem] = []
    size = 0
    for item in items:
        if batch and (len(batch) >= max_items or size + len(item.body) > max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.body) + 1
    if batch:
        yield batch


def request_body(batch: Iterable[SpoolItem]) -> bytes:
    """Return the JSON array of a batch."""
    return b"[" + b",".join(item.body for item in batch) + b"]"
