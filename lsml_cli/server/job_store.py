"""Store training jobs as files below the folder of versions; they are authoritative, wherever a job runs.

    DIR/project-3/                          the versions of one project's model, see `versions`
    DIR/.jobs/20261121T101500-123-3f2a.json one job, see `job_record`
    DIR/.jobs/….beat                        heartbeat, rewritten every two seconds by the process that runs the job
    DIR/.jobs/….1.tasks                     the annotated tasks of its first attempt, deleted when that ends
    DIR/.jobs/annotations                   number of new annotations of each project, for --train-every
    DIR/.jobs/lock                          locked while a job's file is read and replaced

Files are replaced by rename, so readers never see a partial one. None contains the API key of Label Studio.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import orjson

from lsml_cli.errors import InputError, OutputError, TransientError
from lsml_cli.runtime import open_for_writing, open_own_file, read_small_file, write_atomically
from lsml_cli.schema.value_checks import is_integer
from lsml_cli.server.job_record import JOB_ID, Job, TrainingJobConfig, job_from_json, job_to_json, utc_now

JOBS_FOLDER_NAME = ".jobs"  # below the folder of versions
MAX_COUNT = 10**9  # annotations of a project; more is damage
MAX_JOB_BYTES = 16 << 20  # of a job's file; more is damage
MAX_HEARTBEAT_BYTES = 1000
MAX_FINISHED_JOBS = 100  # finished jobs whose files are kept
LAST_HEARTBEAT = "ended"  # heartbeat of an attempt that has ended itself
LOCK_TIMEOUT = 60.0  # seconds to wait for the lock; a process that was suspended may hold it for any time
LOCK_POLL_INTERVAL = 0.02  # seconds between two attempts to take the lock


class StaleAttempt(Exception):
    """The attempt no longer counts: the job is finished, or a later attempt exists."""


def project_versions_folder(versions_folder: Path, project: int) -> Path:
    """Return the folder with the versions of one project's model."""
    return versions_folder / f"project-{project}"


