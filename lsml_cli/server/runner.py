"""Run `lsml serve`: bind the port, load the model, answer until a signal comes, finish the running requests."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from functools import partial
from types import FrameType
from typing import Any

import uvloop

from lsml_cli.errors import Interrupted
from lsml_cli.label_studio import API_KEY_ENV_VAR
from lsml_cli.models.spec import ModelSpec
from lsml_cli.registry import resolve
from lsml_cli.server.app import make_app
from lsml_cli.server.auth import AuthConfig
from lsml_cli.server.job_record import Job
from lsml_cli.server.job_runners.embedded import EmbeddedRunner
from lsml_cli.server.job_runners.redis import RedisRunner
from lsml_cli.server.job_store import JobStore
from lsml_cli.server.listener import HttpServer, bind_socket
from lsml_cli.server.log_setup import log_to_stderr
from lsml_cli.server.metrics import LiveValues, ServerMetrics
from lsml_cli.server.model_pool import ModelPool, find_watched_folder
from lsml_cli.server.project_directory import ProjectDirectory, list_backends, list_projects
from lsml_cli.server.serve_options import EMBEDDED_JOBS, ServeOptions
from lsml_cli.server.served_model import ModelLoader
from lsml_cli.server.service import Limits, Service
from lsml_cli.server.startup_log import log_connection_help, log_training_help
from lsml_cli.server.train_scheduler import TrainScheduler

log = logging.getLogger("lsml.serve")


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or ctrl-C, then finish the running requests.

    Raises:
        UsageError: An option is invalid, or the port cannot be bound.
        LsmlError: The model cannot be loaded, or Redis cannot be reached.
        Interrupted: Ctrl-C stopped the server.
    """
    auth = options.auth_config()
    spec = resolve.find_model(options.model, options.params)
    options.check_training(spec)
    device = options.find_device(spec)
    log_to_stderr()
    options.warn_about_missing_api_key()
    sock = bind_socket(options.host, options.port)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            stop_signal = runner.run(_Server(options, spec, device, auth).run(sock))
    except KeyboardInterrupt:  # while the model was loading
        stop_signal = signal.SIGINT
    finally:
        sock.close()
    if stop_signal == signal.SIGINT:
        raise Interrupted("Stopped.")
    log.info("Stopped.")


