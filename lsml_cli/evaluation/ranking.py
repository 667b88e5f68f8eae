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
from lsml_cli.evaluation.prediction_file import EXPECTED, Answer
from lsml_cli.evaluation.scorers import judges_of
from lsml_cli.evaluation.uncertainty import By, least_sure, sureness
from lsml_cli.io.external_sort import Keyed, sorted_on_disk
from lsml_cli.io.journal import Entry
from lsml_cli.io.json_records import Record
from lsml_cli.io.output import FORMATS, FileOutput, Format, Output, StreamOutput
from lsml_cli.io.output_paths import is_stream, writable
from lsml_cli.io.source import Source
from lsml_cli.schema.annotations import Which, answered
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.tasks import Task, Unreadable
from lsml_cli.training.splits import answers, nothing_is_an_answer

AT_A_TIME = 1000  # records that are written together
UNSURE_LAST = math.inf  # predictions that no score tells anything about come after the others, in their order


@dataclass
class Ranked:
    """How a ranking went.

    records     read; written to the ranking; accepted are those above the threshold
    without     predictions that no score tells anything about; they come last
    failed      tasks without a prediction; they come after those
    unreadable  places without a record, with the first of them
    """

    records: int = 0
    written: int = 0
    accepted: int = 0
    without: int = 0
    failed: int = 0
    unreadable: list[str] = field(default_factory=list)
    torn: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "written": self.written,
            "accepted": self.accepted,
            "without_score": self.without,
            "failed": self.failed,
            "unreadable": len(self.unreadable),
            "torn": self.torn,
        }


@dataclass(frozen=True)
class Trust:
    """How often accepting would be wrong, as far as annotated tasks tell.

    compared  predictions above the threshold that people have annotated; wrong: those that people disagree with
    low, high where the share of wrong ones is with a probability of 95 % (Wilson, 1927); None without any
    """

    threshold: float
    compared: int
    wrong: int

    @property
    def share(self) -> float | None:
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
        return found | {"share": self.share, "low": low, "high": high}


def rank_file(
    path: str,
    output: str,
    form: Format,
    *,
    by: By = "least-confident",
    limit: int | None = None,
    accept_above: float | None = None,
    accepted: str | None = None,
) -> Ranked:
    """Write the records of a finished file to `output`, the least sure first.

    limit         only so many
    accept_above  predictions of which every region has at least this score can be accepted as they are
    accepted      a file that these go to instead, in the order of the input; None: they stay among the others. Its
                  ending says its format, where that says anything; `form` otherwise

    Raises UsageError when there is no such file, InputError when it holds no predictions.
    """
    found = Ranked()
    with ExitStack() as stack:
        source = stack.enter_context(Source(path))
        if source.form == "csv":
            raise InputError(f"{path} is a table, not a file of predictions.", EXPECTED)
        accepted_form = FORMATS.get(Path(accepted or "").suffix.lower(), form)
        split = _Split(stack, accepted, accepted_form, accept_above, found)
        ranking = stack.enter_context(closing(_open(output, form)))
        keyed = split.rest(_keyed(source, path, by, found))
        bodies = islice(sorted_on_disk(keyed, _room(output)), limit)
        for batch in _batches(_lines(bodies, form)):
            found.written += len(batch)
            ranking.write(batch, (), Entry(found.written))
        split.finish()
        ranking.finish()
    return found


def how_often_wrong(
    tasks: Iterable[Task | Unreadable], config: LabelConfig, take: Any, threshold: float, which: Which = "last"
) -> Trust:
    """Look up the predictions of annotated tasks (`predicted.PredictionFile.take`) that would be accepted.

    A prediction is wrong when people say anything else about any control that it fills.
    """
    compared = wrong = 0
    readable = (task for task in tasks if isinstance(task, Task))
    for each in answered(readable, config, which, empty=nothing_is_an_answer(config)):
        truths = [one.result for one in each.counting if answers(one, config)]
        if not truths:
            continue
        answer: Answer | None = take(each.task)
        if answer is None or answer.failure is not None or not _is_sure(answer.result, threshold):
            continue
        filled = {region.get("from_name") for region in answer.result}
        judges = [judge for name, judge in judges_of(config).items() if name in filled]
        verdicts = [verdict for judge in judges if (verdict := judge.add(truths, answer.result)).counts]
        compared += bool(verdicts)
        wrong += any(not verdict.right for verdict in verdicts)
    return Trust(threshold, compared, wrong)


