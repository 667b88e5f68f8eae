"""One execution of `lsml predict`: count what comes back, write it, and report progress."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import orjson

from lsml_cli.errors import Interrupted, RunStopped
from lsml_cli.inference.plan import PredictPlan
from lsml_cli.inference.predict_summary import PredictSummary
from lsml_cli.inference.record_codec import RenderedRecord
from lsml_cli.io.journal import JournalEntry, require_enough_input, require_same_input
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import Output
from lsml_cli.io.task_source import TaskSource
from lsml_cli.progress import ProgressReporter
from lsml_cli.schema.failure_causes import FailureCauses, FailureNotes
from lsml_cli.schema.predictions import Failure

MAX_FIRST_FAILURES = 3  # failures that the summary quotes
ALL_FAILED_HINT = "The run goes on. Stop it with ctrl-C, or let --max-failures N stop such a run."


class PredictRun:
    """The counters of one run; takes batches from the replicas to the output.

    Args:
        plan: What is predicted.
        source: The open input.
        output: The open output; where it continues an earlier run, so do the counters.
        reporter: Gets notes and progress.
    """

    def __init__(self, plan: PredictPlan, source: TaskSource, output: Output, reporter: ProgressReporter) -> None:
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
        self.failure_causes = FailureCauses()
        self._failure_notes = FailureNotes(reporter.note, reporter.warn, ALL_FAILED_HINT)
        # Of each record in flight: its location, its end, and the CRC-32 of the input up to and including it.
        self._in_flight: deque[tuple[str, int, int]] = deque()

    def add_in_flight(self, record: Record, crc: int = 0) -> None:
        """Announce a record whose result will be written, in the order in which results come.

        Args:
            record: The record.
            crc: CRC-32 of the input up to and including it; 0 where nothing will be resumed.
        """
        self._in_flight.append((record.location, record.end, crc))

    def pending_records(self, records: Iterator[Record]) -> Iterator[Record]:
        """Yield the records that are still to be done.

        Those that an earlier run has done are read again and compared with its checksum.

        Raises:
            InputError: The input has fewer records than were done.
            ResumeRefused: It begins with other records.
        """
        crc = compared = 0
        for record in islice(records, self.resumed_at):
            crc = zlib.crc32(record.body, crc)
            compared += 1
        require_enough_input(self.source.name, compared, self.output.last_entry)
        require_same_input(self.source.name, crc, self.output.last_entry)
        self.reporter.start_phase("predicting", done=self.resumed_at)
        limit = self.options.limit
        for record in islice(records, None if limit is None else max(0, limit - self.resumed_at)):
            crc = zlib.crc32(record.body, crc)
            self.add_in_flight(record, crc)
            yield record

    def write_batches(self, batches: Iterable[list[RenderedRecord]]) -> None:
        """Write every batch; ctrl-C raises Interrupted with how to continue."""
        try:
            for batch in batches:
                self.write_batch(batch)
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted after {self.processed:,} tasks.", self._resume_hint()) from None

    def write_batch(self, batch: list[RenderedRecord]) -> None:
        """Count a batch, write it, and report progress.

        Raises:
            RunStopped: By `on_error` or `max_failures`.
        """
        errors = []
        crc = end = 0
        for rendered in batch:
            location, end, crc = self._in_flight.popleft()
            if isinstance(rendered, bytes):
                self.counts["predicted"] += 1
            else:
                self.counts["dropped"] += rendered.dropped_predictions
                if rendered.failure is not None:
                    errors.append(self._record_failure(rendered.failure, rendered.task_id, location))
                else:
                    self.counts["skipped" if rendered.is_kept else "predicted"] += 1
            self.processed += 1
        bodies = [rendered if isinstance(rendered, bytes) else rendered.body for rendered in batch]
        self.output.write(bodies, errors, JournalEntry(self.processed, crc, counts=dict(self.counts)))
        self._check_failures()
        self.report_progress(end)

    def report_progress(self, end: int) -> None:
        """Show how far the run is, given the end of the last record that is finished: the reader is far ahead of it."""
        share, limit = self.source.share(end), self.options.limit
        if limit:
            share = max(share or 0.0, min(1.0, self.processed / limit))
        self.reporter.progress(self.processed, self.counts["failed"], share)

    def report_finished(self) -> None:
        """Show that everything is done: what follows the last record in the input is no work."""
        if self.source.size is not None:
            self.reporter.progress(self.processed, self.counts["failed"], 1.0)

    def _check_failures(self) -> None:
        """Stop after too many failures."""
        failed, max_failures = self.counts["failed"], self.options.max_failures
        if max_failures is not None and failed > max_failures:
            raise RunStopped(f"More than {max_failures:,} tasks failed (--max-failures).", self._resume_hint())

    def _record_failure(self, failure: Failure, task_id: int | None, location: str) -> bytes:
        """Count a failure and return its line for the error file; raise RunStopped if it must stop the run."""
        task_name = f"{self.source.name}, {location}" + (f", task {task_id}" if task_id is not None else "")
        sentence = f"{task_name}: {failure.reason}"
        if self.options.on_error == "fail":
            raise RunStopped(f"{sentence}.", self._resume_hint())
        self.counts["failed"] += 1
        if len(self.first_failures) < MAX_FIRST_FAILURES:
            self.first_failures.append(sentence)
        causes = self.failure_causes
        cause = causes.add(failure.stage, failure.reason, task_name)
        is_first_counted = causes.total == self.counts["failed"]  # it is not where a run is resumed
        self._failure_notes.add(causes, cause, all_failed=is_first_counted and not self.counts["predicted"])
        line = {
            "id": task_id,
            "index": self.processed,
            "place": location,
            "stage": failure.stage,
            "reason": failure.reason,
            "transient": failure.transient,
        }
        return orjson.dumps(line) + b"\n"

    def _resume_hint(self) -> str | None:
        done = self.output.last_entry.records
        if not done or self.options.target.is_stream:
            return None
        return f"{done:,} tasks are done; continue with --resume."

    def summary(self) -> PredictSummary:
        """Return how the run went so far."""
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
            blank_lines=self.source.blank_lines,
            first_failures=tuple(self.first_failures),
            failure_causes=self.failure_causes,
        )
