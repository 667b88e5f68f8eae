"""`lsml predict --check`: look for problems in the whole input without running the model."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from lsml_cli.errors import LsmlError, format_list
from lsml_cli.inference.plan import PredictPlan
from lsml_cli.inference.predict_summary import blank_lines_sentence
from lsml_cli.io.task_source import TaskSource
from lsml_cli.models.base import LabelMapping
from lsml_cli.progress import ProgressReporter
from lsml_cli.schema.label_config import Object
from lsml_cli.schema.predictions import Failure
from lsml_cli.schema.tasks import Task, describe_json_type

MAX_LISTED_LABELS = 100  # of a control and of a model; the JSON has all
MAX_SHOWN_EXAMPLES = 3  # of each kind
PROGRESS_INTERVAL = 100  # tasks
MAX_CONCURRENT_REQUESTS = 16  # remote files
# Objects whose value is one string: a text, or a path or URL.
STRING_VALUED_TAGS = frozenset({"text", "hypertext", "image", "audio", "audioplus", "video", "pdf"})


@dataclass
class CheckResult:
    """The findings of a check.

    Attributes:
        tasks: Tasks that were checked.
        counts: Number of problems by category: "data", "media", "duplicate id", "output", ...
        examples: The first few sentences of each category.
        label_mappings: How the model's classes map to the label config's labels, per control.
        notes: Sentences worth reading that are no problems.
    """

    tasks: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    label_mappings: Sequence[LabelMapping] = ()
    notes: Sequence[str] = ()

    @property
    def problem_count(self) -> int:
        return self.counts.total()

    def add_problem(self, category: str, message: str) -> None:
        """Count a problem; its message is kept if it is among the first ones of its category."""
        self.counts[category] += 1
        if len(examples := self.examples.setdefault(category, [])) < MAX_SHOWN_EXAMPLES:
            examples.append(message)

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": self.tasks,
            "problems": dict(self.counts),
            "first": self.examples,
            "meetings": [asdict(mapping) for mapping in self.label_mappings],
            "notes": list(self.notes),
        }

    def summary_lines(self) -> Iterator[str]:
        """Yield the findings as text."""
        for mapping in self.label_mappings:
            yield from _label_mapping_lines(mapping)
        yield from self.notes
        problems = "problem" if self.problem_count == 1 else "problems"
        yield f"{self.tasks:,} tasks checked, {self.problem_count:,} {problems}"
        for category, count in self.counts.most_common():
            yield f"{category}: {count:,}"
            yield from (f"  {sentence}" for sentence in self.examples[category])
            if count > len(self.examples[category]):
                yield f"  and {count - len(self.examples[category]):,} more"


def _label_mapping_lines(mapping: LabelMapping) -> Iterator[str]:
    labels, classes = (format_list(names, MAX_LISTED_LABELS) for names in (mapping.labels, mapping.classes))
    yield f"{mapping.control}: {len(mapping.label_of)} of the model's {len(mapping.classes)} classes have a label"
    yield f"  labels:  {labels}"
    yield f"  classes: {classes}"
    renamed = [f"{name} -> {label}" for name, label in mapping.label_of.items() if name != label]
    if renamed:
        yield f"  renamed: {format_list(renamed, MAX_LISTED_LABELS)}"


def check_file(plan: PredictPlan, reporter: ProgressReporter, *, check_remote: bool = False) -> CheckResult:
    """Check every task of the input, the output and the model, and collect what would go wrong.

    Memory does not grow with the number of tasks: ids are compared on disk.

    Args:
        plan: The plan of the run to check.
        reporter: Gets progress.
        check_remote: Request remote media from their servers; otherwise only local files are looked for.

    Raises:
        LsmlError: What `predict_file` would raise before its first task, where that makes looking at tasks pointless.
    """
    options = plan.options
    with plan.open_source() as source, closing(_SeenIds()) as seen_ids:
        result = CheckResult(label_mappings=plan.binding.label_mappings, notes=(*plan.notes, *source.notes))
        _check_output(plan, source, result)
        media = _MediaChecker(plan, result, check_remote)
        task_checker = _TaskChecker(plan, result, seen_ids, media)
        reporter.start_phase("checking")
        for record in source:
            if options.limit is not None and result.tasks == options.limit:
                break
            result.tasks += 1
            task, outcome = plan.codec.read(record)
            location = f"{source.name}, {record.location}"
            if task and task.id is not None:
                location += f", task {task.id}"
            if isinstance(outcome, Failure):
                result.add_problem(_problem_category(task, outcome), f"{location}: {outcome.reason}")
            if task is not None:
                has_data = not (isinstance(outcome, Failure) and outcome.stage == "encode")
                task_checker.check(task, location, has_data)
            if result.tasks % PROGRESS_INTERVAL == 0:
                reporter.progress(result.tasks, 0, source.share(record.end))
        media.finish()
        if source.blank_lines:
            result.notes = (*result.notes, blank_lines_sentence(source.blank_lines))
    return result


def _problem_category(task: Task | None, failure: Failure) -> str:
    if task is None:
        return "unreadable"
    return "no id" if failure.stage == "read" else "data"


def _check_output(plan: PredictPlan, source: TaskSource, result: CheckResult) -> None:
    target = plan.options.target
    try:
        fingerprint = plan.run_fingerprint()  # raises where the format of the output is not known
        if not target.is_stream:
            target.require_writable(fingerprint, resume=plan.options.resume)
    except LsmlError as error:
        result.add_problem("output", str(error))
    if disk_space_note := target.disk_space_note(source.size):
        result.add_problem("disk space", disk_space_note)


class _TaskChecker:
    """Check tasks against label config and model."""

    def __init__(self, plan: PredictPlan, result: CheckResult, seen_ids: _SeenIds, media: _MediaChecker) -> None:
        self.plan = plan
        self.result = result
        self.seen_ids = seen_ids
        self.media = media
        self.objects = [obj for obj in plan.binding.config.objects.values() if obj.data_key is not None]

    def check(self, task: Task, error_location: str, has_data: bool) -> None:
        """Add the problems of a task; `has_data` tells whether it has an object of data."""
        for obj in self.objects if has_data else ():
            if problem := _data_problem(obj, task.data):
                self.result.add_problem("data", f"{error_location}: {problem}")
                break
        else:  # only data without problems tells which media it points to
            try:
                media_refs = self.plan.model.media_refs(task, self.plan.binding)
            except ValueError as error:  # no path or URL, where the model needs one
                self.result.add_problem("data", f"{error_location}: {error}")
                media_refs = ()
            for value in media_refs:
                self.media.check(value, task.id, error_location)
        if task.id is not None and not self.seen_ids.add(task.id):
            self.result.add_problem("duplicate id", f"{error_location}: this id was there before")


class _MediaChecker:
    """Check that the media of tasks exist; several requests to servers are in flight at a time."""

    def __init__(self, plan: PredictPlan, result: CheckResult, check_remote: bool) -> None:
        self.result = result
        self.media = plan.media
        self.executor = ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS, "ask") if check_remote else None
        self.in_flight: deque[tuple[str, Future[str | None]]] = deque()

    def check(self, value: str, task_id: int | None, error_location: str) -> None:
        if self.executor is None:
            self._record_problem(error_location, self.media.find_problem(value, task_id))
            return
        self.in_flight.append(
            (error_location, self.executor.submit(self.media.find_problem, value, task_id, check_remote=True))
        )
        if len(self.in_flight) > 4 * MAX_CONCURRENT_REQUESTS:
            self._collect_oldest()

    def finish(self) -> None:
        """Wait for the requests in flight."""
        while self.in_flight:
            self._collect_oldest()
        if self.executor:
            self.executor.shutdown()
        self.media.close()

    def _collect_oldest(self) -> None:
        error_location, problem = self.in_flight.popleft()
        self._record_problem(error_location, problem.result())

    def _record_problem(self, error_location: str, problem: str | None) -> None:
        if problem:
            self.result.add_problem("media", f"{error_location}: {problem}")


def _data_problem(obj: Object, data: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the value that an object of the label config refers to, None if nothing is."""
    try:
        value = obj.read(data)
    except ValueError as error:
        return str(error)
    if obj.tag.lower() not in STRING_VALUED_TAGS:
        return None
    expected_type = list if "valueList" in obj.attrs else str
    if isinstance(value, expected_type):
        return None
    expected = f'<{obj.tag} name="{obj.name}"> wants {describe_json_type(expected_type())}'
    return f'"{obj.data_key}" is {describe_json_type(value)}; {expected}'


class _SeenIds:
    """The ids seen so far, on disk."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lsml-check-")
        self._db = sqlite3.connect(f"{self._folder.name}/ids.db", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-4096"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE ids (id INTEGER PRIMARY KEY)")
        self._db.execute("BEGIN")

    def add(self, task_id: int) -> bool:
        """Add an id; return False when it was there before. An id beyond 64 bits is compared by its last 63."""
        return self._db.execute("INSERT OR IGNORE INTO ids VALUES (?)", (task_id & (2**63 - 1),)).rowcount == 1

    def close(self) -> None:
        self._db.close()
        self._folder.cleanup()
