"""One execution of `lsml predict`: its counters, the way of a batch to the output, and how it went."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol

import orjson

from lsml_cli.errors import Interrupted, RunStopped
from lsml_cli.inference.plan import PredictPlan
from lsml_cli.inference.record_codec import RenderedRecord
from lsml_cli.io.image_paths import ImageFolderSource
from lsml_cli.io.journal import JournalEntry, require_enough_input, require_same_input
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import Output
from lsml_cli.io.output_paths import STDOUT, is_stream
from lsml_cli.io.source import RecordSource
from lsml_cli.schema.predictions import Failure

MAX_SHOWN_FAILURES = 3
ALL_FAILED_WARNING_COUNT = 1_000  # tasks that all failed, after which something must be wrong with all of them


@dataclass(frozen=True)
class PredictSummary:
    """How a run went. `tasks` counts every record of the input, `predicted` those with a prediction (also an empty
    one), `skipped` those that had one of this version already, `dropped` older predictions that were left out because
    they do not fit the label config; `seconds` and `tasks_per_second` are this run's own,
    `resumed_at` the number of tasks that an earlier run had done."""

    model: str
    tasks: int
    predicted: int
    skipped: int
    failed: int
    dropped: int
    resumed_at: int
    seconds: float
    tasks_per_second: float
    output: str
    errors: str | None
    first_failures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "output": _to_valid_utf8(self.output),
            "errors": self.errors and _to_valid_utf8(self.errors),
        }

    def summary_lines(self) -> Iterator[str]:
        """The summary in words."""
        rate = f" in {self.seconds:,.1f} s ({self.tasks_per_second:,.0f}/s)"
        before = f", {self.resumed_at:,} of them before" if self.resumed_at else ""
        kept = f", {self.skipped:,} left as they were" if self.skipped else ""
        where = f" -> {self.output}" if self.output != STDOUT else ""
        tasks = f"{self.tasks:,} task{'' if self.tasks == 1 else 's'}"
        yield f"{tasks}{before}: {self.predicted:,} predicted{kept}, {self.failed:,} failed{rate}{where}"
        if self.dropped:
            yield f"{self.dropped:,} older predictions were left out: they do not fit the label config."
        if self.failed and self.errors:
            yield f"All failures are in {self.errors}."
        elif self.failed > len(self.first_failures):
            yield f"{self.failed - len(self.first_failures):,} more failed; --errors FILE lists them all."


def _to_valid_utf8(path: str) -> str:
    """A path that may hold bytes which are no UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class ProgressReporter(Protocol):
    """Where a run tells how it is going."""

    def note(self, sentence: str) -> None:
        """Something to read once."""

    def progress(self, tasks: int, failed: int, fraction: float | None) -> None:
        """How far the run is; `fraction` of the input in 0..1, None when its size is not known."""


class PredictRun:
    """The counters of one run, and the way of a batch from the replicas to the output."""

    def __init__(
        self, plan: PredictPlan, source: RecordSource | ImageFolderSource, output: Output, reporter: ProgressReporter
    ) -> None:
        self.plan = plan
        self.options = plan.options
        self.source = source
        self.output = output
        self.reporter = reporter
        self.started_at = time.monotonic()
        self.resumed_at = output.last_entry.records
        self.processed = output.last_entry.records
        self.counts = {"predicted": 0, "skipped": 0, "failed": 0, "dropped": 0} | dict(output.last_entry.counts)
        self.first_failures: list[str] = []
        # Of each record that is under way: its place, and the checksum of the input up to and including it.
        self.in_flight: deque[tuple[str, int]] = deque()

    def pending_records(self, records: Iterator[Record]) -> Iterator[Record]:
        """The records that are still to be done, after those of an earlier run were read again and compared."""
        crc = skipped = 0
        for record in islice(records, self.resumed_at):
            crc = zlib.crc32(record.body, crc)
            skipped += 1
        require_enough_input(self.source.name, skipped, self.output.last_entry)
        require_same_input(self.source.name, crc, self.output.last_entry)
        limit = self.options.limit
        for record in islice(records, None if limit is None else max(0, limit - self.resumed_at)):
            crc = zlib.crc32(record.body, crc)
            self.in_flight.append((record.location, crc))
            yield record

    def write_batches(self, batches: Iterable[list[RenderedRecord]]) -> None:
        try:
            for batch in batches:
                self.write_batch(batch)
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted after {self.processed:,} tasks.", self.resume_hint()) from None

    def write_batch(self, batch: list[RenderedRecord]) -> None:
        """Count a batch, write it, and say how far the run is."""
        errors = []
        crc = 0
        for written in batch:
            place, crc = self.in_flight.popleft()
            if isinstance(written, bytes):
                self.counts["predicted"] += 1
            else:
                self.counts["dropped"] += written.dropped_predictions
                if written.failure is not None:
                    errors.append(self.record_failure(written.failure, written.task_id, place))
                else:
                    self.counts["skipped" if written.is_kept else "predicted"] += 1
            self.processed += 1
        bodies = [written if isinstance(written, bytes) else written.body for written in batch]
        self.output.write(bodies, errors, JournalEntry(self.processed, crc, counts=dict(self.counts)))
        most = self.options.max_failures
        if most is not None and self.counts["failed"] > most:
            raise RunStopped(f"More than {most:,} tasks failed (--max-failures).", self.resume_hint())
        if self.counts[
            "failed"
        ] == self.processed and self.processed >= ALL_FAILED_WARNING_COUNT > self.processed - len(batch):
            self.reporter.note(f"All of the first {self.processed:,} tasks failed; ctrl-C stops the run.")
        fraction = self.source.position() / self.source.size if self.source.size else None
        self.reporter.progress(self.processed, self.counts["failed"], fraction)

    def record_failure(self, failure: Failure, task_id: int | None, location: str) -> bytes:
        """Count a failure; its line for the error file."""
        named = f"{self.source.name}, {location}" + (f", task {task_id}" if task_id is not None else "")
        sentence = f"{named}: {failure.reason}"
        if self.options.on_error == "fail":
            raise RunStopped(f"{sentence}.", self.resume_hint())
        self.counts["failed"] += 1
        if len(self.first_failures) < MAX_SHOWN_FAILURES:
            self.first_failures.append(sentence)
            self.reporter.note(f"failed: {sentence}")
        line = {
            "id": task_id,
            "index": self.processed,
            "place": location,
            "stage": failure.stage,
            "reason": failure.reason,
            "transient": failure.transient,
        }
        return orjson.dumps(line) + b"\n"

    def resume_hint(self) -> str | None:
        done = self.output.last_entry.records
        return (
            f"{done:,} tasks are done; continue with --resume." if done and not is_stream(self.options.output) else None
        )

    def summary(self) -> PredictSummary:
        seconds = time.monotonic() - self.started_at
        return PredictSummary(
            model=self.plan.spec.model_version,
            tasks=self.processed,
            predicted=self.counts["predicted"],
            skipped=self.counts["skipped"],
            failed=self.counts["failed"],
            dropped=self.counts["dropped"],
            resumed_at=self.resumed_at,
            seconds=round(seconds, 3),
            tasks_per_second=round((self.processed - self.resumed_at) / seconds, 1) if seconds else 0.0,
            output=self.options.output,
            errors=self.options.errors,
            first_failures=tuple(self.first_failures),
        )
