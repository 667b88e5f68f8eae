"""`lsml predict --retry-failed`: redo the tasks of an error file, in the finished output of an earlier run."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from lsml_cli.errors import InputError, UsageError
from lsml_cli.inference.dispatch import predict_stream
from lsml_cli.inference.plan import PredictPlan
from lsml_cli.inference.predict_summary import PredictSummary
from lsml_cli.inference.record_codec import OutputRecord, RenderedRecord
from lsml_cli.inference.run import PredictRun
from lsml_cli.io.json_records import MAX_OUTPUT_RECORD_BYTES, MAX_TASK_BYTES, Record
from lsml_cli.io.output import Output, open_output
from lsml_cli.io.output_paths import is_stream
from lsml_cli.io.output_target import GZIP_SUFFIX
from lsml_cli.io.source import RecordSource
from lsml_cli.io.task_source import TaskSource
from lsml_cli.progress import ProgressReporter
from lsml_cli.runtime import error_reason
from lsml_cli.schema.json_codec import loads
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.tasks import as_id

BLOCK_BYTES = 16 << 20  # of finished records that wait while failed ones gather for a batch
ERROR_FILE_HINT = "Name the file that `lsml predict --errors` wrote; lines may be left out, not moved."


@dataclass
class _RetrySlot:
    """A record of the input, and its finished record in the output, None where the task is to be predicted again."""

    record: Record
    finished_body: bytes | None


def retry_failed(plan: PredictPlan, errors: Path, reporter: ProgressReporter) -> PredictSummary:
    """Predict the tasks of an error file again, and put the results in their places in the finished output.

    Everything else is copied byte by byte. The output is replaced when the new one is complete; a killed retry leaves
    the old one as it was.

    Args:
        plan: The plan of the run that wrote the output.
        errors: Its error file; lines may be left out. Tasks that fail again go to `plan.options.errors`.
        reporter: Gets notes and progress.

    Raises:
        UsageError: There is no finished output, or no error file.
        InputError: Output, error file and input do not belong together.
    """
    options = plan.options
    if options.target.is_stream or not Path(options.output).is_file():
        raise UsageError(
            f"--retry-failed needs the finished output, and {options.output} is no file.",
            "Name it with --output; an unfinished run is continued with --resume.",
        )
    with ExitStack() as stack:
        source = stack.enter_context(plan.open_source())
        finished = iter(_open_finished(options.output, stack))
        slots = _pair_records(plan, source, finished, _read_error_file(errors))
        output = stack.enter_context(closing(open_output(replace(options.target, is_resumable=False))))
        run = _RetryRun(plan, source, output, reporter, sum(1 for _ in _read_error_file(errors)))
        for note in plan.notes:
            reporter.note(note)
        reporter.start_phase("loading model")
        replicas = stack.enter_context(plan.open_replicas())
        reporter.start_phase("predicting again")
        for block in _group_slots(slots, plan.batch_size * len(replicas)):
            failed = [slot.record for slot in block if slot.finished_body is None]
            results = predict_stream(replicas, failed, batch_size=plan.batch_size, codec=plan.codec)
            for slot in block:
                run.add_in_flight(slot.record)
            run.write_batches([[_take_result(slot, results) for slot in block]])
        if (extra := next(finished, None)) is not None:
            raise _mismatch_error(plan, f"the output has more records than the input, from {extra.location} on")
        output.finish()
        return run.summary()


class _RetryRun(PredictRun):
    """A run whose progress counts only the tasks that are predicted again: the others are copied in no time."""

    def __init__(
        self, plan: PredictPlan, source: TaskSource, output: Output, reporter: ProgressReporter, total: int
    ) -> None:
        super().__init__(plan, source, output, reporter)
        self.total = total

    def report_progress(self, end: int) -> None:
        done = self.processed - self.counts["skipped"]
        self.reporter.progress(done, self.counts["failed"], min(1.0, done / max(1, self.total)))


def _open_finished(path: str, stack: ExitStack) -> Iterable[Record]:
    """Open the finished output; JSON Lines of which no task could be read is an empty file."""
    with Path(path).open("rb") as file:
        content = gzip.GzipFile(fileobj=file) if path.lower().endswith(GZIP_SUFFIX) else file
        try:
            is_empty = not content.read(1)
        except (OSError, EOFError, zlib.error):  # damaged gzip, which the reader explains
            is_empty = False
    return () if is_empty else stack.enter_context(RecordSource(path, max_record_bytes=MAX_OUTPUT_RECORD_BYTES))


def _take_result(slot: _RetrySlot, results: Iterator[RenderedRecord]) -> RenderedRecord:
    """Return the finished record of a slot, or the next new one where the task was predicted again."""
    return next(results) if slot.finished_body is None else OutputRecord(slot.finished_body, is_kept=True)


def _group_slots(slots: Iterator[_RetrySlot], max_failed: int) -> Iterator[list[_RetrySlot]]:
    """Group consecutive slots until `max_failed` of them are to be predicted, or they hold `BLOCK_BYTES`."""
    block: list[_RetrySlot] = []
    failed = size = 0
    for slot in slots:
        block.append(slot)
        failed += slot.finished_body is None
        size += len(slot.finished_body or b"")
        if failed == max_failed or size > BLOCK_BYTES:
            yield block
            block, failed, size = [], 0, 0
    if block:
        yield block


def _pair_records(
    plan: PredictPlan,
    source: TaskSource,
    finished: Iterator[Record],
    failed: Iterator[dict[str, Any]],
) -> Iterator[_RetrySlot]:
    """Pair each record of the input with that of the output.

    Where the input was unreadable, an output of whole tasks has no record.

    Raises:
        InputError: Output, error file and input do not belong together.
    """
    error = next(failed, None)
    limit = plan.options.limit
    for record in source:
        if limit is not None and record.index == limit:
            return
        if error is None or error["index"] != record.index:
            finished_record = next(finished, None)
            if finished_record is None or finished_record.problem:
                raise _mismatch_error(plan, f"the output has no record for {source.name}, {record.location}")
            yield _RetrySlot(record, finished_record.body.rstrip(b"\r\n"))
            continue
        if plan.options.output_shape == "predictions" or error["stage"] != "read":
            _require_failed_record(plan, next(finished, None), error)
        yield _RetrySlot(record, None)
        error = next(failed, None)
    if error is not None:
        raise _mismatch_error(plan, f"the error file lists record {error['index']:,}, which the input does not have")


def _require_failed_record(plan: PredictPlan, output_record: Record | None, error: dict[str, Any]) -> None:
    """Raise InputError unless the output holds the failed task exactly where the error file says."""
    try:
        record = loads(output_record.body) if output_record is not None else None
    except ValueError:
        record = None
    id_key = "task" if plan.options.output_shape == "predictions" else "id"
    if not isinstance(record, dict) or as_id(record.get(id_key)) != error["id"]:
        raise _mismatch_error(plan, f"record {error['index']:,} of the output is not task {error['id']}")
    versions = [prediction["model_version"] for prediction in stored_predictions(record)]
    if plan.spec.model_version in versions:
        raise _mismatch_error(plan, f"task {error['id']} has a prediction of {plan.spec.model_version} in the output")


def _mismatch_error(plan: PredictPlan, reason: str) -> InputError:
    return InputError(
        f"Input, output and error file do not belong together: {reason}.",
        f"--retry-failed takes the files and the options of the run that wrote {plan.options.output}.",
    )


def _iter_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    is_gzip = path.name.lower().endswith(GZIP_SUFFIX)
    content = gzip.GzipFile(fileobj=file) if is_gzip else file
    try:
        yield from iter(lambda: content.readline(MAX_TASK_BYTES), b"")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"The error file {path} cannot be read: {error_reason(error)}.") from None


def _read_error_file(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of an error file, parsed; they must be in the order of the input."""
    if is_stream(str(path)):
        raise UsageError(f"--retry-failed reads the error file, and {path} is no file.", ERROR_FILE_HINT)
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"The error file {path} cannot be read: {error.strerror}.") from None
    with file:
        last_index = -1
        for number, line in enumerate(_iter_lines(file, path), 1):
            try:
                if len(line) == MAX_TASK_BYTES:  # and it goes on; orjson's error would hold it several times
                    raise ValueError
                failed = orjson.loads(line)
                index, _, _ = failed["index"], failed["id"], failed["stage"]
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{path}, line {number} is no line of an error file.", ERROR_FILE_HINT) from None
            if not isinstance(index, int) or index <= last_index:
                raise InputError(f"{path}, line {number} is out of order.", ERROR_FILE_HINT)
            last_index = index
            yield failed
