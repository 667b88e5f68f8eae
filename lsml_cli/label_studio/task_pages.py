"""The tasks of a project, a page at a time, in the order of their ids.

Label Studio's task list has numbered pages, which shift when tasks appear or vanish between two of them. So each page
is the first one of the tasks behind the last id that was seen. Measured on Label Studio 1.23.2 (sqlite, 2 cores): ids
alone come at 5,000 a second, ids and data at 4,000, everything at 450.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from lsml_cli.label_studio.client import LabelStudioClient

PAGE_SIZE = 1000  # tasks
MAX_IDS_PER_URL = 200  # ids that a URL names: a server may refuse one of more than 4,000 characters
PAGE_TIMEOUT = 600.0  # seconds

Condition = Mapping[str, Any]  # a filter of Label Studio's Data Manager


class Page(NamedTuple):
    """Some tasks, as Label Studio has them; how many there are from the first of them on, as far as known."""

    tasks: list[dict[str, Any]]
    remaining: int


def condition(column: str, operator: str, value_type: str, value: object) -> Condition:
    """One row of the Data Manager's filters: `condition("id", "greater", "Number", 5)`."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": value_type, "value": value}


def list_tasks(
    client: LabelStudioClient,
    project: int,
    conditions: Sequence[Condition] = (),
    *,
    include: Sequence[str] | None = ("id",),
    after_id: int = 0,
) -> Iterator[Page]:
    """The tasks that meet every condition and have a greater id than `after`.

    include  the fields that are asked for; None for all, annotations and predictions with them
    """
    while True:
        page = _fetch_page(client, project, [*conditions, condition("id", "greater", "Number", after_id)], include)
        # A condition about annotations may name a task several times.
        tasks = [task for n, task in enumerate(page.tasks) if not n or task["id"] != page.tasks[n - 1]["id"]]
        if tasks:
            after_id = tasks[-1]["id"]
            yield Page(tasks, page.remaining)
        if len(page.tasks) < PAGE_SIZE:
            return


def list_tasks_by_id(
    client: LabelStudioClient,
    project: int,
    ids: Sequence[int],
    conditions: Sequence[Condition] = (),
    *,
    include: Sequence[str] | None = ("id",),
) -> Iterator[Page]:
    """Those of the tasks with these ids, in ascending order, that meet every condition."""
    for start in range(0, len(ids), MAX_IDS_PER_URL):
        some = list(ids[start : start + MAX_IDS_PER_URL])
        page = _fetch_page(client, project, [*conditions, condition("id", "in_list", "List", some)], include)
        if page.tasks:
            yield Page(page.tasks, len(ids) - start)


def list_ids_matching_any(client: LabelStudioClient, project: int, conditions: Sequence[Condition]) -> array[int]:
    """The ids of the tasks that meet at least one of the conditions, ascending.

    With "or" nothing can be added to the conditions, so these pages are numbered.
    """
    found = array("q")
    number = 1
    while True:
        page = _fetch_page(client, project, conditions, ("id",), "or", number)
        found.extend(task["id"] for task in page.tasks if not found or task["id"] > found[-1])
        if len(page.tasks) < PAGE_SIZE or number * PAGE_SIZE >= page.remaining:
            return found
        number += 1


def list_ids_in_range(client: LabelStudioClient, project: int, min_id: int, max_id: int) -> array[int]:
    """The ids of all tasks of a project within these two, ascending; eight bytes each."""
    found = array("q")
    within = condition("id", "in", "Number", {"min": min_id, "max": max_id})
    for page in list_tasks(client, project, [within], after_id=min_id - 1):
        found.extend(task["id"] for task in page.tasks)
    return found


def _fetch_page(
    client: LabelStudioClient,
    project: int,
    conditions: Sequence[Condition],
    include: Sequence[str] | None,
    conjunction: str = "and",
    page_number: int = 1,
) -> Page:
    query = {"filters": {"conjunction": conjunction, "items": list(conditions)}, "ordering": ["tasks:id"]}
    params: dict[str, str | int] = {
        "project": project,
        "page": page_number,
        "page_size": PAGE_SIZE,
        "fields": "all" if include is None else "task_only",
        "resolve_uri": "false",  # data as they are, not as links that end in an hour
        "query": orjson.dumps(query).decode(),
    }
    if include is not None:
        params["include"] = ",".join(include)
    found = client.get("/api/tasks", f"the tasks of project {project}", params, PAGE_TIMEOUT)
    tasks, total = found.get("tasks"), found.get("total")
    if not isinstance(tasks, list) or not isinstance(total, int):
        raise client.unexpected_response_error(f"the tasks of project {project}")
    return Page(tasks, total)
