"""The record of one training job: its fields, and the JSON file that it is stored as.

Example:
    A file of format 1, shortened; the fields of the job's configuration stand beside its own:

        {"format": 1, "id": "20261121T101500-123-3f2a", "project": 3, "why": "START_TRAINING",
         "model": "text-classifier", …, "state": "done", "version": "project-3@20261121T101502", …}
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from lsml_cli.errors import InputError
from lsml_cli.runtime import MAX_INTEGER
from lsml_cli.schema.value_checks import is_integer

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT_VERSION = 1  # of a job's file; to be raised when an older lsml could no longer read it
JOB_ID = re.compile(r"\d{8}T\d{6}-\d{3}-[0-9a-f]{4}")

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_TIME_KEYS = ("created", "started", "ended")

_MAX_NUMBERS = {"project": MAX_INTEGER, "attempt": 1000}

JobState = Literal["waiting", "running", "done", "missed", "failed"]
FINISHED_STATES = frozenset({"done", "missed", "failed"})

# The order of keys in a file, and in the output of `lsml jobs --json`.
_KEYS = (
    *("id", "project", "why", "model", "params", "label_studio_url", "fail_under", "created", "state", "attempt"),
    *("started", "ended", "version", "reason", "progress", "facts", "device", "allow_hosts", "document_root"),
    *("upload_root", "maps", "media_cache", "media_cache_size"),
)

# Keys that files of the first releases do not have.
_OPTIONAL_KEYS = frozenset(
    {"device", "allow_hosts", "document_root", "upload_root", "maps", "media_cache", "media_cache_size"}
)


@dataclass(frozen=True)
class TrainingJobConfig:
    """What all jobs of a server have in common: its own options, which reach a job's process from the server.

    A job's file records them, and decides nothing: whoever made the folder may have put it there, with a model that
    runs code, or with an address to which the process would send the key of Label Studio.

    Attributes:
        model: Name of the model, valid in any working directory, see `resolve.find_model`.
        label_studio_url: Where the annotated tasks are downloaded from.
        params: Parameters of the model (`--with`), JSON values.
        fail_under: Gates, see `gates.parse_gates`.
        device: Device of the server, see `placement.find_devices`.
        allow_hosts: Hosts that media may be fetched from, see `AllowedHosts`.
        document_root, upload_root, maps, media_cache: Absolute folders on the server's host, see `Media`; `maps` has
            the folder of each prefix.
        media_cache_size: Bytes.
    """

    model: str
    label_studio_url: str
    params: Mapping[str, Any] = field(default_factory=dict)
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

    Attributes:
        id: Sorts by time; safe as a file name.
        project: Id of the project in Label Studio.
        why: What requested it: "START_TRAINING", "50 new annotations".
        created: When it was requested, UTC, ISO 8601; likewise `started` and `ended`.
        state: "missed": trained and kept, but not promoted because it missed a gate.
        attempt: From 1; raised when the job is started again after its process died.
        version: The trained version, "project-3@20261121T101502".
        reason: Why it failed, missed a gate, or is waiting again: a sentence, with the next action.
        progress: The last progress message of the training.
        facts: Summary of the result: counts, metrics by control, seconds.
    """

    id: str
    project: int
    why: str
    config: TrainingJobConfig
    created: str
    state: JobState = "waiting"
    attempt: int = 1
    started: str | None = None
    ended: str | None = None
    version: str | None = None
    reason: str | None = None
    progress: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Tell whether it has ended for good."""
        return self.state in FINISHED_STATES

    @property
    def seconds(self) -> float | None:
        """Duration of the last attempt, None unless it has started and ended."""
        if self.started is None or self.ended is None:
            return None
        return (_parse_time(self.ended) - _parse_time(self.started)).total_seconds()


def new_job(project: int, why: str, config: TrainingJobConfig) -> Job:
    """Return a waiting job with a new id; nothing is written."""
    now = datetime.now(UTC)
    job_id = f"{now:%Y%m%dT%H%M%S}-{now.microsecond // 1000:03d}-{secrets.token_hex(2)}"
    return Job(job_id, project, why, config, _format_utc(now))


def utc_now() -> str:
    """Return the current time as `Job` stores it."""
    return _format_utc(datetime.now(UTC))


def config_to_json(config: TrainingJobConfig) -> str:
    """Return a configuration as the process of a job takes it."""
    return orjson.dumps(asdict(config)).decode()


def config_from_json(text: str) -> TrainingJobConfig:
    """Parse what `config_to_json` returned.

    Raises:
        InputError: It comes from another lsml.
    """
    from pydantic import ValidationError

    try:
        return _config_adapter().validate_json(text, strict=True)
    except ValidationError:
        raise InputError(
            "The settings of the job are not those of this lsml.", "Use the same lsml as the server."
        ) from None


def job_to_dict(job: Job) -> dict[str, Any]:
    """Return the fields of a job and its configuration as one flat dict, in the order of the file."""
    values = asdict(job)
    values |= values.pop("config")
    return {key: values[key] for key in _KEYS}


def job_to_json(job: Job) -> bytes:
    """Return the content of a job's file."""
    return orjson.dumps(
        {"format": FORMAT_VERSION} | job_to_dict(job), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    )


