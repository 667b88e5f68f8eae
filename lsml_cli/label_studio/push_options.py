"""The options of a push, and its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lsml_cli.io.output_paths import is_stdout
from lsml_cli.schema.failure_causes import FailureCauses

ExistingPolicy = Literal["skip", "replace"]


@dataclass(frozen=True)
class PushOptions:
    """What to push, and where to.

    Attributes:
        file: A file of predictions or tasks, "-" for standard input.
        project: Id of the project.
        version: Push only predictions of this version.
        existing: What becomes of predictions of the same version that the project has.
        activate: Whether to make the version the one that the project shows.
        create_tasks: Whether to import whole tasks with their predictions.
        dry_run: Whether to check everything and send nothing.
        errors: File that lists all rejections.
        keep_versions: How many versions of the pushed model to keep in the project; None to delete none.
    """

    file: str
    project: int
    version: str | None = None
    existing: ExistingPolicy = "skip"
    activate: bool = True
    create_tasks: bool = False
    dry_run: bool = False
    errors: Path | None = None
    keep_versions: int | None = None


@dataclass(frozen=True)
class PushResult:
    """The result of a push: counts of predictions, or of tasks if tasks were created.

    Attributes:
        records: Records of the input.
        sent: Items that were sent.
        created: Items that the project has because of it.
        existing: Predictions of the same version that were there already.
        replaced: Tasks whose older predictions were deleted first.
        failed: Records of tasks for which `lsml predict` had failed.
        empty: Tasks without a prediction; creating tasks creates them all the same.
        other: Predictions of other versions.
        rejected: Items that do not fit the label config, name an unknown task, or were not accepted.
        rejection_causes: These items by cause.
        duplicates: Predictions that an interrupted push had left twice and that were removed.
        calls: Requests that were sent.
        deleted_versions: Number of predictions of each older version that was deleted, or would be in a dry run.
    """

    project: int
    version: str | None
    records: int = 0
    sent: int = 0
    created: int = 0
    existing: int = 0
    replaced: int = 0
    failed: int = 0
    empty: int = 0
    other: int = 0
    rejected: int = 0
    rejection_causes: FailureCauses = field(default_factory=FailureCauses)
    duplicates: int = 0
    calls: int = 0
    sending_seconds: float = 0.0
    seconds: float = 0.0
    dry_run: bool = False
    item_type: Literal["predictions", "tasks"] = "predictions"
    errors: str | None = None
    deleted_versions: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def skipped(self) -> int:
        return self.existing + self.failed + self.other + (self.empty if self.item_type == "predictions" else 0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `--summary`. Its keys are an interface: they do not follow the names of the fields."""
        return {
            "project": self.project,
            "version": self.version,
            "records": self.records,
            "sent": self.sent,
            "created": self.created,
            "existing": self.existing,
            "replaced": self.replaced,
            "failed": self.failed,
            "empty": self.empty,
            "other": self.other,
            "rejected": self.rejected,
            "rejection_causes": self.rejection_causes.to_json(),
            "doubles": self.duplicates,
            "calls": self.calls,
            "sending_seconds": self.sending_seconds,
            "seconds": self.seconds,
            "dry_run": self.dry_run,
            "what": self.item_type,
            "errors": self.errors,
            "skipped": self.skipped,
            "deleted_versions": dict(self.deleted_versions),
        }

    def summary_lines(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        skipped_by_reason = {
            "there already": self.existing,
            "failed when they were predicted": self.failed,
            "without a prediction": self.empty if self.item_type == "predictions" else 0,
            "of another version": self.other,
        }
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped_by_reason.items() if count)
        would = "would be " if self.dry_run else ""
        named = f" of {self.version}" if self.version and self.item_type == "predictions" else ""
        created = "" if self.dry_run else f", {self.created:,} created"
        done = f"{self.sent:,} {self.item_type}{named} {would}sent{created}"
        skipped = f", {self.skipped:,} skipped ({reasons})" if self.skipped else ""
        rate = f" in {self.seconds:,.1f} s" + (f" ({self.created / self.seconds:,.0f}/s)" if self.created else "")
        yield f"{self.records:,} records: {done}{skipped}, {self.rejected:,} rejected{rate}"
        if self.empty and self.item_type == "tasks":
            tasks, has = ("task", "has") if self.empty == 1 else ("tasks", "have")
            yield f"{self.empty:,} {tasks} {'would have' if self.dry_run else has} no prediction."
        if self.replaced:
            older, were = ("prediction", "was") if self.replaced == 1 else ("predictions", "were")
            yield f"{self.replaced:,} older {older} of {self.version} {would or f'{were} '}replaced."
        if self.duplicates:
            left, were = ("prediction", "was") if self.duplicates == 1 else ("predictions", "were")
            yield f"{self.duplicates:,} {left} that an interrupted push had left twice {were} removed."
        yield from self.notes
        yield from self.rejection_causes.lines("rejected", noun=self.item_type.removesuffix("s"))
        if self.rejected and self.errors:
            if not is_stdout(self.errors):
                yield f"All rejections are in {self.errors}."
        elif self.rejected > len(self.rejection_causes):
            yield "--errors FILE lists every rejection."
