"""Run each training job in a process of its own on the server's machine."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from lsml_cli.errors import TransientError
from lsml_cli.runtime import python_command, python_environment
from lsml_cli.server.job_record import Job, config_to_json
from lsml_cli.server.job_runners.base import JobStatus

JOB_MODULE = "lsml_cli.server.training_job"
TERMINATE_GRACE = 5.0  # seconds that a process has for cleaning up before it is killed

# Seconds within which SIGTERM also reaches the server, if it was sent to all processes of a service.
SIGTERM_WINDOW = 1.0


class EmbeddedRunner:
    """Run jobs one at a time, each as a process with a lower priority than the server's.

    Args:
        versions_folder: Folder with the jobs and the versions.
        terminate_grace: Seconds that `stop` grants a process for cleaning up.
    """

    max_running_jobs: int | None = 1  # predictions need the other cores

    def __init__(self, versions_folder: Path, terminate_grace: float = TERMINATE_GRACE) -> None:
        self.versions_folder = versions_folder
        self.terminate_grace = terminate_grace
        self._lock = threading.Lock()
        self._is_stopped = False
        # All by job id and attempt.
        self._processes: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self._final_statuses: dict[tuple[str, int], JobStatus] = {}
        self._sigterm_seen_at: dict[tuple[str, int], float] = {}  # when a process was first seen ended by SIGTERM

    def start(self, job: Job) -> str | None:
        """Start a process for the job's present attempt, see `Runner.start`."""
        with self._lock:
            if self._is_stopped or (job.id, job.attempt) in self._processes:
                return None
            try:
                self._processes[job.id, job.attempt] = self._spawn(job)
            except OSError as error:
                raise TransientError(f"A process for job {job.id} cannot be started: {error.strerror}.") from error
        return None

    def get_status(self, job: Job) -> JobStatus:
        """Return the state of the job's process, see `Runner.get_status`."""
        key = job.id, job.attempt
        process = self._processes.get(key)
        if process is None:
            return JobStatus("unknown")
        code = process.poll()
        if code is None or (code == -signal.SIGTERM and self._server_may_be_stopping(key)):
            return JobStatus("active")
        if key not in self._final_statuses:
            _signal_group(process, signal.SIGKILL)  # replicas that it left behind
            # With exit code 0 its result is in the file, or it gave way to another process that runs this attempt.
            self._final_statuses[key] = (
                JobStatus("failed", f"Its process {_describe_exit_code(code)}.") if code else JobStatus("unknown")
            )
        return self._final_statuses[key]

    def stop(self) -> list[str]:
        """Terminate the running process, see `Runner.stop`."""
        with self._lock:
            self._is_stopped = True
            running = {key: process for key, process in self._processes.items() if process.poll() is None}
            terminated = [key for key, process in self._processes.items() if process.returncode == -signal.SIGTERM]
        for process in running.values():
            _signal_group(process, signal.SIGTERM)
        for process in running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.terminate_grace)
            _signal_group(process, signal.SIGKILL)
            process.wait()
        return [job_id for job_id, _ in (*running, *terminated)]

    def _server_may_be_stopping(self, key: tuple[str, int]) -> bool:
        """Tell whether a process that SIGTERM ended may have been stopped together with the server.

        Then `stop` is about to be called, and the job waits for the next start of the server instead of failing.
        """
        now = time.monotonic()
        return now < self._sigterm_seen_at.setdefault(key, now) + SIGTERM_WINDOW

    def _spawn(self, job: Job) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *python_command("-m", JOB_MODULE),
                *(self.versions_folder, job.id, str(job.attempt), config_to_json(job.config)),
            ],
            env=python_environment(),
            stdin=subprocess.DEVNULL,
            stdout=2,  # what libraries print belongs in the log
            start_new_session=True,  # ctrl-C in the server's terminal must reach the server only
        )


def _describe_exit_code(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and without a result"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
