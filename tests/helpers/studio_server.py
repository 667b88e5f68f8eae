"""A server that answers the three questions lsml asks a Label Studio, from memory. The slow suite has a real one."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.helpers.cli import EXAMPLE

KEY = "0123456789abcdef0123456789abcdef01234567"


def make_jwt(kind: str) -> str:
    """A token in the shape of Label Studio's, whose signature nobody checks."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"token_type": kind, "exp": int(time.time()) + 10_000}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, base64.urlsafe_b64encode(b"unsigned" * 4).rstrip(b"=").decode()])


class StubExportServer:
    """What it answers is in its attributes, which tests change.

    tasks   by project; what is exported
    torn    how many bytes of an export are sent before the connection breaks, None for all
    status  what it answers to every question instead, None for a proper answer
    asked   the paths it was asked for, with their queries
    files   by path; those below /data/ only with the key, as all that is asked of its API
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.config = (EXAMPLE / "label_config.xml").read_text()
        self.tasks: dict[int, list[dict[str, Any]]] = {3: json.loads((EXAMPLE / "annotated.json").read_bytes())[:80]}
        self.personal_token = make_jwt("refresh")
        self.truncate_after: int | None = None
        self.status: int | None = None
        self.requests: list[str] = []
        self.files: dict[str, bytes] = {}

    def respond(self, path: str, authorization: str) -> tuple[int, Any]:
        self.requests.append(path)
        where = urlsplit(path)
        if self.status is not None:
            return self.status, {"detail": "as the test wants it"}
        if where.path == "/api/token/refresh/":
            return 200, {"access": make_jwt("access")}
        if where.path in self.files and not where.path.startswith("/data/"):
            return 200, self.files[where.path]
        if authorization != f"Token {KEY}" and not authorization.startswith("Bearer "):
            return 401, {"detail": "Invalid token."}
        if where.path in self.files:
            return 200, self.files[where.path]
        _, _, _, number, *rest = where.path.split("/")
        project = int(number)
        if project not in self.tasks:
            return 404, {"detail": "Not found."}
        if rest == [""]:
            return 200, {"id": project, "title": "Tickets", "label_config": self.config}
        assert rest == ["export"]
        assert parse_qs(where.query) == {"export_type": ["JSON"]}  # only what is annotated, in the whole format
        return 200, self.tasks[project]


@contextmanager
def run_export_server() -> Iterator[StubExportServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = state.respond(self.path, self.headers.get("Authorization", ""))
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if "/export" in self.path and status == 200 and state.truncate_after is not None:
                content = content[: state.truncate_after]
                self.close_connection = True
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = StubExportServer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def find_files_containing(folder: Path, text: str) -> list[Path]:
    """The files below a folder that contain a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