class _Server:
    """The parts of one server, connected."""

    def __init__(self, options: ServeOptions, spec: ModelSpec, device: str, auth: AuthConfig) -> None:
        self.options = options
        self.auth = auth
        self.metrics = ServerMetrics(
            LiveValues(
                queued_task_count=lambda: self.model_pool.queued_task_count,
                cached_result_count=lambda: len(self.service.result_cache),
                versions=lambda: self.model_pool.loaded_versions(),
                jobs=self._summarize_jobs,
            )
        )
        self.model_pool = ModelPool(
            spec,
            self._model_loader(spec, device),
            params=options.params,
            watched_folder=find_watched_folder(options.model),
            versions_folder=options.versions,
        )
        self.service = Service(
            self.model_pool,
            self.metrics,
            Limits(options.deadline, options.max_tasks),
            options.label_map,
            options.threshold,
            resolve.find_label_config(spec, options.model),
        )
        self.train_scheduler = self._build_train_scheduler()
        self.project_directory = self._build_project_directory()
        self._background_tasks: set[asyncio.Task[Any]] = set()

    async def run(self, sock: socket.socket) -> int | None:
        """Serve until a signal comes, and return the signal."""
        started_at = time.monotonic()
        await self.model_pool.open()
        version = self.model_pool.default_spec.model_version
        log.info("%s is loaded (%.1f s).", version, time.monotonic() - started_at)
        server = HttpServer(
            self._build_app(), self.options.deadline, lambda: self._log_startup(sock), self._begin_shutdown
        )
        self._start_task(self.model_pool.watch_versions())
        if self.train_scheduler is not None:
            self._start_task(self.train_scheduler.run())
        if self.project_directory is not None:
            self._start_task(self.project_directory.run())
        # Uvicorn raises the signal again once it has stopped; the caller decides what it means.
        previous_handlers = {
            number: signal.signal(number, _ignore_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            await server.serve([sock])
        finally:
            for task in list(self._background_tasks):
                task.cancel()
            if self.train_scheduler is not None:
                await self.train_scheduler.close()
            await self.model_pool.close()
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
        return server.stop_signal

    def _build_app(self) -> Any:
        return make_app(
            self.service,
            self.train_scheduler,
            self.project_directory,
            auth=self.auth,
            max_body_bytes=self.options.max_body_bytes,
            verbose=self.options.verbose,
        )

    def _model_loader(self, spec: ModelSpec, device: str) -> ModelLoader:
        return ModelLoader(
            device=device,
            threads=self.options.workers if spec.model_class().parallelism == "threads" else 0,
            media=self.options.media,
            batch_size=self.options.batch_size,
            max_wait=self.options.max_wait,
            batch_timeout=2 * self.options.deadline,
            on_batch=self.metrics.observe_batch,
        )

    def _build_train_scheduler(self) -> TrainScheduler | None:
        options = self.options
        job_config = options.training_job_config()
        if options.versions is None or job_config is None:
            return None
        versions = options.versions.absolute()
        return TrainScheduler(
            JobStore(versions),
            EmbeddedRunner(versions) if options.jobs == EMBEDDED_JOBS else RedisRunner(versions, options.jobs),
            job_config,
            train_every=options.train_every,
            on_job_changed=self._on_job_changed,
        )

    def _build_project_directory(self) -> ProjectDirectory | None:
        url = self.options.label_studio_url
        if self.train_scheduler is None or self.options.train_every is None or url is None:
            return None
        has_key = bool(os.environ.get(API_KEY_ENV_VAR, "").strip())
        count_annotations = self.train_scheduler.count_annotations
        if not has_key:
            return ProjectDirectory(None, count_annotations)
        return ProjectDirectory(partial(list_projects, url), count_annotations, partial(list_backends, url))

    def _on_job_changed(self, job: Job) -> None:
        job_name = f"Project {job.project}, job {job.id}"
        if job.state == "waiting":
            log.info("%s: waiting (%s).", job_name, job.reason or job.why)
        elif job.state == "running":
            log.info("%s: training.", job_name)
        elif job.state == "done":
            log.info("%s: trained %s.", job_name, job.version)
            self._start_task(self.model_pool.load_project(job.project))
        else:
            outcome = "missed a gate" if job.state == "missed" else "failed"
            log.warning("%s: %s. %s", job_name, outcome, job.reason)

    def _summarize_jobs(self) -> tuple[Mapping[str, int], Iterable[Mapping[str, str]]]:
        """Return the values of `LiveValues.jobs`."""
        jobs = self.train_scheduler.jobs() if self.train_scheduler else []
        last_jobs: dict[int, Job] = {}
        for job in jobs:  # newest first
            last_jobs.setdefault(job.project, job)
        return Counter(job.state for job in jobs), [
            {
                "project": str(job.project),
                "job": job.id,
                "state": job.state,
                "model_version": job.version or "",
                "reason": job.reason or "",
            }
            for job in last_jobs.values()
        ]

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background_tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._background_tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("This is a bug in lsml: %s: %s", type(error).__name__, error, exc_info=error)

    def _log_startup(self, sock: socket.socket) -> None:
        log_connection_help(sock, self.auth)
        log_training_help(self.auth, self.train_scheduler is not None, self.options.train_every)

    def _begin_shutdown(self) -> None:
        if self.train_scheduler is not None:
            self.train_scheduler.begin_shutdown()


def _ignore_signal(number: int, frame: FrameType | None) -> None:
    pass
