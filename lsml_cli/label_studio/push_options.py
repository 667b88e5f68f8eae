"""What a push is asked for, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ExistingPolicy = Literal["skip", "replace"]


@dataclass(frozen=True)
class PushOptions:
    """What to push, and where to.

    version    only predictions of this one, where the file holds several
    existing   what becomes of predictions of the same version that are there
    activate   make the version the one that the project shows
    create     import whole tasks together with their predictions
    """

    file: str
    project: int
    version: str | None = None
    existing: ExistingPolicy = "skip"
    activate: bool = True
    create_tasks: bool = False
    dry_run: bool = False
    errors: Path | None = None


@dataclass(frozen=True)
class PushResult:
    """How it went, in predictions; with `create` in tasks.

    records   of the input
    sent      went to Label Studio; created: are there now because of it
    existing  were there already, of the same version; replaced: went before the new ones came
    failed    `lsml predict` had failed there; other: of another version
    empty     tasks without a prediction, which `create` makes all the same
    rejected  do not fit the label config, name an unknown task, or were not taken
    doubles   were there twice, from an interrupted push, and are not any more
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
    duplicates: int = 0
    calls: int = 0
    sending_seconds: float = 0.0
    seconds: float = 0.0
    dry_run: bool = False
    item_type: Literal["predictions", "tasks"] = "predictions"
    errors: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def skipped(self) -> int:
        return self.existing + self.failed + self.other + (self.empty if self.item_type == "predictions" else 0)

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "notes"}
        return fields | {"skipped": self.skipped}

    def summary_lines(self) -> Iterator[str]:
        why = {
            "there already": self.existing,
            "failed when they were predicted": self.failed,
            "without a prediction": self.empty if self.item_type == "predictions" else 0,
            "of another version": self.other,
        }
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in why.items() if number)
        would = "would be " if self.dry_run else ""
        named = f" of {self.version}" if self.version and self.item_type == "predictions" else ""
        done = f"{self.sent:,} {self.item_type}{named} {would}sent" + (
            "" if self.dry_run else f", {self.created:,} created"
        )
        skipped = f", {self.skipped:,} skipped ({reasons})" if self.skipped else ""
        rate = f" in {self.seconds:,.1f} s" + (f" ({self.created / self.seconds:,.0f}/s)" if self.created else "")
        yield f"{self.records:,} records: {done}{skipped}, {self.rejected:,} rejected{rate}"
        if self.empty and self.item_type == "tasks":
            tasks, has = ("task", "has") if self.empty == 1 else ("tasks", "have")
            yield f"{self.empty:,} {tasks} {'would have' if self.dry_run else has} no prediction."
        if self.replaced:
            yield f"{self.replaced:,} older predictions of {self.version} {would or 'were '}replaced."
        if self.duplicates:
            yield f"{self.duplicates:,} predictions that an interrupted push had left twice were removed."
        yield from self.notes
        if self.rejected and self.errors:
            yield f"All rejections are in {self.errors}."
        elif self.rejected > 3:
            yield f"{self.rejected - 3:,} more were rejected; --errors FILE lists them all."
