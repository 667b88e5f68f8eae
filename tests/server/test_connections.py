"""Clients of `lsml serve` that open connections and send nothing, or too little."""

from __future__ import annotations

import base64
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path

import pytest

from lsml_cli.server import connections
from tests.helpers.cli import ROOT
from tests.helpers.models import TEXT_CONFIG
from tests.helpers.serve_process import Server, ServerFactory, wait_until

MODELS = ROOT / "tests" / "helpers" / "models.py"
PASSWORD = "ann:s3cret"
PARTIAL_HEADERS = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "
PARTIAL_BODY = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ServerFactory]:
    factory = ServerFactory(tmp_path)
    yield factory
    factory.close()


def open_connections(stack: ExitStack, server: Server, count: int, first_bytes: bytes = b"") -> list[socket.socket]:
    host, port = server.root.removeprefix("http://").split(":")
    sockets = []
    for _ in range(count):
        sockets.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=30)))
        with suppress(OSError):
            sockets[-1].sendall(first_bytes)
    return sockets


def is_closed(connection: socket.socket) -> bool:
    """Tell whether the server has closed a connection that got no answer yet."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def predict(server: Server, basic_auth: str = "") -> bool:
    body = {"tasks": [{"id": 1, "data": {"text": "a"}}], "project": "1.17", "label_config": TEXT_CONFIG}
    status, answer = server.request("POST", "/predict", body, basic_auth=basic_auth, timeout=10)
    return status == 200 and len(answer["results"]) == 1 and bool(answer["results"][0])


@pytest.mark.parametrize("first_bytes", [b"", PARTIAL_HEADERS], ids=["silent", "slow headers"])
def test_idle_connections_lock_nobody_out(serve: ServerFactory, first_bytes: bytes) -> None:
    server = serve("--model", f"{MODELS}:Words")
    with ExitStack() as stack:
        idlers = open_connections(stack, server, 1300, first_bytes)
        assert server.request_ok("GET", "/health")["status"] == "UP"
        assert predict(server)
        wait_until(
            "one address has few idle connections",
            lambda: sum(not is_closed(idler) for idler in idlers) <= connections.MAX_IDLE_PER_ADDRESS,
            15,
        )


def test_slow_bodies_lock_nobody_out_who_has_the_password(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", env={"LSML_BASIC_AUTH": PASSWORD})
    with ExitStack() as stack:
        open_connections(stack, server, 1300, PARTIAL_BODY)
        assert server.request_ok("GET", "/health", basic_auth=PASSWORD)["status"] == "UP"
        assert predict(server, PASSWORD)


def test_anonymous_slow_bodies_leave_room_for_the_password(serve: ServerFactory) -> None:
    """Behind a secret path, events need no password: their bodies are requests in progress."""
    server = serve("--model", f"{MODELS}:Words", "--basic-auth", PASSWORD, "--secret-path", "quiet")
    with ExitStack() as stack:
        event = b"POST /quiet/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
        open_connections(stack, server, connections.MAX_REQUESTS + 50, event)
        assert server.request("POST", "/webhook", {"action": "ANNOTATION_CREATED"})[0] == 503
        assert server.request_ok("GET", "/health", basic_auth=PASSWORD)["status"] == "UP"
        assert predict(server, PASSWORD)


def test_health_answers_when_all_requests_are_in_progress(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words")
    with ExitStack() as stack:
        open_connections(stack, server, connections.MAX_REQUESTS + 50, PARTIAL_BODY)
        assert server.request("GET", "/versions")[0] == 503
        assert server.request_ok("GET", "/health")["status"] == "UP"


def test_connection_with_password_or_request_in_progress_is_not_closed(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", env={"LSML_BASIC_AUTH": PASSWORD})
    credentials = base64.b64encode(PASSWORD.encode())
    head = b"Host: x\r\nAuthorization: Basic " + credentials + b"\r\n"
    with ExitStack() as stack:
        (idle,) = open_connections(stack, server, 1, b"GET /health HTTP/1.1\r\n" + head + b"\r\n")
        assert status_of_answer(idle) == 200
        setup = b"POST /setup HTTP/1.1\r\n" + head + b"Content-Length: 2\r\n\r\n{"
        (busy,) = open_connections(stack, server, 1, setup)
        open_connections(stack, server, 300)
        idle.sendall(b"GET /health HTTP/1.1\r\n" + head + b"\r\n")
        assert status_of_answer(idle) == 200
        busy.sendall(b"}")
        assert status_of_answer(busy) == 200


def status_of_answer(connection: socket.socket) -> int:
    """Read one whole answer, which may arrive in pieces, and return its status."""
    answer = HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def test_limit_on_open_files_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, 256)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    assert connections.limit_by_open_files() == 256 - connections.RESERVED_FILES
    limits.append((256, 4096))
    assert connections.limit_by_open_files() == connections.MAX_CONNECTIONS
    assert limits[-1] == (connections.MAX_CONNECTIONS + connections.RESERVED_FILES, 4096)


def test_endless_headers_are_cut_off(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words")
    with ExitStack() as stack:
        (endless,) = open_connections(stack, server, 1, b"GET /health HTTP/1.1\r\n")
        headers = b"".join(b"X-Header-%d: %s\r\n" % (number, b"x" * 1000) for number in range(20_000))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            endless.sendall(headers)
    assert server.request_ok("GET", "/health")["status"] == "UP"
