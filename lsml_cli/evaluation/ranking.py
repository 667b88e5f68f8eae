"""Rank the records of a file of predictions, the least certain first, so that people label these first.

Records are copied byte by byte. They are sorted on disk (`external_sort`), so memory does not grow with the file.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lsml_cli.errors import InputError
from lsml_cli.evaluation.metrics.intervals import Interval, wilson_interval
from lsml_cli.evaluation.prediction_records import (
    EXPECTED_FILE_HINT,
    StoredPrediction,
    is_prediction_object,
    parse_score,
)
from lsml_cli.evaluation.scorers import build_scorers, describe_controls, filled_unmeasurable_controls
from lsml_cli.evaluation.training_data import TrainingDataFilter, TrainingDataUse
from lsml_cli.evaluation.uncertainty import RankingCriterion, confidence, lowest_score
from lsml_cli.evaluation.unreadable_log import UnreadableLog
from lsml_cli.io.external_sort import KeyedRecord, sort_on_disk
from lsml_cli.io.journal import JournalEntry
from lsml_cli.io.json_records import MAX_OUTPUT_RECORD_BYTES, Record
from lsml_cli.io.output import Output, open_output
from lsml_cli.io.output_target import FORMAT_BY_SUFFIX, OutputFormat, OutputTarget
from lsml_cli.io.source import RecordSource
from lsml_cli.progress import ProgressReporter, SilentReporter
from lsml_cli.schema.annotations import AnnotationPolicy, is_empty_annotation_valid, is_relevant, iter_task_annotations
from lsml_cli.schema.json_codec import loads
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.tasks import Task, UnreadableRecord, parse_regions

BATCH_SIZE = 1000  # records written together
UNSCORED_KEY = math.inf  # predictions without a score come last, in the order of the input
FAILED_INDEX_OFFSET = 1 << 62  # failed tasks come after these

_NEWLINES_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")


@dataclass
class RankingResult:
    """The outcome of a ranking.

    Attributes:
        records: Number of records read.
        written: Number of records written to the ranking.
        accepted: Number of records that could be accepted as they are.
        without_score: Number of predictions without a score; they come last.
        failed: Number of tasks without a prediction; they come after these.
        unreadable: The unreadable records.
        truncated: Whether the file ends within a record.
    """

    records: int = 0
    written: int = 0
    accepted: int = 0
    without_score: int = 0
    failed: int = 0
    unreadable: UnreadableLog = field(default_factory=UnreadableLog)
    truncated: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "written": self.written,
            "accepted": self.accepted,
            "without_score": self.without_score,
            "failed": self.failed,
            "unreadable": self.unreadable.count,
            "torn": self.truncated,
        }


@dataclass(frozen=True)
class AcceptanceEstimate:
    """How often accepting predictions without review would be wrong, estimated on annotated tasks.

    Attributes:
        threshold: The score that all regions of an accepted prediction have at least.
        compared: Number of accepted predictions of annotated tasks.
        wrong: Number of these that people disagree with.
        left_out: Number of annotated tasks that were left out, by reason.
        unmeasurable_controls: Controls of accepted predictions that cannot be compared yet, with their tags.
        is_annotated: Whether any accepted prediction is of an annotated task.
        training_data: How tasks were treated that the model was trained on.
    """

    threshold: float
    compared: int
    wrong: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    unmeasurable_controls: Sequence[str] = ()
    is_annotated: bool = False
    training_data: TrainingDataUse = field(default_factory=TrainingDataUse)

    @property
    def error_rate(self) -> float | None:
        return self.wrong / self.compared if self.compared else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the error rate; None without any compared prediction."""
        return wilson_interval(self.wrong / self.compared, self.compared) if self.compared else None

    def to_json(self) -> dict[str, Any]:
        bounds = self.interval.to_json() if self.interval else {"low": None, "high": None}
        return {
            "threshold": self.threshold,
            "compared": self.compared,
            "wrong": self.wrong,
            "share": self.error_rate,
            **bounds,
            "left_out": dict(self.left_out),
            "training_data": self.training_data.to_json(),
            "cannot_be_measured": list(self.unmeasurable_controls),
        }


