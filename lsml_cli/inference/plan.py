"""What `lsml predict` was asked for, settled before the first task is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import orjson

from lsml_cli._version import __version__
from lsml_cli.errors import UsageError, sort_by_similarity
from lsml_cli.inference.dispatch import find_devices, open_replicas
from lsml_cli.inference.record_codec import BindingKey, BulkCodec
from lsml_cli.inference.replica import Replica
from lsml_cli.inference.replica_process import ReplicaProcess
from lsml_cli.io.image_paths import ImageFolderSource
from lsml_cli.io.output import OutputFormat, output_format
from lsml_cli.io.output_paths import STDOUT, part_files, require_different_files, resolve_output_path
from lsml_cli.io.source import STDIN, RecordSource
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Binding, Model
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.runtime import DEFAULT_FETCH_THREADS
from lsml_cli.schema.data_key import find_data_key
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import OutputShape

InputKind = Literal["tasks", "paths"]


@dataclass(frozen=True)
class PredictOptions:
    """What a run does besides which model it uses. See `lsml predict --help` for what each one means.

    input     what the input holds; a folder is always one of pictures
    data_key  where the paths of a folder or a list go; found in the label config if None
    media     where media are looked for; only beside the tasks if None
    reads     files that must not be written over, by what they are
    """

    input_path: str
    input_kind: InputKind = "tasks"
    data_key: str | None = None
    output: str = STDOUT
    format: OutputFormat | None = None
    output_shape: OutputShape = "tasks"
    batch_size: int | Literal["auto"] | None = None
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
    fetch_threads: int = DEFAULT_FETCH_THREADS
    protected_files: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictPlan:
    """A model that met a label config, and everything else that is settled before the first task is read.

    data_key  where the paths go that the tasks are made from; None where the input holds tasks
    tuned     what was settled by trying, see `tuning`
    """

    spec: ModelSpec
    options: PredictOptions
    model: Model  # without its weights
    binding: Binding
    devices: Sequence[str]
    batch_size: int
    codec: BulkCodec
    data_key: str | None = None
    autotuned_params: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def from_options(cls, spec: ModelSpec, config: LabelConfig, options: PredictOptions) -> Self:
        """Raises UsageError if the options make no sense, LabelMismatch if the model cannot fill the label config."""
        writes = {"--output": options.output, "--errors": options.errors, "--summary": options.summary}
        require_different_files(
            {"the input": options.input_path, **options.protected_files}, writes | part_files(writes)
        )
        if options.summary:
            resolve_output_path(options.summary)
        _require_known_labels(options.label_map, config)
        model = spec.build()
        binding = BindingKey(config, options.label_map, None, options.threshold).bind(model)
        job = BulkCodec(
            config,
            spec.model_version,
            options.id_column,
            options.output_shape,
            options.keep_annotations,
            options.skip_predicted,
        )
        return cls(
            spec,
            options,
            model,
            binding,
            find_devices(options.device, type(model)),
            options.batch_size if isinstance(options.batch_size, int) else model.batch_size,
            job,
            _resolve_data_key(config, type(model), options)
            if is_path_input(options.input_path, options.input_kind)
            else None,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should read once about how the model fits the label config."""
        classes = {name for meeting in self.binding.label_mappings for name in meeting.classes}
        unknown = [name for name in self.options.label_map if classes and name not in classes]
        mapped = (f"The model has no class {', '.join(unknown)}, which the label map names.",) if unknown else ()
        return (*self.spec.notes, *self.binding.notes, *mapped, *self._missing_data_notes())

    def _missing_data_notes(self) -> Iterator[str]:
        """What the label config shows, and a path cannot give."""
        keys = {obj.data_key for obj in self.binding.config.objects.values() if obj.data_key} - {self.data_key}
        if self.data_key is not None and keys:
            shown = " and ".join(f'"{key}"' for key in sorted(keys))
            yield f'Tasks made from paths have only "{self.data_key}"; the label config also shows {shown}.'

    @property
    def media(self) -> Media:
        tasks, kind = self.options.input_path, self.options.input_kind
        return self.options.media or Media(media_root(tasks, kind), confined=not is_path_input(tasks, kind))

    def open_source(self) -> RecordSource | ImageFolderSource:
        """The input. Raises UsageError or InputError when there is none, or when it holds nothing of the kind."""
        if self.data_key is not None and _is_input_folder(self.options.input_path):
            return ImageFolderSource(self.options.input_path, self.data_key)
        return RecordSource(self.options.input_path, self.options.id_column, self.data_key)

    def _effective_workers(self) -> int:
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
            workers=self._effective_workers(),
            media=self.media,
            fetch_threads=self.options.fetch_threads,
        )

    def run_fingerprint(self) -> dict[str, Any]:
        """Everything that decides about the bytes of the output; how fast, how patiently, from where does not count."""
        options = self.options
        return {
            "model": self.spec.model_version,
            "model digest": self.spec.digest,
            "label config": self.binding.config.digest,
            "--format": output_format(options.output, options.format),
            "--shape": options.output_shape,
            "--batch-size": self.batch_size,
            "--limit": options.limit,
            "--threshold": options.threshold,
            "--label-map": dict(options.label_map),
            "--id-column": options.id_column,
            "--data-key": self.data_key,
            "--keep-annotations": options.keep_annotations,
            "--skip-predicted": options.skip_predicted,
            "--errors": options.errors and Path(options.errors).name,
            "size of the input": _input_bytes(options.input_path),
            "lsml": __version__,
            **{f"content of {path}": digest for path, digest in self.spec.file_digests.items()},
        } | ({"tuned": dict(self.autotuned_params)} if self.autotuned_params else {})


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """`--batch-size`. Raises UsageError for what is neither a number nor "auto"."""
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch-size {text!r} is neither a whole number from 1 nor auto.")
    return int(text)


