"""The options of `lsml predict`, and the plan of a run: all that is decided before the first task is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import orjson

from lsml_cli._version import __version__
from lsml_cli.errors import UsageError, format_list, suggest_names
from lsml_cli.inference.placement import find_devices, open_replicas
from lsml_cli.inference.record_codec import BindingKey, BulkCodec
from lsml_cli.inference.replica import Replica
from lsml_cli.inference.replica_process import ReplicaProcess
from lsml_cli.io.formats.dataset_source import DatasetSource, ReadOptions
from lsml_cli.io.formats.registry import DATASETS, FORMATS, open_dataset
from lsml_cli.io.output_paths import STDOUT, is_stdout, require_different_files, resolve_output_path
from lsml_cli.io.output_target import OutputFormat, OutputTarget, part_files
from lsml_cli.io.source import STDIN
from lsml_cli.io.task_source import TaskSource, is_folder, open_task_source, recognize_dataset
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Binding, Model
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, MAX_INTEGER
from lsml_cli.schema.data_key import TEXT_TAGS, find_data_key, find_text_key
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import OutputShape

InputKind = str  # "tasks", "paths", "lines", or the format of a data set

_ALSO_TASKS = frozenset({"spans-jsonl"})  # formats whose files are tasks as well: objects that are only data

AUTOTUNED_KEY = "tuned"  # under which a run's fingerprint holds what was decided by trying


@dataclass(frozen=True)
class PredictOptions:
    """What a run does, besides which model it uses. `lsml predict --help` explains those that are not listed here.

    Attributes:
        input_path: A file, a folder of images, or "-" for standard input.
        input_kind: What the input holds: "tasks", "paths", "lines", or the format of a data set. Tasks in a folder are
            images.
        data_key: The key of a task's data that gets the paths of a folder or a list, or the lines of a text; None: by
            the label config.
        batch_size: Tasks per batch; "auto": measured on the first tasks; None: what the model prefers.
        limit: Predict only so many tasks.
        threshold: Drop regions that score below this probability.
        max_failures: Stop when more tasks than this failed.
        media: Fetches what tasks point to; None: only files beside the tasks.
        fetch_threads: Threads that wait for media.
        protected_files: Further files that must not be written over, by what messages call them.
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

    @cached_property
    def target(self) -> OutputTarget:
        return OutputTarget(self.output, self.errors, self.format)


