"""What a job runner does: the `Runner` protocol and the `JobStatus` that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from lsml_cli.server.job_record import Job


@dataclass(frozen=True)
class JobStatus:
    """What a runner observes of an attempt that it was told to start.

    Attributes:
        state: "active": it runs, or is in the queue.
            "unknown": it cannot be observed here; its heartbeat decides.
            "missing": the queue does not know it, or has lost it.
            "died": its process is gone, for a reason that does not speak against another attempt.
            "failed": it ended without a result, and would again.
        reason: Why, as a sentence, for "died" and "failed".
    """

    state: Literal["active", "unknown", "missing", "died", "failed"]
    reason: str = ""


class Runner(Protocol):
    """Start training jobs and observe them. Its methods block.

    Attributes:
        max_running_jobs: How many jobs may run at a time, None for any number.
    """

    max_running_jobs: int | None

    def start(self, job: Job) -> str | None:
        """Start the job's present attempt, unless it has been started; return a warning for the log, or None.

        The attempt runs with `job.config`, which comes from the server and not from the job's file.

        Raises:
            TransientError: It may succeed later.
            LsmlError: It cannot succeed.
        """
        ...

    def get_status(self, job: Job) -> JobStatus:
        """Return what is observed of the job's present attempt."""
        ...

    def stop(self) -> list[str]:
        """Terminate the jobs that run as this server's processes; nothing can be started afterwards.

        Returns:
            The ids of these jobs, and of those that SIGTERM had ended before.
        """
        ...
