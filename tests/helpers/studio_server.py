"""A fake Label Studio that answers the requests of a training job, from memory. The slow suite has a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.helpers.cli import EXAMPLE
from tests.helpers.stub_http import KEY, StubHandler, make_jwt, run_server


class StubExportServer:
    """A Label Studio with one export per project. Tests change its attributes.

    Attributes:
        tasks: What is exported, by project.
        truncate_after: Bytes of an export that are sent before the connection breaks; None sends everything.
        status: Status of every response; None answers properly.
        requests: Paths of the requests, with their queries.
        files: Bodies by path; those below /data/ need the key, like the API.
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
        url = urlsplit(path)
        if self.status is not None:
            return self.status, {"detail": "as the test wants it"}
        if url.path == "/api/token/refresh/":
            return 200, {"access": make_jwt("access")}
        if url.path in self.files and not url.path.startswith("/data/"):
            return 200, self.files[url.path]
        if authorization != f"Token {KEY}" and not authorization.startswith("Bearer "):
            return 401, {"detail": "Invalid token."}
        if url.path in self.files:
            return 200, self.files[url.path]
        _, _, _, number, *rest = url.path.split("/")
        project = int(number)
        if project not in self.tasks:
            return 404, {"detail": "Not found."}
        if rest == [""]:
            return 200, {"id": project, "title": "Tickets", "label_config": self.config}
        assert rest == ["export"]
        assert parse_qs(url.query) == {"export_type": ["JSON"]}  # only what is annotated, in the whole format
        return 200, self.tasks[project]


class _ExportHandler(StubHandler[StubExportServer]):
    def handle_request(self) -> None:
        self.read_body()
        status, body = self.state.respond(self.path, self.authorization or "")
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        if "/export" in self.path and status == 200 and self.state.truncate_after is not None:
            content = content[: self.state.truncate_after]
            self.close_connection = True
        self.send_body(status, content, headers)


@contextmanager
def run_export_server() -> Iterator[StubExportServer]:
    """Run a `StubExportServer`."""
    with run_server(_ExportHandler, StubExportServer) as server:
        yield server


def find_files_containing(folder: Path, text: str) -> list[Path]:
    """Return the files below a folder that contain a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