def is_path_input(input_path: str, input_kind: InputKind) -> bool:
    """Whether the input is the user's own word about which files to read, a folder or a list of paths.

    Their paths may lead anywhere. Those in a file of tasks may not: somebody else may have written it.
    """
    return input_kind == "paths" or _is_input_folder(input_path)


def media_root(input_path: str, input_kind: InputKind = "tasks") -> Path:
    """Where plain paths begin: the folder with the tasks, which they cannot leave, or else the working folder."""
    return Path() if input_path == STDIN or is_path_input(input_path, input_kind) else Path(input_path).parent


def _is_input_folder(input_path: str) -> bool:
    return input_path != STDIN and Path(input_path).is_dir()


def _resolve_data_key(config: LabelConfig, model: type[Model], options: PredictOptions) -> str:
    if options.id_column is not None:
        raise UsageError("Paths have no ids, so there is nothing that --id-column could name.", "Leave it out.")
    if options.output_shape == "predictions":
        raise UsageError(
            "Tasks made from paths have no ids, and --shape predictions names tasks by id.",
            "Use --shape tasks, or import the tasks and predict their export.",
        )
    return find_data_key(
        config, model.supported_controls, options.data_key, images_only=_is_input_folder(options.input_path)
    )


def _require_known_labels(label_map: Mapping[str, str], config: LabelConfig) -> None:
    """Refuse a label map that leads to labels which the config does not have."""
    labels = {label.name for control in config.controls.values() for label in control.labels}
    labels |= {label.value for control in config.controls.values() for label in control.labels}
    if any(control.has_dynamic_labels for control in config.controls.values()):
        return
    for label in label_map.values():
        if label not in labels:
            known = ", ".join(sort_by_similarity(label, labels))
            raise UsageError(
                f"The label map names {label!r}, which the label config does not have.", f"It has: {known}."
            )


def _input_bytes(source: str) -> int | None:
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
