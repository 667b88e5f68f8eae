"""`lsml predict --retry-failed`: redo the tasks of an error file, in the finished output of an earlier run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from lsml_cli.errors import InputError, UsageError
from lsml_cli.inference.dispatch import predict_stream
from lsml_cli.inference.plan import PredictPlan
from lsml_cli.inference.record_codec import OutputRecord, RenderedRecord
from lsml_cli.inference.run import PredictRun, PredictSummary, ProgressReporter
from lsml_cli.io.image_paths import ImageFolderSource
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import FileOutput
from lsml_cli.io.output_paths import is_stream
from lsml_cli.io.source import RecordSource

BLOCK_BYTES = 16 << 20  # bytes of finished records that wait while failed ones gather for a batch


@dataclass
class _RetrySlot:
    """A record of the input, and what stands in its place: a finished record, or None where it is to be redone."""

    record: Record
    finished_body: bytes | None


def retry_failed(plan: PredictPlan, errors: Path, reporter: ProgressReporter) -> PredictSummary:
    """Predict the tasks that `errors` lists once more, and put the results in their places in the finished output.

    Everything else is copied byte by byte. The output is replaced when the new one is complete; a killed retry leaves
    the old one as it was. Tasks that fail again are in `options.errors`.
    Raises UsageError or InputError when output, error file and input do not belong together.
    """
    options = plan.options
    if is_stream(options.output) or not Path(options.output).is_file():
        raise UsageError(
            f"--retry-failed needs the finished output, and {options.output} is no file.",
            "Name it with --output; an unfinished run is continued with --resume.",
        )
    with ExitStack() as stack:
        source: RecordSource | ImageFolderSource = plan.open_source()
        stack.enter_context(source)
        finished = stack.enter_context(RecordSource(options.output))
        old = iter(finished)
        places = _pair_records(plan, source, old, _read_error_file(errors))
        output = FileOutput(options.output, options.errors, plan.run_fingerprint(), resume=False, with_journal=False)
        stack.enter_context(closing(output))
        run = PredictRun(plan, source, output, reporter)
        for note in plan.notes:
            reporter.note(note)
        replicas = stack.enter_context(plan.open_replicas())
        for block in _group_slots(places, plan.batch_size * len(replicas)):
            again = [place.record for place in block if place.finished_body is None]
            results = predict_stream(replicas, again, batch_size=plan.batch_size, codec=plan.codec)
            run.in_flight.extend((place.record.location, 0) for place in block)
            run.write_batches([[_take_result(place, results) for place in block]])
        if (extra := next(old, None)) is not None:
            raise _mismatch_error(plan, f"the output has more records than the input, from {extra.location} on")
        output.finish()
        return run.summary()


def _take_result(slot: _RetrySlot, results: Iterator[RenderedRecord]) -> RenderedRecord:
    return next(results) if slot.finished_body is None else OutputRecord(slot.finished_body, is_kept=True)


def _group_slots(slots: Iterator[_RetrySlot], max_failed: int) -> Iterator[list[_RetrySlot]]:
    block: list[_RetrySlot] = []
    failed = size = 0
    for place in slots:
        block.append(place)
        failed += place.finished_body is None
        size += len(place.finished_body or b"")
        if failed == max_failed or size > BLOCK_BYTES:
            yield block
            block, failed, size = [], 0, 0
    if block:
        yield block


def _pair_records(
    plan: PredictPlan,
    source: RecordSource | ImageFolderSource,
    finished: Iterator[Record],
    failed: Iterator[dict[str, Any]],
) -> Iterator[_RetrySlot]:
    """Input and output side by side. Where an unreadable record was, a file of whole tasks has nothing."""
    error = next(failed, None)
    limit = plan.options.limit
    for record in source:
        if limit is not None and record.index == limit:
            return
        if error is None or error["index"] != record.index:
            place = next(finished, None)
            if place is None or place.problem:
                raise _mismatch_error(plan, f"the output has no record for {source.name}, {record.location}")
            yield _RetrySlot(record, place.body.rstrip(b"\r\n"))
            continue
        if plan.options.output_shape == "predictions" or error["stage"] != "read":
            _require_failed_record(plan, next(finished, None), error)
        yield _RetrySlot(record, None)
        error = next(failed, None)
    if error is not None:
        raise _mismatch_error(plan, f"the error file lists record {error['index']:,}, which the input does not have")


def _require_failed_record(plan: PredictPlan, output_record: Record | None, error: dict[str, Any]) -> None:
    """The output must hold the failed task exactly where the error file says it is."""
    record = orjson.loads(output_record.body) if output_record is not None and output_record.body else {}
    task_id = record.get("task" if plan.options.output_shape == "predictions" else "id")
    if output_record is None or task_id != error["id"]:
        raise _mismatch_error(plan, f"record {error['index']:,} of the output is not task {error['id']}")
    versions = [old.get("model_version") for old in record.get("predictions", ()) if isinstance(old, dict)]
    if plan.spec.model_version in versions:
        raise _mismatch_error(plan, f"task {error['id']} has a prediction of {plan.spec.model_version} in the output")


def _mismatch_error(plan: PredictPlan, why: str) -> InputError:
    return InputError(
        f"Input, output and error file do not belong together: {why}.",
        f"--retry-failed takes the files and the options of the run that wrote {plan.options.output}.",
    )


def _read_error_file(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an error file; they come in the order of the input."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"The error file {path} cannot be read: {error.strerror}.") from None
    with file:
        last = -1
        for number, line in enumerate(file, 1):
            try:
                failed = orjson.loads(line)
                index, _, _ = failed["index"], failed["id"], failed["stage"]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                raise InputError(f"{path}, line {number} is no line of an error file.", ERROR_FILE_HINT) from None
            if not isinstance(index, int) or index <= last:
                raise InputError(f"{path}, line {number} is out of order.", ERROR_FILE_HINT)
            last = index
            yield failed


ERROR_FILE_HINT = "Name the file that `lsml predict --errors` wrote; lines may be left out, not moved."
