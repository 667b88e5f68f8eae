"""`lsml worker`: trains what a server on another host, or on this one, has put into the queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsml_cli.commands import options

if TYPE_CHECKING:
    from rq import Worker

WORKER_TTL = 60  # seconds; whoever has said nothing for that long is no worker any more
MONITORING_INTERVAL = 5  # seconds between two looks at the process of a job, and two signs of life


def worker(
    jobs: Annotated[str, typer.Option("--jobs", metavar="redis://…", help="The Redis that `lsml serve --jobs` names.")],
    versions: Annotated[
        Path | None,
        typer.Option(
            "--versions", metavar="DIR", help="The server's --versions folder, where it has another name on this host."
        ),
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="End when the queue is empty.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Run training jobs from a queue on Redis, one at a time, each in a process of its own, until ctrl-C.

    The server's --versions folder has to be shared with this host, and so do the model's files; the key of Label Studio
    is taken from LABEL_STUDIO_API_KEY here, as it never travels. Ctrl-C waits for the job that runs; a second one ends
    it, and the server hands it out once more. Exit code 0 then; 1 when there is no Redis.

    Examples:

        lsml worker --jobs redis://queue:6379/0

        lsml worker --jobs redis://queue:6379/0 --versions /mnt/models/served --burst
    """
    import os

    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import UsageError
    from lsml_cli.label_studio import API_KEY_ENV_VAR
    from lsml_cli.server import job_runners, training_job

    if versions is not None:
        if not versions.is_dir():
            raise UsageError(
                f"There is no folder {versions} on this host.", "--versions names the server's folder, as mounted here."
            )
        os.environ[training_job.VERSIONS_VARIABLE] = str(versions.absolute())
    with Console(quiet) as console:
        job_runners.connect_redis(jobs).close()
        if not os.environ.get(API_KEY_ENV_VAR):
            console.note(
                f"{API_KEY_ENV_VAR} is not set, so every job will fail: export it before the worker starts.",
                important=True,
            )
        _forward_logs(console.note)
        console.note(f"Waiting for jobs on the queue {job_runners.QUEUE_NAME} at {job_runners.redact_password(jobs)}.")
        _make_rq_worker(jobs, console.note).work(burst=burst, logging_level="WARNING")


def _make_rq_worker(url: str, note: Any) -> Worker:
    """An RQ worker that forks for each job: it has imported nothing that would mind, and the job's process ends."""
    import redis
    from rq import Worker

    from lsml_cli.server import job_runners

    class Polite(Worker):
        def handle_warm_shutdown_request(self) -> None:
            if self.get_state() == "busy":
                note("Ends when the running job is done; ctrl-C again ends it at once.")

    # A connection of its own: RQ waits for a job for longer than anybody else would wait for an answer.
    connection = redis.Redis.from_url(url, socket_connect_timeout=job_runners.REDIS_TIMEOUT)
    return Polite(
        [job_runners.QUEUE_NAME],
        connection=connection,
        worker_ttl=WORKER_TTL,
        job_monitoring_interval=MONITORING_INTERVAL,
        maintenance_interval=WORKER_TTL,
    )


def _forward_logs(note: Any) -> None:
    """What the jobs and RQ have to say goes to stderr, a line each."""
    import logging

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().splitlines() or [""]
            note(text[0], important=record.levelno >= logging.WARNING)

    for name in ("lsml.serve", "rq.worker", "rq.job"):
        logger = logging.getLogger(name)
        logger.addHandler(Notes())
        logger.propagate = False
    logging.getLogger("lsml.serve").setLevel(logging.INFO)
