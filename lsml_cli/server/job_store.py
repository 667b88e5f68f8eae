"""Training jobs, each a file below the versions: what is written there is the truth about a job, wherever it runs.

    DIR/project-3/                          the versions of one project's model, see `versions`
    DIR/.jobs/20261121T101500-123-3f2a.json one job, see `Job`
    DIR/.jobs/….beat                        rewritten every two seconds by whoever runs the job
    DIR/.jobs/….1.tasks                     the annotated tasks of its first attempt, gone when that ends
    DIR/.jobs/annotations                   how many new annotations each project has, for --train-every
    DIR/.jobs/lock                          held while a job's file is read and replaced

A file is written aside and renamed, so a reader sees a whole one. The key of Label Studio is in none of them.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import orjson

from lsml_cli.errors import InputError, OutputError, TransientError
from lsml_cli.models.spec import Json

JOBS_FOLDER_NAME = ".jobs"  # below the versions
FORMAT_VERSION = 1  # of a job's file; raised when an older lsml could no longer read it
MAX_FINISHED_JOBS = 100  # finished jobs that stay on record

JobState = Literal["waiting", "running", "done", "missed", "failed"]
FINISHED_STATES = frozenset({"done", "missed", "failed"})

# Fields of `Job` that a file of an older lsml does not have.
_OPTIONAL_FIELDS = frozenset(
    {"device", "allow_hosts", "document_root", "upload_root", "maps", "media_cache", "media_cache_size"}
)

_JOB_ID = re.compile(r"\d{8}T\d{6}-\d{3}-[0-9a-f]{4}")


@dataclass(frozen=True)
class TrainingJobConfig:
    """What every job of a server has in common.

    model             what is trained, as `registry.find_model` understands it from any folder
    params            parameters of the model (`--with`)
    label_studio_url  where the annotated tasks come from
    fail_under        gates, see `gates.parse_gates`
    device            where the server works, see `pipeline.find_devices`
    allow_hosts       who may be asked for what tasks point to, see `Hosts`
    document_root, upload_root, maps, media_cache
                      folders of the server's host, absolute, see `Media`; maps: a prefix -> its folder
    media_cache_size  bytes
    """

    model: str
    label_studio_url: str
    params: Mapping[str, Json] = field(default_factory=dict)
    fail_under: tuple[str, ...] = ()
    device: str = "auto"
    allow_hosts: tuple[str, ...] = ()
    document_root: str | None = None
    upload_root: str | None = None
    maps: Mapping[str, str] = field(default_factory=dict)
    media_cache: str | None = None
    media_cache_size: int = 0


@dataclass(frozen=True)
class Job:
    """One training job.

    What it has in common with the others stands in `Recipe`.

    id          sorts by time; safe as the name of a file
    project     id of the project in Label Studio
    why         what asked for it: "START_TRAINING", "50 new annotations"
    created     when it was asked for, UTC, ISO 8601; so are `started` and `ended`
    state       "missed": trained and kept, but a gate was missed, so it was not promoted
    attempt     from 1; counted up when it is begun again after its process died
    version     the version that came out, "project-3@20261121T101502"
    reason      why it failed or missed a gate, or is waiting again: a sentence, and what to do about it
    progress    the last sentence of the training
    facts       what is worth showing of the result: counts, metrics by control, seconds
    """

    id: str
    project: int
    why: str
    model: str
    params: Mapping[str, Json]
    label_studio_url: str
    fail_under: tuple[str, ...]
    created: str
    state: JobState = "waiting"
    attempt: int = 1
    started: str | None = None
    ended: str | None = None
    version: str | None = None
    reason: str | None = None
    progress: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    allow_hosts: tuple[str, ...] = ()
    document_root: str | None = None
    upload_root: str | None = None
    maps: Mapping[str, str] = field(default_factory=dict)
    media_cache: str | None = None
    media_cache_size: int = 0

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED_STATES

    @property
    def seconds(self) -> float | None:
        """How long its last attempt took, None while there is no telling."""
        if self.started is None or self.ended is None:
            return None
        return (datetime.fromisoformat(self.ended) - datetime.fromisoformat(self.started)).total_seconds()


class StaleAttempt(Exception):
    """The job went on without this attempt: it is finished, or a later attempt has been made."""


def new_job(project: int, why: str, config: TrainingJobConfig) -> Job:
    """A job that waits; nothing is written yet."""
    now = datetime.now(UTC)
    stamp = f"{now:%Y%m%dT%H%M%S}-{now.microsecond // 1000:03d}-{secrets.token_hex(2)}"
    common = {each.name: getattr(config, each.name) for each in fields(config)}
    return Job(id=stamp, project=project, why=why, created=_format_utc(now), **common)


def utc_now() -> str:
    return _format_utc(datetime.now(UTC))


def project_versions_folder(versions_folder: Path, project: int) -> Path:
    """The folder with the versions of one project's model."""
    return versions_folder / f"project-{project}"