def job_from_json(path: Path, content: bytes) -> Job:
    """Parse the content of a job's file; unknown keys are ignored.

    Raises:
        InputError: The file is damaged, belongs to another job, or is from a newer lsml.
    """
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(data, dict):
        raise _damaged(path, "no JSON object")
    if isinstance(data.get("format"), int) and data["format"] > FORMAT_VERSION:
        raise InputError(f"{path} was written by a newer lsml.", "Update lsml.")
    job = _validate(path, data)
    if job.id != path.stem:
        raise _damaged(path, "it is the file of another job")
    return job


def _validate(path: Path, data: Mapping[str, Any]) -> Job:
    from pydantic import ValidationError

    config_keys = {config_field.name for config_field in fields(TrainingJobConfig)}
    values = {key: data[key] for key in _KEYS if key in data and key not in config_keys}
    values["config"] = {key: data[key] for key in _KEYS if key in data and key in config_keys}
    missing = [key for key in _KEYS if key not in data and key not in _OPTIONAL_KEYS]
    missing += [key for key in _TIME_KEYS if key in data and not _is_time(key, data[key])]
    missing += [key for key, most in _MAX_NUMBERS.items() if is_integer(data.get(key)) and not 0 <= data[key] <= most]
    if not missing:
        try:
            # JSON mode, because strict validation of Python objects rejects a list for a tuple.
            return _job_adapter().validate_json(orjson.dumps(values), strict=True)
        except ValidationError as error:
            missing = [str(key) for key in error.errors()[0]["loc"] if key in _KEYS]
        except TypeError as error:  # nested more deeply than it can be written
            raise _damaged(path, "it is nested too deeply") from error
    raise _damaged(path, f'its "{missing[0]}" is missing or invalid' if missing else "it is no job")


def _is_time(key: str, value: Any) -> bool:
    """Tell whether a value is a time as `utc_now` returns it; null where the job has not come that far."""
    try:
        return (value is None and key != "created") or (bool(_TIME.fullmatch(value)) and bool(_parse_time(value)))
    except (TypeError, ValueError):
        return False


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


@lru_cache
def _job_adapter() -> TypeAdapter[Job]:
    from pydantic import TypeAdapter

    return TypeAdapter(Job)


@lru_cache
def _config_adapter() -> TypeAdapter[TrainingJobConfig]:
    from pydantic import TypeAdapter

    return TypeAdapter(TrainingJobConfig)


def _damaged(path: Path, damage: str) -> InputError:
    return InputError(f"{path} is damaged ({damage}).", f"Remove it: rm {path}")


def _format_utc(moment: datetime) -> str:
    return f"{moment.strftime('%Y-%m-%dT%H:%M:%S')}.{moment.microsecond // 1000:03d}Z"
