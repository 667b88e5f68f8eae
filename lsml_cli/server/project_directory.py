"""Know the projects of Label Studio, so that events about other projects take no memory, disk or time.

Events need no password, so anybody may send them. A project is asked for by listing all of them, at most every
`MIN_LIST_INTERVAL` seconds and only after an event about an unknown one: a flood of events for made-up projects costs
Label Studio no more requests than one such event.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from lsml_cli import label_studio
from lsml_cli.errors import LsmlError
from lsml_cli.label_studio.client import LabelStudioClient

MIN_LIST_INTERVAL = 10.0  # seconds between two requests for the projects
LIST_TIMEOUT = 10.0  # seconds that Label Studio may take for one page of them
PAGE_SIZE = 100  # Label Studio's own limit
MAX_PAGES = 1000
MAX_UNCONFIRMED = 1000  # projects whose events are kept until Label Studio confirms them, or for want of an API key

log = logging.getLogger("lsml.serve")


class ProjectDirectory:
    """Pass on the annotation events of projects that Label Studio confirms. Everything runs in the event loop.

    Args:
        list_projects: Returns the ids of all projects; called in a thread of its own. None if there is no API key here:
            then the first `MAX_UNCONFIRMED` projects are taken as they are.
        on_confirmed: Called with a project and its number of annotations, for events that had to wait.
        min_interval: Seconds between two calls of `list_projects`.
    """

    def __init__(
        self,
        list_projects: Callable[[], Iterable[int]] | None,
        on_confirmed: Callable[[int, int], object],
        min_interval: float = MIN_LIST_INTERVAL,
    ) -> None:
        self._list_projects = list_projects
        self._on_confirmed = on_confirmed
        self._min_interval = min_interval
        self._confirmed: set[int] = set()
        self._pending_counts: dict[int, int] = {}
        self._wake = asyncio.Event()

    def admit(self, project: int, annotation_count: int) -> bool:
        """Tell whether a project's event counts now; otherwise keep it until the project is confirmed.

        Takes constant time. Beyond `MAX_UNCONFIRMED` unknown projects, events are dropped.
        """
        if project in self._confirmed:
            return True
        if self._list_projects is None:
            if len(self._confirmed) < MAX_UNCONFIRMED:
                self._confirmed.add(project)
                return True
            return False
        if project in self._pending_counts or len(self._pending_counts) < MAX_UNCONFIRMED:
            self._pending_counts[project] = self._pending_counts.get(project, 0) + annotation_count
        self._wake.set()
        return False

    async def run(self) -> None:
        """List the projects now, and again after events about unknown ones, until cancelled."""
        if self._list_projects is None:
            return
        last_error = ""
        while True:
            asked = dict(self._pending_counts)
            self._wake.clear()
            try:
                self._confirmed = set(await _run_in_thread(self._list_projects))
                last_error = ""
            except LsmlError as error:  # what is pending stays so
                if str(error) != last_error:
                    log.warning("Events about new projects have to wait. %s", error)
                last_error = str(error)
                self._wake.set()
            else:
                self._settle(asked)
            await asyncio.sleep(self._min_interval)
            await self._wake.wait()

    def _settle(self, asked: Iterable[int]) -> None:
        """Pass on what is pending for confirmed projects, and drop what is pending for those that do not exist."""
        for project in asked:
            count = self._pending_counts.pop(project, 0)
            if project in self._confirmed:
                self._on_confirmed(project, count)


def project_lister(url: str) -> Callable[[], list[int]]:
    """Return a function that lists the ids of all projects that the environment's API key may see."""

    def list_projects() -> list[int]:
        with label_studio.connect(url) as client:
            return list_project_ids(client)

    return list_projects


def list_project_ids(client: LabelStudioClient) -> list[int]:
    """Return the ids of all projects.

    Raises:
        LsmlError: Label Studio cannot be reached, or refuses.
    """
    ids: list[int] = []
    for page in range(1, MAX_PAGES + 1):
        params: dict[str, str | int] = {"page": page, "page_size": PAGE_SIZE, "include": "id"}
        answer = client.get("/api/projects/", "its projects", params, LIST_TIMEOUT)
        projects = answer.get("results")
        if not isinstance(projects, list):
            raise client.unexpected_response_error("its projects")
        ids += [project["id"] for project in projects if isinstance(project, dict) and type(project.get("id")) is int]
        if not answer.get("next"):
            break
    return ids


async def _run_in_thread(function: Callable[[], Iterable[int]]) -> Iterable[int]:
    """Run a function in a daemon thread, which a server that stops does not wait for."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Iterable[int]] = loop.create_future()

    def deliver(set_result: Callable[[], Any]) -> None:
        if not result.done():
            set_result()

    def run() -> None:
        try:
            value = function()
        except Exception as error:
            outcome = partial(result.set_exception, error)
        else:
            outcome = partial(result.set_result, value)
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            loop.call_soon_threadsafe(deliver, outcome)

    threading.Thread(target=run, name="list-projects", daemon=True).start()
    return await result
