"""What people should label first: a finished file, its least sure predictions first.

Records stay as they are, byte by byte; nothing of them is kept in memory but the run at hand (`sorting`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from lsml_cli.errors import InputError
from lsml_cli.evaluation.prediction_file import EXPECTED_FILE_HINT, StoredPrediction
from lsml_cli.evaluation.scorers import build_scorers
from lsml_cli.evaluation.uncertainty import RankingCriterion, confidence, lowest_score
from lsml_cli.io.external_sort import KeyedRecord, sort_on_disk
from lsml_cli.io.journal import JournalEntry
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import Output, open_output
from lsml_cli.io.output_target import FORMAT_BY_SUFFIX, OutputFormat, OutputTarget
from lsml_cli.io.source import RecordSource
from lsml_cli.schema.annotations import AnnotationPolicy, is_empty_annotation_valid, is_relevant, iter_task_annotations
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.tasks import Task, UnreadableRecord

BATCH_SIZE = 1000  # records that are written together
UNSCORED_KEY = math.inf  # predictions that no score tells anything about come after the others, in their order


@dataclass
class RankingResult:
    """How a ranking went.

    records     read; written to the ranking; accepted are those above the threshold
    without     predictions that no score tells anything about; they come last
    failed      tasks without a prediction; they come after those
    unreadable  places without a record, with the first of them
    """

    records: int = 0
    written: int = 0
    accepted: int = 0
    without_score: int = 0
    failed: int = 0
    unreadable: list[str] = field(default_factory=list)
    truncated: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "written": self.written,
            "accepted": self.accepted,
            "without_score": self.without_score,
            "failed": self.failed,
            "unreadable": len(self.unreadable),
            "torn": self.truncated,
        }


@dataclass(frozen=True)
class AcceptanceEstimate:
    """How often accepting would be wrong, as far as annotated tasks tell.

    compared  predictions above the threshold that people have annotated; wrong: those that people disagree with
    low, high where the share of wrong ones is with a probability of 95 % (Wilson, 1927); None without any
    """

    threshold: float
    compared: int
    wrong: int

    @property
    def error_rate(self) -> float | None:
        return self.wrong / self.compared if self.compared else None

    @property
    def interval(self) -> tuple[float, float] | None:
        if not self.compared:
            return None
        n, p, z = self.compared, self.wrong / self.compared, 1.959964
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        found = {"threshold": self.threshold, "compared": self.compared, "wrong": self.wrong}
        return found | {"share": self.error_rate, "low": low, "high": high}


def rank_file(
    path: str,
    output: str,
    output_format: OutputFormat,
    *,
    by: RankingCriterion = "least-confident",
    limit: int | None = None,
    accept_above: float | None = None,
    accepted_output: str | None = None,
) -> RankingResult:
    """Write the records of a finished file to `output`, the least sure first.

    limit         only so many
    accept_above  predictions of which every region has at least this score can be accepted as they are
    accepted      a file that these go to instead, in the order of the input; None: they stay among the others. Its
                  ending says its format, where that says anything; `form` otherwise

    Raises UsageError when there is no such file, InputError when it holds no predictions.
    """
    found = RankingResult()
    with ExitStack() as stack:
        source = stack.enter_context(RecordSource(path))
        if source.format == "csv":
            raise InputError(f"{path} is a table, not a file of predictions.", EXPECTED_FILE_HINT)
        accepted_form = FORMAT_BY_SUFFIX.get(Path(accepted_output or "").suffix.lower(), output_format)
        split = _AcceptedWriter(stack, accepted_output, accepted_form, accept_above, found)
        ranking = stack.enter_context(closing(_open_output(output, output_format)))
        keyed = split.filter_remaining(_score_records(source, path, by, found))
        bodies = islice(sort_on_disk(keyed, _temp_folder(output)), limit)
        for batch in _batches(_format_records(bodies, output_format)):
            found.written += len(batch)
            ranking.write(batch, (), JournalEntry(found.written))
        split.finish()
        ranking.finish()
    return found


def estimate_acceptance(
    tasks: Iterable[Task | UnreadableRecord],
    config: LabelConfig,
    lookup: Any,
    threshold: float,
    annotation_policy: AnnotationPolicy = "last",
) -> AcceptanceEstimate:
    """Look up the predictions of annotated tasks (`predicted.PredictionFile.take`) that would be accepted.

    A prediction is wrong when people say anything else about any control that it fills.
    """
    compared = wrong = 0
    readable = (task for task in tasks if isinstance(task, Task))
    for each in iter_task_annotations(
        readable, config, annotation_policy, allow_empty=is_empty_annotation_valid(config)
    ):
        truths = [one.result for one in each.selected if is_relevant(one, config)]
        if not truths:
            continue
        answer: StoredPrediction | None = lookup(each.task)
        if answer is None or answer.failure is not None or not _is_accepted(answer.result, threshold):
            continue
        filled = {region.get("from_name") for region in answer.result}
        judges = [judge for name, judge in build_scorers(config).items() if name in filled]
        verdicts = [verdict for judge in judges if (verdict := judge.add(truths, answer.result)).is_counted]
        compared += bool(verdicts)
        wrong += any(not verdict.is_correct for verdict in verdicts)
    return AcceptanceEstimate(threshold, compared, wrong)


def _is_accepted(result: Sequence[Any], threshold: float) -> bool:
    least = lowest_score(result)
    return least is not None and least >= threshold


@dataclass(frozen=True)
class _RankedRecord:
    """A record, how sure it is, and its regions."""

    keyed: KeyedRecord
    result: Sequence[Any]


def _score_records(
    source: RecordSource, path: str, by: RankingCriterion, ranking: RankingResult
) -> Iterator[_RankedRecord]:
    for record in source:
        if record.problem:
            ranking.truncated = ranking.truncated or record.truncated
            ranking.unreadable.append(f"{record.location}: {record.problem}")
            continue
        try:
            result, score = _parse_prediction(record, path)
        except orjson.JSONDecodeError:
            ranking.unreadable.append(f"{record.location}: not JSON")
            continue
        ranking.records += 1
        if result is None:
            ranking.failed += 1
            yield _RankedRecord(KeyedRecord(math.inf, record.index + (1 << 62), record.body), ())
            continue
        sure = confidence(result, score, by)
        ranking.without_score += sure is None
        yield _RankedRecord(KeyedRecord(UNSCORED_KEY if sure is None else sure, record.index, record.body), result)


def _parse_prediction(record: Record, path: str) -> tuple[Sequence[Any] | None, float | None]:
    """The regions and the score of the last prediction in a record; no regions for a task that failed."""
    raw = orjson.loads(record.body)
    if isinstance(raw, dict) and "task" in raw and "data" not in raw and isinstance(raw.get("result"), list):
        if raw.get("error") is not None:
            return None, None
        return _filter_regions(raw["result"]), _to_float(raw.get("score"))
    if isinstance(raw, dict) and isinstance(raw.get("predictions"), list):
        stored = stored_predictions(raw)
        return (_filter_regions(stored[-1]["result"]), _to_float(stored[-1]["score"])) if stored else (None, None)
    raise InputError(f"{path}, {record.location}: there is no prediction, nor a list of them.", EXPECTED_FILE_HINT)


def _filter_regions(result: Sequence[Any]) -> list[Any]:
    return [region for region in result if isinstance(region, dict)]


def _to_float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class _AcceptedWriter:
    """Counts what can be accepted as it is and, where there is a file for it, writes it there."""

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
        """The records that are ranked: all of them, without a file for those that are accepted."""
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
    """Where there should be room for a file as large as the output: beside it."""
    target = OutputTarget(output)
    return Path(tempfile.gettempdir()) if target.is_stream else target.path.parent


def _format_records(bodies: Iterable[bytes], output_format: OutputFormat) -> Iterator[bytes]:
    """Records as they are; one that spans several lines becomes one line where lines count.

    A line break in JSON stands between tokens only.
    """
    for body in bodies:
        body = body.strip()
        yield body.translate(_NEWLINES_TO_SPACES) if output_format == "jsonl" and b"\n" in body else body


_NEWLINES_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")


def _batches(bodies: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(islice(bodies, BATCH_SIZE)):
        yield batch
