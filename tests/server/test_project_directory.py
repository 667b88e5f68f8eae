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
from lsml_cli.server.project_directory import MAX_UNCONFIRMED, ProjectDirectory, list_project_ids
from tests.helpers.serve_process import ServerFactory, wait_until
from tests.helpers.stub_http import StubHandler, run_server


class ProjectList:
    """A Label Studio with the projects 1 to `count`, in pages of `page_size`."""

    def __init__(self, url: str, count: int = 3, page_size: int = 100) -> None:
        self.url = url
        self.count = count
        self.page_size = page_size
        self.request_count = 0


class ListHandler(StubHandler[ProjectList]):
    def handle_request(self) -> None:
        self.read_body()
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
        assert len(directory._pending_counts) <= MAX_UNCONFIRMED
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
        assert list_project_ids(client) == list(range(1, 26))


def test_flood_of_events_leaves_nothing_on_disk(serve: ServerFactory, studio: ProjectList, tmp_path: Path) -> None:
    server = serve(
        *("--model", "text-classifier", "--versions", tmp_path / "versions", "--train-every", "1000"),
        *("--label-studio-url", studio.url),
        env={"LABEL_STUDIO_API_KEY": "key"},
    )
    wait_until("the projects were listed", lambda: studio.request_count)
    for number in range(100, 400):
        event = {"action": "ANNOTATION_CREATED", "project": {"id": number}, "annotation": {}}
        assert server.request_ok("POST", "/webhook", event) == {"status": "ok"}
    server.request_ok("POST", "/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 2}, "annotation": {}})
    counts = tmp_path / "versions" / ".jobs" / "annotations"
    wait_until("the count of project 2 was stored", counts.exists)
    assert counts.read_text() == '{"2":1}'


def test_requests_for_training_are_bounded(serve: ServerFactory, studio: ProjectList, tmp_path: Path) -> None:
    options = ("--versions", tmp_path / "versions", "--label-studio-url", studio.url)
    server = serve("--model", "text-classifier", *options)
    statuses = [
        server.request("POST", "/train", {"project": str(number)})[0]
        for number in range(1, train_scheduler.MAX_UNFINISHED_JOBS + 60)
    ]
    assert set(statuses) <= {201, 429}
    assert statuses.count(201) < train_scheduler.MAX_UNFINISHED_JOBS + 50
