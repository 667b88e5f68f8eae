"""One execution of `lsml predict`: what was asked for, what is done to each record, and how it went."""

from __future__ import annotations

import json
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import orjson

from lsml_cli import __version__
from lsml_cli.errors import Interrupted, OutputError, RunStopped, UsageError, closest_first
from lsml_cli.label_config import LabelConfig
from lsml_cli.models.base import Binding, Model, ModelSpec
from lsml_cli.output import (
    STDOUT,
    Format,
    Output,
    is_stream,
    output_format,
    require_different_files,
    require_writable,
)
from lsml_cli.pipeline import find_devices, open_replicas
from lsml_cli.predictions import Failure, Outcome, Shape, Stored, render, stored_predictions
from lsml_cli.records import Record
from lsml_cli.replica import Replica, Setting
from lsml_cli.replica_process import ReplicaProcess
from lsml_cli.resume import Entry, require_enough_input, require_same_input
from lsml_cli.source import STDIN, Source
from lsml_cli.tasks import Task, has_large_numbers, parse_task

FAILURES_SHOWN = 3
HOPELESS = 1_000  # tasks that all failed, after which something must be wrong with all of them
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
    summary: str | None = None
    reads: Mapping[str, str | None] = field(
        default_factory=dict
    )  # files that must not be written over, by what they are


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
        return asdict(self) | {"output": _printable(self.output), "errors": self.errors and _printable(self.errors)}

    def sentences(self) -> Iterator[str]:
        """The summary in words."""
        rate = f" in {self.seconds:,.1f} s ({self.tasks_per_second:,.0f}/s)"
        before = f", {self.resumed_at:,} of them before" if self.resumed_at else ""
        kept = f", {self.skipped:,} left as they were" if self.skipped else ""
        where = f" -> {self.output}" if self.output != STDOUT else ""
        tasks = f"{self.tasks:,} task{'' if self.tasks == 1 else 's'}"
        yield f"{tasks}{before}: {self.predicted:,} predicted{kept}, {self.failed:,} failed{rate}{where}"
        if self.failed and self.errors:
            yield f"All failures are in {self.errors}."
        elif self.failed > len(self.first_failures):
            yield f"{self.failed - len(self.first_failures):,} more failed; --errors FILE lists them all."


def _printable(path: str) -> str:
    """A path that may hold bytes which are no UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


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
        if b"e+" in body and task is not None and has_large_numbers(record.body):
            exact = json.loads(record.body)  # orjson makes floats of whole numbers beyond 64 bits
            task = replace(task, data=exact.get("data", exact), raw=exact)
            body = render(
                task, outcome, self.shape, self.keep_annotations, dumps=lambda value: json.dumps(value).encode()
            )
        if isinstance(outcome, Failure):
            return Exceptional(body, task.id if task else None, outcome)
        return Exceptional(body, None, None) if isinstance(outcome, Stored) else body


@dataclass(frozen=True)
class Plan:
    """A model that met a label config, and everything else that is settled before the first task is read."""

    spec: ModelSpec
    options: PredictOptions
    model: Model  # without its weights
    binding: Binding
    devices: Sequence[str]
    batch_size: int
    job: BulkJob

    @classmethod
    def make(cls, spec: ModelSpec, config: LabelConfig, options: PredictOptions) -> Self:
        """Raises UsageError if the options make no sense, LabelMismatch if the model cannot fill the label config."""
        writes = {"--output": options.output, "--errors": options.errors, "--summary": options.summary}
        require_different_files({"the input": options.tasks, **options.reads}, writes)
        if options.summary:
            require_writable(options.summary)
        _require_labels(options.label_map, config)
        model = spec.build()
        job = BulkJob(
            frozenset(config.controls),
            options.id_column,
            options.shape,
            options.keep_annotations,
            spec.model_version if options.skip_predicted else None,
        )
        return cls(
            spec,
            options,
            model,
            Setting(config, options.label_map, None, options.threshold).bind(model),
            find_devices(options.device, type(model)),
            options.batch_size or model.batch_size,
            job,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should read once, about the label config and how the model fits it."""
        classes = {name for meeting in self.binding.meetings for name in meeting.classes}
        unknown = [name for name in self.options.label_map if classes and name not in classes]
        mapped = (f"The model has no class {', '.join(unknown)}, which the label map names.",) if unknown else ()
        return (*self.binding.config.warnings, *self.binding.notes, *mapped)

    @property
    def media_root(self) -> Path:
        """Media are looked for beside the file with the tasks."""
        return Path() if self.options.tasks == STDIN else Path(self.options.tasks).parent

    def _workers(self) -> int:
        """As many as were asked for, but none that would have nothing to do."""
        limit = self.options.limit
        return (
            self.options.workers if limit is None else max(1, min(self.options.workers, -(-limit // self.batch_size)))
        )

    def open_replicas(self) -> AbstractContextManager[list[Replica | ReplicaProcess]]:
        return open_replicas(
            self.spec,
            self.binding.config,
            label_map=self.options.label_map,
            threshold=self.options.threshold,
            devices=self.devices,
            workers=self._workers(),
            media_root=self.media_root,
        )

    def started_with(self) -> dict[str, Any]:
        """Everything that decides about the bytes of the output; how fast and how patiently does not count."""
        options = self.options
        return {
            "model": self.spec.model_version,
            "model digest": self.spec.digest,
            "label config": self.binding.config.digest,
            "--format": output_format(options.output, options.format),
            "--shape": options.shape,
            "--batch-size": self.batch_size,
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


def _require_labels(label_map: Mapping[str, str], config: LabelConfig) -> None:
    """Refuse a label map that leads to labels which the config does not have."""
    labels = {label.name for control in config.controls.values() for label in control.labels}
    labels |= {label.value for control in config.controls.values() for label in control.labels}
    if any(control.dynamic for control in config.controls.values()):
        return
    for label in label_map.values():
        if label not in labels:
            known = ", ".join(closest_first(label, labels))
            raise UsageError(
                f"The label map names {label!r}, which the label config does not have.", f"It has: {known}."
            )


def _size(source: str) -> int | None:
    return Path(source).stat().st_size if source != STDIN and Path(source).is_file() else None


class Run:
    """The counters of one run, and the way of a batch from the replicas to the output."""

    def __init__(self, plan: Plan, source: Source, output: Output, report: Report) -> None:
        self.plan = plan
        self.options = plan.options
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
            raise RunStopped(f"More than {most:,} tasks failed (--max-failures).", self.how_to_go_on())
        if self.counts["failed"] == self.reached and self.reached >= HOPELESS > self.reached - len(batch):
            self.report.note(f"All of the first {self.reached:,} tasks failed; ctrl-C stops the run.")
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
            self.report.note(f"failed: {sentence}")
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
        return (
            f"{done:,} tasks are done; continue with --resume." if done and not is_stream(self.options.output) else None
        )

    def summary(self) -> Summary:
        seconds = time.monotonic() - self.begun
        return Summary(
            model=self.plan.spec.model_version,
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


class _Summarised(Protocol):
    def to_json(self) -> dict[str, Any]: ...


def write_summary(path: Path, summary: _Summarised) -> None:
    """Write a summary or findings as JSON. Raises OutputError when that is not possible."""
    try:
        path.write_bytes(orjson.dumps(summary.to_json(), option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise OutputError(f"The summary {path} cannot be written: {error.strerror}.") from None