def _is_sure(result: Sequence[Any], threshold: float) -> bool:
    least = least_sure(result)
    return least is not None and least >= threshold


@dataclass(frozen=True)
class _Found:
    """A record, how sure it is, and its regions."""

    keyed: Keyed
    result: Sequence[Any]


def _keyed(source: Source, path: str, by: By, found: Ranked) -> Iterator[_Found]:
    for record in source:
        if record.problem:
            found.torn = found.torn or record.torn
            found.unreadable.append(f"{record.place}: {record.problem}")
            continue
        try:
            result, score = _prediction(record, path)
        except orjson.JSONDecodeError:
            found.unreadable.append(f"{record.place}: not JSON")
            continue
        found.records += 1
        if result is None:
            found.failed += 1
            yield _Found(Keyed(math.inf, record.index + (1 << 62), record.body), ())
            continue
        sure = sureness(result, score, by)
        found.without += sure is None
        yield _Found(Keyed(UNSURE_LAST if sure is None else sure, record.index, record.body), result)


def _prediction(record: Record, path: str) -> tuple[Sequence[Any] | None, float | None]:
    """The regions and the score of the last prediction in a record; no regions for a task that failed."""
    raw = orjson.loads(record.body)
    if isinstance(raw, dict) and "task" in raw and "data" not in raw and isinstance(raw.get("result"), list):
        if raw.get("error") is not None:
            return None, None
        return _regions(raw["result"]), _number(raw.get("score"))
    if isinstance(raw, dict) and isinstance(raw.get("predictions"), list):
        stored = stored_predictions(raw)
        return (_regions(stored[-1]["result"]), _number(stored[-1]["score"])) if stored else (None, None)
    raise InputError(f"{path}, {record.place}: there is no prediction, nor a list of them.", EXPECTED)


def _regions(result: Sequence[Any]) -> list[Any]:
    return [region for region in result if isinstance(region, dict)]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class _Split:
    """Counts what can be accepted as it is and, where there is a file for it, writes it there."""

    def __init__(
        self, stack: ExitStack, path: str | None, form: Format, threshold: float | None, found: Ranked
    ) -> None:
        self._threshold = threshold
        self._found = found
        self._form = form
        self._output = stack.enter_context(closing(_open(path, form))) if path is not None else None
        self._waiting: list[bytes] = []
        self._written = 0

    def rest(self, records: Iterable[_Found]) -> Iterator[Keyed]:
        """The records that are ranked: all of them, without a file for those that are accepted."""
        for record in records:
            if self._threshold is not None and _is_sure(record.result, self._threshold):
                self._found.accepted += 1
                if self._output is not None:
                    self._put(record.keyed.body)
                    continue
            yield record.keyed

    def finish(self) -> None:
        if self._output is not None:
            self._flush(self._output)
            self._output.finish()

    def _put(self, body: bytes) -> None:
        self._waiting.append(body)
        if len(self._waiting) == AT_A_TIME and self._output is not None:
            self._flush(self._output)

    def _flush(self, output: Output) -> None:
        self._written += len(self._waiting)
        output.write(list(_lines(self._waiting, self._form)), (), Entry(self._written))
        self._waiting.clear()


def _open(path: str, form: Format) -> Output:
    if is_stream(path):
        return StreamOutput(path, form, None)
    return FileOutput(path, None, {"--format": form}, resume=False, journal=False)


def _room(output: str) -> Path:
    """Where there should be room for a file as large as the output: beside it."""
    return Path(tempfile.gettempdir()) if is_stream(output) else writable(output).parent


def _lines(bodies: Iterable[bytes], form: Format) -> Iterator[bytes]:
    """Records as they are; one that spans several lines becomes one line where lines count.

    A line break in JSON stands between tokens only.
    """
    for body in bodies:
        body = body.strip()
        yield body.translate(_AS_SPACE) if form == "jsonl" and b"\n" in body else body


_AS_SPACE = bytes.maketrans(b"\r\n", b"  ")


def _batches(bodies: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(islice(bodies, AT_A_TIME)):
        yield batch
