"""A real, headless Label Studio for the tests of this folder.

LSML_LABEL_STUDIO names the `label-studio` program; `make test-slow` installs one and sets it. The first start of
a server migrates an empty database, which takes a minute: that is done once, and every module starts on a copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FIRST_START = 300  # seconds; migrations
LATER_START = 90  # seconds
LOG_TAIL = 6000  # characters of the server's log that a failure shows


class LabelStudio:
    """A running server. `request` is all that is needed; the rest are short names for what tests do often."""

    def __init__(self, url: str, token: str, log: Path) -> None:
        self.url = url
        self.token = token
        self.log = log

    def request(self, method: str, path: str, body: object = None, timeout: float = 300) -> tuple[int, Any]:
        """(status, parsed JSON or text); a status of 400 and above is an answer, not an exception."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
        )
        try:
            with DIRECT.open(request, timeout=timeout) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except json.JSONDecodeError:
            return status, text

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """`request` that must succeed."""
        status, answer = self.request(method, path, body)
        assert status < 300, f"{method} {path} -> {status} {str(answer)[:2000]}"
        return answer

    def project(self, title: str, config: str) -> int:
        """Create a project and return its id."""
        created = self.ask("POST", "/api/projects", {"title": title, "label_config": config})
        return int(created["id"])

    def import_tasks(self, project: int, tasks: object) -> dict[str, Any]:
        """`task_count`, `prediction_count`, `annotation_count`, `task_ids` of what was taken."""
        answer = self.ask("POST", f"/api/projects/{project}/import?return_task_ids=true", tasks)
        assert isinstance(answer, dict)
        return answer

    def export(self, project: int) -> list[dict[str, Any]]:
        """The JSON export of all tasks, as the Export button gives it: `predictions` are ids."""
        answer = self.ask("GET", f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")
        assert isinstance(answer, list)
        return answer

    def predictions(self, project: int) -> list[dict[str, Any]]:
        """Every stored prediction, in full."""
        answer = self.ask("GET", f"/api/predictions?project={project}")
        assert isinstance(answer, list)
        return answer

    def count(self, project: int) -> dict[str, int]:
        """The server's own counts: tasks, annotations (skipped ones apart), predictions."""
        answer = self.ask("GET", f"/api/projects/{project}")
        return {
            "tasks": answer["task_number"],
            "annotations": answer["total_annotations_number"],
            "skipped": answer["skipped_annotations_number"],
            "predictions": answer["total_predictions_number"],
        }


# A proxy set for the machine has no business with a server on it.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="session")
def label_studio_program() -> Path:
    named = os.environ.get("LSML_LABEL_STUDIO")
    if not named:
        pytest.skip("needs a Label Studio: `make test-slow` installs one, or LSML_LABEL_STUDIO names the program")
    program = Path(named)
    assert program.is_file(), f"LSML_LABEL_STUDIO names {program}, which is not there"
    return program


@pytest.fixture(scope="session")
def label_studio_template(label_studio_program: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A migrated, empty data folder and the token of its user. Copy it, do not start on it."""
    folder = tmp_path_factory.mktemp("label-studio-template")
    token = secrets.token_hex(20)
    with running(label_studio_program, folder, token, FIRST_START):
        pass
    return folder / "data", token


@pytest.fixture(scope="module")
def label_studio(
    label_studio_program: Path, label_studio_template: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabelStudio]:
    """A server with no project yet, shared by the tests of one module."""
    template, token = label_studio_template
    folder = tmp_path_factory.mktemp("label-studio")
    shutil.copytree(template, folder / "data")  # .env too: it holds the key that signs tokens
    with running(label_studio_program, folder, token, LATER_START) as server:
        yield server


@contextlib.contextmanager
def running(program: Path, folder: Path, token: str, patience: float) -> Iterator[LabelStudio]:
    """A server on `folder`/data, logging to `folder`/server.log; gone when the block ends, however it ends."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    port = free_port()
    log = folder / "server.log"
    command = [
        *(program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)),
        *("--log-level", "WARNING"),
    ]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(folder, data, token),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: nothing it starts outlives it
        )
    server = LabelStudio(f"http://127.0.0.1:{port}", token, log)
    # A suite that is stopped from outside (by a time limit) ends as if by ctrl-C, so that `finally` still runs.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        wait_until_up(server, process, patience)
        yield server
    finally:
        stop(process)
        signal.signal(signal.SIGTERM, before)


def environment(folder: Path, data: Path, token: str) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LABEL_STUDIO_", "HEARTEX_", "DJANGO_", "LSML_", "PYTHON"))
    }
    return inherited | {
        "HOME": str(folder),
        "PYTHONUNBUFFERED": "1",
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_USERNAME": "test@example.com",
        "LABEL_STUDIO_PASSWORD": secrets.token_hex(8),
        "LABEL_STUDIO_USER_TOKEN": token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        # Nothing leaves this machine.
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(server: LabelStudio, process: subprocess.Popen[bytes], patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"Label Studio ended with {process.returncode}\n{tail(server.log)}", pytrace=False)
        with contextlib.suppress(OSError):
            if server.request("GET", "/health", timeout=5)[0] == 200:
                # Where the port was taken in between, Label Studio has silently moved to the next one, and
                # whoever answers here does not know the token.
                server.ask("GET", "/api/current-user/whoami")
                return
        time.sleep(0.5)
    pytest.fail(f"Label Studio was not up after {patience:.0f} seconds\n{tail(server.log)}", pytrace=False)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group, politely first, and wait for it."""
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whatever its leader left behind


def tail(log: Path) -> str:
    return log.read_text("utf-8", errors="replace")[-LOG_TAIL:]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A failed test shows the end of the server's log."""
    report = yield
    server = getattr(item, "funcargs", {}).get("label_studio")
    if report.failed and server is not None:
        report.sections.append((f"end of {server.log}", tail(server.log)))
    return report