class JobStore:
    """The jobs below a folder of versions. Its methods block for as long as the disk does."""

    def __init__(self, versions_folder: Path) -> None:
        self.versions_folder = versions_folder
        self.jobs_folder = versions_folder / JOBS_FOLDER_NAME

    def create(self, job: Job) -> None:
        """Put a new job on record. Raises OutputError when the folder cannot be written."""
        try:
            self.jobs_folder.mkdir(parents=True, exist_ok=True)
            self._write_atomically(self._path(job.id), _to_json(job))
        except OSError as error:
            self._raise_not_writable(error)

    def read(self, job_id: str) -> Job:
        """Raises InputError with a sentence when there is no such job or its file is damaged, TransientError when it
        cannot be read now."""
        path = self._path(job_id)
        try:
            found = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"There is no job {job_id} in {self.jobs_folder}.") from None
        except orjson.JSONDecodeError as error:
            raise InputError(f"{path} is damaged ({error}).", f"Remove it: rm {path}") from error
        except OSError as error:
            raise TransientError(f"{path} cannot be read: {error.strerror}.") from error
        return _from_json(path, found)

    def list_jobs(self, on_damaged: Callable[[str], None] = lambda sentence: None) -> list[Job]:
        """Every job, newest first; `note` takes a sentence about each file that is damaged."""
        found = []
        for job_id in self._list_job_ids():
            try:
                found.append(self.read(job_id))
            except (InputError, TransientError) as error:
                if self._path(job_id).exists():  # else it was pruned meanwhile
                    on_damaged(str(error))
        return found

    def update(self, job: Job, **changes: Any) -> Job:
        """Change the record of a job, for whoever runs the attempt that `job` is.

        Raises Superseded when that attempt no longer counts, InputError when the record is gone or damaged, and
        OutputError when it cannot be written.
        """
        with self._locked():
            now = self.read(job.id)
            if now.attempt != job.attempt or now.is_finished:
                raise StaleAttempt(f"Job {job.id} has gone on without attempt {job.attempt}.")
            changed = replace(now, **changes)
            try:
                self._write_atomically(self._path(job.id), _to_json(changed))
            except OSError as error:
                self._raise_not_writable(error)
        if changed.is_finished or changed.attempt != job.attempt:
            with suppress(OSError):  # pruning removes them later
                self.heartbeat_file(job).unlink(missing_ok=True)
                self.tasks_file(job).unlink(missing_ok=True)
        return changed

    def claim(self, job_id: str, attempt: int) -> Job:
        """Begin an attempt: the job is running from now on, and nobody else can claim it.

        Raises Superseded when it is running already, or this attempt no longer counts.
        """
        with self._locked():
            job = self.read(job_id)
            if job.state != "waiting" or job.attempt != attempt:
                raise StaleAttempt(f"Job {job_id} is {job.state} in attempt {job.attempt}.")
            job = replace(job, state="running", started=utc_now(), progress=None)
            try:
                self._write_atomically(self._path(job_id), _to_json(job))
            except OSError as error:
                self._raise_not_writable(error)
        return job

    def write_heartbeat(self, job: Job, number: int) -> None:
        """Say that a job is still being worked on. In place: what a shared file system caches is a name's file."""
        with suppress(OSError):  # a full disk; whoever watches sees that it stands still, which it soon will
            self.heartbeat_file(job).write_text(f"{job.attempt} {number}\n")

    def read_heartbeat(self, job: Job) -> str | None:
        """Something that is another one each time the job's heart has beaten; None before it first did."""
        try:
            return self.heartbeat_file(job).read_text()
        except OSError:
            return None

    def heartbeat_file(self, job: Job) -> Path:
        return self.jobs_folder / f"{job.id}.beat"

    def tasks_file(self, job: Job) -> Path:
        """Where an attempt keeps the annotated tasks it has downloaded."""
        return self.jobs_folder / f"{job.id}.{job.attempt}.tasks"

    def prune(self, keep: int = MAX_FINISHED_JOBS) -> list[str]:
        """Remove the records of all but the newest `keep` finished jobs; their ids."""
        finished = [job for job in self.list_jobs() if job.is_finished]
        for job in finished[keep:]:
            for path in self.jobs_folder.glob(f"{job.id}.*"):
                with suppress(OSError):  # the next time, then
                    path.unlink(missing_ok=True)
        return [job.id for job in finished[keep:]]

    def read_annotation_counts(self) -> dict[int, int]:
        """New annotations of each project since its last job was asked for; none where the file is not readable."""
        try:
            found = orjson.loads((self.jobs_folder / "annotations").read_bytes())
            return {int(project): int(number) for project, number in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def write_annotation_counts(self, counts: Mapping[int, int]) -> None:
        try:
            self.jobs_folder.mkdir(parents=True, exist_ok=True)
            self._write_atomically(
                self.jobs_folder / "annotations", orjson.dumps({str(key): n for key, n in counts.items()})
            )
        except OSError as error:
            self._raise_not_writable(error)

    def _list_job_ids(self) -> list[str]:
        try:
            names = [path.stem for path in self.jobs_folder.glob("*.json")]
        except OSError:
            return []
        return sorted(filter(_JOB_ID.fullmatch, names), reverse=True)

    def _path(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise InputError(f"{job_id!r} is not the id of a job.", f"lsml jobs {self.versions_folder} lists them.")
        return self.jobs_folder / f"{job_id}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes a job meanwhile, on this host or another one that shares the folder."""
        try:
            descriptor = os.open(self.jobs_folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            raise InputError(f"There are no jobs in {self.versions_folder}.") from None
        except OSError as error:
            self._raise_not_writable(error)
        try:
            with suppress(OSError):  # a file system without locks; two would have to write in the same instant
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    def _write_atomically(self, path: Path, content: bytes) -> None:
        aside = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _raise_not_writable(self, error: OSError) -> NoReturn:
        raise OutputError(
            f"Jobs cannot be recorded in {self.jobs_folder}: {error.strerror}.",
            "The folder of --versions has to be writable, with some room left.",
        ) from error


def _format_utc(moment: datetime) -> str:
    return f"{moment.strftime('%Y-%m-%dT%H:%M:%S')}.{moment.microsecond // 1000:03d}Z"


def _to_json(job: Job) -> bytes:
    return orjson.dumps(
        {"format": FORMAT_VERSION} | asdict(job), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    )


def _from_json(path: Path, data: Any) -> Job:
    if isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT_VERSION:
        raise InputError(f"{path} was written by a newer lsml.", "Update lsml.")
    kinds = {each.name: str(each.type) for each in fields(Job)}
    damage = None
    if not isinstance(data, dict):
        damage = "no JSON object"
    elif wrong := [name for name, kind in kinds.items() if not _has_valid_field(data, name, kind)]:
        damage = f'its "{wrong[0]}" is missing or not what it should be'
    elif data["id"] != path.stem:
        damage = "it is the file of another job"
    if damage:
        raise InputError(f"{path} is damaged ({damage}).", f"Remove it: rm {path}")
    given = {name: data[name] for name in kinds if name in data}
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in given.items()}
    return Job(**values)


def _has_valid_field(data: Mapping[str, Any], name: str, annotation: str) -> bool:
    return _is_valid_value(data[name], annotation) if name in data else name in _OPTIONAL_FIELDS


def _is_valid_value(value: Any, annotation: str) -> bool:
    """Whether a value out of JSON is what a field of `Job` of this type holds."""
    if annotation == "JobState":
        return value in get_args(JobState)
    if annotation.startswith("Mapping"):
        texts = annotation != "Mapping[str, str]" or (isinstance(value, dict) and all(map(_is_text, value.values())))
        return isinstance(value, dict) and texts
    if annotation.startswith("tuple"):
        return isinstance(value, list) and all(map(_is_text, value))
    if annotation == "int":
        return type(value) is int
    return _is_text(value) or (value is None and annotation.endswith("None"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
