"""Options of `lsml serve`, and the checks that need no loaded model."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lsml_cli.errors import UsageError
from lsml_cli.inference import placement
from lsml_cli.label_studio.client import require_sdk
from lsml_cli.media.fetcher import Media
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.registry import resolve
from lsml_cli.server.auth import AuthConfig
from lsml_cli.server.job_record import TrainingJobConfig
from lsml_cli.server.job_store import JobStore
from lsml_cli.training.preparation import build_training_spec

EMBEDDED_JOBS = "embedded"  # value of --jobs that trains on this machine

_SECRET_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")

log = logging.getLogger("lsml.serve")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of `lsml serve`; the command line has their defaults.

    Attributes:
        max_wait, deadline: Seconds.
        versions: Folder with a folder of versions for each project; None turns training off.
        jobs: `EMBEDDED_JOBS`, or the URL of a Redis.
        train_every: Number of new or changed annotations after which a project is trained.
    """

    model: str
    params: Mapping[str, Json]
    host: str
    port: int
    device: str
    batch_size: int | None
    workers: int
    threshold: float | None
    label_map: Mapping[str, str]
    max_wait: float
    deadline: float
    max_tasks: int
    max_body_bytes: int
    basic_auth: str | None = field(repr=False)
    secret_path: str | None = field(repr=False)
    label_studio_url: str | None
    versions: Path | None
    jobs: str
    train_every: int | None
    fail_under: tuple[str, ...]
    media: Media
    verbose: bool

    def auth_config(self) -> AuthConfig:
        """Return the access rules.

        Raises:
            UsageError: --secret-path or --basic-auth is malformed.
        """
        path = (self.secret_path or "").strip("/")
        path = f"/{path}" if path else ""
        if not _SECRET_PATH.fullmatch(path):
            raise UsageError(
                "--secret-path has characters that are not allowed in it.",
                "Use letters, digits, - and _; for example the output of: openssl rand -hex 16",
            )
        user, colon, _ = (self.basic_auth or "").partition(":")
        if self.basic_auth is not None and not (user and colon):
            raise UsageError("--basic-auth is not USER:PASS.", "For example: LSML_BASIC_AUTH=labels:correct-horse")
        return AuthConfig(self.basic_auth, path)

    def find_device(self, spec: ModelSpec) -> str:
        """Return the device that the model runs on.

        Raises:
            UsageError: --device names several devices, or one that the model cannot use.
        """
        devices = placement.find_devices(self.device, spec.model_class())
        if len(devices) > 1:
            raise UsageError("lsml serve uses one device.", "Start one server for each device, on different ports.")
        return devices[0]

    def training_job_config(self) -> TrainingJobConfig | None:
        """Return what training jobs need to know on any host, None when training is off.

        Jobs look for media where the server does, so every path is absolute.
        """
        if self.versions is None or self.label_studio_url is None:
            return None
        media = self.media
        return TrainingJobConfig(
            resolve.absolute_model_name(self.model),
            self.label_studio_url,
            dict(self.params),
            self.fail_under,
            device=self.device,
            allow_hosts=media.allowed_hosts.patterns,
            document_root=_absolute(media.document_root),
            upload_root=_absolute(media.upload_root),
            # Reversed, because the first folder of a prefix counts.
            maps={prefix: str(folder.absolute()) for prefix, folder in reversed(media.prefix_map)},
            media_cache=_absolute(media.cache.folder) if media.cache else None,
            media_cache_size=media.cache.max_bytes if media.cache else 0,
        )

    def check_training(self, spec: ModelSpec) -> None:
        """Check the training options against each other and the model, before anything is loaded.

        Raises:
            UsageError: Options are missing, or the folder of versions cannot be written.
            LsmlError: The model cannot be trained, or the SDK is missing that fetches the annotations.
        """
        if self.versions is None:
            self._reject_training_options()
            return
        if self.jobs != EMBEDDED_JOBS and "://" not in self.jobs:
            raise UsageError(f"--jobs {self.jobs!r} is neither embedded nor a URL.", "--jobs redis://localhost:6379")
        if self.label_studio_url is None:
            raise UsageError(
                "Training needs the URL of the Label Studio that has the annotations.",
                "--label-studio-url http://localhost:8080, and its key in LABEL_STUDIO_API_KEY",
            )
        require_sdk()
        build_training_spec(spec)
        with suppress(OSError):
            self.versions.mkdir(parents=True, exist_ok=True)
        if not self.versions.is_dir() or not os.access(self.versions, os.W_OK):
            raise UsageError(f"--versions {self.versions} is not a writable folder.")
        jobs_folder = JobStore(self.versions).jobs_folder
        if jobs_folder.is_symlink():
            raise UsageError(
                f"{jobs_folder} is a symbolic link, and jobs would be written to where it leads.", "Remove the link."
            )

    def warn_about_missing_api_key(self) -> None:
        """Log a warning when jobs of this machine could not download annotations."""
        if self.versions is not None and self.jobs == EMBEDDED_JOBS and not os.environ.get("LABEL_STUDIO_API_KEY"):
            log.warning("LABEL_STUDIO_API_KEY is not set, and no job can download annotations without it.")

    def _reject_training_options(self) -> None:
        is_used = {
            "--train-every": self.train_every is not None,
            "--fail-under": bool(self.fail_under),
            "--jobs": self.jobs != EMBEDDED_JOBS,
        }
        if used := [option for option, is_given in is_used.items() if is_given]:
            raise UsageError(f"{used[0]} needs training, which is off.", "--versions DIR turns it on.")


def _absolute(folder: Path | None) -> str | None:
    return None if folder is None else str(folder.absolute())
