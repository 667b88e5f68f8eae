"""`lsml serve` from its options to its end: bind the port, load the model, answer, finish what was begun."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from lsml_cli.errors import Interrupted, LsmlError, UsageError
from lsml_cli.inference import placement
from lsml_cli.media.fetcher import AllowedHosts, Media
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.registry import resolve
from lsml_cli.server.app import make_app
from lsml_cli.server.auth import AuthConfig
from lsml_cli.server.job_runners import EmbeddedRunner, RedisRunner
from lsml_cli.server.job_store import Job, JobStore, TrainingJobConfig
from lsml_cli.server.metrics import ServerMetrics
from lsml_cli.server.model_pool import ModelLoader, ModelPool, find_watched_folder
from lsml_cli.server.service import Limits, Service
from lsml_cli.server.train_scheduler import TrainScheduler
from lsml_cli.training import fit as training

BACKLOG = 2048  # connections that wait to be accepted
MAX_CONNECTIONS = 1000  # connections; further ones are told to come back
KEEP_ALIVE = 75  # seconds that an idle connection stays open
SHUTDOWN_GRACE = 5.0  # seconds beyond the deadline that running requests get when the server is stopped
LOOPBACK_PREFIXES = ("127.", "localhost", "::1")
WILDCARD_ADDRESSES = ("0.0.0.0", "::", "")

_SECRET_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")

log = logging.getLogger("lsml.serve")


@dataclass(frozen=True)
class ServeOptions:
    """What `lsml serve` was asked for, as the command line has it; times in seconds, sizes in bytes."""

    model: str
    params: Mapping[str, Json] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 9090
    device: str = "auto"
    batch_size: int | None = None
    workers: int = 4
    threshold: float | None = None
    label_map: Mapping[str, str] = field(default_factory=dict)
    max_wait: float = 0.002
    deadline: float = 90.0
    max_tasks: int = 50_000
    max_body_bytes: int = 256 << 20
    basic_auth: str | None = field(default=None, repr=False)
    secret_path: str | None = field(default=None, repr=False)
    label_studio_url: str | None = None
    versions: Path | None = None
    jobs: str = "embedded"
    train_every: int | None = None
    fail_under: tuple[str, ...] = ()
    media: Media = field(default_factory=lambda: Media(allowed_hosts=AllowedHosts(())))
    verbose: bool = False


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or ctrl-C, then finish the requests that are under way.

    Raises UsageError or another LsmlError when it cannot begin, Interrupted after ctrl-C.
    """
    access = _auth_config(options)
    spec = resolve.find_model(options.model, options.params)
    _check_training_options(options, spec)
    _log_to_stderr()
    sock = _bind_socket(options.host, options.port)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            stopped_by = runner.run(_Server(options, spec, access).run(sock))
    except KeyboardInterrupt:  # while the model was loading
        stopped_by = signal.SIGINT
    finally:
        sock.close()
    if stopped_by == signal.SIGINT:
        raise Interrupted("Stopped.")
    log.info("Stopped.")


