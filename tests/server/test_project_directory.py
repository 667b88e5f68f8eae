"""Annotation events: those of projects that Label Studio does not have cost nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from lsml_cli import label_studio
from lsml_cli.errors import LsmlError
from lsml_cli.server import train_scheduler
from lsml_cli.server.project_directory import (
    CONNECTION_INTERVAL,
    MAX_UNCONFIRMED,
    ProjectDirectory,
)
from tests.helpers.serve_process import ServerFactory, wait_until
from tests.helpers.stub_http import StubHandler, run_server


class ProjectList:
    """A Label Studio with the projects 1 to `count`, in pages of `page_size`."""

    def __init__(self, url: str, count: int = 3, page_size: int = 100) -> None:
        self.url = url
        self.count = count
        self.page_size = page_size
        self.request_count = 0
        self.backends: dict[int, list[str]] = {}


class ListHandler(StubHandler[ProjectList]):
    def handle_request(self) -> None:
        self.read_body()
        if self.path.startswith("/api/ml/"):
            project = int(parse_qs(urlsplit(self.path).query)["project"][0])
            backends = [{"id": 1, "url": url, "state": "CO"} for url in self.state.backends.get(project, [])]
            self.send_body(200 if project <= self.state.count else 404, json.dumps(backends).encode())
            return
        self.state.request_count += 1
        page = int(parse_qs(urlsplit(self.path).query)["page"][0])
        ids = range(1 + (page - 1) * self.state.page_size, self.state.count + 1)[: self.state.page_size]
        is_last = page * self.state.page_size >= self.state.count
        body = {"results": [{"id": number} for number in ids], "next": None if is_last else "http://x/"}
        self.send_body(200, json.dumps(body).encode())


@pytest.fixture
def studio() -> Iterator[ProjectList]:
    with run_server(ListHandler, ProjectList) as state:
        yield state


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ServerFactory]:
    factory = ServerFactory(tmp_path)
    yield factory
    factory.close()


def run_directory(directory: ProjectDirectory, scenario: Callable[[], Any]) -> None:
    async def main() -> None:
        task = asyncio.create_task(directory.run())
        try:
            async with asyncio.timeout(10):
                await scenario()
        finally:
            task.cancel()

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_events_count_only_for_projects_that_label_studio_confirms() -> None:
    projects = [1, 2]
    counted: list[tuple[int, int]] = []
    directory = ProjectDirectory(lambda: projects, lambda *event: counted.append(event), min_interval=0.02)

    async def scenario() -> None:
        assert not directory.admit(1, 4)
        await until(lambda: counted)
        assert directory.admit(1, 1)
        assert not directory.admit(7, 2)
        assert not directory.admit(8, 2)
        projects.append(7)
        assert not directory.admit(7, 3)
        await until(lambda: len(counted) == 2)
        assert counted == [(1, 4), (7, 5)]
        assert directory.admit(7, 1)
        assert not directory.admit(8, 1)

    run_directory(directory, scenario)


def test_flood_for_made_up_projects_is_bounded_and_loses_no_real_event() -> None:
    calls: list[int] = []

    def list_projects() -> list[int]:
        calls.append(1)
        return [1, 2]

    directory = ProjectDirectory(list_projects, lambda *event: None, min_interval=0.05)

    async def scenario() -> None:
        await until(lambda: directory.admit(1, 1))
        for number in range(200_000):
            assert not directory.admit(1000 + number, 1)
            assert number % 1000 or directory.admit(2, 1)
            if number % 10_000 == 0:
                await asyncio.sleep(0)
        assert len(directory._unconfirmed_events) <= MAX_UNCONFIRMED
        await asyncio.sleep(0.2)
        assert len(calls) < 20

    run_directory(directory, scenario)


def test_events_wait_while_label_studio_cannot_be_reached() -> None:
    counted: list[tuple[int, int]] = []
    failures = [LsmlError("It is down.")] * 3

    def list_projects() -> list[int]:
        if failures:
            raise failures.pop()
        return [5]

    directory = ProjectDirectory(list_projects, lambda *event: counted.append(event), min_interval=0.01)

    async def scenario() -> None:
        assert not directory.admit(5, 4)
        await until(lambda: counted == [(5, 4)])

    run_directory(directory, scenario)


OWN = "lsml:9090"  # the address that events come to


class Backends:
    """The backends of projects, as Label Studio answers for them, and a clock that tells when to ask again."""

    def __init__(self, **urls: list[str]) -> None:
        self.urls = {int(project.removeprefix("p")): found for project, found in urls.items()}
        self.calls: list[int] = []
        self.error: LsmlError | None = None
        self.seconds = 0.0

    def clock(self) -> float:
        return self.seconds

    def __call__(self, project: int) -> list[str]:
        self.calls.append(project)
        if self.error is not None:
            raise self.error
        return self.urls[project]


async def settled(backends: Backends, directory: ProjectDirectory, project: int, count: int = 1) -> bool:
    """Send an event that makes the directory ask for the backends, and another one when it knows them."""
    backends.seconds += CONNECTION_INTERVAL
    calls = len(backends.calls)
    directory.admit(project, count, OWN)
    await until(lambda: len(backends.calls) > calls)
    connections = directory._connections
    assert connections is not None
    await until(lambda: not connections._due_events)
    return directory.admit(project, count, OWN)


def connected_directory(backends: Backends, counted: list[tuple[int, int]]) -> ProjectDirectory:
    projects = list(backends.urls)
    return ProjectDirectory(
        lambda: projects, lambda *event: counted.append(event), backends, min_interval=0.01, clock=backends.clock
    )


def test_events_of_a_deleted_backend_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    backends = Backends(p1=["http://lsml:9090/secret"])
    counted: list[tuple[int, int]] = []
    directory = connected_directory(backends, counted)

    async def scenario() -> None:
        assert not directory.admit(1, 4, OWN)
        await until(lambda: counted == [(1, 4)])
        backends.urls[1] = []
        assert not await settled(backends, directory, 1)
        assert not await settled(backends, directory, 1)
        (message,) = caplog.messages  # said once
        assert message.startswith("Project 1 does not have this server as its model any more")
        backends.urls[1] = ["http://LSML:9090"]
        assert await settled(backends, directory, 1, 7)
        assert counted == [(1, 4), (1, 7)]

    run_directory(directory, scenario)


def test_another_backend_is_not_taken_for_this_server() -> None:
    backends = Backends(p1=["http://lsml:9090"], p2=["http://lsml:9090"])
    directory = connected_directory(backends, [])

    async def scenario() -> None:
        assert await settled(backends, directory, 1) or await settled(backends, directory, 1)
        backends.urls |= {1: ["http://other:9090"], 2: ["http://lsml:9091", "http://["]}
        assert not await settled(backends, directory, 1)
        assert not await settled(backends, directory, 2)

    run_directory(directory, scenario)


def test_events_count_behind_a_proxy_that_changes_the_address() -> None:
    backends = Backends(p1=["https://models.example.org/lsml"])
    directory = connected_directory(backends, [])

    async def scenario() -> None:
        await until(lambda: directory.admit(1, 1, "10.0.0.5:9090"))
        backends.urls[1] = []
        backends.seconds += CONNECTION_INTERVAL
        await until(lambda: not directory.admit(1, 1, "10.0.0.5:9090"))

    run_directory(directory, scenario)


@pytest.mark.parametrize(
    ("url", "host"),
    [("http://lsml", "lsml:80"), ("https://user:pw@lsml:443/x", "lsml"), ("http://[::1]:9090/", "[::1]:9090")],
)
def test_addresses_are_compared_without_what_may_differ(url: str, host: str) -> None:
    backends = Backends(p1=[url])
    directory = connected_directory(backends, [])

    async def scenario() -> None:
        await until(lambda: directory.admit(1, 1, host))
        backends.urls[1] = ["http://other"]
        backends.seconds += CONNECTION_INTERVAL
        await until(lambda: not directory.admit(1, 1, host))

    run_directory(directory, scenario)


def test_events_count_while_label_studio_does_not_name_its_backends(caplog: pytest.LogCaptureFixture) -> None:
    backends = Backends(p1=["http://lsml:9090"])
    backends.error = LsmlError("It may not.")
    directory = connected_directory(backends, [])

    async def scenario() -> None:
        for _ in range(3):
            assert await settled(backends, directory, 1)
        assert [message for message in caplog.messages if "not known. It may not." in message] == caplog.messages[:1]

    run_directory(directory, scenario)


def test_backends_are_not_asked_for_with_every_event() -> None:
    backends = Backends(p1=["http://lsml:9090"], p2=[])
    directory = ProjectDirectory(lambda: [1, 2], lambda *event: None, backends, min_interval=0.01)

    async def scenario() -> None:
        await until(lambda: directory.admit(1, 1, OWN))
        for number in range(10_000):
            assert directory.admit(1, 1, OWN)
            directory.admit(2, 1, OWN)
            if number % 1000 == 0:
                await asyncio.sleep(0.005)
        assert sorted(backends.calls) == [1, 2]

    run_directory(directory, scenario)


def test_number_of_projects_is_bounded_without_api_key() -> None:
    async def scenario() -> None:
        directory = ProjectDirectory(None, lambda *event: None)
        admitted = [number for number in range(5 * MAX_UNCONFIRMED) if directory.admit(number, 1)]
        assert admitted == list(range(MAX_UNCONFIRMED))
        assert directory.admit(3, 1)

    asyncio.run(scenario())


def test_every_page_of_projects_is_read(studio: ProjectList) -> None:
    studio.count, studio.page_size = 25, 10
    with label_studio.connect(studio.url, "key") as client:
        assert client.list_project_ids() == list(range(1, 26))


def test_backends_of_a_missing_project_are_none(studio: ProjectList) -> None:
    studio.backends = {2: ["http://a", "http://b"]}
    with label_studio.connect(studio.url, "key") as client:
        assert [client.list_backend_urls(project) for project in (1, 2, 99)] == [[], ["http://a", "http://b"], []]


def test_flood_of_events_leaves_nothing_on_disk(serve: ServerFactory, studio: ProjectList, tmp_path: Path) -> None:
    server = serve(
        *("--model", "text-classifier", "--versions", tmp_path / "versions", "--train-every", "1000"),
        *("--label-studio-url", studio.url),
        env={"LABEL_STUDIO_API_KEY": "key"},
    )
    studio.backends = {2: [server.root]}  # none in project 3
    wait_until("the projects were listed", lambda: studio.request_count)
    for number in range(100, 400):
        event = {"action": "ANNOTATION_CREATED", "project": {"id": number}, "annotation": {}}
        assert server.request_ok("POST", "/webhook", event) == {"status": "ok"}
    for number in (3, 2):
        event = {"action": "ANNOTATION_CREATED", "project": {"id": number}, "annotation": {}}
        server.request_ok("POST", "/webhook", event)
    counts = tmp_path / "versions" / ".jobs" / "annotations"
    wait_until("the count of project 2 was stored", counts.exists)
    assert counts.read_text() == '{"2":1}'
    assert any("Project 3 does not have this server as its model any more" in line for line in server.lines())


def test_requests_for_training_are_bounded(serve: ServerFactory, studio: ProjectList, tmp_path: Path) -> None:
    options = ("--versions", tmp_path / "versions", "--label-studio-url", studio.url)
    server = serve("--model", "text-classifier", *options)
    statuses = [
        server.request("POST", "/train", {"project": str(number)})[0]
        for number in range(1, train_scheduler.MAX_UNFINISHED_JOBS + 60)
    ]
    assert set(statuses) <= {201, 429}
    assert statuses.count(201) < train_scheduler.MAX_UNFINISHED_JOBS + 50
