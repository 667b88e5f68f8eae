"""`lsml pull`: write the tasks of a project as lines of JSON, in the order of their ids.

The fastest way depends on the fields. The task list returns ids and data at 4,000 tasks a second. Annotations come from
Label Studio's JSON export, at 700 a second, requested for a few hundred tasks at a time: neither side ever holds more,
and an interrupted pull resumes after the last task that arrived. Full predictions are only in the task list with all
its fields, at 450 a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lsml_cli.errors import Interrupted, LsmlError, UsageError, format_list, sort_by_similarity
from lsml_cli.io.journal import JournalEntry
from lsml_cli.io.output import Output, open_output, write_document
from lsml_cli.io.output_paths import STDOUT, is_stdout, resolve_output_path
from lsml_cli.io.output_target import OutputFormat, OutputTarget
from lsml_cli.label_studio.client import LabelStudioClient
from lsml_cli.label_studio.task_pages import (
    MAX_IDS_PER_URL,
    Condition,
    Page,
    condition,
    list_ids_matching_any,
    list_tasks,
    list_tasks_by_id,
)
from lsml_cli.progress import ProgressReporter
from lsml_cli.schema.json_codec import dumps

TaskFilter = Literal["all", "annotated", "unlabelled", "unpredicted"]

DATA_FIELDS = ("id", "data")  # all that `lsml predict` needs
EXPENSIVE_FIELDS = frozenset({"annotations", "drafts", "predictions"})  # not in the fast task list
# Fields of the JSON export; its `predictions` are ids.
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

    Attributes:
        project: Id of the project.
        task_filter: Which tasks.
        view: Id of a tab of the Data Manager; its filters apply, too.
        since: Only tasks that were updated then or later, annotations included; importing predictions is no update.
        fields: "all", "data" (ids and data), or names with commas; None for what the fastest way returns.
        output: File to write, "-" for standard output.
        format: Format of the output; None decides by its name.
        resume: Whether to continue an unfinished run.
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
        """The fields to write, None for all of them."""
        fields = self.fields or ("all" if self.task_filter in ("all", "annotated") else "data")
        if fields in ("all", "data"):
            return None if fields == "all" else DATA_FIELDS
        names = [name for name in re.split(r"[,\s]+", fields) if name]
        return tuple(dict.fromkeys(("id", *names)))

    @property
    def fetch_strategy(self) -> Literal["list", "export", "full list"]:
        """The fastest way to get the fields."""
        names = self.field_names
        if names is None or (EXPENSIVE_FIELDS.intersection(names) and EXPORT_FIELDS.issuperset(names)):
            return "export"
        return "full list" if EXPENSIVE_FIELDS.intersection(names) else "list"

    @property
    def target(self) -> OutputTarget:
        """The files of the output."""
        return OutputTarget(self.output, requested_format=self.format)

    def run_fingerprint(self, url: str) -> dict[str, Any]:
        """Return the options that determine the output; a resumed run must have the same."""
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
    """The result of a pull.

    Attributes:
        tasks: Tasks written, including those of the run that was resumed.
        resumed_count: Tasks that an earlier run had written.
        seconds: Duration of this run.
    """

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
        resumed = f", {self.resumed_count:,} of them before" if self.resumed_count else ""
        target = f" -> {self.output}" if self.output != STDOUT else ""
        rate = (self.tasks - self.resumed_count) / self.seconds if self.seconds else 0
        tasks = f"{self.tasks:,} task{'' if self.tasks == 1 else 's'}"
        return f"{tasks} of project {self.project}{resumed} in {self.seconds:,.1f} s ({rate:,.0f}/s){target}"


class Batch(NamedTuple):
    """Some tasks.

    Attributes:
        records: The tasks as JSON.
        last_id: Id after which to resume; the task itself may have been deleted.
        remaining: Tasks that are left, counted from the first of these.
    """

    records: list[bytes]
    last_id: int
    remaining: int


def pull_to_output(client: LabelStudioClient, options: PullOptions, reporter: ProgressReporter) -> PullResult:
    """Write the tasks to `options.output` as they arrive.

    Raises:
        UsageError: An option does not fit the project or the output.
        LsmlError: A request failed.
        Interrupted: The user pressed ctrl-C.
    """
    started_at = datetime.now(UTC)
    with closing(open_output(options.target, options.run_fingerprint(client.url), resume=options.resume)) as output:
        resumed_count = written = output.last_entry.records
        try:
            if not output.last_entry.finished:
                reporter.start_phase("pulling", done=written)
                for batch in iter_task_batches(client, options, after_id=output.last_entry.counts.get("last id", 0)):
                    written += len(batch.records)
                    output.write(batch.records, [], JournalEntry(written, counts={"last id": batch.last_id}))
                    reporter.progress(written, 0, _share_done(written, batch))
            output.finish()
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted after {written:,} tasks.", _resume_hint(options, output)) from None
        except LsmlError as error:
            if type(error) is LsmlError and _resume_hint(options, output):
                raise LsmlError(error.message, _resume_hint(options, output)) from error
            raise
    seconds = (datetime.now(UTC) - started_at).total_seconds()
    return PullResult(options.project, written, resumed_count, seconds, options.output)


def _share_done(written: int, batch: Batch) -> float:
    """Return which part (0..1) of the tasks is written, this batch included."""
    return written / max(1, written - len(batch.records) + batch.remaining)


def _resume_hint(options: PullOptions, output: Output) -> str | None:
    written = output.last_entry.records
    if not written or options.target.is_stream:
        return None
    return f"{written:,} tasks are there; continue with --resume."


def iter_task_batches(client: LabelStudioClient, options: PullOptions, after_id: int = 0) -> Iterator[Batch]:
    """Yield the tasks with an id greater than `after_id`, in the order of their ids."""
    names = options.field_names
    if options.fetch_strategy == "export":
        for page in _list_pages(client, options, ("id",), after_id):
            yield from _export_page(client, options.project, page, names)
        return
    is_first_page = True
    for page in _list_pages(client, options, names if options.fetch_strategy == "list" else None, after_id):
        if names and is_first_page:
            _require_fields(page.tasks[0], names)
        is_first_page = False
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
        view_conditions, is_any_enough = _fetch_view(client, options.project, options.view)
        if is_any_enough:
            ids = [id for id in list_ids_matching_any(client, options.project, view_conditions) if id > after_id]
            return list_tasks_by_id(client, options.project, ids, conditions, include=include)
        conditions += view_conditions
    return list_tasks(client, options.project, conditions, include=include, after_id=after_id)


def _fetch_view(client: LabelStudioClient, project: int, view: int) -> tuple[list[Condition], bool]:
    """Return the conditions of a tab of the Data Manager, and whether meeting one of them is enough."""
    tab = client.get_view(view)
    if tab.get("project") != project:
        raise UsageError(
            f"View {view} is a tab of project {tab.get('project')}, not of project {project}.",
            "The number behind ?tab= in the address of the Data Manager is the one to give.",
        )
    filters = (tab.get("data") or {}).get("filters") or {}
    keys = ("filter", "operator", "type", "value", "child_filter")
    items = [{key: item[key] for key in keys if item.get(key) is not None} for item in filters.get("items") or []]
    return [*items], filters.get("conjunction") == "or" and len(items) > 1


def _export_page(client: LabelStudioClient, project: int, page: Page, names: Sequence[str] | None) -> Iterator[Batch]:
    ids = [task["id"] for task in page.tasks]
    for start in range(0, len(ids), MAX_IDS_PER_URL):
        batch_ids = ids[start : start + MAX_IDS_PER_URL]
        task_by_id = {task["id"]: task for task in client.export_tasks(project, batch_ids)}
        tasks = [task_by_id[id] for id in batch_ids if id in task_by_id]  # one may have been deleted in between
        if names is not None:
            tasks = [{name: task.get(name) for name in names} for task in tasks]
        yield Batch([dumps(task) for task in tasks], batch_ids[-1], page.remaining - start)


def _require_fields(task: Mapping[str, Any], field_names: Sequence[str]) -> None:
    for name in field_names:
        if name not in task:
            known = sorted({*EXPORT_FIELDS, *EXPENSIVE_FIELDS, *task})
            raise UsageError(
                f"Label Studio's tasks have no field {name!r}.",
                f"They have: {format_list(sort_by_similarity(name, known), 40)}.",
            )


def parse_date(text: str) -> datetime:
    """Parse `--since`: a date, or a date and a time, in local time unless a zone is given. Raises UsageError."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since {text!r} is not a date.", "Write 2026-11-21, or 2026-11-21T08:30:00Z with a time."
        ) from None


def write_label_config(client: LabelStudioClient, project: int, path: Path) -> None:
    """Write the project's labelling XML to a file, or to standard output for "-". Raises OutputClosed, OutputError."""
    xml = client.get_label_config(project)
    target = path if is_stdout(path) else resolve_output_path(str(path))
    write_document(target, xml.encode(), "The label config")
