"""`lsml predict` without the command line: read, predict, write, resume."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import orjson

from lsml_cli import __version__
from lsml_cli.errors import Interrupted, OutputError, RunStopped, UsageError
from lsml_cli.label_config import LabelConfig
from lsml_cli.models.base import ModelSpec
from lsml_cli.output import STDOUT, FileOutput, Format, Output, StreamOutput, output_format, room_note
from lsml_cli.pipeline import find_devices, open_replicas, predict_batches
from lsml_cli.predictions import Failure, Outcome, Shape, Stored, render, stored_predictions
from lsml_cli.records import Record
from lsml_cli.replica import Setting
from lsml_cli.resume import Entry, require_enough_input, require_same_input
from lsml_cli.source import STDIN, Source
from lsml_cli.tasks import Task, parse_task

FAILURES_SHOWN = 3
NO_ID = "this task has no id, and --shape predictions names tasks by id"


@dataclass(frozen=True)
class PredictOptions:
    """What a run does besides which model it uses. See `lsml predict --help` for what each one means."""

    tasks: str
    output: str = STDOUT
    format: Format | None = None
    shape: Shape = "tasks"
    batch_size: int | None = None
    workers: int = 1
    device: str = "auto"
    limit: int | None = None
    threshold: float | None = None
    label_map: Mapping[str, str] = field(default_factory=dict)
    id_column: str | None = None
    keep_annotations: bool = False
    skip_predicted: bool = False
    on_error: Literal["skip", "fail"] = "skip"
    errors: str | None = None
    max_failures: int | None = None
    resume: bool = False


@dataclass(frozen=True)
class Summary:
    """How a run went. `tasks` counts every record of the input, `predicted` those with a prediction (also an empty
    one), `skipped` those that had one of this version already; `seconds` and `tasks_per_second` are this run's own,
    `resumed_at` the number of tasks that an earlier run had done."""

    model: str
    tasks: int
    predicted: int
    skipped: int
    failed: int
    resumed_at: int
    seconds: float
    tasks_per_second: float
    output: str
    errors: str | None
    first_failures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def sentences(self) -> Iterator[str]:
        """The summary in words."""
        rate = f" in {self.seconds:,.1f} s ({self.tasks_per_second:,.0f}/s)"
        before = f", {self.resumed_at:,} of them before" if self.resumed_at else ""
        kept = f", {self.skipped:,} left as they were" if self.skipped else ""
        where = "" if self.output == STDOUT else f" -> {self.output}"
        yield f"{self.tasks:,} tasks{before}: {self.predicted:,} predicted{kept}, {self.failed:,} failed{rate}{where}"
        for failure in self.first_failures:
            yield f"failed: {failure}"
        hidden = self.failed - len(self.first_failures)
        if self.failed and self.errors:
            yield f"All failures are in {self.errors}."
        elif hidden > 0:
            yield f"{hidden:,} more failed; --errors FILE lists them all."


class Report(Protocol):
    """Where a run tells how it is going."""

    def note(self, sentence: str) -> None:
        """Something to read once."""

    def progress(self, tasks: int, failed: int, fraction: float | None) -> None:
        """How far the run is; `fraction` of the input in 0..1, None when its size is not known."""


class Exceptional(NamedTuple):
    """A record of the output that is not a new prediction."""

    body: bytes
    id: int | None
    failure: Failure | None  # None: the task keeps the prediction that it had


Written = bytes | Exceptional


@dataclass(frozen=True)
class BulkJob:
    """Bytes to bytes, where the replica is: parse the record before the model, render its outcome after it."""

    controls: frozenset[str]
    id_column: str | None
    shape: Shape
    keep_annotations: bool
    skip_version: str | None  # leave tasks alone that carry a prediction of this version

    def read(self, record: Record) -> tuple[Task | None, Outcome | None]:
        try:
            task = parse_task(record, self.controls, self.id_column)
        except ValueError as error:
            return None, Failure("read", str(error))
        if self.shape == "predictions" and task.id is None:
            return task, Failure("read", NO_ID)
        if self.skip_version is not None:
            for old in stored_predictions(task.raw):
                if old["model_version"] == self.skip_version:
                    return task, Stored(old)
        return task, None

    def write(self, record: Record, task: Task | None, outcome: Outcome) -> Written:
        body = render(task, outcome, self.shape, self.keep_annotations)
        if isinstance(outcome, Failure):
            return Exceptional(body, task.id if task else None, outcome)
        return Exceptional(body, None, None) if isinstance(outcome, Stored) else body


def predict_file(spec: ModelSpec, config: LabelConfig, options: PredictOptions, report: Report) -> Summary:
    """Predict every task of a file or a pipe, and write the records as they come.

    Raises UsageError before anything heavy starts if the options make no sense, LabelMismatch if the model cannot
    fill the label config, RunStopped for `on_error` and `max_failures`, Interrupted on ctrl-C.
    """
    family = spec.family()
    devices = find_devices(options.device, family)
    batch_size = options.batch_size or family.batch_size
    setting = Setting(config, options.label_map, None, options.threshold)
    notes = (*config.warnings, *setting.bind(spec.build()).notes)
    job = BulkJob(
        frozenset(config.controls),
        options.id_column,
        options.shape,
        options.keep_annotations,
        spec.model_version if options.skip_predicted else None,
    )
    with Source(options.tasks, options.id_column) as source:
        items = _require_ids(iter(source), job) if options.shape == "predictions" else iter(source)
        with closing(_open_output(options, _started_with(spec, config, options, batch_size))) as output:
            run = _Run(spec, options, source, output, report)
            for note in (*notes, room_note(options.output, source.size)):
                if note:
                    report.note(note)
            if not output.last.finished:
                items = run.pending(items)
                with open_replicas(
                    spec,
                    config,
                    label_map=options.label_map,
                    threshold=options.threshold,
                    devices=devices,
                    workers=options.workers,
                    media_root=_media_root(options.tasks),
                ) as replicas:
                    run.go(predict_batches(replicas, items, batch_size=batch_size, job=job))
            output.finish()
            return run.summary()


class _Run:
    """The counters of one run, and the way of a batch from the replicas to the output."""

    def __init__(
        self, spec: ModelSpec, options: PredictOptions, source: Source, output: Output, report: Report
    ) -> None:
        self.spec = spec
        self.options = options
        self.source = source
        self.output = output
        self.report = report
        self.begun = time.monotonic()
        self.resumed_at = output.last.records
        self.reached = output.last.records
        self.counts = {"predicted": 0, "skipped": 0, "failed": 0} | dict(output.last.counts)
        self.first_failures: list[str] = []
        # Of each record that is under way: its place, and the checksum of the input up to and including it.
        self.under_way: deque[tuple[str, int]] = deque()

    def pending(self, records: Iterator[Record]) -> Iterator[Record]:
        """The records that are still to be done, after those of an earlier run were read again and compared."""
        crc = skipped = 0
        for record in islice(records, self.resumed_at):
            crc = zlib.crc32(record.body, crc)
            skipped += 1
        require_enough_input(self.source.name, skipped, self.output.last)
        require_same_input(self.source.name, crc, self.output.last)
        limit = self.options.limit
        for record in islice(records, None if limit is None else max(0, limit - self.resumed_at)):
            crc = zlib.crc32(record.body, crc)
            self.under_way.append((record.place, crc))
            yield record

    def go(self, batches: Iterable[list[Written]]) -> None:
        try:
            for batch in batches:
                self.settle(batch)
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted after {self.reached:,} tasks.", self.how_to_go_on()) from None

    def settle(self, batch: list[Written]) -> None:
        """Count a batch, write it, and say how far the run is."""
        errors = []
        crc = 0
        for written in batch:
            place, crc = self.under_way.popleft()
            if isinstance(written, bytes):
                self.counts["predicted"] += 1
            elif written.failure is None:
                self.counts["skipped"] += 1
            else:
                errors.append(self.failed(written.failure, written.id, place))
            self.reached += 1
        bodies = [written if isinstance(written, bytes) else written.body for written in batch]
        self.output.write(bodies, errors, Entry(self.reached, crc, counts=dict(self.counts)))
        most = self.options.max_failures
        if most is not None and self.counts["failed"] > most:
            raise RunStopped(f"More than {most:,} tasks failed (--max-failures).", self.first_failures[0])
        fraction = self.source.position() / self.source.size if self.source.size else None
        self.report.progress(self.reached, self.counts["failed"], fraction)

    def failed(self, failure: Failure, task: int | None, place: str) -> bytes:
        """Count a failure; its line for the error file."""
        named = f"{self.source.name}, {place}" + (f", task {task}" if task is not None else "")
        sentence = f"{named}: {failure.reason}"
        if self.options.on_error == "fail":
            raise RunStopped(f"{sentence}.", self.how_to_go_on())
        self.counts["failed"] += 1
        if len(self.first_failures) < FAILURES_SHOWN:
            self.first_failures.append(sentence)
        line = {
            "id": task,
            "index": self.reached,
            "place": place,
            "stage": failure.stage,
            "reason": failure.reason,
            "transient": failure.transient,
        }
        return orjson.dumps(line) + b"\n"

    def how_to_go_on(self) -> str | None:
        done = self.output.last.records
        return f"{done:,} tasks are done; continue with --resume." if done and self.options.output != STDOUT else None

    def summary(self) -> Summary:
        seconds = time.monotonic() - self.begun
        return Summary(
            model=self.spec.model_version,
            tasks=self.reached,
            predicted=self.counts["predicted"],
            skipped=self.counts["skipped"],
            failed=self.counts["failed"],
            resumed_at=self.resumed_at,
            seconds=round(seconds, 3),
            tasks_per_second=round((self.reached - self.resumed_at) / seconds, 1) if seconds else 0.0,
            output=self.options.output,
            errors=self.options.errors,
            first_failures=tuple(self.first_failures),
        )


def _open_output(options: PredictOptions, started_with: Mapping[str, Any]) -> Output:
    form = output_format(options.output, options.format)
    if options.output == STDOUT:
        if options.resume:
            raise UsageError("What went to standard output cannot be resumed.", "Write to a file with --output.")
        return StreamOutput(form, options.errors)
    named = [path for path in (options.output, options.tasks, options.errors) if path and path != STDOUT]
    if len({Path(path).resolve() for path in named}) < len(named):
        raise UsageError("Input, output and error file must be different files.", f"Named were: {', '.join(named)}.")
    return FileOutput(options.output, form, options.errors, {**started_with, "format": form}, resume=options.resume)


def _started_with(spec: ModelSpec, config: LabelConfig, options: PredictOptions, batch_size: int) -> dict[str, Any]:
    """Everything that decides about the bytes of the output; how fast and how patiently does not count."""
    return {
        "model": spec.model_version,
        "model digest": spec.digest,
        "label config": config.digest,
        "--shape": options.shape,
        "--batch-size": batch_size,
        "--limit": options.limit,
        "--threshold": options.threshold,
        "--label-map": dict(options.label_map),
        "--id-column": options.id_column,
        "--keep-annotations": options.keep_annotations,
        "--skip-predicted": options.skip_predicted,
        "--errors": options.errors and Path(options.errors).name,
        "size of the input": _size(options.tasks),
        "lsml": __version__,
    }


def _size(source: str) -> int | None:
    return Path(source).stat().st_size if source != STDIN and Path(source).is_file() else None


def _media_root(source: str) -> Path:
    """Media are looked for beside the file with the tasks."""
    return Path() if source == STDIN else Path(source).parent


def _require_ids(records: Iterator[Record], job: BulkJob) -> Iterator[Record]:
    """Refuse `--shape predictions` at once for an input without ids, instead of failing task by task."""
    first = next(records, None)
    if first is None:
        return iter(())
    task, outcome = job.read(first)
    if task is not None and task.id is None and isinstance(outcome, Failure):
        raise UsageError(
            f"{outcome.reason[0].upper()}{outcome.reason[1:]}.",
            "Use --shape tasks, name the column with --id-column, or export the tasks from the project first.",
        )
    return chain([first], records)


def read_label_map(path: Path) -> dict[str, str]:
    """A `--label-map` file: a JSON object from classes of the model to labels of the config."""
    try:
        found = orjson.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"The label map {path} cannot be read: {error.strerror}.") from None
    except orjson.JSONDecodeError as error:
        raise UsageError(f"The label map {path} is not JSON: {error}.") from None
    if not isinstance(found, dict) or not all(isinstance(label, str) for label in found.values()):
        raise UsageError(f"The label map {path} is not a JSON object of strings.", 'Write {"model class": "label"}.')
    return found


def write_summary(path: Path, summary: Summary) -> None:
    try:
        path.write_bytes(orjson.dumps(summary.to_json(), option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise OutputError(f"The summary {path} cannot be written: {error.strerror}.") from None
