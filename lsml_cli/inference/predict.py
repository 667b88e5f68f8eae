"""`lsml predict` without the command line: read, predict, write, resume."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from itertools import chain

from lsml_cli.errors import UsageError
from lsml_cli.inference.autotune import autotune_plan
from lsml_cli.inference.dispatch import predict_batches
from lsml_cli.inference.plan import PredictPlan
from lsml_cli.inference.record_codec import BulkCodec
from lsml_cli.inference.replica_process import GC_THRESHOLD
from lsml_cli.inference.run import PredictRun, PredictSummary, ProgressReporter
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import FileOutput, Output, StreamOutput, output_format
from lsml_cli.io.output_paths import disk_space_note, is_stream
from lsml_cli.schema.predictions import Failure


def predict_file(plan: PredictPlan, reporter: ProgressReporter) -> PredictSummary:
    """Predict every task of a file or a pipe, and write the records as they come.

    Raises UsageError before anything heavy starts if input and output make no sense, RunStopped for `on_error` and
    `max_failures`, Interrupted on ctrl-C.
    """
    options = plan.options
    with plan.open_source() as source:
        records = require_ids(iter(source), plan.codec) if options.output_shape == "predictions" else iter(source)
        plan, records, settled = autotune_plan(plan, records)
        with closing(_open_output(plan)) as output:
            run = PredictRun(plan, source, output, reporter)
            for note in (*plan.notes, *source.notes, settled, disk_space_note(options.output, source.size)):
                if note:
                    reporter.note(note)
            if not output.last_entry.finished:
                items = run.pending_records(records)
                gc.set_threshold(*GC_THRESHOLD)
                with plan.open_replicas() as replicas:
                    run.write_batches(
                        predict_batches(
                            replicas, items, batch_size=plan.batch_size, codec=plan.codec, item_bytes=_record_bytes
                        )
                    )
            output.finish()
            return run.summary()


def _record_bytes(record: Record) -> int:
    return len(record.body)


def _open_output(plan: PredictPlan) -> Output:
    options = plan.options
    if not is_stream(options.output):
        return FileOutput(options.output, options.errors, plan.run_fingerprint(), resume=options.resume)
    if options.resume:
        raise UsageError("What went into a stream cannot be resumed.", "Write to a file with --output.")
    return StreamOutput(options.output, output_format(options.output, options.format), options.errors)


def require_ids(records: Iterator[Record], codec: BulkCodec) -> Iterator[Record]:
    """Refuse `--shape predictions` at once for an input without ids, instead of failing task by task."""
    first = next(records, None)
    if first is None:
        return iter(())
    task, outcome = codec.read(first)
    if task is not None and task.id is None and isinstance(outcome, Failure):
        raise UsageError(
            f"{first.location}: {outcome.reason}.",
            "Use --shape tasks, name the column with --id-column, or export the tasks from the project first.",
        )
    return chain([first], records)
