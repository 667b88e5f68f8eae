"""Know the projects of Label Studio, so that events about other projects take no memory, disk or time.

Events need no password, so anybody may send them. A project is asked for by listing all of them, at most every
`MIN_LIST_INTERVAL` seconds and only after an event about an unknown one: a flood of events for made-up projects costs
Label Studio no more requests than one such event.

Label Studio keeps the webhook of a backend that somebody deletes, and goes on sending events. So a project's backends
are asked for too, at most every `CONNECTION_INTERVAL` seconds and only after an event about it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lsml_cli import label_studio
from lsml_cli.errors import LsmlError

MIN_LIST_INTERVAL = 10.0  # seconds between two requests for the projects
MAX_UNCONFIRMED = 1000  # projects whose events are kept until Label Studio confirms them, or for want of an API key
CONNECTION_INTERVAL = 60.0  # seconds between two requests for the backends of one project
MAX_HOST_CHARACTERS = 300  # of the address that an event came to

T = TypeVar("T")

log = logging.getLogger("lsml.serve")


@dataclass
class _PendingEvents:
    """Annotations that count once something is known, and the address that the last event about them came to."""

    annotation_count: int = 0
    host: str = ""


class ProjectDirectory:
    """Pass on the annotation events of projects that Label Studio confirms. Everything runs in the event loop.

    Args:
        list_projects: Returns the ids of all projects; called in a thread of its own. None if there is no API key here:
            then the first `MAX_UNCONFIRMED` projects are taken as they are.
        on_confirmed: Called with a project and its number of annotations, for events that had to wait.
        list_backends: Returns the addresses of a project's backends; called in a thread of its own. None: not asked.
        min_interval: Seconds between two calls of `list_projects`.
        clock: Seconds, for the `CONNECTION_INTERVAL` between two calls of `list_backends` for one project.
    """

    def __init__(
        self,
        list_projects: Callable[[], Iterable[int]] | None,
        on_confirmed: Callable[[int, int], object],
        list_backends: Callable[[int], Iterable[str]] | None = None,
        min_interval: float = MIN_LIST_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._list_projects = list_projects
        self._on_confirmed = on_confirmed
        self._min_interval = min_interval
        self._confirmed: set[int] = set()
        self._unconfirmed_events: dict[int, _PendingEvents] = {}
        self._wake = asyncio.Event()
        self._connections = None if list_backends is None else _ConnectionChecks(list_backends, clock)

    def admit(self, project: int, annotation_count: int, host: str = "") -> bool:
        """Tell whether a project's event counts now; otherwise keep it until the project is confirmed.

        Takes constant time. Beyond `MAX_UNCONFIRMED` unknown projects, events are dropped.

        Args:
            project: Id of the project.
            annotation_count: How many annotations the event is about.
            host: The address, host and port, that the event came to.
        """
        host = host[:MAX_HOST_CHARACTERS]
        if project in self._confirmed:
            return self._connections is None or self._connections.admit(project, annotation_count, host)
        if self._list_projects is None:
            if len(self._confirmed) < MAX_UNCONFIRMED:
                self._confirmed.add(project)
                return True
            return False
        if project in self._unconfirmed_events or len(self._unconfirmed_events) < MAX_UNCONFIRMED:
            events = self._unconfirmed_events.setdefault(project, _PendingEvents())
            events.annotation_count += annotation_count
            events.host = host
        self._wake.set()
        return False

    async def run(self) -> None:
        """Ask Label Studio after events, until cancelled."""
        if self._list_projects is None:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._confirm_projects(self._list_projects))
            if self._connections is not None:
                group.create_task(self._connections.run(self._on_confirmed))

    async def _confirm_projects(self, list_projects: Callable[[], Iterable[int]]) -> None:
        """List the projects now, and again after events about unknown ones."""
        last_error = ""
        while True:
            asked = list(self._unconfirmed_events)
            self._wake.clear()
            try:
                self._confirmed = set(await _run_in_thread(list_projects))
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
            events = self._unconfirmed_events.pop(project, _PendingEvents())
            if project in self._confirmed and self.admit(project, events.annotation_count, events.host):
                self._on_confirmed(project, events.annotation_count)


class _ConnectionChecks:
    """Know whether this server is still a backend of each project that Label Studio has.

    Args:
        list_backends, clock: See `ProjectDirectory`.
    """

    def __init__(self, list_backends: Callable[[int], Iterable[str]], clock: Callable[[], float]) -> None:
        self._list_backends = list_backends
        self._clock = clock
        self._is_connected: dict[int, bool] = {}
        self._checked_at: dict[int, float] = {}
        self._due_events: dict[int, _PendingEvents] = {}  # of the projects that are to be asked for
        self._own_hosts: set[str] = set()  # addresses that events came to and that backends have
        self._last_error = ""
        self._wake = asyncio.Event()

    def admit(self, project: int, annotation_count: int, host: str) -> bool:
        """Tell whether an event counts now, as far as is known; see to it that more is known soon."""
        is_connected = self._is_connected.get(project)
        checked_at = self._checked_at.get(project)
        if checked_at is None or self._clock() - checked_at >= CONNECTION_INTERVAL:
            events = self._due_events.setdefault(project, _PendingEvents())
            events.host = host
            if not is_connected:
                events.annotation_count += annotation_count
            self._wake.set()
        return bool(is_connected)

    async def run(self, on_confirmed: Callable[[int, int], object]) -> None:
        """Ask for the backends of one project after the other, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._due_events:
                project = next(iter(self._due_events))
                is_connected = await self._check(project)
                events = self._due_events.pop(project)  # with those that came meanwhile
                self._checked_at[project] = self._clock()
                self._set_connected(project, is_connected)
                if is_connected and events.annotation_count:
                    on_confirmed(project, events.annotation_count)

    async def _check(self, project: int) -> bool:
        """Ask Label Studio; if it does not say, what was known stays so, and an unknown project counts as connected."""
        try:
            urls = await _run_in_thread(partial(self._list_backends, project))
        except LsmlError as error:
            if str(error) != self._last_error:
                log.warning("Whether project %d still has this server as its model is not known. %s", project, error)
            self._last_error = str(error)
            return self._is_connected.get(project, True)
        self._last_error = ""
        return self._has_own_url(list(urls), self._due_events[project].host)

    def _has_own_url(self, urls: Iterable[str], host: str) -> bool:
        """Tell whether one of the backends is this server.

        Behind a proxy that changes the address, none of them looks like it. So another backend is not taken for this
        server only where the addresses are known to agree: they once did.
        """
        hosts = {_host_of(url) for url in urls}
        own_hosts = {_normalize_host(host, is_https) for is_https in (False, True)}
        if hosts & own_hosts:
            self._own_hosts |= own_hosts
            return True
        return bool(hosts) and not own_hosts & self._own_hosts

    def _set_connected(self, project: int, is_connected: bool) -> None:
        was_connected = self._is_connected.get(project, True)
        self._is_connected[project] = is_connected
        if was_connected and not is_connected:
            log.warning(
                "Project %d does not have this server as its model any more, but its webhook still sends events: they "
                "are not counted, and start no training. Remove the webhook in the project's settings, or connect the "
                "model again.",
                project,
            )
        elif is_connected and not was_connected:
            log.info("Project %d has this server as its model again: its annotations count.", project)


def _host_of(url: str) -> str:
    """Return host and port of an address, "" if it is none."""
    try:
        return _normalize_host(urlsplit(url).netloc, url.lower().startswith("https:"))
    except ValueError:
        return ""


def _normalize_host(netloc: str, is_https: bool) -> str:
    """Return host and port in lower case, without user and password and without the default port."""
    return netloc.rpartition("@")[2].lower().removesuffix(":443" if is_https else ":80")


def list_projects(url: str) -> list[int]:
    """Return the ids of all projects of the Label Studio at `url` that the environment's API key may see."""
    with label_studio.connect(url) as client:
        return client.list_project_ids()


def list_backends(url: str, project: int) -> list[str]:
    """Return the addresses of a project's backends."""
    with label_studio.connect(url) as client:
        return client.list_backend_urls(project)


async def _run_in_thread(function: Callable[[], T]) -> T:
    """Run a function in a daemon thread, which a server that stops does not wait for."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

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

    threading.Thread(target=run, name="ask-label-studio", daemon=True).start()
    return await result
