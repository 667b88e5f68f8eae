"""`LabelStudioClient` against a server that does not behave like a Label Studio, and the traps of its SDK."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lsml_cli.errors import LsmlError
from lsml_cli.label_studio import client, http_client
from lsml_cli.label_studio.client import LabelStudioClient
from lsml_cli.label_studio.request_errors import OutcomeUnknown
from tests.helpers.stub_http import KEY, StubHandler, make_jwt, run_server

MANY_BYTES = 100 << 20


class HostileServer:
    """Sends the next of `responses` to each request: status, headers and body; keeps (method, path, authorization)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.responses: list[tuple[int, dict[str, str], bytes]] = []
        self.requests: list[tuple[str, str, str | None]] = []


class HostileHandler(StubHandler[HostileServer]):
    def handle_request(self) -> None:
        self.read_body()
        self.state.requests.append((self.command, self.path, self.authorization))
        status, headers, body = self.state.responses.pop(0)
        self.send_body(status, body, headers)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with run_server(HostileHandler, HostileServer) as running:
        yield running


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status", [200, 400])
def test_response_size_is_bounded(
    server: HostileServer, monkeypatch: pytest.MonkeyPatch, method: str, status: int
) -> None:
    monkeypatch.setattr(http_client, "MAX_RESPONSE_BYTES", MANY_BYTES // 2)
    bomb = gzip.compress(bytes(MANY_BYTES), 1)
    server.responses = [(status, {"Content-Encoding": "gzip"}, bomb)]
    with client.connect(server.url, KEY) as studio, pytest.raises(LsmlError, match="more than 52,428,800 bytes"):
        studio.get_project(1) if method == "GET" else studio.import_tasks(1, b"[]", 0, 10)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "soon", "-3"])
def test_unusable_retry_after_is_replaced_by_a_wait(
    server: HostileServer, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("lsml_cli.label_studio.http_client.time.sleep", waits.append)
    server.responses = [(429, {"Retry-After": seconds}, b"")] * 3 + [(200, {}, b'{"id": 1}')]
    with client.connect(server.url, KEY) as studio:
        assert studio.get_project(1) == {"id": 1}
    assert waits == ([0.1, 0.1, 0.1] if seconds == "-3" else [1.0, 1.0, 2.0])


def test_personal_token_is_exchanged_below_the_path_of_label_studio(server: HostileServer) -> None:
    """The SDK asks for its tokens at the root of the host."""
    access = make_jwt("access")
    server.responses = [(200, {}, json.dumps({"access": access}).encode()), (200, {}, b'{"id": 1}')]
    with client.connect(f"{server.url}/ls/", make_jwt("refresh")) as studio:
        assert studio.get_project(1) == {"id": 1}
    assert server.requests == [
        ("POST", "/ls/api/token/refresh/", None),
        ("GET", "/ls/api/projects/1/", f"Bearer {access}"),
    ]


@pytest.mark.parametrize("expires_at", [None, 1_000_000_000])  # the SDK would raise an error for an expired one
def test_access_token_is_sent_as_it_is(server: HostileServer, expires_at: int | None) -> None:
    access = make_jwt("access", expires_at=expires_at)
    server.responses = [(200, {}, b'{"id": 1}'), (401, {}, b"{}")]
    with client.connect(server.url, access) as studio:
        studio.get_project(1)
        with pytest.raises(LsmlError, match="does not accept the API key"):
            studio.get_project(1)
    assert server.requests == [("GET", "/api/projects/1/", f"Bearer {access}")] * 2


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504])
@pytest.mark.parametrize(
    "change",
    [
        lambda studio: studio.import_predictions(1, b"[]", 0, 10),
        lambda studio: studio.import_tasks(1, b"[]", 0, 10),
        lambda studio: studio.delete_version(1, "v1", 10),
    ],
)
def test_what_is_not_idempotent_is_sent_once(
    server: HostileServer, status: int, change: Callable[[LabelStudioClient], object]
) -> None:
    """The SDK would send it three times."""
    server.responses = [(status, {}, b"{}")]
    with client.connect(server.url, KEY) as studio, pytest.raises(LsmlError) as raised:
        change(studio)
    assert isinstance(raised.value, OutcomeUnknown) == (status >= 500)
    assert len(server.requests) == 1


def test_missing_page_is_no_end_of_the_list(server: HostileServer) -> None:
    """The SDK takes any 404 for the end."""
    page = json.dumps({"results": [{"id": 1}], "next": "http://x/?page=2"}).encode()
    server.responses = [(200, {}, page), (404, {}, b'{"detail": "Not found."}')]
    with client.connect(server.url, KEY) as studio, pytest.raises(LsmlError, match="knows nothing of its projects"):
        studio.list_project_ids()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"{}", b'{"tasks": 1, "total": "x"}'])
def test_success_of_another_server_is_recognised(server: HostileServer, body: bytes) -> None:
    calls: list[Callable[[LabelStudioClient], object]] = [
        lambda studio: studio.get_project(1),
        lambda studio: studio.list_tasks(1, {}),
        lambda studio: studio.list_project_ids(),
    ]
    server.responses = [(200, {}, body)] * len(calls)
    with client.connect(server.url, KEY) as studio:
        for call in calls:
            with pytest.raises(LsmlError, match="it may not be a Label Studio"):
                call(studio)


def test_export_of_a_project_goes_to_disk_as_it_comes(server: HostileServer, tmp_path: Path) -> None:
    export = b"[" + bytes(MANY_BYTES).replace(b"\0", b" ") + b"]"
    server.responses = [(200, {}, export)]
    with client.connect(server.url, KEY) as studio:
        tracemalloc.start()
        try:
            studio.download_annotated(1, tmp_path / "export.json")
            assert tracemalloc.get_traced_memory()[1] < MANY_BYTES / 4
        finally:
            tracemalloc.stop()
    assert (tmp_path / "export.json").read_bytes() == export


def test_export_has_no_other_bound_than_the_disk(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MAX_RESPONSE_BYTES", 1000)
    server.responses = [(200, {}, b"[" + b" " * 2000 + b"]")] * 2
    with client.connect(server.url, KEY) as studio:
        studio.download_annotated(1, tmp_path / "export.json")
        with pytest.raises(LsmlError, match="more than 1,000 bytes"):
            studio.export_tasks(1, [5])
    assert server.requests[1][1] == "/api/projects/1/export?download_all_tasks=true&export_type=JSON&ids%5B%5D=5"