class JobStore:
    """Read and write the jobs of a folder of versions. Every method blocks on the file system."""

    def __init__(self, versions_folder: Path) -> None:
        self.versions_folder = versions_folder
        self.jobs_folder = versions_folder / JOBS_FOLDER_NAME

    def create(self, job: Job) -> None:
        """Write the file of a new job.

        Raises:
            OutputError: The folder cannot be written.
        """
        try:
            self.jobs_folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(job.id), job_to_json(job), sync=True)
        except OSError as error:
            self._raise_not_writable(error)

    def read(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            InputError: There is no such job, or its file is damaged.
            TransientError: The file cannot be read now.
        """
        path = self._path(job_id)
        try:
            content = read_small_file(path, MAX_JOB_BYTES)
        except FileNotFoundError:
            raise InputError(f"There is no job {job_id} in {self.jobs_folder}.") from None
        except OSError as error:
            raise TransientError(f"{path} cannot be read: {error.strerror}.") from error
        return job_from_json(path, content)

    def list_jobs(self, on_damaged: Callable[[str], None] = lambda message: None) -> list[Job]:
        """Return every job, newest first.

        Args:
            on_damaged: Called with a message about each file that cannot be read.
        """
        jobs = []
        for job_id in self._list_job_ids():
            try:
                jobs.append(self.read(job_id))
            except (InputError, TransientError) as error:
                if self._path(job_id).exists():  # else it was pruned meanwhile
                    on_damaged(str(error))
        return jobs

    def update(self, job: Job, **changes: Any) -> Job:
        """Change fields of a job, on behalf of the attempt `job.attempt`, and return the new record.

        Raises:
            StaleAttempt: That attempt no longer counts.
            InputError: The file is gone or damaged.
            OutputError: The file cannot be written.
            TransientError: The file cannot be read now, or is locked by another process.
        """
        return self.complete(job, None, **changes)

    def complete(self, job: Job, promote: Callable[[], None] | None, **changes: Any) -> Job:
        """Promote the version that an attempt has trained and store its result, unless the attempt no longer counts.

        Both happen while the jobs are locked: from the check until the end nothing can replace the attempt, so a
        replaced attempt never promotes anything.

        Args:
            promote: Promotes the version; None if there is nothing to promote. If it raises, nothing is stored.

        Raises:
            StaleAttempt: That attempt no longer counts; `promote` was not called.
            LsmlError: As for `update`, or raised by `promote`.
        """
        with self._locked():
            current = self.read(job.id)
            if current.attempt != job.attempt or current.is_finished:
                raise StaleAttempt(f"Attempt {job.attempt} of job {job.id} no longer counts.")
            if promote is not None:
                promote()
            changed = replace(current, **changes)
            try:
                write_atomically(self._path(job.id), job_to_json(changed), sync=True)
            except OSError as error:
                self._raise_not_writable(error)
        if changed.is_finished or changed.attempt != job.attempt:
            with suppress(OSError):  # `prune` removes them later
                self.heartbeat_file(job).unlink(missing_ok=True)
                self.tasks_file(job).unlink(missing_ok=True)
        return changed

    def is_stale(self, job: Job) -> bool:
        """Tell whether the attempt `job.attempt` no longer counts; not if that cannot be found out now."""
        try:
            current = self.read(job.id)
        except InputError:
            return not self._path(job.id).exists()
        except TransientError:
            return False
        return current.attempt != job.attempt or current.is_finished

    def claim(self, job_id: str, attempt: int, config: TrainingJobConfig | None = None) -> Job:
        """Mark a waiting job as running; of several processes, one succeeds.

        Args:
            config: What the job runs with, whatever its file says; None to keep that.

        Raises:
            StaleAttempt: It is running already, or this attempt no longer counts.
            LsmlError: As for `update`.
        """
        with self._locked():
            job = self.read(job_id)
            if job.state != "waiting" or job.attempt != attempt:
                raise StaleAttempt(f"Job {job_id} is {job.state} in attempt {job.attempt}.")
            job = replace(job, state="running", started=utc_now(), progress=None, config=config or job.config)
            try:
                # Whatever stands there, maybe a link to somewhere else, is not from this attempt.
                self.heartbeat_file(job).unlink(missing_ok=True)
                self.tasks_file(job).unlink(missing_ok=True)
                write_atomically(self._path(job_id), job_to_json(job), sync=True)
            except OSError as error:
                self._raise_not_writable(error)
        return job

    def write_heartbeat(self, job: Job, number: int) -> None:
        """Show that a job is still running.

        The file is rewritten in place: a network file system may go on showing the old file after a rename.
        """
        # On a full disk the heartbeat stops, and the job soon fails anyway.
        with suppress(OSError), open_for_writing(self.heartbeat_file(job)) as file:
            file.write(f"{job.attempt} {number}\n".encode())

    def write_last_heartbeat(self, job: Job) -> None:
        """Show that an attempt ends itself without a result, so that nobody has to wait for its next heartbeat."""
        # If it fails, the missing heartbeats tell.
        with suppress(OSError), open_for_writing(self.heartbeat_file(job)) as file:
            file.write(f"{job.attempt} {LAST_HEARTBEAT}\n".encode())

    def read_heartbeat(self, job: Job) -> str | None:
        """Return a text that changes with each heartbeat of the present attempt, None before the first.

        After its last heartbeat it is `LAST_HEARTBEAT`. The heartbeats of other attempts do not count.
        """
        try:
            content = read_small_file(self.heartbeat_file(job), MAX_HEARTBEAT_BYTES)
            attempt, _, heartbeat = content.decode().strip().partition(" ")
        except (OSError, UnicodeDecodeError):
            return None
        return heartbeat if attempt == str(job.attempt) else None

    def heartbeat_file(self, job: Job) -> Path:
        """Return the path of a job's heartbeat."""
        return self.jobs_folder / f"{job.id}.beat"

    def tasks_file(self, job: Job) -> Path:
        """Return the path for the annotated tasks that an attempt downloads."""
        return self.jobs_folder / f"{job.id}.{job.attempt}.tasks"

    def prune(self, keep: int = MAX_FINISHED_JOBS) -> list[str]:
        """Delete the files of all finished jobs but the newest `keep`, and return the ids of the deleted ones."""
        finished = [job for job in self.list_jobs() if job.is_finished]
        for job in finished[keep:]:
            for path in self.jobs_folder.glob(f"{job.id}.*"):
                with suppress(OSError):  # to be tried again next time
                    path.unlink(missing_ok=True)
        return [job.id for job in finished[keep:]]

    def read_annotation_counts(self) -> dict[int, int]:
        """Return the number of new annotations of each project since its last job; empty if it cannot be read."""
        try:
            counts = orjson.loads(read_small_file(self.jobs_folder / "annotations", MAX_JOB_BYTES))
            numbers = {int(project): count for project, count in counts.items()}
        except (OSError, ValueError, AttributeError):
            return {}
        return {project: count for project, count in numbers.items() if is_integer(count) and 0 < count < MAX_COUNT}

    def write_annotation_counts(self, counts: Mapping[int, int]) -> None:
        """Store the number of new annotations of each project.

        Raises:
            OutputError: The folder cannot be written.
        """
        try:
            self.jobs_folder.mkdir(parents=True, exist_ok=True)
            content = orjson.dumps({str(project): count for project, count in counts.items()})
            write_atomically(self.jobs_folder / "annotations", content, sync=True)
        except OSError as error:
            self._raise_not_writable(error)

    def _list_job_ids(self) -> list[str]:
        try:
            names = [path.stem for path in self.jobs_folder.glob("*.json")]
        except OSError:
            return []
        return sorted(filter(JOB_ID.fullmatch, names), reverse=True)

    def _path(self, job_id: str) -> Path:
        if not JOB_ID.fullmatch(job_id):
            raise InputError(f"{job_id!r} is not a job id.", f"lsml jobs {self.versions_folder} lists them.")
        return self.jobs_folder / f"{job_id}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the jobs against changes by other processes, also on other hosts that share the folder."""
        try:
            descriptor = open_own_file(self.jobs_folder / "lock", os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            raise InputError(f"There are no jobs in {self.versions_folder}.") from None
        except OSError as error:
            self._raise_not_writable(error)
        try:
            self._wait_for_lock(descriptor)
            yield
        finally:
            os.close(descriptor)  # this releases the lock

    def _wait_for_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"Another process has locked the jobs in {self.jobs_folder} for {LOCK_TIMEOUT:.0f} s."
                    raise TransientError(message, "Is a training process suspended?") from None
                time.sleep(LOCK_POLL_INTERVAL)
            except OSError:  # a file system without locks; two writes at the same instant are unlikely
                return
            else:
                return

    def _raise_not_writable(self, error: OSError) -> NoReturn:
        raise OutputError(
            f"Jobs cannot be written to {self.jobs_folder}: {error.strerror}.",
            "Make the --versions folder writable, with free space.",
        ) from error
