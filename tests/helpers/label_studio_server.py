"""Fixtures with a real, headless Label Studio for slow tests, and with `lsml serve` to connect to it.

LSML_LABEL_STUDIO is the path of the `label-studio` program; `make test-slow` installs one and sets it. Its start, in
which it migrates an empty database, takes a minute: all tests share one server, each with projects of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.serve_process import (
    ServerFactory,
    free_port,
    read_tail,
    send_request,
    sigterm_as_interrupt,
    stop_process,
)

START_TIMEOUT = 300  # seconds; migrations
EMAIL = "test@example.com"
ACCESS_TOKEN_LIFETIME = 200  # seconds that an access token is used for; Label Studio takes it for 300


class LabelStudio:
    """A running server, with methods for the API calls that tests need."""

    def __init__(self, url: str, token: str, password: str, log: Path) -> None:
        self.url = url
        self.token = token
        self.email, self.password = EMAIL, password
        self.log = log
        self._personal_token = ""
        self._access_cache = ("", 0.0)
        self._is_legacy_allowed = True

    def request(self, method: str, path: str, body: object = None, timeout: float = 300) -> tuple[int, Any]:
        """Return (status, parsed JSON or text); no status raises an exception."""
        return send_request(method, self.url + path, body, {"Authorization": self.authorization()}, timeout)

    def authorization(self) -> str:
        return f"Token {self.token}" if self._is_legacy_allowed else f"Bearer {self._access_token()}"

    @property
    def personal_token(self) -> str:
        """The personal access token, which Label Studio shows only once."""
        if not self._personal_token:
            self._personal_token = self.request_ok("POST", "/api/token/")["token"]
        return self._personal_token

    @contextlib.contextmanager
    def legacy_tokens_disabled(self) -> Iterator[None]:
        """Reject legacy tokens, which `/setup` passes on, for the duration; Label Studio's default."""
        assert self.personal_token
        self.request_ok("POST", "/api/jwt/settings", {"legacy_api_tokens_enabled": False})
        self._is_legacy_allowed = False
        try:
            yield
        finally:
            self.request_ok("POST", "/api/jwt/settings", {"legacy_api_tokens_enabled": True})
            self._is_legacy_allowed = True

    def _access_token(self) -> str:
        token, created_at = self._access_cache
        if not token or time.monotonic() - created_at > ACCESS_TOKEN_LIFETIME:
            status, answer = send_request("POST", f"{self.url}/api/token/refresh/", {"refresh": self.personal_token})
            assert status == 200, answer
            token, created_at = answer["access"], time.monotonic()
            self._access_cache = token, created_at
        return token

    def request_ok(self, method: str, path: str, body: object = None) -> Any:
        """Make a request that must succeed, and return its answer."""
        status, answer = self.request(method, path, body)
        assert status < 300, f"{method} {path} -> {status} {str(answer)[:2000]}"
        return answer

    def create_project(self, title: str, config: str) -> int:
        """Create a project and return its id."""
        created = self.request_ok("POST", "/api/projects", {"title": title, "label_config": config})
        return int(created["id"])

    def import_tasks(self, project: int, tasks: object) -> dict[str, Any]:
        """Import tasks; return `task_count`, `prediction_count`, `annotation_count` and `task_ids`."""
        answer = self.request_ok("POST", f"/api/projects/{project}/import?return_task_ids=true", tasks)
        assert isinstance(answer, dict)
        return answer

    def export(self, project: int) -> list[dict[str, Any]]:
        """Return the JSON export of all tasks; `predictions` are ids."""
        answer = self.request_ok("GET", f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")
        assert isinstance(answer, list)
        return answer

    def predictions(self, project: int) -> list[dict[str, Any]]:
        """Return all stored predictions in full."""
        answer = self.request_ok("GET", f"/api/predictions?project={project}")
        assert isinstance(answer, list)
        return answer

    def connect_backend(self, project: int, url: str, **fields: object) -> int:
        """Connect the server at `url` as the project's model; return the backend's id."""
        fields = {"url": url, "project": project, "title": "lsml", **fields}
        backend = self.request_ok("POST", "/api/ml", fields)
        assert backend["readable_state"] == "Connected", backend
        return int(backend["id"])

    def model_version(self, backend: int) -> str:
        """Return the backend's current version, which Label Studio requests from it."""
        answer = self.request_ok("GET", f"/api/ml/{backend}")
        assert answer["readable_state"] == "Connected", answer
        return str(answer["model_version"])

    def retrieve_predictions(self, project: int, tasks: list[int] | None = None) -> None:
        """Run the Data Manager's action Retrieve Predictions for these tasks, or for all."""
        selection = {"all": True, "excluded": []} if tasks is None else {"all": False, "included": tasks}
        path = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}"
        self.request_ok("POST", path, {"selectedItems": selection})

    def annotate(self, task: int, result: list[dict[str, Any]]) -> int:
        """Submit an annotation as the editor does; return its id."""
        return int(
            self.request_ok("POST", f"/api/tasks/{task}/annotations/", {"result": result, "lead_time": 2.5})["id"]
        )

    def counts(self, project: int) -> dict[str, int]:
        """Return the server's counts of tasks, annotations, skipped annotations and predictions."""
        answer = self.request_ok("GET", f"/api/projects/{project}")
        return {
            "tasks": answer["task_number"],
            "annotations": answer["total_annotations_number"],
            "skipped": answer["skipped_annotations_number"],
            "predictions": answer["total_predictions_number"],
        }


