"""Run training jobs on the workers of an RQ queue in Redis."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import LsmlError, TransientError, UsageError
from lsml_cli.runtime import error_reason, install_hint
from lsml_cli.server.job_record import Job, config_to_json
from lsml_cli.server.job_runners.base import JobStatus

if TYPE_CHECKING:
    from redis import Redis

QUEUE_NAME = "lsml"
JOB_FUNCTION = "lsml_cli.server.training_job.run"  # RQ imports it by this name
REDIS_TIMEOUT = 5.0  # seconds to wait for an answer of Redis
NO_TIMEOUT = -1  # RQ's value for a job that may take any time
FAILURE_TTL = 24 * 3600  # seconds that Redis keeps a failed job
RESULT_TTL = 60  # seconds that Redis keeps a finished one


class RedisRunner:
    """Put each job into the RQ queue `lsml`, for any worker that shares the folder of versions.

    Args:
        versions_folder: Folder with the jobs and the versions.
        url: URL of the Redis.

    Raises:
        LsmlError: Redis cannot be used, see `connect_redis`.
    """

    max_running_jobs: int | None = None  # as many as there are workers

    def __init__(self, versions_folder: Path, url: str) -> None:
        self.versions_folder = versions_folder
        self.url = url
        self._connection = connect_redis(url)

    def start(self, job: Job) -> str | None:
        """Put the job's present attempt into the queue, see `Runner.start`."""
        from redis.exceptions import RedisError
        from rq import Queue, Worker
        from rq.job import Job as RqJob

        try:
            queue = Queue(QUEUE_NAME, connection=self._connection)
            existing = self._fetch_rq_job(job)
            if existing is not None and existing.get_status() in ("queued", "started"):
                return None
            if existing is not None:
                existing.delete()
            rq_job = RqJob.create(
                JOB_FUNCTION,
                args=(str(self.versions_folder), job.id, job.attempt, config_to_json(job.config)),
                id=_rq_job_id(job),
                connection=self._connection,
                timeout=NO_TIMEOUT,
                result_ttl=RESULT_TTL,
                failure_ttl=FAILURE_TTL,
                description=f"lsml: train project {job.project} (job {job.id}, attempt {job.attempt})",
            )
            queue.enqueue_job(rq_job)
            if Worker.count(queue=queue) == 0:
                command = f"lsml worker --jobs {redact_password(self.url)}"
                return f"No worker listens to the queue {QUEUE_NAME} yet: {command}"
        except RedisError as error:
            raise TransientError(f"Redis does not answer ({_redis_reason(error)}), so job {job.id} waits.") from error
        return None

    def get_status(self, job: Job) -> JobStatus:
        """Return the state of the RQ job, see `Runner.get_status`."""
        from redis.exceptions import RedisError

        try:
            rq_job = self._fetch_rq_job(job)
            if rq_job is None:
                return JobStatus("missing")
            rq_status = rq_job.get_status()
            status = str(getattr(rq_status, "value", rq_status))
            if status == "queued":
                return JobStatus("active")
            if status != "failed":
                return JobStatus("unknown")
            result = rq_job.latest_result()
            return _parse_rq_failure(str(result.exc_string or "") if result is not None else "")
        except RedisError:  # while Redis is away, nothing can be started again
            return JobStatus("active")

    def stop(self) -> list[str]:
        """Disconnect; the workers go on, see `Runner.stop`."""
        self._connection.close()
        return []

    def _fetch_rq_job(self, job: Job) -> Any:
        from rq.exceptions import NoSuchJobError
        from rq.job import Job as RqJob

        try:
            return RqJob.fetch(_rq_job_id(job), connection=self._connection)
        except NoSuchJobError:
            return None


def connect_redis(url: str) -> Redis:
    """Connect to the Redis at a URL and check that it answers.

    Raises:
        UsageError: The URL is malformed.
        LsmlError: Redis rejects the login or does not answer, or the extra `redis` is not installed.
    """
    try:
        import redis
        import rq  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("redis", "rq"):
            raise
        raise LsmlError("Jobs on Redis need the packages redis and rq.", install_hint("lsml[redis]")) from None
    shown_url = redact_password(url)
    try:
        connection: Redis = redis.Redis.from_url(
            url, socket_connect_timeout=REDIS_TIMEOUT, socket_timeout=REDIS_TIMEOUT
        )
    except ValueError as error:
        raise UsageError(f"{shown_url} is not the URL of a Redis: {error}", "Try redis://HOST:6379/0") from None
    try:
        connection.ping()
    except redis.AuthenticationError as error:
        raise LsmlError(
            f"Redis at {shown_url} rejected the login: {_redis_reason(error)}.", "redis://:PASSWORD@HOST"
        ) from error
    except redis.RedisError as error:
        raise LsmlError(
            f"There is no Redis at {shown_url}: {_redis_reason(error)}.", "Is redis-server running?"
        ) from error
    return connection


def redact_password(url: str) -> str:
    """Return a URL without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _rq_job_id(job: Job) -> str:
    return f"{job.id}-{job.attempt}"


def _redis_reason(error: Exception) -> str:
    return error_reason(error).rstrip(".")


def _parse_rq_failure(trace: str) -> JobStatus:
    """Interpret what RQ stores of a failed job: a traceback, or a sentence of RQ's own.

    Args:
        trace: RQ's `exc_string`; its last line counts.
    """
    last_line = trace.strip().splitlines()[-1] if trace.strip() else "the worker gave no reason"
    if "Work-horse terminated" in last_line:
        number = last_line.partition("(signal ")[2].partition(")")[0]
        how = f"was killed by {signal.Signals(int(number)).name}" if number.isdigit() else "ended unexpectedly"
        return JobStatus("died", f"Its process on the worker {how}.")
    if "AbandonedJobError" in last_line:
        return JobStatus("died", "Its worker has died.")
    exception_type, colon, message = last_line.partition(": ")
    if exception_type.startswith("lsml_cli."):
        return JobStatus("failed", message)
    reason = f"{exception_type.rpartition('.')[2]}{colon}{message}".rstrip(".")
    return JobStatus("failed", f"The worker could not run it: {reason}. It needs the same lsml as the server.")
