"""`LabelStudioClient` against a server that does not behave like a Label Studio."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import partial

import pytest

from lsml_cli.errors import LsmlError
from lsml_cli.label_studio import client
from tests.helpers.stub_http import KEY, StubHandler, run_server

MANY_BYTES = 100 << 20


class HostileServer:
    """Sends the next of `responses` to each request: status, headers and body."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.responses: list[tuple[int, dict[str, str], bytes]] = []


class HostileHandler(StubHandler[HostileServer]):
    def handle_request(self) -> None:
        self.read_body()
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
    monkeypatch.setattr(client, "MAX_RESPONSE_BYTES", MANY_BYTES // 2)
    bomb = gzip.compress(bytes(MANY_BYTES), 1)
    server.responses = [(status, {"Content-Encoding": "gzip"}, bomb)]
    with client.connect(server.url, KEY) as studio:
        send = studio.get if method == "GET" else partial(studio.mutate, method)
        with pytest.raises(LsmlError, match="more than 52,428,800 bytes"):
            send("/api/tasks", "the tasks of project 1")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "soon", "-3"])
def test_unusable_retry_after_is_replaced_by_a_wait(
    server: HostileServer, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("lsml_cli.label_studio.client.time.sleep", waits.append)
    server.responses = [(429, {"Retry-After": seconds}, b"")] * 3 + [(200, {}, b"{}")]
    with client.connect(server.url, KEY) as studio:
        assert studio.get("/api/projects/1/", "project 1") == {}
    assert waits == ([0.1, 0.1, 0.1] if seconds == "-3" else [1.0, 1.0, 2.0])
