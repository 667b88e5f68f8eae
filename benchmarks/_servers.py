"""Start the servers that `serve.py` compares, each as its users do, and send requests to them."""

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

    def request(self, method: str, path: str, body: bytes | None = None, timeout: float = 100) -> tuple[int, Any]:
        """Send a request over a new connection; return the status and the parsed body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            body = response.read()
            content_type = response.headers.get("Content-Type", "")
            return response.status, json.loads(body) if "json" in content_type else body.decode()
        finally:
            connection.close()

    def megabytes(self) -> float:
        """Return the resident memory of all its processes."""
        return (
            sum(process.memory_info().rss for process in (self.process, *self.process.children(recursive=True))) / 1e6
        )


@contextmanager
def start_server(
    command: Callable[[int], Sequence[str | Path]], folder: Path, setup: bytes, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start a server and wait for /health and /setup; end it with the block."""
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
        status, answer = server.request("POST", "/setup", setup)
        assert status == 200, answer
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.process_iter():
            if child.is_running() and child.pid != process.pid and _group(child.pid) == process.pid:
                child.kill()


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended:\n{server.log.read_text()[-4000:]}")
        try:
            if server.request("GET", "/health", timeout=2)[0] == 200:
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
    """Install label-studio-ml into an environment of its own, and return the command that its `init` prepares."""
    python = BASELINE_VENV / "bin" / "python"
    if not (BASELINE_VENV / ".ready").exists():
        print(f"installing label-studio-ml {BASELINE} into {BASELINE_VENV.relative_to(ROOT)}", flush=True)
        shutil.rmtree(BASELINE_VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", BASELINE_VENV], check=True)
        requirements = [
            f"label-studio-ml=={BASELINE}",
            "redis",
            "rq",
            "gunicorn",
            f"scikit-learn=={version('scikit-learn')}",
        ]
        old_flask = ["markupsafe<2.1", "jinja2<3.1", "itsdangerous<2.1", "werkzeug<2.1"]
        install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *requirements, *old_flask]
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
    """Serve what a server and its trainings read of Label Studio's API: projects, a project, export; yield the URL."""
    project = {"id": 7, "title": "benchmark", "label_config": config, "created_at": "2026-11-20T16:34:09.193978Z"}
    export = annotated.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/export" in self.path:
                body = export
            elif self.path.startswith("/api/projects/?"):
                body = json.dumps({"count": 1, "next": None, "previous": None, "results": [{"id": 7}]}).encode()
            elif self.path.startswith("/api/ml/"):
                body = json.dumps([{"id": 1, "url": "http://behind-a-proxy/lsml"}]).encode()
            else:
                body = json.dumps(project).encode()
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
