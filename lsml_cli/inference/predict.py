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
from lsml_cli.inference.predict_summary import PredictSummary
from lsml_cli.inference.record_codec import BulkCodec
from lsml_cli.inference.replica_process import GC_THRESHOLD
from lsml_cli.inference.run import PredictRun
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import open_output
from lsml_cli.progress import ProgressReporter
from lsml_cli.schema.predictions import Failure


def predict_file(plan: PredictPlan, reporter: ProgressReporter) -> PredictSummary:
    """Predict every task of a file, a folder or a pipe, and write the records as they come.

    Memory does not grow with the number of tasks; a task that fails costs only itself. A run that was killed is
    continued with `PredictOptions(resume=True)`, to the same bytes.

    Args:
        plan: What to predict, with which model, to where.
        reporter: Gets notes and progress.

    Returns:
        How the run went; failed tasks are counted in it, not raised.

    Raises:
        UsageError: Input or output make no sense, or a resume is refused; before anything heavy starts.
        InputError: The input holds no tasks.
        ModelError: The model cannot be loaded, or its process dies again and again.
        RunStopped: `on_error="fail"` or `max_failures` stopped the run.
        OutputError: The output cannot be written.
        Interrupted: Ctrl-C.

    Example:
        >>> config = LabelConfig.load(Path("config.xml"))
        >>> options = PredictOptions("tasks.json", output="predictions.json")
        >>> plan = PredictPlan.from_options(find_model("models/news"), config, options)
        >>> predict_file(plan, reporter).predicted
        4810
    """
    options = plan.options
    with plan.open_source() as source:
        records = require_ids(iter(source), plan.codec) if options.output_shape == "predictions" else iter(source)
        plan, records, autotune_note = autotune_plan(plan, records, reporter)
        with closing(open_output(options.target, plan.run_fingerprint(), resume=options.resume)) as output:
            run = PredictRun(plan, source, output, reporter)
            disk_space_note = options.target.disk_space_note(source.size)
            for note in (*plan.notes, *source.notes, autotune_note, disk_space_note):
                if note:
                    reporter.note(note)
            if not output.last_entry.finished:
                items = run.pending_records(records)
                gc.set_threshold(*GC_THRESHOLD)
                reporter.start_phase("loading model")
                with plan.open_replicas() as replicas:
                    run.write_batches(
                        predict_batches(
                            replicas, items, batch_size=plan.batch_size, codec=plan.codec, item_bytes=_record_bytes
                        )
                    )
                run.report_finished()
            output.finish()
            return run.summary()


def _record_bytes(record: Record) -> int:
    return len(record.body)


def require_ids(records: Iterator[Record], codec: BulkCodec) -> Iterator[Record]:
    """Return the records; raise UsageError at once for `--shape predictions` if the first one has no id.

    Otherwise every single task would fail.
    """
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