def rank_file(
    path: str,
    output: str,
    output_format: OutputFormat,
    *,
    by: RankingCriterion = "least-confident",
    limit: int | None = None,
    accept_above: float | None = None,
    accepted_output: str | None = None,
    reporter: ProgressReporter | None = None,
) -> RankingResult:
    """Write the records of a file of predictions to `output`, the least certain first.

    Args:
        path: The file, or "-" for stdin.
        output: Where to write the ranking, or "-" for stdout.
        output_format: Of the ranking.
        by: What to rank by.
        limit: How many records to write; None for all.
        accept_above: Predictions of which every region has at least this score can be accepted as they are.
        accepted_output: A file to write these to instead, in the order of the input; None to leave them in the ranking.
            Its suffix determines its format, and `output_format` if the suffix is unknown.
        reporter: Gets progress.

    Raises:
        UsageError: There is no such file.
        InputError: It does not hold predictions.
    """
    result = RankingResult()
    reporter = reporter or SilentReporter()
    with ExitStack() as stack:
        source = stack.enter_context(RecordSource(path, max_record_bytes=MAX_OUTPUT_RECORD_BYTES))
        if source.format == "csv":
            raise InputError(f"{path} is a table, not a file of predictions.", EXPECTED_FILE_HINT)
        accepted_format = FORMAT_BY_SUFFIX.get(Path(accepted_output or "").suffix.lower(), output_format)
        writer = _AcceptedWriter(stack, accepted_output, accepted_format, accept_above, result)
        ranking = stack.enter_context(closing(_open_output(output, output_format)))
        remaining = writer.filter_remaining(_score_records(source, path, by, result, reporter))
        bodies = islice(sort_on_disk(remaining, _temp_folder(output)), limit)
        total = 0
        for batch in _batches(_format_records(bodies, output_format)):
            if not result.written:  # sorting ends when the first record comes
                reporter.start_phase("writing the ranking", "records")
                total = result.records - (result.accepted if accepted_output is not None else 0)
                total = min(total, limit or total)
            result.written += len(batch)
            ranking.write(batch, (), JournalEntry(result.written))
            reporter.progress(result.written, 0, result.written / total)
        writer.finish()
        ranking.finish()
    return result


def estimate_acceptance(
    tasks: Iterable[Task | UnreadableRecord],
    config: LabelConfig,
    lookup: Callable[[Task], StoredPrediction | None],
    threshold: float,
    annotation_policy: AnnotationPolicy = "last",
    training_data: TrainingDataFilter | None = None,
) -> AcceptanceEstimate:
    """Compare the predictions that would be accepted with annotations.

    A prediction is wrong if people disagree with it about any control that it fills.

    Args:
        tasks: Annotated tasks; unreadable records are skipped.
        config: The label config.
        lookup: Returns the prediction of a task, see `PredictionFile.lookup`.
        threshold: The score that all regions of an accepted prediction have at least.
        annotation_policy: Which of several annotations count.
        training_data: Tells which tasks to leave out because the model was trained on them.
    """
    training_data = training_data or TrainingDataFilter()
    compared = wrong = accepted = 0
    left_out: Counter[str] = Counter()
    unmeasurable: set[str] = set()
    readable = (task for task in tasks if isinstance(task, Task))
    stream = iter_task_annotations(readable, config, annotation_policy, allow_empty=is_empty_annotation_valid(config))
    for entry in stream:
        truths = [annotation.result for annotation in entry.selected if is_relevant(annotation, config)]
        if not truths:
            continue
        prediction = lookup(entry.task)
        if prediction is None or prediction.failure is not None or not _is_accepted(prediction.result, threshold):
            continue
        if reason := training_data.reason_to_leave_out(entry.task):
            left_out[reason] += 1
            continue
        accepted += 1
        unmeasurable |= filled_unmeasurable_controls([prediction.result], config)
        filled = {region.get("from_name") for region in prediction.result}
        scorers = [scorer for name, scorer in build_scorers(config).items() if name in filled]
        scores = [score for scorer in scorers if (score := scorer.add(truths, prediction.result)).is_counted]
        compared += bool(scores)
        wrong += any(not score.is_correct for score in scores)
    return AcceptanceEstimate(
        threshold,
        compared,
        wrong,
        left_out,
        describe_controls(config, unmeasurable),
        accepted > 0,
        training_data.use,
    )


def _is_accepted(result: Sequence[Mapping[str, Any]], threshold: float) -> bool:
    lowest = lowest_score(result)
    return lowest is not None and lowest >= threshold


