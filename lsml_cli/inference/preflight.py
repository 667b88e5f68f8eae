"""`lsml predict --check`: everything that can be known without running the model, over the whole input."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from lsml_cli.errors import LsmlError
from lsml_cli.inference.plan import Plan
from lsml_cli.inference.run import Report
from lsml_cli.io.image_paths import Folder
from lsml_cli.io.output import output_format, require_output
from lsml_cli.io.output_paths import is_stream, room_note
from lsml_cli.io.source import Source
from lsml_cli.models.base import Meeting
from lsml_cli.schema.label_config import Object
from lsml_cli.schema.predictions import Failure
from lsml_cli.schema.tasks import Task, kind

OFFENDERS_SHOWN = 3  # of each kind
REPORT_EVERY = 10_000  # tasks
ASKED_AT_A_TIME = 16  # remote files
# Objects whose value is one string: a text, or an address.
ONE_STRING = frozenset({"text", "hypertext", "image", "audio", "audioplus", "video", "pdf"})


@dataclass
class Findings:
    """What a check found.

    counts    tasks (and things beside tasks) that offend, by kind of offence
    first     the first few sentences of each kind
    meetings  how the model's classes and the label config's labels meet
    notes     what is worth reading, but no offence
    """

    tasks: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)
    meetings: Sequence[Meeting] = ()
    notes: Sequence[str] = ()

    @property
    def offences(self) -> int:
        return self.counts.total()

    def offence(self, offence: str, sentence: str) -> None:
        self.counts[offence] += 1
        if len(shown := self.first.setdefault(offence, [])) < OFFENDERS_SHOWN:
            shown.append(sentence)

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": self.tasks,
            "offences": dict(self.counts),
            "first": self.first,
            "meetings": [asdict(meeting) for meeting in self.meetings],
            "notes": list(self.notes),
        }

    def sentences(self) -> Iterator[str]:
        """The findings as lines for people."""
        for meeting in self.meetings:
            yield from _meeting_lines(meeting)
        yield from self.notes
        yield f"{self.tasks:,} tasks checked, {self.offences:,} offences"
        for offence, count in self.counts.most_common():
            yield f"{offence}: {count:,}"
            yield from (f"  {sentence}" for sentence in self.first[offence])
            if count > len(self.first[offence]):
                yield f"  and {count - len(self.first[offence]):,} more"


def _meeting_lines(meeting: Meeting) -> Iterator[str]:
    labels, classes = ", ".join(meeting.labels), ", ".join(meeting.classes)
    yield f"{meeting.control}: {len(meeting.label_of)} of the model's {len(meeting.classes)} classes have a label"
    yield f"  labels:  {labels}"
    yield f"  classes: {classes}"
    renamed = [f"{name} -> {label}" for name, label in meeting.label_of.items() if name != label]
    if renamed:
        yield f"  renamed: {', '.join(renamed)}"


def check_file(plan: Plan, report: Report, *, ask_remote: bool = False) -> Findings:
    """Look at every task of the input, at the output and at the model, and say what would go wrong.

    Servers are asked for remote media only if `ask_remote`. Memory does not grow with the number of tasks: ids are
    compared on disk.
    Raises what `predict_file` would raise before its first task, where that makes looking at tasks pointless.
    """
    options = plan.options
    with plan.open_source() as source, closing(_Ids()) as ids:
        found = Findings(meetings=plan.binding.meetings, notes=(*plan.notes, *source.notes))
        _check_output(plan, source, found)
        media = _MediaChecks(plan, found, ask_remote)
        checks = _TaskChecks(plan, found, ids, media)
        for record in source:
            if options.limit is not None and found.tasks == options.limit:
                break
            found.tasks += 1
            task, outcome = plan.job.read(record)
            where = f"{source.name}, {record.place}" + (f", task {task.id}" if task and task.id is not None else "")
            if isinstance(outcome, Failure):
                found.offence(_offence(task, outcome), f"{where}: {outcome.reason}")
            if task is not None:
                checks.check(task, where, with_data=not (isinstance(outcome, Failure) and outcome.stage == "encode"))
            if found.tasks % REPORT_EVERY == 0:
                fraction = source.position() / source.size if source.size else None
                report.progress(found.tasks, found.counts.total(), fraction)
        media.finish()
    return found


def _offence(task: Task | None, failure: Failure) -> str:
    if task is None:
        return "unreadable"
    return "no id" if failure.stage == "read" else "data"


def _check_output(plan: Plan, source: Source | Folder, found: Findings) -> None:
    options = plan.options
    try:
        output_format(options.output, options.format)
        if not is_stream(options.output):
            require_output(options.output, options.errors, plan.started_with(), resume=options.resume)
    except LsmlError as error:
        found.offence("output", str(error))
    if room := room_note(options.output, source.size):
        found.offence("disk space", room)


class _TaskChecks:
    """The checks of one task against label config and model."""

    def __init__(self, plan: Plan, found: Findings, ids: _Ids, media: _MediaChecks) -> None:
        self.plan = plan
        self.found = found
        self.ids = ids
        self.media = media
        self.objects = [obj for obj in plan.binding.config.objects.values() if obj.key is not None]

    def check(self, task: Task, where: str, with_data: bool) -> None:
        """Offences of one task. `with_data`: it has data to look at."""
        for obj in self.objects if with_data else ():
            if problem := _data_problem(obj, task.data):
                self.found.offence("data", f"{where}: {problem}")
                break
        else:  # what the data points to can only be asked when it is there
            for value in self.plan.model.sources(task, self.plan.binding):
                self.media.check(value, task.id, where)
        if task.id is not None and not self.ids.add(task.id):
            self.found.offence("duplicate id", f"{where}: this id was there before")


class _MediaChecks:
    """Whether what tasks point to is there. Servers are asked several things at a time."""

    def __init__(self, plan: Plan, found: Findings, ask_remote: bool) -> None:
        self.found = found
        self.media = plan.media
        self.asking = ThreadPoolExecutor(ASKED_AT_A_TIME, "ask") if ask_remote else None
        self.under_way: deque[tuple[str, Future[str | None]]] = deque()

    def check(self, value: str, task_id: int | None, where: str) -> None:
        if self.asking is None:
            self._note(where, self.media.problem(value, task_id))
            return
        self.under_way.append((where, self.asking.submit(self.media.problem, value, task_id, ask_remote=True)))
        if len(self.under_way) > 4 * ASKED_AT_A_TIME:
            self._settle()

    def finish(self) -> None:
        while self.under_way:
            self._settle()
        if self.asking:
            self.asking.shutdown()
        self.media.close()

    def _settle(self) -> None:
        where, answer = self.under_way.popleft()
        self._note(where, answer.result())

    def _note(self, where: str, problem: str | None) -> None:
        if problem:
            self.found.offence("media", f"{where}: {problem}")


def _data_problem(obj: Object, data: Mapping[str, Any]) -> str | None:
    """What is wrong with the value that an object of the label config refers to."""
    try:
        value = obj.read(data)
    except ValueError as error:
        return str(error)
    if obj.tag.lower() not in ONE_STRING:
        return None
    wanted = list if "valueList" in obj.attrs else str
    if isinstance(value, wanted):
        return None
    return f'"{obj.key}" is {kind(value)}; <{obj.tag} name="{obj.name}"> wants {kind(wanted())}'


class _Ids:
    """The ids seen so far, on disk."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lsml-check-")
        self._db = sqlite3.connect(f"{self._folder.name}/ids.db", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-4096"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE ids (id INTEGER PRIMARY KEY)")
        self._db.execute("BEGIN")

    def add(self, task_id: int) -> bool:
        """False when it was there before. An id beyond 64 bits is compared by its last 63."""
        return self._db.execute("INSERT OR IGNORE INTO ids VALUES (?)", (task_id & (2**63 - 1),)).rowcount == 1

    def close(self) -> None:
        self._db.close()
        self._folder.cleanup()
