"""`lsml predict` without the command line: read, predict, write, resume."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from itertools import chain

from lsml_cli.errors import UsageError
from lsml_cli.inference.autotune import tuned
from lsml_cli.inference.dispatch import predict_batches
from lsml_cli.inference.plan import Plan
from lsml_cli.inference.record_codec import BulkJob
from lsml_cli.inference.replica_process import GC_THRESHOLD
from lsml_cli.inference.run import Report, Run, Summary
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import FileOutput, Output, StreamOutput, output_format
from lsml_cli.io.output_paths import is_stream, room_note
from lsml_cli.schema.predictions import Failure


def predict_file(plan: Plan, report: Report) -> Summary:
    """Predict every task of a file or a pipe, and write the records as they come.

    Raises UsageError before anything heavy starts if input and output make no sense, RunStopped for `on_error` and
    `max_failures`, Interrupted on ctrl-C.
    """
    options = plan.options
    with plan.open_source() as source:
        records = require_ids(iter(source), plan.job) if options.shape == "predictions" else iter(source)
        plan, records, settled = tuned(plan, records)
        with closing(_open_output(plan)) as output:
            run = Run(plan, source, output, report)
            for note in (*plan.notes, *source.notes, settled, room_note(options.output, source.size)):
                if note:
                    report.note(note)
            if not output.last.finished:
                items = run.pending(records)
                gc.set_threshold(*GC_THRESHOLD)
                with plan.open_replicas() as replicas:
                    run.go(predict_batches(replicas, items, batch_size=plan.batch_size, job=plan.job, weigh=_weight))
            output.finish()
            return run.summary()


def _weight(record: Record) -> int:
    return len(record.body)


def _open_output(plan: Plan) -> Output:
    options = plan.options
    if not is_stream(options.output):
        return FileOutput(options.output, options.errors, plan.started_with(), resume=options.resume)
    if options.resume:
        raise UsageError("What went into a stream cannot be resumed.", "Write to a file with --output.")
    return StreamOutput(options.output, output_format(options.output, options.format), options.errors)


def require_ids(records: Iterator[Record], job: BulkJob) -> Iterator[Record]:
    """Refuse `--shape predictions` at once for an input without ids, instead of failing task by task."""
    first = next(records, None)
    if first is None:
        return iter(())
    task, outcome = job.read(first)
    if task is not None and task.id is None and isinstance(outcome, Failure):
        raise UsageError(
            f"{first.place}: {outcome.reason}.",
            "Use --shape tasks, name the column with --id-column, or export the tasks from the project first.",
        )
    return chain([first], records)
