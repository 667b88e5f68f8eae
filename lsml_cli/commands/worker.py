"""`lsml worker`: run the training jobs that a server has put into its Redis queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsml_cli.commands import options

if TYPE_CHECKING:
    from rq import Worker

WORKER_TTL = 60  # seconds without a heartbeat after which RQ gives a worker up
MONITORING_INTERVAL = 5  # seconds between two checks of a job's process, and between two heartbeats


def worker(
    jobs: Annotated[str, typer.Option("--jobs", metavar="redis://…", help="The Redis that `lsml serve --jobs` names.")],
    versions: Annotated[
        Path | None,
        typer.Option(
            "--versions", metavar="DIR", help="The server's --versions folder, if it has another path on this host."
        ),
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="Exit when the queue is empty.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Run training jobs from a Redis queue, one at a time, each in its own process, until ctrl-C.

    The server's --versions folder and the model's files have to be shared with this host. The key of Label Studio is
    read from LABEL_STUDIO_API_KEY on this host; it is never put into the queue. Ctrl-C waits for the running job; a
    second one ends it, and the server queues it again. Exit code 0 after that; 1 if Redis cannot be reached.

    Examples:

        lsml worker --jobs redis://queue:6379/0

        lsml worker --jobs redis://queue:6379/0
            --versions /mnt/models/served --burst
    """
    import os

    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import UsageError
    from lsml_cli.label_studio import API_KEY_ENV_VAR
    from lsml_cli.label_studio.client import require_sdk
    from lsml_cli.server import training_job
    from lsml_cli.server.job_runners import redis as redis_runner

    if versions is not None:
        if not versions.is_dir():
            raise UsageError(
                f"There is no folder {versions} on this host.", "--versions names the server's folder, as mounted here."
            )
        os.environ[training_job.VERSIONS_VARIABLE] = str(versions.absolute())
    require_sdk()
    with Console(quiet) as console:
        redis_runner.connect_redis(jobs).close()
        if not os.environ.get(API_KEY_ENV_VAR):
            console.note(
                f"{API_KEY_ENV_VAR} is not set, so every job will fail: export it before the worker starts.",
                important=True,
            )
        _forward_logs(console.note)
        console.note(
            f"Waiting for jobs on the queue {redis_runner.QUEUE_NAME} at {redis_runner.redact_password(jobs)}."
        )
        _make_rq_worker(jobs, console.note).work(burst=burst, logging_level="WARNING")


def _make_rq_worker(url: str, note: Any) -> Worker:
    """Return an RQ worker that forks for each job; nothing is imported here that a fork would break."""
    import redis
    from rq import Worker

    from lsml_cli.server.job_runners.redis import QUEUE_NAME, REDIS_TIMEOUT

    class NotifyingWorker(Worker):
        def handle_warm_shutdown_request(self) -> None:
            if self.get_state() == "busy":
                note("Waiting for the running job; press ctrl-C again to end it now.")

    # Its own connection, without a read timeout: RQ blocks until there is a job.
    connection = redis.Redis.from_url(url, socket_connect_timeout=REDIS_TIMEOUT)
    return NotifyingWorker(
        [QUEUE_NAME],
        connection=connection,
        worker_ttl=WORKER_TTL,
        job_monitoring_interval=MONITORING_INTERVAL,
        maintenance_interval=WORKER_TTL,
    )


def _forward_logs(note: Any) -> None:
    """Print the log records of jobs and of RQ to stderr, one line each."""
    import logging

    class NoteHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().splitlines() or [""]
            note(text[0], important=record.levelno >= logging.WARNING)

    for name in ("lsml.serve", "rq.worker", "rq.job"):
        logger = logging.getLogger(name)
        logger.addHandler(NoteHandler())
        logger.propagate = False
    logging.getLogger("lsml.serve").setLevel(logging.INFO)