@dataclass(frozen=True)
class _RankedRecord:
    """A record with its sort key, and its regions."""

    keyed: KeyedRecord
    result: Sequence[Mapping[str, Any]]


def _score_records(
    source: RecordSource, path: str, by: RankingCriterion, ranking: RankingResult, reporter: ProgressReporter
) -> Iterator[_RankedRecord]:
    """Yield the readable records with their sort keys, and count them in `ranking`."""
    reporter.start_phase("reading predictions", "records")
    for record in source:
        if record.index and record.index % BATCH_SIZE == 0:
            reporter.progress(record.index, 0, source.share(record.end - len(record.body)))
        if record.problem:
            ranking.truncated = ranking.truncated or record.truncated
            ranking.unreadable.add(record.location, record.problem)
            continue
        try:
            result, score = _parse_prediction(record, path)
        except ValueError as error:
            ranking.unreadable.add(record.location, str(error))
            continue
        ranking.records += 1
        if result is None:
            ranking.failed += 1
            yield _RankedRecord(KeyedRecord(UNSCORED_KEY, record.index + FAILED_INDEX_OFFSET, record.body), ())
            continue
        key = confidence(result, score, by)
        ranking.without_score += key is None
        yield _RankedRecord(KeyedRecord(UNSCORED_KEY if key is None else key, record.index, record.body), result)


def _parse_prediction(record: Record, path: str) -> tuple[Sequence[Mapping[str, Any]] | None, float | None]:
    """Return regions and score of the last prediction in a record; the regions are None for a failed task."""
    raw = loads(record.body)
    if isinstance(raw, dict) and is_prediction_object(raw) and isinstance(raw.get("result"), list):
        if raw.get("error") is not None:
            return None, None
        return parse_regions(raw["result"]), parse_score(raw.get("score"))
    if isinstance(raw, dict) and isinstance(raw.get("predictions"), list):
        stored = stored_predictions(raw)
        return (parse_regions(stored[-1]["result"]), parse_score(stored[-1]["score"])) if stored else (None, None)
    raise InputError(f"{path}, {record.location}: there is no prediction, nor a list of them.", EXPECTED_FILE_HINT)


class _AcceptedWriter:
    """Counts the predictions that can be accepted, and writes them to their own file if there is one."""

    def __init__(
        self,
        stack: ExitStack,
        path: str | None,
        output_format: OutputFormat,
        threshold: float | None,
        ranking: RankingResult,
    ) -> None:
        self._threshold = threshold
        self._ranking = ranking
        self._format = output_format
        self._output = stack.enter_context(closing(_open_output(path, output_format))) if path is not None else None
        self._buffer: list[bytes] = []
        self._written = 0

    def filter_remaining(self, records: Iterable[_RankedRecord]) -> Iterator[KeyedRecord]:
        """Yield the records to rank: all of them, or without the accepted ones if these have a file."""
        for record in records:
            if self._threshold is not None and _is_accepted(record.result, self._threshold):
                self._ranking.accepted += 1
                if self._output is not None:
                    self._write(record.keyed.body)
                    continue
            yield record.keyed

    def finish(self) -> None:
        if self._output is not None:
            self._flush(self._output)
            self._output.finish()

    def _write(self, body: bytes) -> None:
        self._buffer.append(body)
        if len(self._buffer) == BATCH_SIZE and self._output is not None:
            self._flush(self._output)

    def _flush(self, output: Output) -> None:
        self._written += len(self._buffer)
        output.write(list(_format_records(self._buffer, self._format)), (), JournalEntry(self._written))
        self._buffer.clear()


def _open_output(path: str, output_format: OutputFormat) -> Output:
    return open_output(OutputTarget(path, requested_format=output_format, is_resumable=False))


def _temp_folder(output: str) -> Path:
    """Return a folder with room for a file as large as the output: the one of the output."""
    target = OutputTarget(output)
    return Path(tempfile.gettempdir()) if target.is_stream else target.path.parent


def _format_records(bodies: Iterable[bytes], output_format: OutputFormat) -> Iterator[bytes]:
    """Yield the records unchanged, but for JSON Lines each on a single line.

    In JSON a line break can only stand between tokens, so it may be replaced by a space.
    """
    for body in bodies:
        body = body.strip()
        yield body.translate(_NEWLINES_TO_SPACES) if output_format == "jsonl" and b"\n" in body else body


def _batches(bodies: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(islice(bodies, BATCH_SIZE)):
        yield batch
