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

from lsml_cli.label_studio.client import Studio

PAGE = 1000  # tasks
IN_LIST = 200  # ids that a URL names: a server may refuse one of more than 4,000 characters
PAGE_WITHIN = 600.0  # seconds

Condition = Mapping[str, Any]  # a filter of Label Studio's Data Manager


class Page(NamedTuple):
    """Some tasks, as Label Studio has them; how many there are from the first of them on, as far as known."""

    tasks: list[dict[str, Any]]
    left: int


def condition(column: str, operator: str, kind: str, value: object) -> Condition:
    """One row of the Data Manager's filters: `condition("id", "greater", "Number", 5)`."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def list_tasks(
    studio: Studio,
    project: int,
    conditions: Sequence[Condition] = (),
    *,
    include: Sequence[str] | None = ("id",),
    after: int = 0,
) -> Iterator[Page]:
    """The tasks that meet every condition and have a greater id than `after`.

    include  the fields that are asked for; None for all, annotations and predictions with them
    """
    while True:
        page = _page(studio, project, [*conditions, condition("id", "greater", "Number", after)], include)
        # A condition about annotations may name a task several times.
        tasks = [task for n, task in enumerate(page.tasks) if not n or task["id"] != page.tasks[n - 1]["id"]]
        if tasks:
            after = tasks[-1]["id"]
            yield Page(tasks, page.left)
        if len(page.tasks) < PAGE:
            return


def list_these(
    studio: Studio,
    project: int,
    ids: Sequence[int],
    conditions: Sequence[Condition] = (),
    *,
    include: Sequence[str] | None = ("id",),
) -> Iterator[Page]:
    """Those of the tasks with these ids, in ascending order, that meet every condition."""
    for start in range(0, len(ids), IN_LIST):
        some = list(ids[start : start + IN_LIST])
        page = _page(studio, project, [*conditions, condition("id", "in_list", "List", some)], include)
        if page.tasks:
            yield Page(page.tasks, len(ids) - start)


def ids_of_any(studio: Studio, project: int, conditions: Sequence[Condition]) -> array[int]:
    """The ids of the tasks that meet at least one of the conditions, ascending.

    With "or" nothing can be added to the conditions, so these pages are numbered.
    """
    found = array("q")
    number = 1
    while True:
        page = _page(studio, project, conditions, ("id",), "or", number)
        found.extend(task["id"] for task in page.tasks if not found or task["id"] > found[-1])
        if len(page.tasks) < PAGE or number * PAGE >= page.left:
            return found
        number += 1


def ids_between(studio: Studio, project: int, lowest: int, highest: int) -> array[int]:
    """The ids of all tasks of a project within these two, ascending; eight bytes each."""
    found = array("q")
    within = condition("id", "in", "Number", {"min": lowest, "max": highest})
    for page in list_tasks(studio, project, [within], after=lowest - 1):
        found.extend(task["id"] for task in page.tasks)
    return found


def _page(
    studio: Studio,
    project: int,
    conditions: Sequence[Condition],
    include: Sequence[str] | None,
    conjunction: str = "and",
    number: int = 1,
) -> Page:
    query = {"filters": {"conjunction": conjunction, "items": list(conditions)}, "ordering": ["tasks:id"]}
    params: dict[str, str | int] = {
        "project": project,
        "page": number,
        "page_size": PAGE,
        "fields": "all" if include is None else "task_only",
        "resolve_uri": "false",  # data as they are, not as links that end in an hour
        "query": orjson.dumps(query).decode(),
    }
    if include is not None:
        params["include"] = ",".join(include)
    found = studio.ask("/api/tasks", f"the tasks of project {project}", params, PAGE_WITHIN)
    tasks, total = found.get("tasks"), found.get("total")
    if not isinstance(tasks, list) or not isinstance(total, int):
        raise studio.no_label_studio(f"the tasks of project {project}")
    return Page(tasks, total)
