"""The servers that `serve.py` compares, each started as its users start it, and what is asked of them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
HERE = ROOT / "benchmarks"
BASELINE = "1.0.9"
BASELINE_VENV = ROOT / ".venvs" / f"label-studio-ml-{BASELINE}"
PROJECT = "7.1795192449"  # id and time of creation, as Label Studio writes it


@dataclass(frozen=True)
class Server:
    port: int
    process: psutil.Process
    log: Path

    def ask(self, method: str, path: str, body: bytes | None = None, timeout: float = 100) -> tuple[int, Any]:
        """(status, parsed answer), over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            text = answer.read()
            kind = answer.headers.get("Content-Type", "")
            return answer.status, json.loads(text) if "json" in kind else text.decode()
        finally:
            connection.close()

    def megabytes(self) -> float:
        """Resident, summed over its processes."""
        return sum(each.memory_info().rss for each in (self.process, *self.process.children(recursive=True))) / 1e6


@contextmanager
def started(
    command: Callable[[int], Sequence[str | Path]], folder: Path, setup: bytes, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """A server that has answered /health and /setup; gone when the block ends."""
    port = free_port()
    log = folder / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            list(command(port)),
            cwd=folder,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    server = Server(port, psutil.Process(process.pid), log)
    try:
        _wait(server, process)
        status, answer = server.ask("POST", "/setup", setup)
        assert status == 200, answer
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        for left in psutil.process_iter():
            if left.is_running() and left.pid != process.pid and _group(left.pid) == process.pid:
                left.kill()


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended:\n{server.log.read_text()[-4000:]}")
        try:
            if server.ask("GET", "/health", timeout=2)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{process.args} did not answer:\n{server.log.read_text()[-4000:]}")


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def lsml(model: Path, *options: str) -> Callable[[int], Sequence[str | Path]]:
    return lambda port: [
        *(sys.executable, "-m", "lsml_cli", "serve", "--model", model, "--port", str(port)),
        *options,
    ]


def empty(port: int) -> Sequence[str | Path]:
    return [sys.executable, HERE / "_empty_app.py", str(port)]


def baseline(folder: Path) -> Callable[[int], Sequence[str | Path]]:
    """label-studio-ml in an environment of its own, with the files that its `init` writes, started as these say."""
    python = BASELINE_VENV / "bin" / "python"
    if not (BASELINE_VENV / ".ready").exists():
        print(f"installing label-studio-ml {BASELINE} into {BASELINE_VENV.relative_to(ROOT)}", flush=True)
        shutil.rmtree(BASELINE_VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", BASELINE_VENV], check=True)
        wanted = [f"label-studio-ml=={BASELINE}", "redis", "rq", "gunicorn", f"scikit-learn=={version('scikit-learn')}"]
        old_flask = ["markupsafe<2.1", "jinja2<3.1", "itsdangerous<2.1", "werkzeug<2.1"]
        install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *wanted, *old_flask]
        subprocess.run(install, check=True)
        (BASELINE_VENV / ".ready").touch()
    script = folder / "model.py"
    shutil.copyfile(HERE / "_label_studio_ml_model.py", script)
    init = [BASELINE_VENV / "bin" / "label-studio-ml", "init", "backend", "--script", f"{script}:PipelineModel"]
    subprocess.run([*init, "--root-dir", folder], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    options = ["--preload", "--workers", "1", "--threads", "8", "--timeout", "0"]
    gunicorn = [BASELINE_VENV / "bin" / "gunicorn", *options, "--chdir", folder / "backend"]
    return lambda port: [*gunicorn, "--bind", f"127.0.0.1:{port}", "_wsgi:app"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def label_studio(config: str, annotated: Path) -> Iterator[str]:
    """The two routes of Label Studio's API that a training reads: the project, and its export. Its URL."""
    project = {"id": 7, "title": "benchmark", "label_config": config, "created_at": "2026-11-20T16:34:09.193978Z"}
    export = annotated.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = export if "/export" in self.path else json.dumps(project).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
