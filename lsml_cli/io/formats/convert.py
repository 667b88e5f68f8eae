"""Read tasks, or a data set in another format, and write a data set, or tasks."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from lsml_cli.errors import Interrupted, OutputError, TransientError, UsageError
from lsml_cli.io.formats.dataset_source import DatasetSource
from lsml_cli.io.formats.dataset_writer import (
    Content,
    DatasetWriter,
    Example,
    ImageMode,
    LeftOut,
    Region,
    Side,
    WriteOptions,
)
from lsml_cli.io.formats.image_set import has_image
from lsml_cli.io.formats.registry import FORMATS, create_writer
from lsml_cli.io.journal import JournalEntry
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import open_output, write_all
from lsml_cli.io.output_paths import is_stdout, resolve_output_path
from lsml_cli.io.output_target import OutputFormat, OutputTarget
from lsml_cli.io.reserved_stdout import open_stdout
from lsml_cli.io.task_reader import REPORTED_TASKS, parse_task
from lsml_cli.io.task_source import TaskSource
from lsml_cli.media.fetcher import Media
from lsml_cli.progress import ProgressReporter
from lsml_cli.runtime import DISK_FULL_ERRNOS, Retrier, error_reason
from lsml_cli.schema.annotations import AnnotationPolicy, iter_task_annotations
from lsml_cli.schema.failure_causes import FailureCauses, FailureNotes
from lsml_cli.schema.json_codec import dumps
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.tasks import Task, is_export_row
from lsml_cli.schema.value_checks import is_number

NO_PREDICTION = "no prediction"
ALL_FAILED_HINT = "The run goes on. Stop it with ctrl-C."
SAMPLED_TASKS = 5  # that are looked at before anything is written
RETRY_DELAYS = (1.0, 4.0)  # seconds before a file is fetched again
_EMPTY_CONFIG = LabelConfig("", {}, {})


@dataclass(frozen=True)
class ConvertOptions:
    """What is converted, and how. `lsml convert --help` explains those that are not listed here.

    Attributes:
        output_format: Name of a format; None for tasks of Label Studio.
        output: A folder that is made; for tasks a file, or "-".
        config: The label config; None: without one.
        content: What of the tasks is written.
        variant: Of the format.
        media: Where images are.
        side: Tells on which side of a split a task is; None: no task is held out.
    """

    output_format: str | None
    output: str
    format: OutputFormat | None = None
    config: LabelConfig | None = None
    content: Content = "annotations"
    threshold: float | None = None
    annotation_policy: AnnotationPolicy = "last"
    limit: int | None = None
    data_key: str | None = None
    images: ImageMode = "none"
    variant: str | None = None
    errors: str | None = None
    media: Media = field(default_factory=Media)
    side: Callable[[Task], Side] | None = None


@dataclass
class ConvertResult:
    """How a conversion went. The fields are the keys of `--summary`.

    Attributes:
        tasks: Tasks that were read.
        written: Tasks, or annotations of them, that were written.
        failed: Tasks that could not be read or written.
        regions: Regions that were written; None for tasks.
        left_out: Number of tasks that were left out, by reason.
        regions_left_out: Number of regions that the format cannot hold, by reason.
        sides: Number of written tasks by side.
    """

    output: str
    tasks: int = 0
    written: int = 0
    failed: int = 0
    regions: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    regions_left_out: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)
    causes: FailureCauses = field(default_factory=FailureCauses)

    def to_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "tasks": self.tasks,
            "written": self.written,
            "failed": self.failed,
            "regions": self.regions,
            "left_out": dict(self.left_out),
            "regions_left_out": dict(self.regions_left_out),
            "sides": dict(self.sides),
            "failures": self.causes.to_json(),
        }

    def summary_lines(self) -> Iterator[str]:
        """Say what was written, and what was not."""
        target = f" -> {self.output}" if self.output != "-" else ""
        regions = "" if self.regions is None else f", {self.regions:,} region{'' if self.regions == 1 else 's'}"
        tasks = f"{self.tasks:,} task{'' if self.tasks == 1 else 's'}"
        sides = f" ({self.sides['train']:,} train, {self.sides['val']:,} val)" if self.sides["val"] else ""
        yield f"{tasks}, {self.written:,} written{sides}{regions}{target}"
        for reason, count in sorted(self.left_out.items()):
            yield f"{count:,} {'task is' if count == 1 else 'tasks are'} left out: {reason}."
        for reason, count in sorted(self.regions_left_out.items()):
            yield f"{count:,} {'region is' if count == 1 else 'regions are'} left out: {reason}."
        yield from self.causes.lines()


def convert(source: TaskSource, options: ConvertOptions, reporter: ProgressReporter) -> ConvertResult:
    """Write a data set, or tasks, from a source. A task that cannot be read or written costs only itself.

    Args:
        source: The open input.
        options: What is written, and where to.
        reporter: Gets notes and progress.

    Raises:
        UsageError: The options make no sense, or the output is there already.
        OutputError: The output cannot be written.
        Interrupted: Ctrl-C; nothing is left of the output.
    """
    for note in source.notes:
        reporter.note(note)
    if options.output_format is None:
        return _write_tasks(source, options, reporter)
    return _write_dataset(options.output_format, source, options, reporter)


class _Run:
    """Counts and reports what happens to the records of a source."""

    def __init__(self, source: TaskSource, options: ConvertOptions, reporter: ProgressReporter) -> None:
        self.source = source
        self.options = options
        self.reporter = reporter
        self.result = ConvertResult(options.output)
        self.location = ""
        self.error_lines: list[bytes] = []
        self._failure_notes = FailureNotes(reporter.note, reporter.warn, ALL_FAILED_HINT)

    def records(self) -> Iterator[Record]:
        """Yield the records, and report progress."""
        self.reporter.start_phase("converting")
        for record in islice(self.source, self.options.limit):
            self.location = record.location
            self.result.tasks += 1
            yield record
            if self.result.tasks % REPORTED_TASKS == 0:
                self.reporter.progress(self.result.tasks, self.result.failed, self.source.share(record.end))

    def tasks(self) -> Iterator[Task]:
        """Yield the tasks; records that are none have failed.

        Raises:
            UsageError: The format is about images, and none of the first tasks has a value that is known to be one.
        """
        tasks = ((task, self.location) for task in self._parse_tasks())
        first: list[tuple[Task, str]] = []
        entry = FORMATS[self.options.output_format] if self.options.output_format else None
        if entry and entry.holds_images and self.options.config is None and self.options.data_key is None:
            first = list(islice(tasks, SAMPLED_TASKS))
            if first and not any(has_image(task) for task, _ in first):
                sample = "task" if len(first) == 1 else f"{len(first)} tasks"
                raise UsageError(
                    f"{entry.title} is about images, and no value of the first {sample} is known to be one.",
                    "Name the label config with --label-config, or the value with --data-key.",
                )
        for task, location in chain(first, tasks):
            self.location = location
            yield task

    def _parse_tasks(self) -> Iterator[Task]:
        controls = frozenset(self.options.config.controls if self.options.config else ())
        for record in self.records():
            try:
                task = parse_task(record, controls)
                self._require_data(task)
            except ValueError as error:
                self.fail("read", error_reason(error), None, record.index)
                continue
            yield task

    def _require_data(self, task: Task) -> None:
        if "result" in task.raw and "data" not in task.raw:
            raise ValueError("it is a prediction without its task: lsml predict --shape tasks writes both")
        if is_export_row(task.raw) and self.options.config is None:
            raise ValueError("it is a row of JSON_MIN or CSV, which says nothing without --label-config")

    def fail(self, stage: str, reason: str, task_id: int | None, index: int, *, transient: bool = False) -> None:
        """Count a task that failed, and keep its line for the error file."""
        self.result.failed += 1
        task_name = f"{self.source.name}, {self.location}" + (f", task {task_id}" if task_id is not None else "")
        causes = self.result.causes
        cause = causes.add(stage, reason, task_name)
        self._failure_notes.add(causes, cause, all_failed=not self.result.written)
        line = {"id": task_id, "index": index, "place": self.location, "stage": stage, "reason": reason}
        self.error_lines.append(orjson.dumps({**line, "transient": transient}) + b"\n")

    def take_error_lines(self) -> list[bytes]:
        lines, self.error_lines = self.error_lines, []
        return lines


def _write_tasks(source: TaskSource, options: ConvertOptions, reporter: ProgressReporter) -> ConvertResult:
    """Write the tasks of a data set as Label Studio imports them."""
    run = _Run(source, options, reporter)
    target = OutputTarget(options.output, options.errors, options.format, is_resumable=False)
    with closing(open_output(target)) as output:
        try:
            for task in run.tasks():
                output.write([dumps(task.raw)], run.take_error_lines(), JournalEntry(run.result.tasks))
                run.result.written += 1
            output.write([], run.take_error_lines(), JournalEntry(run.result.tasks))
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted after {run.result.tasks:,} tasks.") from None
        output.finish()
    return run.result


def _write_dataset(name: str, source: TaskSource, options: ConvertOptions, reporter: ProgressReporter) -> ConvertResult:
    write_options = WriteOptions(
        options.config,
        options.content,
        options.data_key,
        options.images,
        options.media,
        options.variant,
        has_validation=options.side is not None,
    )
    run = _Run(source, options, reporter)
    try:
        with ExitStack() as stack:
            errors = stack.enter_context(_ErrorFile(options.errors)) if options.errors else None
            writer = stack.enter_context(create_writer(name, Path(options.output), write_options))
            _write_examples(run, writer, errors)
            writer.finish()
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted after {run.result.tasks:,} tasks; nothing was written.") from None
    run.result.regions = writer.written
    run.result.regions_left_out = writer.left_out
    return run.result


def _write_examples(run: _Run, writer: DatasetWriter, errors: _ErrorFile | None) -> None:
    """Write every example; one that cannot be written is counted, and costs only itself."""
    retrier = Retrier(RETRY_DELAYS)
    for example in _iter_examples(run):
        try:
            retrier.call(partial(writer.write, example))
        except LeftOut as reason:
            run.result.left_out[str(reason)] += 1
        except (ValueError, OSError, TransientError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
                raise
            stage = "write" if isinstance(error, ValueError) else "fetch"
            transient = isinstance(error, TransientError)
            run.fail(stage, error_reason(error), example.task.id, example.task.index, transient=transient)
        else:
            run.result.written += 1
            run.result.sides[example.side] += 1
        if errors:
            errors.write(run.take_error_lines())
    if errors:
        errors.write(run.take_error_lines())


class _ErrorFile:
    """Takes the lines about tasks that failed; it is written in place, since the data set beside it appears at once."""

    def __init__(self, path: str) -> None:
        self._name = "standard output" if is_stdout(path) else path
        try:
            self._file = open_stdout() if is_stdout(path) else io.FileIO(resolve_output_path(path), "w")
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, lines: Sequence[bytes]) -> None:
        write_all(self._file, b"".join(lines), self._name)


def _iter_examples(run: _Run) -> Iterator[Example]:
    """Yield the annotations or predictions that count."""
    options = run.options
    if options.content == "predictions":
        for task in run.tasks():
            prediction = next(reversed(stored_predictions(task.raw)), None)
            if prediction is None:
                run.result.left_out[NO_PREDICTION] += 1
            else:
                yield from _make_example(run, task, prediction["result"], prediction)
        return
    entries = iter_task_annotations(
        run.tasks(), options.config or _EMPTY_CONFIG, options.annotation_policy, allow_empty=True
    )
    for entry in entries:
        if entry.reason:
            run.result.left_out[entry.reason] += 1
        for annotation in entry.selected:
            if is_export_row(entry.task.raw):
                run.location = f"task {entry.task.id}"
            yield from _make_example(run, entry.task, annotation.result, _find_source(entry.task, annotation.id))


def _make_example(run: _Run, task: Task, regions: Sequence[Any], source: Mapping[str, Any]) -> Iterator[Example]:
    """Yield an example; nothing where it is not known on which side it is."""
    options = run.options
    try:
        side: Side = options.side(task) if options.side else "train"
    except ValueError as error:
        run.fail("write", error_reason(error), task.id, task.index)
        return
    kept = _known_regions(_drop_low_scores(regions, options.threshold), options.config)
    score = source.get("score")
    yield Example(task, kept, source, score if is_number(score) else None, side)


def _find_source(task: Task, annotation_id: int | None) -> Mapping[str, Any]:
    """Return a stored annotation with its fields besides the regions; a row of an export holds them itself."""
    if is_export_row(task.raw):
        row = task.raw
        return {**row, "id": row.get("annotation_id"), "completed_by": row.get("annotator")}
    stored = task.raw.get("annotations", task.raw.get("completions"))
    for annotation in stored if isinstance(stored, list) else ():
        if isinstance(annotation, Mapping) and annotation.get("id") == annotation_id:
            return annotation
    return {}


def _known_regions(regions: Sequence[Region], config: LabelConfig | None) -> list[Region]:
    if config is None:
        return list(regions)
    return [region for region in regions if region.get("from_name") in config.controls]


def _drop_low_scores(regions: Sequence[Any], threshold: float | None) -> list[Region]:
    """Drop regions with a lower score, and those that share their id."""
    usable = [region for region in regions if isinstance(region, Mapping)]
    if threshold is None:
        return usable
    ids = [region.get("id") or f"#{position}" for position, region in enumerate(usable)]
    scores = [region.get("score") for region in usable]
    low = {id for id, score in zip(ids, scores, strict=True) if isinstance(score, int | float) and score < threshold}
    return [region for id, region in zip(ids, usable, strict=True) if id not in low]


def require_convertible(output_format: str | None, source: TaskSource) -> None:
    """Raise UsageError where there is nothing to convert: tasks to tasks."""
    if output_format is None and not isinstance(source, DatasetSource):
        formats = ", ".join(name for name, entry in FORMATS.items() if entry.writer)
        raise UsageError("To which format?", f"Name it with --to: {formats}.")