@dataclass(frozen=True)
class PredictPlan:
    """A model bound to a label config, and everything else that is decided before the first task is read.

    Attributes:
        model: The model without its weights.
        devices: One replica, or several, on each.
        codec: How records become tasks, and outcomes become records.
        data_key: The key of a task's data that gets the paths of a folder or a list, or the lines of a text; None where
            the input holds tasks.
        autotuned_params: What was decided by trying, see `autotune`.
        dataset: The open data set that the input is; None where it is none.
    """

    spec: ModelSpec
    options: PredictOptions
    model: Model
    binding: Binding
    devices: Sequence[str]
    batch_size: int
    codec: BulkCodec
    data_key: str | None = None
    autotuned_params: Mapping[str, Json] = field(default_factory=dict)
    dataset: DatasetSource | None = None

    @classmethod
    def from_options(cls, spec: ModelSpec, config: LabelConfig, options: PredictOptions) -> Self:
        """Check the options and bind the model, which takes no weights.

        Raises:
            UsageError: The options make no sense.
            LabelMismatch: The model cannot fill the label config.
        """
        outputs = {"--output": options.output, "--errors": options.errors, "--summary": options.summary}
        require_different_files(
            {"the input": options.input_path, **options.protected_files}, outputs | part_files(outputs)
        )
        if options.summary and not is_stdout(options.summary):
            resolve_output_path(options.summary)
        _require_known_labels(options.label_map, config)
        model = spec.build()
        binding = BindingKey(config, options.label_map, None, options.threshold).bind(model)
        codec = BulkCodec(
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
            codec,
            _resolve_data_key(config, type(model), options),
            dataset=_open_dataset(config, type(model), options),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences to show once about how the model fits the label config."""
        classes = {name for mapping in self.binding.label_mappings for name in mapping.classes}
        unknown = [name for name in self.options.label_map if classes and name not in classes]
        label_map_notes = (
            (
                f"The model has no class {format_list(unknown)}, which the label map names. "
                f"{suggest_names(unknown[0], classes, 'It has')}",
            )
            if unknown
            else ()
        )
        return (*self.spec.notes, *self.binding.notes, *label_map_notes, *self._missing_data_notes())

    def _missing_data_notes(self) -> Iterator[str]:
        """Yield a sentence if the label config shows data that tasks made from paths or lines do not have."""
        keys = {obj.data_key for obj in self.binding.config.objects.values() if obj.data_key} - {self.data_key}
        if self.data_key is not None and keys:
            missing = " and ".join(f'"{key}"' for key in sorted(keys))
            made_from = _made_from(self.options)
            yield f'Tasks made from {made_from} have only "{self.data_key}"; the label config also shows {missing}.'

    @property
    def media(self) -> Media:
        path, kind = self.options.input_path, self.options.input_kind
        media = self.options.media or Media(media_root(path, kind), confined=not is_path_input(path, kind))
        return self.dataset.locate_media(media) if self.dataset else media

    def open_source(self) -> TaskSource:
        """Open the input; raise UsageError or InputError when there is none, or when it holds nothing of the kind."""
        if self.dataset is not None:
            return self.dataset
        keys = {obj.data_key for obj in self.binding.config.objects.values() if obj.data_key}
        return open_task_source(
            self.options.input_path,
            self.options.id_column,
            self.data_key,
            has_texts=self.options.input_kind == "lines",
            data_keys=keys,
        )

    def _effective_workers(self) -> int:
        """Return the requested number of workers, or fewer if some would have nothing to do."""
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
        """Return what decides about the bytes of the output, by names for messages; a resumed run must have the same.

        Workers, retries and where media come from do not count.
        """
        options = self.options
        return {
            "model": self.spec.model_version,
            "model digest": self.spec.digest,
            "label config": self.binding.config.digest,
            "--format": options.target.format,
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
            **({"--from": options.input_kind} if self.dataset else {}),
        } | ({AUTOTUNED_KEY: dict(self.autotuned_params)} if self.autotuned_params else {})


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """Parse `--batch-size`; raise UsageError for what is neither a positive number nor "auto"."""
    if text == "auto":
        return "auto"
    if not re.fullmatch("[0-9]{1,20}", text) or not 1 <= int(text) <= MAX_INTEGER:
        raise UsageError(f"--batch-size {text!r} is neither a whole number from 1 to 2^63 - 1 nor auto.")
    return int(text)


def is_path_input(input_path: str, input_kind: InputKind) -> bool:
    """Return whether the user names the media directly, by a folder or a list of paths.

    Such paths may lead anywhere. Those in a file of tasks may not: it may come from elsewhere.
    """
    return input_kind == "paths" or (input_kind == "tasks" and is_folder(input_path))


def media_root(input_path: str, input_kind: InputKind = "tasks") -> Path:
    """Return the folder that relative paths start from: that of the tasks file, else the working folder."""
    return Path() if input_path == STDIN or is_path_input(input_path, input_kind) else Path(input_path).parent


def _made_from(options: PredictOptions) -> str:
    return "lines" if options.input_kind == "lines" else "paths"


def _resolve_data_key(config: LabelConfig, model: type[Model], options: PredictOptions) -> str | None:
    """Return the data key for tasks made from paths or lines, None for others; raise UsageError for a need of ids."""
    has_texts = options.input_kind == "lines"
    if not has_texts and not is_path_input(options.input_path, options.input_kind):
        return None
    if options.id_column is not None:
        raise UsageError(
            f"{_made_from(options).title()} have no ids, so there is nothing that --id-column could name.",
            "Leave it out.",
        )
    if options.output_shape == "predictions":
        raise UsageError(
            f"Tasks made from {_made_from(options)} have no ids, and --shape predictions names tasks by id.",
            "Use --shape tasks, or import the tasks and predict their export.",
        )
    if has_texts:
        return find_text_key(config, model.supported_controls, options.data_key)
    return find_data_key(config, model.supported_controls, options.data_key, images_only=is_folder(options.input_path))


def _open_dataset(config: LabelConfig, model: type[Model], options: PredictOptions) -> DatasetSource | None:
    """Open the data set that the input is, None where it is none.

    What counts are its images or texts: its labels need not fit the label config.
    """
    path, kind = options.input_path, options.input_kind
    name = kind if kind in DATASETS else None
    if kind == "tasks" and not is_folder(path):
        name = recognize_dataset(path)
        name = None if name in _ALSO_TASKS else name
    if name is None:
        return None
    if options.id_column is not None or options.output_shape == "predictions":
        raise UsageError(
            "Tasks of a data set have no ids, which --id-column and --shape predictions are about.",
            "Leave these out, or import the tasks and predict their export.",
        )
    if FORMATS[name].is_table:
        return open_dataset(name, path, ReadOptions(needs_labels=False))
    dataset = open_dataset(name, path, ReadOptions())
    [shown, *_] = dataset.label_config.objects.values()
    is_text = shown.tag.lower() in TEXT_TAGS
    find_key = find_text_key if is_text else partial(find_data_key, images_only=shown.tag.lower() == "image")
    key = find_key(config, model.supported_controls, options.data_key)
    if key == shown.data_key:
        return dataset
    with dataset:
        return open_dataset(name, path, ReadOptions(data_key=key))


def _require_known_labels(label_map: Mapping[str, str], config: LabelConfig) -> None:
    """Raise UsageError if the label map leads to a label that the config does not have."""
    labels = {label.name for control in config.controls.values() for label in control.labels}
    labels |= {label.value for control in config.controls.values() for label in control.labels}
    if any(control.has_dynamic_labels for control in config.controls.values()):
        return
    for label in label_map.values():
        if label not in labels:
            raise UsageError(
                f"The label map names {label!r}, which the label config does not have.",
                suggest_names(label, labels, "It has"),
            )


def _input_bytes(input_path: str) -> int | None:
    return Path(input_path).stat().st_size if input_path != STDIN and Path(input_path).is_file() else None


def read_label_map(path: Path) -> dict[str, str]:
    """Read a `--label-map` file: a JSON object from classes of the model to labels of the config."""
    try:
        label_map = orjson.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"The label map {path} cannot be read: {error.strerror}.") from None
    except orjson.JSONDecodeError as error:
        raise UsageError(f"The label map {path} is not JSON: {error}.") from None
    if not isinstance(label_map, dict) or not all(isinstance(label, str) for label in label_map.values()):
        raise UsageError(f"The label map {path} is not a JSON object of strings.", 'Write {"model class": "label"}.')
    return label_map
