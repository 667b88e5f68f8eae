"""Where a training job runs: in a process beside the server, or on any worker of a Redis queue.

A runner begins an attempt and knows what became of it as far as that can be seen from here. What the attempt itself
has to say stands in the job's file (see `jobs`); the `Trainer` puts the two together.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lsml_cli.errors import LsmlError, TransientError, UsageError
from lsml_cli.server.job_store import Job

if TYPE_CHECKING:
    from redis import Redis as Connection

QUEUE_NAME = "lsml"
JOB_FUNCTION = "lsml_cli.server.training_job.run"
TERMINATE_GRACE = 5.0  # seconds a process has to clean up before it is killed
SIGTERM_WINDOW = (
    1.0  # seconds in which SIGTERM reaches the server as well, where it is sent to all processes of a service
)
REDIS_TIMEOUT = 5.0  # seconds to wait for an answer of Redis
NO_TIMEOUT = -1  # in RQ's terms
FAILURE_TTL = 24 * 3600  # seconds that Redis keeps what a worker refused


@dataclass(frozen=True)
class JobStatus:
    """What a runner sees of an attempt it was told to start.

    there    it runs, or it is in the queue
    unknown  nothing can be seen from here; whether its heart beats has to decide
    missing  the queue has never heard of it, or has forgotten it
    died     what ran it is gone, and that says nothing against running it again
    failed   it ended without a result, and would again
    """

    state: Literal["there", "unknown", "missing", "died", "failed"]
    reason: str = ""


class Runner(Protocol):
    """`start` and `look` block; `at_once` is how many jobs may run at a time, None for any number."""

    max_running_jobs: int | None

    def start(self, job: Job) -> str | None:
        """Begin the job's present attempt, unless that has been done; a remark for the log, if there is one.

        Raises TransientError when that is worth another try, any other LsmlError when it is not.
        """
        ...

    def get_status(self, job: Job) -> JobStatus: ...

    def stop(self) -> list[str]:
        """End what runs here and nowhere else; the ids of these jobs, and of all that SIGTERM has ended before.

        Nothing can be started afterwards.
        """
        ...


class EmbeddedRunner:
    """Each job is a process of its own on this machine, with a lower priority than the server."""

    max_running_jobs: int | None = 1  # the server needs the other core

    def __init__(self, versions_folder: Path, grace: float = TERMINATE_GRACE) -> None:
        self.versions_folder = versions_folder
        self.grace = grace
        self._lock = threading.Lock()
        self._stopped = False
        self._processes: dict[tuple[str, int], subprocess.Popen[bytes]] = {}  # by job and attempt
        self._final_statuses: dict[tuple[str, int], JobStatus] = {}
        self._sigterm_seen_at: dict[tuple[str, int], float] = {}  # ended by SIGTERM; when that was first seen

    def start(self, job: Job) -> str | None:
        with self._lock:
            if self._stopped or (job.id, job.attempt) in self._processes:
                return None
            try:
                self._processes[job.id, job.attempt] = self._spawn(job)
            except OSError as error:
                raise TransientError(f"A process for job {job.id} cannot be started: {error.strerror}.") from error
        return None

    def get_status(self, job: Job) -> JobStatus:
        key = job.id, job.attempt
        process = self._processes.get(key)
        if process is None:
            return JobStatus("unknown")
        code = process.poll()
        if code is None:
            return JobStatus("there")
        if (
            code == -signal.SIGTERM
            and time.monotonic() < self._sigterm_seen_at.setdefault(key, time.monotonic()) + SIGTERM_WINDOW
        ):
            return JobStatus("there")  # `stop` may be about to come, and then it has been stopped with the server
        if key not in self._final_statuses:
            _signal_group(process, signal.SIGKILL)  # replicas that it has left behind
            # With 0 its result is on record, or it stepped back because somebody else runs this attempt.
            self._final_statuses[key] = (
                JobStatus("failed", f"Its process {_describe_exit_code(code)}.") if code else JobStatus("unknown")
            )
        return self._final_statuses[key]

    def stop(self) -> list[str]:
        with self._lock:
            self._stopped = True
            running = {key: process for key, process in self._processes.items() if process.poll() is None}
            terminated = [key for key, process in self._processes.items() if process.returncode == -signal.SIGTERM]
        for process in running.values():
            _signal_group(process, signal.SIGTERM)
        for process in running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.grace)
            _signal_group(process, signal.SIGKILL)
            process.wait()
        return [job_id for job_id, _ in (*running, *terminated)]

    def _spawn(self, job: Job) -> subprocess.Popen[bytes]:
        # It finds the modules that the server finds, no more (-P) and no fewer.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "lsml_cli.server.training_job",
                self.versions_folder,
                job.id,
                str(job.attempt),
            ],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a library prints is for the log
            start_new_session=True,  # ctrl-C of the server's terminal is the server's to see
        )


class RedisRunner:
    """Each job is an RQ job on the queue `lsml`, which any worker takes that shares the folder of versions."""

    max_running_jobs: int | None = None  # the workers decide

    def __init__(self, versions_folder: Path, url: str) -> None:
        """Raises UsageError or LsmlError when there is no Redis at `url`, or the extra is not installed."""
        self.versions_folder = versions_folder
        self.url = url
        self._connection = connect_redis(url)

    def start(self, job: Job) -> str | None:
        from redis.exceptions import RedisError
        from rq import Queue, Worker
        from rq.job import Job as Entry

        try:
            queue = Queue(QUEUE_NAME, connection=self._connection)
            found = self._fetch_rq_job(job)
            if found is not None and found.get_status() in ("queued", "started"):
                return None
            if found is not None:
                found.delete()
            entry = Entry.create(
                JOB_FUNCTION,
                args=(str(self.versions_folder), job.id, job.attempt),
                id=_rq_job_id(job),
                connection=self._connection,
                timeout=NO_TIMEOUT,
                result_ttl=60,
                failure_ttl=FAILURE_TTL,
                description=f"lsml: train project {job.project} (job {job.id}, attempt {job.attempt})",
            )
            queue.enqueue_job(entry)
            if Worker.count(queue=queue) == 0:
                return (
                    f"No worker listens to the queue {QUEUE_NAME} yet: lsml worker --jobs {redact_password(self.url)}"
                )
        except RedisError as error:
            raise TransientError(f"Redis does not answer ({_one_line(error)}), so job {job.id} waits.") from error
        return None

    def get_status(self, job: Job) -> JobStatus:
        from redis.exceptions import RedisError

        try:
            entry = self._fetch_rq_job(job)
            if entry is None:
                return JobStatus("missing")
            status = str(getattr(entry.get_status(), "value", entry.get_status()))
            if status == "queued":
                return JobStatus("there")
            if status != "failed":
                return JobStatus("unknown")
            result = entry.latest_result()
            return _parse_rq_failure(str(result.exc_string or "") if result is not None else "")
        except RedisError:  # nothing could be begun again now, so nothing has to be known
            return JobStatus("there")

    def stop(self) -> list[str]:
        self._connection.close()
        return []

    def _fetch_rq_job(self, job: Job) -> Any:
        from rq.exceptions import NoSuchJobError
        from rq.job import Job as Entry

        try:
            return Entry.fetch(_rq_job_id(job), connection=self._connection)
        except NoSuchJobError:
            return None


def connect_redis(url: str) -> Connection:
    """A connection to the Redis at `url`, which has answered. Raises UsageError or LsmlError with a sentence."""
    try:
        import redis
        import rq  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("redis", "rq"):
            raise
        raise LsmlError("Jobs on Redis need the packages redis and rq.", "pip install 'lsml[redis]'") from None
    shown = redact_password(url)
    try:
        found: Connection = redis.Redis.from_url(
            url, socket_connect_timeout=REDIS_TIMEOUT, socket_timeout=REDIS_TIMEOUT
        )
    except ValueError as error:
        raise UsageError(f"{shown} is not the address of a Redis: {error}", "Try redis://HOST:6379/0") from None
    try:
        found.ping()
    except redis.AuthenticationError as error:
        raise LsmlError(f"The Redis at {shown} refuses us: {_one_line(error)}.", "redis://:PASSWORD@HOST") from error
    except redis.RedisError as error:
        raise LsmlError(f"There is no Redis at {shown}: {_one_line(error)}.", "Is redis-server running?") from error
    return found


def redact_password(url: str) -> str:
    """An address as it may be shown."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _rq_job_id(job: Job) -> str:
    return f"{job.id}-{job.attempt}"


def _parse_rq_failure(trace: str) -> JobStatus:
    """What RQ says about an entry that has failed: the end of a traceback, or a sentence of RQ's own."""
    last = trace.strip().splitlines()[-1] if trace.strip() else "the worker gave no reason"
    if "Work-horse terminated" in last:
        number = last.partition("(signal ")[2].partition(")")[0]
        how = f"was killed by {signal.Signals(int(number)).name}" if number.isdigit() else "ended unexpectedly"
        return JobStatus("died", f"Its process on the worker {how}.")
    if "AbandonedJobError" in last:
        return JobStatus("died", "Its worker has died.")
    kind, colon, sentence = last.partition(": ")
    if kind.startswith("lsml_cli."):
        return JobStatus("failed", sentence)
    plain = f"{kind.rpartition('.')[2]}{colon}{sentence}".rstrip(".")
    return JobStatus("failed", f"The worker could not run it: {plain}. It needs the same lsml as the server.")


def _describe_exit_code(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and without a result"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
