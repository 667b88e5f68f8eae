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
from lsml_cli.models.base import Json

FOLDER = ".jobs"  # below the versions
FORMAT = 1  # of a job's file; raised when an older lsml could no longer read it
KEPT = 100  # finished jobs that stay on record

State = Literal["waiting", "running", "done", "missed", "failed"]
FINISHED = frozenset({"done", "missed", "failed"})

# Fields of `Job` that a file of an older lsml does not have.
_LATER = frozenset({"device", "allow_hosts", "document_root", "upload_root", "maps", "media_cache", "media_cache_size"})

_ID = re.compile(r"\d{8}T\d{6}-\d{3}-[0-9a-f]{4}")


@dataclass(frozen=True)
class Recipe:
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
    state: State = "waiting"
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
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def seconds(self) -> float | None:
        """How long its last attempt took, None while there is no telling."""
        if self.started is None or self.ended is None:
            return None
        return (datetime.fromisoformat(self.ended) - datetime.fromisoformat(self.started)).total_seconds()


class Superseded(Exception):
    """The job went on without this attempt: it is finished, or a later attempt has been made."""


def new_job(project: int, why: str, recipe: Recipe) -> Job:
    """A job that waits; nothing is written yet."""
    now = datetime.now(UTC)
    stamp = f"{now:%Y%m%dT%H%M%S}-{now.microsecond // 1000:03d}-{secrets.token_hex(2)}"
    common = {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    return Job(id=stamp, project=project, why=why, created=_iso(now), **common)


def utc_now() -> str:
    return _iso(datetime.now(UTC))


def versions_of(versions: Path, project: int) -> Path:
    """The folder with the versions of one project's model."""
    return versions / f"project-{project}"


class JobStore:
    """The jobs below a folder of versions. Its methods block for as long as the disk does."""

    def __init__(self, versions: Path) -> None:
        self.versions = versions
        self.folder = versions / FOLDER

    def create(self, job: Job) -> None:
        """Put a new job on record. Raises OutputError when the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(self._path(job.id), _to_json(job))
        except OSError as error:
            self._refuse(error)

    def read(self, job_id: str) -> Job:
        """Raises InputError with a sentence when there is no such job or its file is damaged, TransientError when it
        cannot be read now."""
        path = self._path(job_id)
        try:
            found = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"There is no job {job_id} in {self.folder}.") from None
        except orjson.JSONDecodeError as error:
            raise InputError(f"{path} is damaged ({error}).", f"Remove it: rm {path}") from error
        except OSError as error:
            raise TransientError(f"{path} cannot be read: {error.strerror}.") from error
        return _from_json(path, found)

    def all(self, note: Callable[[str], None] = lambda sentence: None) -> list[Job]:
        """Every job, newest first; `note` takes a sentence about each file that is damaged."""
        found = []
        for job_id in self._ids():
            try:
                found.append(self.read(job_id))
            except (InputError, TransientError) as error:
                if self._path(job_id).exists():  # else it was pruned meanwhile
                    note(str(error))
        return found

    def update(self, job: Job, **changes: Any) -> Job:
        """Change the record of a job, for whoever runs the attempt that `job` is.

        Raises Superseded when that attempt no longer counts, InputError when the record is gone or damaged, and
        OutputError when it cannot be written.
        """
        with self._alone():
            now = self.read(job.id)
            if now.attempt != job.attempt or now.finished:
                raise Superseded(f"Job {job.id} has gone on without attempt {job.attempt}.")
            changed = replace(now, **changes)
            try:
                self._write(self._path(job.id), _to_json(changed))
            except OSError as error:
                self._refuse(error)
        if changed.finished or changed.attempt != job.attempt:
            with suppress(OSError):  # pruning removes them later
                self.beat_file(job).unlink(missing_ok=True)
                self.tasks_file(job).unlink(missing_ok=True)
        return changed

    def claim(self, job_id: str, attempt: int) -> Job:
        """Begin an attempt: the job is running from now on, and nobody else can claim it.

        Raises Superseded when it is running already, or this attempt no longer counts.
        """
        with self._alone():
            job = self.read(job_id)
            if job.state != "waiting" or job.attempt != attempt:
                raise Superseded(f"Job {job_id} is {job.state} in attempt {job.attempt}.")
            job = replace(job, state="running", started=utc_now(), progress=None)
            try:
                self._write(self._path(job_id), _to_json(job))
            except OSError as error:
                self._refuse(error)
        return job

    def beat(self, job: Job, number: int) -> None:
        """Say that a job is still being worked on. In place: what a shared file system caches is a name's file."""
        with suppress(OSError):  # a full disk; whoever watches sees that it stands still, which it soon will
            self.beat_file(job).write_text(f"{job.attempt} {number}\n")

    def heartbeat(self, job: Job) -> str | None:
        """Something that is another one each time the job's heart has beaten; None before it first did."""
        try:
            return self.beat_file(job).read_text()
        except OSError:
            return None

    def beat_file(self, job: Job) -> Path:
        return self.folder / f"{job.id}.beat"

    def tasks_file(self, job: Job) -> Path:
        """Where an attempt keeps the annotated tasks it has downloaded."""
        return self.folder / f"{job.id}.{job.attempt}.tasks"

    def prune(self, keep: int = KEPT) -> list[str]:
        """Remove the records of all but the newest `keep` finished jobs; their ids."""
        finished = [job for job in self.all() if job.finished]
        for job in finished[keep:]:
            for path in self.folder.glob(f"{job.id}.*"):
                with suppress(OSError):  # the next time, then
                    path.unlink(missing_ok=True)
        return [job.id for job in finished[keep:]]

    def annotations(self) -> dict[int, int]:
        """New annotations of each project since its last job was asked for; none where the file is not readable."""
        try:
            found = orjson.loads((self.folder / "annotations").read_bytes())
            return {int(project): int(number) for project, number in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def remember_annotations(self, counts: Mapping[int, int]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(self.folder / "annotations", orjson.dumps({str(key): n for key, n in counts.items()}))
        except OSError as error:
            self._refuse(error)

    def _ids(self) -> list[str]:
        try:
            names = [path.stem for path in self.folder.glob("*.json")]
        except OSError:
            return []
        return sorted(filter(_ID.fullmatch, names), reverse=True)

    def _path(self, job_id: str) -> Path:
        if not _ID.fullmatch(job_id):
            raise InputError(f"{job_id!r} is not the id of a job.", f"lsml jobs {self.versions} lists them.")
        return self.folder / f"{job_id}.json"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes a job meanwhile, on this host or another one that shares the folder."""
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            raise InputError(f"There are no jobs in {self.versions}.") from None
        except OSError as error:
            self._refuse(error)
        try:
            with suppress(OSError):  # a file system without locks; two would have to write in the same instant
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    def _write(self, path: Path, content: bytes) -> None:
        aside = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _refuse(self, error: OSError) -> NoReturn:
        raise OutputError(
            f"Jobs cannot be recorded in {self.folder}: {error.strerror}.",
            "The folder of --versions has to be writable, with some room left.",
        ) from error


def _iso(moment: datetime) -> str:
    return f"{moment.strftime('%Y-%m-%dT%H:%M:%S')}.{moment.microsecond // 1000:03d}Z"


def _to_json(job: Job) -> bytes:
    return orjson.dumps({"format": FORMAT} | asdict(job), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _from_json(path: Path, found: Any) -> Job:
    if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise InputError(f"{path} was written by a newer lsml.", "Update lsml.")
    kinds = {each.name: str(each.type) for each in fields(Job)}
    damage = None
    if not isinstance(found, dict):
        damage = "no JSON object"
    elif wrong := [name for name, kind in kinds.items() if not _has(found, name, kind)]:
        damage = f'its "{wrong[0]}" is missing or not what it should be'
    elif found["id"] != path.stem:
        damage = "it is the file of another job"
    if damage:
        raise InputError(f"{path} is damaged ({damage}).", f"Remove it: rm {path}")
    given = {name: found[name] for name in kinds if name in found}
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in given.items()}
    return Job(**values)


def _has(found: Mapping[str, Any], name: str, kind: str) -> bool:
    return _fits(found[name], kind) if name in found else name in _LATER


def _fits(value: Any, kind: str) -> bool:
    """Whether a value out of JSON is what a field of `Job` of this type holds."""
    if kind == "State":
        return value in get_args(State)
    if kind.startswith("Mapping"):
        texts = kind != "Mapping[str, str]" or (isinstance(value, dict) and all(map(_is_text, value.values())))
        return isinstance(value, dict) and texts
    if kind.startswith("tuple"):
        return isinstance(value, list) and all(map(_is_text, value))
    if kind == "int":
        return type(value) is int
    return _is_text(value) or (value is None and kind.endswith("None"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
