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
from lsml_cli.inference.plan import Plan
from lsml_cli.inference.record_codec import Exceptional, Written
from lsml_cli.inference.run import Report, Run, Summary
from lsml_cli.io.image_paths import Folder
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import FileOutput
from lsml_cli.io.output_paths import is_stream
from lsml_cli.io.source import Source

BLOCK = 16 << 20  # bytes of finished records that wait while failed ones gather for a batch


@dataclass
class _Place:
    """A record of the input, and what stands in its place: a finished record, or None where it is to be redone."""

    record: Record
    finished: bytes | None


def retry_failed(plan: Plan, errors: Path, report: Report) -> Summary:
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
        source: Source | Folder = plan.open_source()
        stack.enter_context(source)
        finished = stack.enter_context(Source(options.output))
        old = iter(finished)
        places = _places(plan, source, old, _failed(errors))
        output = FileOutput(options.output, options.errors, plan.started_with(), resume=False, journal=False)
        stack.enter_context(closing(output))
        run = Run(plan, source, output, report)
        for note in plan.notes:
            report.note(note)
        replicas = stack.enter_context(plan.open_replicas())
        for block in _blocks(places, plan.batch_size * len(replicas)):
            again = [place.record for place in block if place.finished is None]
            results = predict_stream(replicas, again, batch_size=plan.batch_size, job=plan.job)
            run.under_way.extend((place.record.place, 0) for place in block)
            run.go([[_written(place, results) for place in block]])
        if (extra := next(old, None)) is not None:
            raise _do_not_belong(plan, f"the output has more records than the input, from {extra.place} on")
        output.finish()
        return run.summary()


def _written(place: _Place, results: Iterator[Written]) -> Written:
    return next(results) if place.finished is None else Exceptional(place.finished, kept=True)


def _blocks(places: Iterator[_Place], failed_at_most: int) -> Iterator[list[_Place]]:
    block: list[_Place] = []
    failed = size = 0
    for place in places:
        block.append(place)
        failed += place.finished is None
        size += len(place.finished or b"")
        if failed == failed_at_most or size > BLOCK:
            yield block
            block, failed, size = [], 0, 0
    if block:
        yield block


def _places(
    plan: Plan, source: Source | Folder, finished: Iterator[Record], failed: Iterator[dict[str, Any]]
) -> Iterator[_Place]:
    """Input and output side by side. Where an unreadable record was, a file of whole tasks has nothing."""
    error = next(failed, None)
    limit = plan.options.limit
    for record in source:
        if limit is not None and record.index == limit:
            return
        if error is None or error["index"] != record.index:
            place = next(finished, None)
            if place is None or place.problem:
                raise _do_not_belong(plan, f"the output has no record for {source.name}, {record.place}")
            yield _Place(record, place.body.rstrip(b"\r\n"))
            continue
        if plan.options.shape == "predictions" or error["stage"] != "read":
            _require_failed(plan, next(finished, None), error)
        yield _Place(record, None)
        error = next(failed, None)
    if error is not None:
        raise _do_not_belong(plan, f"the error file lists record {error['index']:,}, which the input does not have")


def _require_failed(plan: Plan, place: Record | None, error: dict[str, Any]) -> None:
    """The output must hold the failed task exactly where the error file says it is."""
    record = orjson.loads(place.body) if place is not None and place.body else {}
    task_id = record.get("task" if plan.options.shape == "predictions" else "id")
    if place is None or task_id != error["id"]:
        raise _do_not_belong(plan, f"record {error['index']:,} of the output is not task {error['id']}")
    versions = [old.get("model_version") for old in record.get("predictions", ()) if isinstance(old, dict)]
    if plan.spec.model_version in versions:
        raise _do_not_belong(plan, f"task {error['id']} has a prediction of {plan.spec.model_version} in the output")


def _do_not_belong(plan: Plan, why: str) -> InputError:
    return InputError(
        f"Input, output and error file do not belong together: {why}.",
        f"--retry-failed takes the files and the options of the run that wrote {plan.options.output}.",
    )


def _failed(path: Path) -> Iterator[dict[str, Any]]:
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
                raise InputError(f"{path}, line {number} is no line of an error file.", ERRORS_EXPECTED) from None
            if not isinstance(index, int) or index <= last:
                raise InputError(f"{path}, line {number} is out of order.", ERRORS_EXPECTED)
            last = index
            yield failed


ERRORS_EXPECTED = "Name the file that `lsml predict --errors` wrote; lines may be left out, not moved."
