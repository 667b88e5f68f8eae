"""Run `lsml serve` and `lsml worker` as processes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

START_TIMEOUT = 60  # seconds until the model is loaded and the port is open
LOG_TAIL = 6000  # characters of a log that a failure shows

T = TypeVar("T")

# Ignores the proxies of the environment: the servers are on this machine.
DIRECT_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def send_request(
    method: str, url: str, body: object = None, headers: Mapping[str, str] | None = None, timeout: float = 300
) -> tuple[int, Any]:
    """Return (status, parsed JSON or text); no status raises an exception."""
    request = urllib.request.Request(
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **(headers or {})},
    )
    try:
        with DIRECT_OPENER.open(request, timeout=timeout) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except json.JSONDecodeError:
        return status, text


class Program:
    """A running command and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def lines(self) -> list[str]:
        return self.log.read_text("utf-8", errors="replace").splitlines()

    def kill(self) -> None:
        """Kill the command and all its descendants, also those in other process groups."""
        leader = psutil.Process(self.process.pid)
        for descendant in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
        self.process.wait(10)


class Server(Program):
    """A running `lsml serve`.

    Attributes:
        root: its URL without a path.
        url: the URL for Label Studio: the root, and the secret path if there is one.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, root: str, secret_path: str) -> None:
        super().__init__(process, log)
        self.root = root
        self.url = f"{root}/{secret_path}" if secret_path else root

    def request(
        self, method: str, path: str, body: object = None, *, basic_auth: str = "", timeout: float = 100
    ) -> tuple[int, Any]:
        headers = {"Authorization": "Basic " + base64.b64encode(basic_auth.encode()).decode()} if basic_auth else {}
        return send_request(method, self.url + path, body, headers, timeout)

    def request_ok(self, method: str, path: str, body: object = None, *, basic_auth: str = "") -> Any:
        """Make a request that must succeed, and return its answer."""
        status, answer = self.request(method, path, body, basic_auth=basic_auth)
        assert status < 300, f"{method} {path} -> {status} {str(answer)[:2000]}"
        return answer

    def is_training(self, project: int) -> bool:
        answer = self.request_ok("GET", f"/is_training?project={project}")
        return bool(answer["is_training"])


class ServerFactory:
    """Start servers and workers for one test; `close` stops them all.

    Args:
        folder: receives logs.
        command: how `lsml` is started; as a module of this Python if not given.
    """

    def __init__(self, folder: Path, command: Sequence[str] = (sys.executable, "-m", "lsml_cli")) -> None:
        self.folder = folder
        self.command = command
        self.programs: list[Program] = []
        self._open = contextlib.ExitStack()

    def __call__(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Server:
        """Start `lsml serve ARGUMENTS` on a free port and wait until it answers."""
        options = [str(argument) for argument in arguments]
        command = [*self.command, "serve", "--port", "0", *options]
        program = self._start(command, env)
        secret_path = options[options.index("--secret-path") + 1] if "--secret-path" in options else ""
        root = wait_until("the server's port is open", lambda: _find_root(program), START_TIMEOUT)
        server = Server(program.process, program.log, root, secret_path)
        self.programs[self.programs.index(program)] = server
        return server

    def worker(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Program:
        """Start `lsml worker ARGUMENTS` in a process group of its own."""
        return self._start([*self.command, "worker", *map(str, arguments)], env)

    def redis(self) -> str:
        """Start a redis-server that keeps nothing on disk; return its URL."""
        port = free_port()
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("needs redis-server: scripts/system-deps installs it")
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self._start([binary, "--port", str(port), *options], None)
        wait_until("redis answers", lambda: _is_responding(port), 15)
        return f"redis://127.0.0.1:{port}/0"

    def _start(self, command: list[str], env: Mapping[str, str] | None) -> Program:
        log = self.folder / f"{len(self.programs)}-{Path(command[0]).name if len(command) < 4 else command[3]}.log"
        program = self._open.enter_context(run_program(command, log, env))
        self.programs.append(program)
        return program

    def close(self) -> None:
        self._open.close()


def _find_root(program: Program) -> str | None:
    """Return the URL that a server logs when it is ready; fail the test if it has ended."""
    if program.process.poll() is not None:
        pytest.fail(f"lsml serve ended with {program.process.returncode}\n{read_tail(program.log)}", pytrace=False)
    match = re.search(r"Serving on (https?://127\.0\.0\.1:\d+)", program.log.read_text("utf-8", errors="replace"))
    return match.group(1) if match else None


def _is_responding(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False


@contextlib.contextmanager
def run_program(command: list[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[Program]:
    """Run a command in a process group of its own that logs to a file; stop it when the block ends."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("LSML_", "LABEL_STUDIO_"))}
    variables |= {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=variables | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with sigterm_as_interrupt():
        try:
            yield Program(process, log)
        finally:
            stop_process(process)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM, for example of a time limit, into KeyboardInterrupt, so that `finally` blocks run."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def stop_process(process: subprocess.Popen[bytes], *, whole_group: bool = False) -> None:
    """Terminate the leader of a process group, kill the rest of the group, and wait.

    Args:
        whole_group: also send SIGTERM to the other processes, if the leader does not end them.
    """
    with contextlib.suppress(ProcessLookupError):
        if whole_group:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what its leader left behind
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def read_jobs(versions: Path) -> list[dict[str, Any]]:
    """Return the stored training jobs below `--versions`, oldest first."""
    return [json.loads(path.read_bytes()) for path in sorted((versions / ".jobs").glob("*.json"))]


def wait_until(description: str, check: Callable[[], T | None], timeout: float = 60) -> T:
    """Call `check` until its result is true, and return the result; fail the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:.0f} seconds: {description}")
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_tail(log: Path) -> str:
    return log.read_text("utf-8", errors="replace")[-LOG_TAIL:]