@pytest.fixture(scope="session")
def label_studio_program() -> Path:
    path = os.environ.get("LSML_LABEL_STUDIO")
    if not path:
        pytest.skip("needs Label Studio: `make test-slow` installs it, or set LSML_LABEL_STUDIO to the program")
    program = Path(path)
    assert program.is_file(), f"LSML_LABEL_STUDIO is {program}, which does not exist"
    return program


@pytest.fixture(scope="session")
def label_studio(label_studio_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    """A server that all tests share: create projects, and leave its settings as they were."""
    with run_label_studio(label_studio_program, tmp_path_factory.mktemp("label-studio")) as server:
        yield server


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ServerFactory]:
    """`serve("--model", model, …)` starts `lsml serve`, which ends with the test."""
    folder = tmp_path / "serve"
    folder.mkdir()
    factory = ServerFactory(folder)
    try:
        yield factory
    finally:
        factory.close()


@contextlib.contextmanager
def run_label_studio(program: Path, folder: Path) -> Iterator[LabelStudio]:
    """Start a server on an empty folder, which receives its data and its log; stop it when the block ends."""
    port = free_port()
    data = folder / "data"
    data.mkdir()
    server = LabelStudio(
        f"http://127.0.0.1:{port}", secrets.token_hex(20), password=secrets.token_hex(8), log=folder / "server.log"
    )
    command = [
        *(str(program), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)),
        *("--log-level", "WARNING"),
    ]
    with server.log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=label_studio_env(server, data),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group, which `stop_process` kills as a whole
        )
    with sigterm_as_interrupt():
        try:
            wait_until_up(server, process)
            yield server
        finally:
            stop_process(process, whole_group=True)


def label_studio_env(server: LabelStudio, data: Path) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LABEL_STUDIO_", "HEARTEX_", "DJANGO_", "LSML_", "PYTHON"))
    }
    return inherited | {
        "HOME": str(data.parent),
        "PYTHONUNBUFFERED": "1",
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_USERNAME": server.email,
        "LABEL_STUDIO_PASSWORD": server.password,
        "LABEL_STUDIO_USER_TOKEN": server.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(data / "local"),
        # Without this, Label Studio rejects backends on this machine.
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        # No requests to other machines.
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }


def wait_until_up(server: LabelStudio, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"Label Studio ended with {process.returncode}\n{read_tail(server.log)}", pytrace=False)
        with contextlib.suppress(OSError):
            if server.request("GET", "/health", timeout=5)[0] == 200:
                # If the port was taken, Label Studio uses the next one; the server on this one does not know the token.
                server.request_ok("GET", "/api/current-user/whoami")
                return
        time.sleep(0.5)
    pytest.fail(f"Label Studio was not up after {START_TIMEOUT} seconds\n{read_tail(server.log)}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Add the end of each server's log to the report of a failed test."""
    report = yield
    if report.failed:
        fixtures = getattr(item, "funcargs", {})
        logs = [fixtures["label_studio"].log] if "label_studio" in fixtures else []
        logs += [program.log for program in fixtures["serve"].programs] if "serve" in fixtures else []
        for log in logs:
            report.sections.append((f"end of {log}", read_tail(log)))
    return report