class _Server:
    """Everything that one server consists of, put together."""

    def __init__(self, options: ServeOptions, spec: ModelSpec, auth: AuthConfig) -> None:
        self.options = options
        self.auth = auth
        self.metrics = ServerMetrics(
            queued_task_count=lambda: self.model_pool.queued_task_count,
            cached_result_count=lambda: len(self.service.result_cache),
            versions=lambda: self.model_pool.loaded_versions(),
            jobs=self._summarize_jobs,
        )
        self.model_pool = ModelPool(
            spec, self._model_loader(spec), params=options.params, watched_folder=find_watched_folder(options.model),
            versions_folder=options.versions,
        )  # fmt: skip
        self.service = Service(
            self.model_pool,
            self.metrics,
            Limits(options.deadline, options.max_tasks),
            options.label_map,
            options.threshold,
        )
        self.train_scheduler = self._build_train_scheduler()
        self._background_tasks: set[asyncio.Task[Any]] = set()

    async def run(self, sock: socket.socket) -> int | None:
        """Serve until a signal comes; the signal."""
        begun = time.monotonic()
        await self.model_pool.open()
        spec = self.model_pool.default_spec
        log.info("%s is loaded (%.1f s).", spec.model_version, time.monotonic() - begun)
        server = _UvicornServer(self._uvicorn_config(), lambda: self._log_addresses(sock), self._on_shutdown)
        self._start_task(self.model_pool.watch_versions())
        if self.train_scheduler is not None:
            self._start_task(self.train_scheduler.run())
        before = {number: signal.signal(number, _ignore_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            await server.serve([sock])
        finally:
            for task in list(self._background_tasks):
                task.cancel()
            if self.train_scheduler is not None:
                await self.train_scheduler.close()
            await self.model_pool.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        return server.stop_signal

    def _on_shutdown(self) -> None:
        if self.train_scheduler is not None:
            self.train_scheduler.begin_shutdown()

    def _uvicorn_config(self) -> uvicorn.Config:
        app = make_app(
            self.service,
            self.train_scheduler,
            auth=self.auth,
            max_body_bytes=self.options.max_body_bytes,
            verbose=self.options.verbose,
        )
        return uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=int(self.options.deadline + SHUTDOWN_GRACE),
        )

    def _model_loader(self, spec: ModelSpec) -> ModelLoader:
        family = spec.model_class()
        devices = placement.find_devices(self.options.device, family)
        if len(devices) > 1:
            raise UsageError("lsml serve uses one device.", "Start one server on each device, on ports of their own.")
        return ModelLoader(
            device=devices[0],
            threads=self.options.workers if family.parallelism == "threads" else 0,
            media=self.options.media,
            batch_size=self.options.batch_size,
            max_wait=self.options.max_wait,
            batch_timeout=2 * self.options.deadline,
            on_batch=self.metrics.observe_batch,
        )

    def _build_train_scheduler(self) -> TrainScheduler | None:
        options = self.options
        if options.versions is None or options.label_studio_url is None:
            return None
        versions = options.versions.absolute()
        embedded = options.jobs == "embedded"
        return TrainScheduler(
            JobStore(versions),
            EmbeddedRunner(versions) if embedded else RedisRunner(versions, options.jobs),
            _training_job_config(options, options.label_studio_url),
            train_every=options.train_every,
            on_job_changed=self._on_job_changed,
        )

    def _on_job_changed(self, job: Job) -> None:
        told = f"Project {job.project}, job {job.id}"
        if job.state == "waiting":
            log.info("%s: waiting (%s).", told, job.reason or job.why)
        elif job.state == "running":
            log.info("%s: training.", told)
        elif job.state == "done":
            log.info("%s: trained %s.", told, job.version)
            self._start_task(self.model_pool.load_project(job.project))
        else:
            log.warning("%s: %s. %s", told, "missed a gate" if job.state == "missed" else "failed", job.reason)

    def _summarize_jobs(self) -> tuple[Mapping[str, int], Iterable[Mapping[str, str]]]:
        jobs = self.train_scheduler.jobs() if self.train_scheduler else []
        last: dict[int, Job] = {}
        for job in jobs:  # newest first
            last.setdefault(job.project, job)
        return Counter(job.state for job in jobs), [
            {
                "project": str(job.project),
                "job": job.id,
                "state": job.state,
                "model_version": job.version or "",
                "reason": job.reason or "",
            }
            for job in last.values()
        ]

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background_tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._background_tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("This is a bug in lsml: %s: %s", type(error).__name__, error, exc_info=error)

    def _log_addresses(self, sock: socket.socket) -> None:
        """How to connect, with the one setting of Label Studio that nobody guesses."""
        host, port = sock.getsockname()[:2]
        below = "/<the secret path>" if self.auth.secret_path else ""
        shown = f"[{host}]" if ":" in host else host
        log.info("Serving on http://%s:%d%s (ctrl-C stops).", shown, port, below)
        named = f"<this machine's address>:{port}" if host in WILDCARD_ADDRESSES else f"{shown}:{port}"
        user = ", and the user and password" if self.auth.basic_auth else ""
        log.info(
            "To connect it: Label Studio, your project, Settings, Model, Connect Model; URL http://%s%s%s.",
            *(named, below, user),
        )
        log.info(
            "Label Studio 1.23 and later refuses servers on private addresses such as %s, "
            "unless it was itself started with USE_DEFAULT_BANNED_SUBNETS=false.",
            "localhost and 192.168.x.x" if host in WILDCARD_ADDRESSES else shown,
        )
        if host.startswith(LOOPBACK_PREFIXES):
            log.info("Only this machine can reach it. A Label Studio elsewhere, or in Docker: --host 0.0.0.0")
        if host in WILDCARD_ADDRESSES and not self.auth.basic_auth:
            log.warning("Anybody who can reach this machine can use it: --basic-auth USER:PASS asks for a password.")
        if self.train_scheduler is None:
            log.info("Training is off; --versions DIR and --label-studio-url URL turn it on.")
        elif self.auth.basic_auth and self.options.train_every and not self.auth.secret_path:
            log.warning(
                "--train-every will hear nothing: Label Studio sends annotation events without password, so they are "
                "refused here. --secret-path PATH lets them in."
            )


class _UvicornServer(uvicorn.Server):
    """Says when it listens and when it begins to end, and notes which signal stopped it; the caller decides what that
    means."""

    def __init__(
        self, config: uvicorn.Config, on_listening: Callable[[], None], on_shutdown: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.stop_signal: int | None = None
        self._on_listening = on_listening
        self._on_shutdown = on_shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop_signal = self.stop_signal or sig
        self._on_shutdown()
        super().handle_exit(sig, frame)


def _ignore_signal(number: int, frame: FrameType | None) -> None:
    """Uvicorn raises the signal again once it has stopped."""


class _PrintableFormatter(logging.Formatter):
    """What requests, tasks and models say may hold anything: a terminal obeys control characters, and what comes after
    a line break would pass for a line of ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return "".join(sign if sign.isprintable() else "?" for sign in super().formatMessage(record).rstrip())

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()  # the message is the first, a traceback are the others
        return "\n    ".join("".join(sign if sign.isprintable() else "?" for sign in line) for line in lines)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("lsml: %(asctime)s %(message)s", "%H:%M:%S"))
    for name, level in (("lsml", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
        logger.propagate = False


def _training_job_config(options: ServeOptions, label_studio_url: str) -> TrainingJobConfig:
    """What jobs are told, wherever they run: where pictures are looked for is the same as for predictions."""
    media = options.media
    return TrainingJobConfig(
        resolve.absolute_model_name(options.model),
        label_studio_url,
        dict(options.params),
        options.fail_under,
        device=options.device,
        allow_hosts=media.allowed_hosts.patterns,
        document_root=_absolute(media.document_root),
        upload_root=_absolute(media.upload_root),
        maps={
            prefix: str(folder.absolute()) for prefix, folder in reversed(media.prefix_map)
        },  # the first of two counts
        media_cache=_absolute(media.cache.folder) if media.cache else None,
        media_cache_size=media.cache.max_bytes if media.cache else 0,
    )


def _absolute(folder: Path | None) -> str | None:
    return None if folder is None else str(folder.absolute())


def _auth_config(options: ServeOptions) -> AuthConfig:
    path = (options.secret_path or "").strip("/")
    path = f"/{path}" if path else ""
    if not _SECRET_PATH.fullmatch(path):
        raise UsageError(
            "--secret-path has signs that have a meaning of their own in an address.",
            "Use letters, digits, - and _; for example what this prints: openssl rand -hex 16",
        )
    user, colon, _ = (options.basic_auth or "").partition(":")
    if options.basic_auth is not None and not (user and colon):
        raise UsageError("--basic-auth is not USER:PASS.", "For example: LSML_BASIC_AUTH=labels:correct-horse")
    return AuthConfig(options.basic_auth, path)


def _check_training_options(options: ServeOptions, spec: ModelSpec) -> None:
    """Raises UsageError for what could never train, before anything is loaded."""
    wanted = {
        "--train-every": options.train_every is not None,
        "--fail-under": bool(options.fail_under),
        "--jobs": options.jobs != "embedded",
    }
    if options.versions is None:
        if asked := [name for name, given in wanted.items() if given]:
            raise UsageError(f"{asked[0]} is about training, which is off.", "--versions DIR turns it on.")
        return
    if options.jobs != "embedded" and "://" not in options.jobs:
        raise UsageError(
            f"--jobs {options.jobs!r} is neither embedded nor an address.", "--jobs redis://localhost:6379"
        )
    if options.label_studio_url is None:
        raise UsageError(
            "Training needs to know the Label Studio that has the annotations.",
            "--label-studio-url http://localhost:8080, and its key in LABEL_STUDIO_API_KEY",
        )
    training.build_training_spec(spec)
    with suppress(OSError):
        options.versions.mkdir(parents=True, exist_ok=True)
    if not options.versions.is_dir() or not os.access(options.versions, os.W_OK):
        raise UsageError(f"--versions {options.versions} is not a folder that can be written to.")
    _log_to_stderr()
    if options.jobs == "embedded" and not os.environ.get("LABEL_STUDIO_API_KEY"):
        log.warning("LABEL_STUDIO_API_KEY is not set, and no job can fetch annotations without it.")


def _bind_socket(host: str, port: int) -> socket.socket:
    """The port, taken before a model is loaded for nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {host!r} is no address of this machine: {error.strerror}.") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise LsmlError(
            f"Port {port} on {host} cannot be had: {error.strerror}.",
            "Another server may have it; choose another one with --port N, 0 for any.",
        ) from None
    sock.set_inheritable(False)
    return sock
