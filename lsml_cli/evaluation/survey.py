"""Survey a file of predictions or annotations without comparing it with anything: statistics, and tasks to look at.

Statistics are over all tasks, in memory that does not grow with their number: histograms, and labels up to a limit.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from lsml_cli.errors import InputError
from lsml_cli.evaluation.prediction_records import EXPECTED_FILE_HINT, is_prediction_object, parse_score
from lsml_cli.evaluation.uncertainty import confidence
from lsml_cli.evaluation.unreadable_log import UnreadableLog
from lsml_cli.io.json_records import MAX_OUTPUT_RECORD_BYTES, Record
from lsml_cli.io.source import RecordSource
from lsml_cli.io.task_reader import parse_task
from lsml_cli.progress import ProgressReporter, SilentReporter
from lsml_cli.schema.annotations import iter_task_annotations
from lsml_cli.schema.failure_causes import FailureCauses
from lsml_cli.schema.json_codec import loads
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.shapes import parse_shape, polygon_area
from lsml_cli.schema.tasks import as_id, is_export_row, parse_regions
from lsml_cli.schema.value_checks import is_number

MAX_CONTROLS = 50  # controls with statistics; regions of later ones are only counted
MAX_LABELS = 2000  # labels of one control with statistics
MAX_VERSIONS = 100  # model versions that are counted
SCORE_BINS = 20  # of equal width in 0..1
MAX_REGIONS = 20  # regions of a task that are counted apart; the last bin has these and more
EXTREMES_SHARE = 8  # of N shown tasks, N/8 are the least certain, and as many the most certain
REPORTED_RECORDS = 1000  # records from one report of the progress to the next

Contents = Literal["predictions", "annotations"]
Group = Literal["least", "most", "sample"]
Measure = Literal["characters", "area", "length"]


@dataclass(frozen=True)
class SurveyedTask:
    """A task with what was predicted or annotated.

    Attributes:
        index: Position in the file, from 0.
        id: Id in Label Studio.
        project: Id of its project.
        data: What the task shows; None if only its id is known.
        result: The regions.
        score: Of the whole prediction.
        certainty: The lowest score of the regions, else `score`; None without any.
    """

    index: int
    id: int | None
    project: str | None
    data: Mapping[str, Any] | None
    result: Sequence[Mapping[str, Any]]
    score: float | None = None
    certainty: float | None = None


@dataclass(frozen=True)
class ShownTask:
    """A task to look at, and why it was chosen; without groups, all tasks of the file are shown."""

    task: SurveyedTask
    groups: frozenset[Group] = frozenset()


@dataclass
class ScoreStatistics:
    """Scores in 0..1: their number, their sum, and a histogram."""

    count: int = 0
    total: float = 0.0
    bins: list[int] = field(default_factory=lambda: [0] * SCORE_BINS)

    def add(self, score: float | None) -> None:
        if score is None or not 0 <= score <= 1:
            return
        self.count += 1
        self.total += score
        self.bins[min(int(score * SCORE_BINS), SCORE_BINS - 1)] += 1

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass
class SizeStatistics:
    """Sizes of regions: their number, sum and range, and how many have a size in [2^k, 2^(k + 1))."""

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = 0.0
    bins: Counter[int] = field(default_factory=Counter)

    def add(self, size: float) -> None:
        self.count += 1
        self.total += size
        self.low, self.high = min(self.low, size), max(self.high, size)
        self.bins[math.floor(math.log2(size)) if size > 2**-20 else -20] += 1

    @property
    def mean(self) -> float:
        return self.total / self.count


@dataclass
class LabelStatistics:
    """One label of a control: the regions that have it, the tasks that these are in, and their scores."""

    regions: int = 0
    tasks: int = 0
    scores: ScoreStatistics = field(default_factory=ScoreStatistics)


@dataclass
class ControlStatistics:
    """What was predicted for one control.

    Attributes:
        name: The from_name of its regions.
        type: Of its regions: "choices", "rectanglelabels".
        to_name: The object of the first region.
        has_image_size: Whether a region states the size of its image.
        tasks: Number of tasks that have a region of it.
        regions: Number of regions.
        scores: Of the regions.
        labels: By name, in the order of the file.
        other_labels: Number of regions with labels beyond the first `MAX_LABELS`.
        sizes: Lengths of spans and texts, areas in percent of the image, by unit.
    """

    name: str
    type: str
    to_name: str
    has_image_size: bool = False
    tasks: int = 0
    regions: int = 0
    scores: ScoreStatistics = field(default_factory=ScoreStatistics)
    labels: dict[str, LabelStatistics] = field(default_factory=dict)
    other_labels: int = 0
    sizes: dict[Measure, SizeStatistics] = field(default_factory=dict)

    def add(self, regions: Sequence[Mapping[str, Any]]) -> None:
        """Add the regions that one task has of this control."""
        self.tasks += 1
        seen = set()
        for region in regions:
            self.regions += 1
            self.has_image_size = self.has_image_size or "original_width" in region
            score = parse_score(region.get("score"))
            self.scores.add(score)
            for label in region_labels(region):
                if (statistics := self._label(label)) is not None:
                    statistics.regions += 1
                    statistics.tasks += label not in seen
                    statistics.scores.add(score)
                    seen.add(label)
            if (measured := _measure(region)) is not None:
                measure, size = measured
                self.sizes.setdefault(measure, SizeStatistics()).add(size)

    def _label(self, label: str) -> LabelStatistics | None:
        if label not in self.labels and len(self.labels) >= MAX_LABELS:
            self.other_labels += 1
            return None
        return self.labels.setdefault(label, LabelStatistics())


@dataclass
class Survey:
    """What is in a file of predictions or annotations.

    Attributes:
        name: Of the file.
        contents: Whether predictions or annotations were looked at.
        tasks: Number of tasks that have a prediction (or an annotation).
        empty: Number of these in which nothing was found.
        failed: Tasks without a prediction, by cause.
        unreadable: Records that could not be read.
        model_versions: How many predictions each version made.
        certainty: Of the tasks.
        regions_per_task: How many tasks have 0, 1, ... regions; the last bin has `MAX_REGIONS` and more.
        regions: Number of all regions.
        controls: By name, in the order of the file.
        other_controls: Number of regions of controls beyond the first `MAX_CONTROLS`.
        shown: The tasks to look at, the least certain first, then those without a score.
    """

    name: str
    contents: Contents = "predictions"
    tasks: int = 0
    empty: int = 0
    failed: FailureCauses = field(default_factory=FailureCauses)
    unreadable: UnreadableLog = field(default_factory=UnreadableLog)
    model_versions: Counter[str] = field(default_factory=Counter)
    certainty: ScoreStatistics = field(default_factory=ScoreStatistics)
    regions_per_task: list[int] = field(default_factory=lambda: [0] * (MAX_REGIONS + 1))
    regions: int = 0
    controls: dict[str, ControlStatistics] = field(default_factory=dict)
    other_controls: int = 0
    shown: Sequence[ShownTask] = ()

    @property
    def is_sampled(self) -> bool:
        return len(self.shown) < self.tasks

    def add(self, task: SurveyedTask) -> None:
        self.tasks += 1
        self.certainty.add(task.certainty)
        by_control: dict[str, list[Mapping[str, Any]]] = {}
        regions = set()
        for ordinal, region in enumerate(task.result):
            name = region.get("from_name")
            if isinstance(name, str):
                by_control.setdefault(name, []).append(region)
                regions.add(region.get("id") or ordinal)  # box, label and text of OCR share one id
        self.regions += len(regions)
        self.empty += not regions
        self.regions_per_task[min(len(regions), MAX_REGIONS)] += 1
        for name, own in by_control.items():
            if name not in self.controls and len(self.controls) >= MAX_CONTROLS:
                self.other_controls += len(own)
                continue
            first = own[0]
            types = (str(first.get("type") or ""), str(first.get("to_name") or ""))
            self.controls.setdefault(name, ControlStatistics(name, *types)).add(own)


def survey_file(
    path: str,
    *,
    config: LabelConfig | None = None,
    contents: Contents | None = None,
    model_version: str | None = None,
    limit: int | None = None,
    max_shown: int = 200,
    seed: int = 0,
    reporter: ProgressReporter | None = None,
) -> Survey:
    """Read a file of predictions or of annotated tasks, and choose tasks to look at.

    The same file gives the same survey.

    Args:
        path: The file, or "-" for stdin.
        config: The label config, which rows of JSON_MIN need.
        contents: What to look at; None: predictions if the first task that has either has one, else annotations.
        model_version: Take predictions of this version only.
        limit: Read only the first records.
        max_shown: Number of tasks to look at; of more than these the least and the most certain and a sample.
        seed: Of the sample.
        reporter: Gets progress.

    Raises:
        UsageError: There is no such file.
        InputError: It holds neither.
    """
    reporter = reporter or SilentReporter()
    survey = Survey("standard input" if path == "-" else path)
    parser = _RecordParser(survey, config, contents, model_version)
    sample = _TaskSample(max_shown, seed)
    with RecordSource(path, max_record_bytes=MAX_OUTPUT_RECORD_BYTES) as source:
        if source.format == "csv":
            raise InputError(f"{path} is a table, not a file of predictions.", EXPECTED_FILE_HINT)
        reporter.start_phase("reading", "records")
        for record in source:
            if limit is not None and record.index >= limit:
                break
            if record.index and record.index % REPORTED_RECORDS == 0:
                reporter.progress(record.index, 0, source.share(record.end))
            if (task := _parse_or_log(parser, record, survey)) is not None:
                survey.add(task)
                sample.add(task)
    parser.require_contents(path)
    survey.contents = parser.contents or "predictions"
    survey.shown = sample.choose()
    return survey


def region_labels(region: Mapping[str, Any]) -> list[str]:
    """Return the labels of a region: of a choice, a shape or a span; the paths of a taxonomy; a rating."""
    value, kind = region.get("value"), region.get("type")
    if not isinstance(value, Mapping) or not isinstance(kind, str):
        return []
    labels = value.get(kind)
    if isinstance(labels, str):
        return [labels]
    if kind in ("rating", "number") and is_number(labels):
        return [f"{labels:g}"]
    if not isinstance(labels, list):
        return []
    paths = (" / ".join(map(str, label)) if isinstance(label, list) else label for label in labels)
    return [label for label in paths if isinstance(label, str)]


def region_text(region: Mapping[str, Any]) -> str | None:
    """Return the text of a <TextArea> or a span; None if the region has none."""
    value = region.get("value")
    text = value.get("text") if isinstance(value, Mapping) else None
    if isinstance(text, list):
        return "\n".join(line for line in text if isinstance(line, str))
    return text if isinstance(text, str) else None


def _measure(region: Mapping[str, Any]) -> tuple[Measure, float] | None:
    """Return the length of a span or a text, or the area of a shape in percent of its image; None for masks."""
    if (text := region_text(region)) is not None:
        return ("characters", len(text)) if text else None
    value = region.get("value")
    if not isinstance(value, Mapping):
        return None
    start, end = value.get("start"), value.get("end")
    if is_number(start) and is_number(end):
        return ("length", float(end - start)) if end > start else None
    if "rle" in value or (shape := parse_shape(region)) is None:
        return None
    area = polygon_area(shape.outline()) / 100
    return ("area", area) if area > 0 else None


def _parse_or_log(parser: _RecordParser, record: Record, survey: Survey) -> SurveyedTask | None:
    try:
        return parser.parse(record)
    except InputError as error:
        raise InputError(f"{survey.name}, {error.message}", error.hint) from None
    except ValueError as error:
        survey.unreadable.add(record.location, str(error), truncated=record.truncated)
        return None


class _RecordParser:
    """Parses records to tasks; those without a prediction are counted in the survey.

    Attributes:
        contents: What is looked at; None as long as no task had either.
    """

    def __init__(
        self, survey: Survey, config: LabelConfig | None, contents: Contents | None, model_version: str | None
    ) -> None:
        self.contents = "predictions" if model_version is not None else contents
        self._survey = survey
        self._config = config
        self._model_version = model_version
        self._has_only_ids = False

    def parse(self, record: Record) -> SurveyedTask | None:
        """Return the task of a record, None if it has no prediction.

        Raises:
            ValueError: The record is unreadable.
            InputError: The file holds neither predictions nor annotations.
        """
        if record.problem:
            raise ValueError(record.problem)
        raw = loads(record.body)
        if not isinstance(raw, dict):
            raise ValueError("no object")
        self.contents = self.contents or _find_contents(raw)
        if is_prediction_object(raw):
            return self._parse_prediction_object(record, raw)
        if self.contents == "annotations":
            return self._parse_annotated(record, raw)
        if not isinstance(raw.get("predictions"), list):
            if self.contents is None and isinstance(raw.get("annotations"), list):
                return self._fail(record, "", "no annotation")
            raise InputError(f"{record.location}: there is no prediction, nor a list of them.", EXPECTED_FILE_HINT)
        if raw["predictions"] and not any(isinstance(entry, dict) for entry in raw["predictions"]):
            self._has_only_ids = True
            return self._fail(record, "", "only the ids of predictions")
        task = parse_task(record)
        stored = [entry for entry in stored_predictions(raw) if self._is_wanted(entry)]
        if not stored:
            return self._fail(
                record, "", "no prediction" if self._model_version is None else "no prediction of this version"
            )
        return self._build(record, task.id, task.project, task.data, stored[-1])

    def require_contents(self, path: str) -> None:
        """Raise InputError if there were only ids of predictions."""
        if self._has_only_ids and not self._survey.tasks:
            raise InputError(
                f"{path} holds only the ids of predictions.",
                "Export a snapshot with predictions in full, or use the file that `lsml predict` wrote.",
            )

    def _parse_prediction_object(self, record: Record, raw: Mapping[str, Any]) -> SurveyedTask | None:
        if (error := raw.get("error")) is not None:
            details = error if isinstance(error, Mapping) else {}
            return self._fail(record, str(details.get("stage") or ""), str(details.get("reason") or "failed"))
        if not isinstance(raw.get("result"), list):
            raise ValueError("there is no result")
        if not self._is_wanted(raw):
            return self._fail(record, "", "no prediction of this version")
        return self._build(record, as_id(raw["task"]), None, None, raw)

    def _parse_annotated(self, record: Record, raw: Mapping[str, Any]) -> SurveyedTask | None:
        if is_export_row(raw) and self._config is None:
            raise InputError(
                f"{record.location}: rows of JSON_MIN do not say what their controls are.",
                "Name the labelling XML with --label-config FILE.",
            )
        config = self._config or _NO_CONFIG
        task = parse_task(record, frozenset(config.controls))
        [entry] = iter_task_annotations([task], config, allow_empty=True)
        if not entry.selected:
            return self._fail(record, "", entry.reason)
        return SurveyedTask(record.index, task.id, task.project, task.data, entry.selected[0].result)

    def _is_wanted(self, prediction: Mapping[str, Any]) -> bool:
        return self._model_version is None or prediction.get("model_version") == self._model_version

    def _build(
        self,
        record: Record,
        task_id: int | None,
        project: str | None,
        data: Mapping[str, Any] | None,
        prediction: Mapping[str, Any],
    ) -> SurveyedTask:
        version = prediction.get("model_version")
        versions = self._survey.model_versions
        if isinstance(version, str) and (version in versions or len(versions) < MAX_VERSIONS):
            versions[version] += 1
        result, score = parse_regions(prediction["result"]), parse_score(prediction.get("score"))
        certainty = confidence(result, score, "least-confident")
        if certainty is None and score is not None and 0 <= score <= 1:
            certainty = score
        return SurveyedTask(record.index, task_id, project, data, result, score, certainty)

    def _fail(self, record: Record, stage: str, reason: str) -> SurveyedTask | None:
        self._survey.failed.add(stage, reason, record.location)
        return None


_NO_CONFIG = LabelConfig("", {}, {})


def _find_contents(raw: Mapping[str, Any]) -> Contents | None:
    if is_prediction_object(raw) or stored_predictions(raw):
        return "predictions"
    if is_export_row(raw) or raw.get("annotations") or raw.get("completions"):
        return "annotations"
    return None


class _TaskSample:
    """Keeps the least certain tasks, the most certain ones, and those with the lowest hashes: a random sample."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._count = 0
        self._least = _Top(max(size // EXTREMES_SHARE, min(size, 1)))
        self._most = _Top(max(size // EXTREMES_SHARE, min(size, 1)))
        self._random = _Top(size)

    def add(self, task: SurveyedTask) -> None:
        self._count += 1
        digest = blake2b(f"{self._seed}\0{task.index}".encode(), digest_size=8).digest()
        self._random.add(-int.from_bytes(digest, "big"), task)
        if task.certainty is not None:
            self._least.add(-task.certainty, task)
            self._most.add(task.certainty, task)

    def choose(self) -> list[ShownTask]:
        """Return at most `size` tasks, the least certain first."""
        if self._count <= self._size:
            return [ShownTask(task) for task in _sort_by_certainty(self._random)]
        groups: dict[int, set[Group]] = {}
        tasks: dict[int, SurveyedTask] = {}
        extremes: Iterable[tuple[Group, Collection[SurveyedTask]]] = (
            ("least", [*self._least]),
            ("most", [*self._most]),
        )
        for group, chosen in extremes:
            for task in chosen:
                if len(tasks) < self._size or task.index in tasks:
                    tasks[task.index] = task
                    groups.setdefault(task.index, set()).add(group)
        # The tasks with the lowest hashes are a random sample, whether or not they are extremes.
        for task in self._random:
            if len(tasks) >= self._size:
                break
            tasks[task.index] = task
            groups.setdefault(task.index, set()).add("sample")
        return [ShownTask(task, frozenset(groups[task.index])) for task in _sort_by_certainty(tasks.values())]


class _Top:
    """The tasks with the highest priorities; of equal ones the first. Iterates from the highest on."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, SurveyedTask]] = []

    def add(self, priority: float, task: SurveyedTask) -> None:
        entry = (priority, -task.index, task)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def __iter__(self) -> Iterator[SurveyedTask]:
        return (task for *_, task in sorted(self._heap, key=lambda entry: entry[:2], reverse=True))


def _sort_by_certainty(tasks: Iterable[SurveyedTask]) -> list[SurveyedTask]:
    return sorted(tasks, key=lambda task: (math.inf if task.certainty is None else task.certainty, task.index))
