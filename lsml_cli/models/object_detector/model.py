"""Detect objects with MMDetection: fills `RectangleLabels`, and with masks `PolygonLabels` and `BrushLabels`.

binding.py      classes -> labels, detections -> regions
postprocess.py  outputs of the model -> detections
config.py       a toolkit's config -> one that trains on our dataset, and one that predicts
dataset.py      annotated tasks -> a dataset in COCO's format
train.py        that dataset -> weights
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lsml_cli.errors import LabelMismatch, ModelError, UsageError
from lsml_cli.models import autotune, torch_runtime
from lsml_cli.models.base import AutotuneResult, Model, Progress
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.media_refs import read_image_ref, require_media
from lsml_cli.models.object_detector import binding as detector_binding
from lsml_cli.models.object_detector import dataset
from lsml_cli.models.object_detector.binding import (
    CONTROL_TAGS,
    DEFAULT_THRESHOLD,
    OBJECT_TAGS,
    DetectorBinding,
)
from lsml_cli.models.object_detector.config import (
    STRIDE,
    build_model_config,
    dataset_classes,
    has_masks,
    num_classes,
    round_to_stride,
)
from lsml_cli.models.object_detector.postprocess import ImageDetections, agreement, drop_masks, extract_detections
from lsml_cli.models.object_detector.train import SCOPE, TrainConfig, train_detector, write_dataset
from lsml_cli.models.openmmlab import checkpoints, configs, image_files, inference, toolkit
from lsml_cli.models.openmmlab.inference import Input, Predictor
from lsml_cli.models.parameters import Parameter
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.models.torch_runtime import PRECISIONS, Precision
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task

if TYPE_CHECKING:
    from torch import nn

    from lsml_cli.models.openmmlab.configs import Config

__all__ = ["ObjectDetector"]

RUN_DIR = "run"  # subfolder of a version while it is trained; removed at the end, unless keep_run
PRECISION_POLICY = autotune.PrecisionPolicy(
    min_agreement=0.98,
    result_noun="detections",
    timed_batch_size=inference.PROBE_SIZE,
    min_speedup=inference.MIN_SPEEDUP,
)


def _is_score_map(value: Any) -> bool:
    scores = value.values()
    return all(isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1 for score in scores)


class ObjectDetector(Model[DetectorBinding]):
    """Detect objects with any model of MMDetection, by its config and checkpoint; `fit` trains it for a project."""

    parallelism: ClassVar = "threads"
    batch_size: ClassVar[int] = 16
    devices: ClassVar[tuple[str, ...]] = ("cuda", "cpu")
    supports_warm_start: ClassVar[bool] = True
    required_modules: ClassVar[tuple[str, ...]] = toolkit.REQUIRED_MODULES
    install_extra: ClassVar[str | None] = toolkit.INSTALL_EXTRA
    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = dict.fromkeys(CONTROL_TAGS, OBJECT_TAGS)
    auto_params: ClassVar[tuple[str, ...]] = ("precision",)
    file_params: ClassVar[tuple[str, ...]] = ("config_file", "checkpoint_file")
    params: ClassVar[Mapping[str, Json | Parameter]] = {
        "config_file": Parameter(
            "rtmdet_tiny_8xb32-300e_coco",
            "config of the detector",
            check=bool,
            expected="the path of a config, or the name of one that comes with mmdet",
        ),
        "checkpoint_file": Parameter(
            None,
            "weights of the detector; null for random ones",
            kind="str",
            check=bool,
            expected="the path of a checkpoint",
        ),
        "trust_checkpoint": Parameter(False, "read a checkpoint that holds more than weights, which may run code"),
        "thresholds": Parameter(
            {},
            "scores from which detections become regions, by label",
            check=_is_score_map,
            expected='a score for each label that has its own: {"car": 0.5}',
        ),
        "precision": Parameter(
            "auto",
            "precision of the forward pass; auto measures which is fastest and equally good",
            choices=("auto", *PRECISIONS),
            expected="auto, fp32, bf16 or fp16",
        ),
        "epochs": Parameter(50, "most passes over the training images", minimum=1),
        "lr": Parameter(
            None, "learning rate; null for that of the config, scaled to the batch size", kind="float", above=0
        ),
        "batch_size": Parameter(8, "images per training step", minimum=2),
        "image_size": Parameter(
            None,
            "longer side of images for the model, in pixels; null for that of the config",
            kind="int",
            minimum=32,
            expected="at least 32 pixels",
        ),
        "augment": Parameter(True, "train on images that are scaled, mirrored, and changed in color"),
        "patience": Parameter(15, "epochs without improvement after which training stops", minimum=1),
        "pretrained": Parameter(
            True, "without a checkpoint, start from the weights that the config names; they are fetched once"
        ),
        "seed": Parameter(0, "seed of everything random in training"),
        "launch": Parameter(
            None,
            "train in several processes, by torchrun with these arguments",
            kind="str",
            check=bool,
            expected='arguments of torchrun: "--nproc-per-node 4"',
        ),
        "keep_run": Parameter(False, "keep the dataset and the log of a training in its version"),
    }

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._predictor: Predictor | None = None

    @classmethod
    def available_devices(cls) -> Sequence[str]:
        return toolkit.available_devices()

    @classmethod
    def referenced_files(cls, path: Path) -> Sequence[Path]:
        return configs.base_config_paths(path)

    @cached_property
    def config(self) -> Config:
        """The config of the version; of an untrained model the one it names, with the model of `spec.init_from`."""
        return configs.load(self.spec.path) if self.spec.path is not None else self._source_config

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes in the order of the model's outputs. Raises ModelError if nothing says what they are."""
        trained = self.spec if self.spec.path is not None else self.spec.init_from
        if trained is not None and trained.path is not None:
            state: Any = trained.state
            try:
                return tuple(map(str, state["classes"]))
            except (KeyError, TypeError) as error:
                raise ModelError(f"The state of {trained.model_version} is not that of a detector.") from error
        checkpoint = self._read_checkpoint()
        classes = (checkpoint.classes if checkpoint else ()) or dataset_classes(self.config)
        checkpoints.require_class_count(classes, num_classes(self.config), self._model_name)
        return classes

    def load(self, device: str) -> None:
        torch_runtime.use_all_cpu_cores(device)
        precision: Precision = "fp32" if self.param("precision") == "auto" else self.param("precision")
        self._predictor = Predictor(self._build_model(), SCOPE, configs.test_pipeline(self.config), device, precision)

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> DetectorBinding:
        self._require_unchanged_model()
        pairs = detector_binding.find_control_pairs(config, self.spec.name)
        binding = DetectorBinding(config, label_map, project)
        binding.classes = self.classes
        supported = detector_binding.supported_pairs(pairs, has_masks(self.config), self._model_name)
        thresholds: Mapping[str, float] = self.param("thresholds")
        try:
            bound = detector_binding.bind(binding, pairs, supported, thresholds, self._model_name)
        except LabelMismatch as error:
            if self.spec.path is not None:
                raise
            binding.notes = (f"{error.message} {error.hint}",)  # it may be about to learn the labels
            return binding
        if self.spec.path is None and self.param("checkpoint_file") is None and self.spec.init_from is None:
            untrained = "The model has random weights, and what it finds means nothing: name a checkpoint_file."
            bound.notes = (untrained, *bound.notes)
        return bound

    def media_refs(self, task: Task, binding: DetectorBinding) -> list[str]:
        return [read_image_ref(image, task) for image in binding.objects]

    def encode(self, task: Task, binding: DetectorBinding, media: Mapping[str, bytes]) -> tuple[Input, ...]:
        """Return the model's input for each image of the task."""
        predictor = self._loaded_predictor()
        return tuple(predictor.prepare(image_files.decode_image(media[ref])) for ref in self.media_refs(task, binding))

    def forward(
        self, inputs: Sequence[Sequence[Input]], binding: DetectorBinding
    ) -> Sequence[tuple[ImageDetections, ...]]:
        """Return the detections in each image of each task; all images of the batch go through the model together."""
        min_scores = binding.min_class_scores()
        images = [image for task_images in inputs for image in task_images]
        detections = iter(
            self._loaded_predictor().predict(images, lambda sample: extract_detections(sample, min_scores))
        )
        return [tuple(islice(detections, len(task_images))) for task_images in inputs]

    def decode(self, output: Any, task: Task, binding: DetectorBinding) -> Prediction:
        detections_of = dict(zip([image.name for image in binding.objects], output, strict=True))
        regions = [
            region
            for control_binding in binding.control_bindings
            for region in control_binding.regions(
                task, detections_of[control_binding.object.name], binding.classes, binding.threshold
            )
        ]
        return Prediction.of(tuple(regions), self.version)

    def autotune(
        self, binding: DetectorBinding, inputs: Sequence[Any], batch_size: int | None
    ) -> AutotuneResult | None:
        """Choose the fastest precision that finds the same, and a batch size."""
        threshold = DEFAULT_THRESHOLD if binding.threshold is None else binding.threshold
        trial = None
        if images := [image for task_images in inputs for image in task_images]:
            trial = inference.PredictorTrial(
                self._loaded_predictor(),
                images,
                lambda reference, candidate: agreement(reference, candidate, threshold),
                drop_masks,
            )
        return autotune.autotune(self, trial, batch_size, PRECISION_POLICY, batch_sizes=inference.BATCH_SIZES)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: DetectorBinding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        """Fine-tune the model for the labels in the annotations; the best epoch is kept."""
        media = require_media(binding)
        pairs = detector_binding.find_control_pairs(binding.config, self.spec.name)
        classes = dataset.collect_classes(train, pairs, progress)
        initial_model, model_config = self._initial_model(classes, progress)
        config = self._train_config(out_dir / RUN_DIR, binding.device)
        try:
            media_reader = MediaReader(media.fetch, self.retry_delays)
            data = write_dataset(train, validation, pairs, classes, config.run_dir, media_reader, progress)
            progress(
                f"Learning {len(classes)} classes from {data.num_regions:,} regions in {data.num_images:,} images "
                f"({self._model_name})."
            )
            result = train_detector(initial_model, model_config, self._source_config, data, config, progress)
            checkpoints.save(result.checkpoint.weights, out_dir)
            configs.save(model_config, out_dir)
        finally:
            if not self.param("keep_run"):
                shutil.rmtree(config.run_dir, ignore_errors=True)
        return {"classes": list(classes), "epoch": result.epoch, "toolkit": dict(result.metrics)}

    def _train_config(self, run_dir: Path, device: str) -> TrainConfig:
        names = ("epochs", "lr", "batch_size", "augment", "patience", "seed", "launch")
        settings: dict[str, Any] = {name: self.param(name) for name in names}
        return TrainConfig(run_dir=run_dir, model_name=self._model_name, device=device, **settings)

    def _initial_model(self, classes: Sequence[str], progress: Progress) -> tuple[nn.Module | None, Config]:
        """Build what training starts from.

        Returns:
            A model with initial weights, or None for those that its config names; and the config for these classes.
        """
        model_config = self._build_model_config(classes, progress)
        init_from = self.spec.init_from
        if init_from is not None and init_from.path is not None:
            checkpoint = checkpoints.load(init_from.path)
        elif (named_checkpoint := self._read_checkpoint()) is not None:
            checkpoint = named_checkpoint
        else:
            if not self.param("pretrained"):
                model_config["model"] = configs.without_pretrained(model_config["model"])
            return None, model_config
        net = inference.build_model(model_config, SCOPE)
        reinitialized = checkpoints.load_into(net, checkpoint, model_name=self._model_name, allow_shape_mismatch=True)
        if reinitialized:
            progress(
                f"{len(reinitialized)} of the model's arrays are reinitialized, since they belong to other classes."
            )
        return net, model_config

    def _build_model_config(self, classes: Sequence[str], progress: Progress) -> Config:
        if "optim_wrapper" not in self._source_config:
            progress(f"{self.param('config_file')} is not here, or names no optimizer: AdamW is used.")
        size = self.param("image_size")
        model_config = build_model_config(self._source_config, classes, size)
        if size is not None and round_to_stride(size) != size:
            progress(f"Images are resized to {round_to_stride(size)} pixels, a multiple of {STRIDE}.")
        configs.require_storable(model_config, f"The config {self._model_name}")
        return model_config

    @cached_property
    def _source_config(self) -> Config:
        """The config with its optimizer, which a version does not hold; its model is that of the version, if any.

        Without an optimizer where only the version is left. Raises UsageError if there is neither.
        """
        init_from = self.spec.init_from
        if init_from is None or init_from.path is None:
            return configs.read(self.param("config_file"), SCOPE, "config_file")
        stored, config_file = configs.load(init_from.path), self.param("config_file")
        try:
            source = configs.read(config_file, SCOPE, "config_file")
        except UsageError:
            return stored
        return source | {key: stored[key] for key in ("model", "test_dataloader", "test_evaluator")}

    def _require_unchanged_model(self) -> None:
        """Raise UsageError if parameters name another model for a version, which holds its own."""
        if self.spec.path is None or self.spec.version is None:
            return
        trained_params = self.spec.trained_params
        for name in ("config_file", "checkpoint_file"):
            if name in trained_params and self.spec.params.get(name) != trained_params[name]:
                raise UsageError(
                    f"{self.spec.model_version} is a trained version and holds its own model: {name} changes nothing.",
                    f"Leave it out, or start from an untrained model: --model object-detector --with {name}=FILE",
                )

    @property
    def _model_name(self) -> str:
        return self.spec.model_version if self.spec.path is not None else Path(self.param("config_file")).stem

    def _read_checkpoint(self) -> checkpoints.Checkpoint | None:
        path = self.param("checkpoint_file")
        return checkpoints.read(path, trust_pickle=self.param("trust_checkpoint")) if path else None

    def _build_model(self) -> nn.Module:
        """Build the model with its weights, on the CPU."""
        net = inference.build_model(self.config, SCOPE)
        checkpoint = checkpoints.load(self.spec.path) if self.spec.path is not None else self._read_checkpoint()
        if checkpoint is not None:
            checkpoints.load_into(net, checkpoint, model_name=self._model_name)
        return net

    def _loaded_predictor(self) -> Predictor:
        if self._predictor is None:
            raise ModelError(f"{self.spec.name} has not been loaded.")
        return self._predictor
