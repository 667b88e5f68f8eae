"""What `lsml predict` was asked for, settled before the first task is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import orjson

from lsml_cli import __version__
from lsml_cli.destination import STDOUT, in_progress, require_different_files, writable
from lsml_cli.errors import UsageError, closest_first
from lsml_cli.job import BulkJob
from lsml_cli.label_config import LabelConfig
from lsml_cli.media import Media
from lsml_cli.models.base import Binding, Model, ModelSpec
from lsml_cli.output import Format, output_format
from lsml_cli.pipeline import find_devices, open_replicas
from lsml_cli.predictions import Shape
from lsml_cli.replica import Replica, Setting
from lsml_cli.replica_process import ReplicaProcess
from lsml_cli.source import STDIN


@dataclass(frozen=True)
class PredictOptions:
    """What a run does besides which model it uses. See `lsml predict --help` for what each one means.

    media  where media are looked for; only beside the tasks if None
    reads  files that must not be written over, by what they are
    """

    tasks: str
    output: str = STDOUT
    format: Format | None = None
    shape: Shape = "tasks"
    batch_size: int | None = None
    workers: int = 1
    device: str = "auto"
    limit: int | None = None
    threshold: float | None = None
    label_map: Mapping[str, str] = field(default_factory=dict)
    id_column: str | None = None
    keep_annotations: bool = False
    skip_predicted: bool = False
    on_error: Literal["skip", "fail"] = "skip"
    errors: str | None = None
    max_failures: int | None = None
    resume: bool = False
    summary: str | None = None
    media: Media | None = None
    reads: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A model that met a label config, and everything else that is settled before the first task is read."""

    spec: ModelSpec
    options: PredictOptions
    model: Model  # without its weights
    binding: Binding
    devices: Sequence[str]
    batch_size: int
    job: BulkJob

    @classmethod
    def make(cls, spec: ModelSpec, config: LabelConfig, options: PredictOptions) -> Self:
        """Raises UsageError if the options make no sense, LabelMismatch if the model cannot fill the label config."""
        writes = {"--output": options.output, "--errors": options.errors, "--summary": options.summary}
        require_different_files({"the input": options.tasks, **options.reads}, writes | in_progress(writes))
        if options.summary:
            writable(options.summary)
        _require_labels(options.label_map, config)
        model = spec.build()
        job = BulkJob(
            config,
            spec.model_version,
            options.id_column,
            options.shape,
            options.keep_annotations,
            options.skip_predicted,
        )
        return cls(
            spec,
            options,
            model,
            Setting(config, options.label_map, None, options.threshold).bind(model),
            find_devices(options.device, type(model)),
            options.batch_size or model.batch_size,
            job,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should read once about how the model fits the label config."""
        classes = {name for meeting in self.binding.meetings for name in meeting.classes}
        unknown = [name for name in self.options.label_map if classes and name not in classes]
        mapped = (f"The model has no class {', '.join(unknown)}, which the label map names.",) if unknown else ()
        return (*self.spec.notes, *self.binding.notes, *mapped)

    @property
    def media(self) -> Media:
        return self.options.media or Media(media_root(self.options.tasks))

    def _workers(self) -> int:
        """As many as were asked for, but none that would have nothing to do."""
        if self.options.limit is None:
            return self.options.workers
        batches = -(-self.options.limit // self.batch_size)
        return max(1, min(self.options.workers, batches))

    def open_replicas(self) -> AbstractContextManager[list[Replica | ReplicaProcess]]:
        return open_replicas(
            self.spec,
            self.binding.config,
            label_map=self.options.label_map,
            threshold=self.options.threshold,
            devices=self.devices,
            workers=self._workers(),
            media=self.media,
        )

    def started_with(self) -> dict[str, Any]:
        """Everything that decides about the bytes of the output; how fast, how patiently, from where does not count."""
        options = self.options
        return {
            "model": self.spec.model_version,
            "model digest": self.spec.digest,
            "label config": self.binding.config.digest,
            "--format": output_format(options.output, options.format),
            "--shape": options.shape,
            "--batch-size": self.batch_size,
            "--limit": options.limit,
            "--threshold": options.threshold,
            "--label-map": dict(options.label_map),
            "--id-column": options.id_column,
            "--keep-annotations": options.keep_annotations,
            "--skip-predicted": options.skip_predicted,
            "--errors": options.errors and Path(options.errors).name,
            "size of the input": _size(options.tasks),
            "lsml": __version__,
        }


def media_root(tasks: str) -> Path:
    """The folder that plain paths are below: the one with the tasks."""
    return Path() if tasks == STDIN else Path(tasks).parent


def _require_labels(label_map: Mapping[str, str], config: LabelConfig) -> None:
    """Refuse a label map that leads to labels which the config does not have."""
    labels = {label.name for control in config.controls.values() for label in control.labels}
    labels |= {label.value for control in config.controls.values() for label in control.labels}
    if any(control.dynamic for control in config.controls.values()):
        return
    for label in label_map.values():
        if label not in labels:
            known = ", ".join(closest_first(label, labels))
            raise UsageError(
                f"The label map names {label!r}, which the label config does not have.", f"It has: {known}."
            )


def _size(source: str) -> int | None:
    return Path(source).stat().st_size if source != STDIN and Path(source).is_file() else None


def read_label_map(path: Path) -> dict[str, str]:
    """A `--label-map` file: a JSON object from classes of the model to labels of the config."""
    try:
        found = orjson.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"The label map {path} cannot be read: {error.strerror}.") from None
    except orjson.JSONDecodeError as error:
        raise UsageError(f"The label map {path} is not JSON: {error}.") from None
    if not isinstance(found, dict) or not all(isinstance(label, str) for label in found.values()):
        raise UsageError(f"The label map {path} is not a JSON object of strings.", 'Write {"model class": "label"}.')
    return found
