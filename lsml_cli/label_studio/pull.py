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

from lsml_cli.errors import Interrupted, LsmlError, OutputError, UsageError, format_list, sort_by_similarity
from lsml_cli.io.journal import JournalEntry
from lsml_cli.io.output import Output, open_output
from lsml_cli.io.output_paths import STDOUT, resolve_output_path, sibling_path
from lsml_cli.io.output_target import OutputFormat, OutputTarget
from lsml_cli.label_studio.client import EXPORT_TIMEOUT, LabelStudioClient
from lsml_cli.label_studio.task_pages import (
    MAX_IDS_PER_URL,
    Condition,
    Page,
    condition,
    list_ids_matching_any,
    list_tasks,
    list_tasks_by_id,
)
from lsml_cli.schema.predictions import dumps

TaskFilter = Literal["all", "annotated", "unlabelled", "unpredicted"]

DATA_FIELDS = ("id", "data")  # all that `lsml predict` needs
EXPENSIVE_FIELDS = frozenset({"annotations", "drafts", "predictions"})  # not in the quick list
# What the JSON export says about a task besides; its `predictions` are ids.
EXPORT_FIELDS = frozenset(
    {
        *("id", "data", "meta", "annotations", "drafts", "created_at", "updated_at", "allow_skip", "inner_id"),
        *("total_annotations", "cancelled_annotations", "total_predictions", "comment_count", "project"),
        *("unresolved_comment_count", "last_comment_updated_at", "updated_by", "comment_authors"),
    }
)
FILTER_CONDITIONS: Mapping[TaskFilter, tuple[Condition, ...]] = {
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
    task_filter: TaskFilter = "all"
    view: int | None = None
    since: datetime | None = None
    fields: str | None = None
    output: str = STDOUT
    format: OutputFormat | None = None
    resume: bool = False

    @property
    def field_names(self) -> tuple[str, ...] | None:
        """The fields of a task that are wanted, None for all of them."""
        wanted = self.fields or ("all" if self.task_filter in ("all", "annotated") else "data")
        if wanted in ("all", "data"):
            return None if wanted == "all" else DATA_FIELDS
        names = [name for name in re.split(r"[,\s]+", wanted) if name]
        return tuple(dict.fromkeys(("id", *names)))

    @property
    def fetch_strategy(self) -> Literal["list", "export", "full list"]:
        names = self.field_names
        if names is None or (EXPENSIVE_FIELDS.intersection(names) and EXPORT_FIELDS.issuperset(names)):
            return "export"
        return "full list" if EXPENSIVE_FIELDS.intersection(names) else "list"

    @property
    def target(self) -> OutputTarget:
        return OutputTarget(self.output, requested_format=self.format)

    def run_fingerprint(self, url: str) -> dict[str, Any]:
        """What decides about the bytes that come out."""
        return {
            "--label-studio-url": url,
            "--project": self.project,
            "--only": self.task_filter,
            "--view": self.view,
            "--since": self.since and self.since.isoformat(),
            "--fields": self.fields,
            "--format": self.target.format,
        }


@dataclass(frozen=True)
class PullResult:
    """How it went: tasks written, those of an earlier run that was continued among them."""

    project: int
    tasks: int
    resumed_count: int
    seconds: float
    output: str

    def to_json(self) -> dict[str, Any]:
        return {
            "project": self.project,
            "tasks": self.tasks,
            "resumed_at": self.resumed_count,
            "seconds": round(self.seconds, 3),
            "output": self.output,
        }

    def summary_line(self) -> str:
        before = f", {self.resumed_count:,} of them before" if self.resumed_count else ""
        where = f" -> {self.output}" if self.output != STDOUT else ""
        rate = (self.tasks - self.resumed_count) / self.seconds if self.seconds else 0
        tasks = f"{self.tasks:,} task{'' if self.tasks == 1 else 's'}"
        return f"{tasks} of project {self.project}{before} in {self.seconds:,.1f} s ({rate:,.0f}/s){where}"


class ProgressReporter(Protocol):
    def progress(self, tasks: int, failed: int, fraction: float | None) -> None: ...


class Batch(NamedTuple):
    """Some tasks as bytes; the id of the last one that was looked at; how many there were from the first one on."""

    records: list[bytes]
    last_id: int
    remaining: int


def pull_to_output(client: LabelStudioClient, options: PullOptions, reporter: ProgressReporter) -> PullResult:
    """Write the tasks to `asked.output` as they come. Raises UsageError, LsmlError, Interrupted on ctrl-C."""
    begun = datetime.now(UTC)
    with closing(_open_output(options, client.url)) as output:
        before = reached = output.last_entry.records
        try:
            if not output.last_entry.finished:
                for batch in iter_task_batches(client, options, after_id=output.last_entry.counts.get("last id", 0)):
                    reached += len(batch.records)
                    output.write(batch.records, [], JournalEntry(reached, counts={"last id": batch.last_id}))
                    reporter.progress(reached, 0, _fraction_done(reached, batch))
            output.finish()
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted after {reached:,} tasks.", _resume_hint(options, output)) from None
        except LsmlError as error:
            if type(error) is LsmlError and _resume_hint(options, output):
                raise LsmlError(error.message, _resume_hint(options, output)) from error
            raise
    return PullResult(options.project, reached, before, (datetime.now(UTC) - begun).total_seconds(), options.output)


def _fraction_done(written: int, batch: Batch) -> float:
    """The share that is written: `left` counts this batch and what comes after it."""
    return written / max(1, written - len(batch.records) + batch.remaining)


def _resume_hint(options: PullOptions, output: Output) -> str | None:
    done = output.last_entry.records
    if not done or options.target.is_stream:
        return None
    return f"{done:,} tasks are there; continue with --resume."


def _open_output(options: PullOptions, url: str) -> Output:
    return open_output(options.target, options.run_fingerprint(url), resume=options.resume)


def iter_task_batches(client: LabelStudioClient, options: PullOptions, after_id: int = 0) -> Iterator[Batch]:
    """The tasks that are asked for, in the order of their ids, from behind the task `after` on."""
    names = options.field_names
    if options.fetch_strategy == "export":
        for page in _list_pages(client, options, ("id",), after_id):
            yield from _export_page(client, options.project, page, names)
        return
    looked = False
    for page in _list_pages(client, options, names if options.fetch_strategy == "list" else None, after_id):
        if names and not looked:
            _require_fields(page.tasks[0], names)
            looked = True
        tasks = page.tasks if names is None else [{name: task.get(name) for name in names} for task in page.tasks]
        yield Batch([dumps(task) for task in tasks], page.tasks[-1]["id"], page.remaining)


def _list_pages(
    client: LabelStudioClient, options: PullOptions, include: Sequence[str] | None, after_id: int
) -> Iterator[Page]:
    conditions = list(FILTER_CONDITIONS[options.task_filter])
    if options.since is not None:
        moment = options.since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        conditions.append(condition("updated_at", "greater_or_equal", "Datetime", moment))
    if options.view is not None:
        wanted, any_of = _fetch_view(client, options.project, options.view)
        if any_of:
            ids = [each for each in list_ids_matching_any(client, options.project, wanted) if each > after_id]
            return list_tasks_by_id(client, options.project, ids, conditions, include=include)
        conditions += wanted
    return list_tasks(client, options.project, conditions, include=include, after_id=after_id)


def _fetch_view(client: LabelStudioClient, project: int, view: int) -> tuple[list[Condition], bool]:
    """The conditions of a tab of the Data Manager, and whether one of them is enough."""
    found = client.get(f"/api/dm/views/{view}/", f"view {view}")
    if found.get("project") != project:
        raise UsageError(
            f"View {view} is a tab of project {found.get('project')}, not of project {project}.",
            "The number behind ?tab= in the address of the Data Manager is the one to give.",
        )
    filters = (found.get("data") or {}).get("filters") or {}
    kept = ("filter", "operator", "type", "value", "child_filter")
    items = [{key: item[key] for key in kept if item.get(key) is not None} for item in filters.get("items") or []]
    return [*items], filters.get("conjunction") == "or" and len(items) > 1


def _export_page(client: LabelStudioClient, project: int, page: Page, names: Sequence[str] | None) -> Iterator[Batch]:
    ids = [task["id"] for task in page.tasks]
    for start in range(0, len(ids), MAX_IDS_PER_URL):
        some = ids[start : start + MAX_IDS_PER_URL]
        these = "&".join(f"ids[]={each}" for each in some)
        path = f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true&{these}"
        exported = client.get(path, f"the tasks of project {project}", timeout=EXPORT_TIMEOUT, expected_type=list)
        found = {task["id"]: task for task in exported}
        tasks = [found[each] for each in some if each in found]  # one may have been deleted in between
        if names is not None:
            tasks = [{name: task.get(name) for name in names} for task in tasks]
        yield Batch([dumps(task) for task in tasks], some[-1], page.remaining - start)


def _require_fields(task: Mapping[str, Any], field_names: Sequence[str]) -> None:
    for name in field_names:
        if name not in task:
            known = sorted({*EXPORT_FIELDS, *EXPENSIVE_FIELDS, *task})
            raise UsageError(
                f"Label Studio's tasks have no field {name!r}.",
                f"They have: {format_list(sort_by_similarity(name, known), 40)}.",
            )


def parse_date(text: str) -> datetime:
    """`--since`: a date, or a date and a time; in local time where no zone is given. Raises UsageError."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since {text!r} is no date.", "Write 2026-11-21, or 2026-11-21T08:30:00Z with a time."
        ) from None


def write_label_config(client: LabelStudioClient, project: int, path: Path) -> None:
    """The project's labelling XML as a file, which appears when it is complete."""
    xml = client.get_label_config(project)
    target = resolve_output_path(str(path))
    aside = sibling_path(target, ".new")
    try:
        aside.write_text(xml, "utf-8")
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OutputError(f"The label config {path} cannot be written: {error.strerror}.") from None
