"""`lsml pull` without the command line: the tasks of a project, as lines of JSON, in the order of their ids.

Which way is the quickest depends on what is asked for. The task list gives ids and data at 4,000 tasks a second. What
people have annotated comes out of Label Studio's JSON export, at 700, asked for a few hundred tasks at a time: so
neither side ever holds more, and whatever breaks off goes on behind the last task that came. Predictions in full are
only in the task list with all its fields, at 450.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from lsml_cli.errors import Interrupted, LsmlError, OutputError, UsageError, closest_first, listed
from lsml_cli.io.journal import Entry
from lsml_cli.io.output import FileOutput, Format, Output, StreamOutput, output_format
from lsml_cli.io.output_paths import STDOUT, beside, is_stream, writable
from lsml_cli.label_studio.client import EXPORT_WITHIN, Studio
from lsml_cli.label_studio.task_pages import IN_LIST, Condition, Page, condition, ids_of_any, list_tasks, list_these
from lsml_cli.schema.predictions import dumps

Only = Literal["all", "annotated", "unlabelled", "unpredicted"]

DATA = ("id", "data")  # all that `lsml predict` needs
HEAVY = frozenset({"annotations", "drafts", "predictions"})  # not in the quick list
# What the JSON export says about a task besides; its `predictions` are ids.
EXPORTED = frozenset(
    {
        *("id", "data", "meta", "annotations", "drafts", "created_at", "updated_at", "allow_skip", "inner_id"),
        *("total_annotations", "cancelled_annotations", "total_predictions", "comment_count", "project"),
        *("unresolved_comment_count", "last_comment_updated_at", "updated_by", "comment_authors"),
    }
)
CONDITIONS: Mapping[Only, tuple[Condition, ...]] = {
    "all": (),
    "annotated": (condition("total_annotations", "greater", "Number", 0),),
    "unlabelled": (condition("total_annotations", "equal", "Number", 0),),
    "unpredicted": (condition("predictions_model_versions", "empty", "List", True),),
}


@dataclass(frozen=True)
class PullOptions:
    """What to pull.

    view    a tab of the Data Manager, by its id: its filters
    since   the tasks that were updated then or later, annotations included; `import/predictions` is no update
    fields  "all", "data" (ids and data), or names with commas; by itself whatever the quickest way gives
    resume  continue an unfinished run
    """

    project: int
    only: Only = "all"
    view: int | None = None
    since: datetime | None = None
    fields: str | None = None
    output: str = STDOUT
    format: Format | None = None
    resume: bool = False

    @property
    def names(self) -> tuple[str, ...] | None:
        """The fields of a task that are wanted, None for all of them."""
        wanted = self.fields or ("all" if self.only in ("all", "annotated") else "data")
        if wanted in ("all", "data"):
            return None if wanted == "all" else DATA
        names = [name for name in re.split(r"[,\s]+", wanted) if name]
        return tuple(dict.fromkeys(("id", *names)))

    @property
    def route(self) -> Literal["list", "export", "full list"]:
        names = self.names
        if names is None or (HEAVY.intersection(names) and EXPORTED.issuperset(names)):
            return "export"
        return "full list" if HEAVY.intersection(names) else "list"

    def started_with(self, url: str) -> dict[str, Any]:
        """What decides about the bytes that come out."""
        return {
            "--label-studio-url": url,
            "--project": self.project,
            "--only": self.only,
            "--view": self.view,
            "--since": self.since and self.since.isoformat(),
            "--fields": self.fields,
            "--format": output_format(self.output, self.format),
        }


@dataclass(frozen=True)
class Pulled:
    """How it went: tasks written, those of an earlier run that was continued among them."""

    project: int
    tasks: int
    resumed_at: int
    seconds: float
    output: str

    def to_json(self) -> dict[str, Any]:
        return {
            "project": self.project,
            "tasks": self.tasks,
            "resumed_at": self.resumed_at,
            "seconds": round(self.seconds, 3),
            "output": self.output,
        }

    def sentence(self) -> str:
        before = f", {self.resumed_at:,} of them before" if self.resumed_at else ""
        where = f" -> {self.output}" if self.output != STDOUT else ""
        rate = (self.tasks - self.resumed_at) / self.seconds if self.seconds else 0
        tasks = f"{self.tasks:,} task{'' if self.tasks == 1 else 's'}"
        return f"{tasks} of project {self.project}{before} in {self.seconds:,.1f} s ({rate:,.0f}/s){where}"


class Progress(Protocol):
    def progress(self, tasks: int, failed: int, fraction: float | None) -> None: ...


class Batch(NamedTuple):
    """Some tasks as bytes; the id of the last one that was looked at; how many there were from the first one on."""

    records: list[bytes]
    last: int
    left: int


def pull_to(studio: Studio, asked: PullOptions, report: Progress) -> Pulled:
    """Write the tasks to `asked.output` as they come. Raises UsageError, LsmlError, Interrupted on ctrl-C."""
    begun = datetime.now(UTC)
    with closing(_open_output(asked, studio.url)) as output:
        before = reached = output.last.records
        try:
            if not output.last.finished:
                for batch in pull(studio, asked, after=output.last.counts.get("last id", 0)):
                    reached += len(batch.records)
                    output.write(batch.records, [], Entry(reached, counts={"last id": batch.last}))
                    report.progress(reached, 0, _done(reached, batch))
            output.finish()
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted after {reached:,} tasks.", _how_to_go_on(asked, output)) from None
        except LsmlError as error:
            if type(error) is LsmlError and _how_to_go_on(asked, output):
                raise LsmlError(error.message, _how_to_go_on(asked, output)) from error
            raise
    return Pulled(asked.project, reached, before, (datetime.now(UTC) - begun).total_seconds(), asked.output)


def _done(reached: int, batch: Batch) -> float:
    """The share that is written: `left` counts this batch and what comes after it."""
    return reached / max(1, reached - len(batch.records) + batch.left)


def _how_to_go_on(asked: PullOptions, output: Output) -> str | None:
    done = output.last.records
    if not done or is_stream(asked.output):
        return None
    return f"{done:,} tasks are there; continue with --resume."


def _open_output(asked: PullOptions, url: str) -> Output:
    if not is_stream(asked.output):
        return FileOutput(asked.output, None, asked.started_with(url), resume=asked.resume)
    if asked.resume:
        raise UsageError("What went into a stream cannot be resumed.", "Write to a file with --output.")
    return StreamOutput(asked.output, output_format(asked.output, asked.format), None)


def pull(studio: Studio, asked: PullOptions, after: int = 0) -> Iterator[Batch]:
    """The tasks that are asked for, in the order of their ids, from behind the task `after` on."""
    names = asked.names
    if asked.route == "export":
        for page in _pages(studio, asked, ("id",), after):
            yield from _exported(studio, asked.project, page, names)
        return
    looked = False
    for page in _pages(studio, asked, names if asked.route == "list" else None, after):
        if names and not looked:
            _require_fields(page.tasks[0], names)
            looked = True
        tasks = page.tasks if names is None else [{name: task.get(name) for name in names} for task in page.tasks]
        yield Batch([dumps(task) for task in tasks], page.tasks[-1]["id"], page.left)


def _pages(studio: Studio, asked: PullOptions, include: Sequence[str] | None, after: int) -> Iterator[Page]:
    conditions = list(CONDITIONS[asked.only])
    if asked.since is not None:
        moment = asked.since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        conditions.append(condition("updated_at", "greater_or_equal", "Datetime", moment))
    if asked.view is not None:
        wanted, any_of = _view(studio, asked.project, asked.view)
        if any_of:
            ids = [each for each in ids_of_any(studio, asked.project, wanted) if each > after]
            return list_these(studio, asked.project, ids, conditions, include=include)
        conditions += wanted
    return list_tasks(studio, asked.project, conditions, include=include, after=after)


def _view(studio: Studio, project: int, view: int) -> tuple[list[Condition], bool]:
    """The conditions of a tab of the Data Manager, and whether one of them is enough."""
    found = studio.ask(f"/api/dm/views/{view}/", f"view {view}")
    if found.get("project") != project:
        raise UsageError(
            f"View {view} is a tab of project {found.get('project')}, not of project {project}.",
            "The number behind ?tab= in the address of the Data Manager is the one to give.",
        )
    filters = (found.get("data") or {}).get("filters") or {}
    kept = ("filter", "operator", "type", "value", "child_filter")
    items = [{key: item[key] for key in kept if item.get(key) is not None} for item in filters.get("items") or []]
    return [*items], filters.get("conjunction") == "or" and len(items) > 1


def _exported(studio: Studio, project: int, page: Page, names: Sequence[str] | None) -> Iterator[Batch]:
    ids = [task["id"] for task in page.tasks]
    for start in range(0, len(ids), IN_LIST):
        some = ids[start : start + IN_LIST]
        these = "&".join(f"ids[]={each}" for each in some)
        path = f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true&{these}"
        exported = studio.ask(path, f"the tasks of project {project}", within=EXPORT_WITHIN, kind=list)
        found = {task["id"]: task for task in exported}
        tasks = [found[each] for each in some if each in found]  # one may have been deleted in between
        if names is not None:
            tasks = [{name: task.get(name) for name in names} for task in tasks]
        yield Batch([dumps(task) for task in tasks], some[-1], page.left - start)


def _require_fields(task: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if name not in task:
            known = sorted({*EXPORTED, *HEAVY, *task})
            raise UsageError(
                f"Label Studio's tasks have no field {name!r}.", f"They have: {listed(closest_first(name, known), 40)}."
            )


def read_date(text: str) -> datetime:
    """`--since`: a date, or a date and a time; in local time where no zone is given. Raises UsageError."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since {text!r} is no date.", "Write 2026-11-21, or 2026-11-21T08:30:00Z with a time."
        ) from None


def write_label_config(studio: Studio, project: int, path: Path) -> None:
    """The project's labelling XML as a file, which appears when it is complete."""
    xml = studio.label_config(project)
    target = writable(str(path))
    aside = beside(target, ".new")
    try:
        aside.write_text(xml, "utf-8")
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OutputError(f"The label config {path} cannot be written: {error.strerror}.") from None
