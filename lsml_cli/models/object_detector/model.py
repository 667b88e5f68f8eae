"""Object detection with MMDetection: fills `RectangleLabels`, and with masks `PolygonLabels` and `BrushLabels`.

filling.py   boxes and masks -> regions of the controls that have labels for them
dataset.py   annotated tasks -> a dataset in COCO's form
recipe.py    a config -> one that trains on that dataset
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lsml_cli.errors import LabelMismatch, ModelError, UsageError
from lsml_cli.models import torch_runtime
from lsml_cli.models.base import AutotuneResult, Binding, Model, Progress
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.object_detector import config as recipe
from lsml_cli.models.object_detector import dataset, postprocess
from lsml_cli.models.object_detector.postprocess import (
    CONTROL_TAGS,
    DEFAULT_THRESHOLD,
    OBJECT_TAGS,
    ControlPairs,
    Detection,
    DetectorBinding,
    ImageDetections,
    Mask,
)
from lsml_cli.models.openmmlab import checkpoints, configs, image_files, inference, toolkit
from lsml_cli.models.openmmlab import train as running
from lsml_cli.models.openmmlab.image_files import TrainingImage
from lsml_cli.models.openmmlab.inference import Input, Predictor
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.models.torch_runtime import PRECISIONS, Precision
from lsml_cli.runtime import available_cores
from lsml_cli.schema.label_config import LabelConfig, Object
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task, describe_json_type

if TYPE_CHECKING:
    from lsml_cli.models.openmmlab.configs import Config

__all__ = ["ObjectDetector"]

SCOPE: toolkit.Scope = "mmdet"
DEFAULT_CONFIG = "rtmdet_tiny_8xb32-300e_coco"
PROBE_SIZE = 8  # pictures by which precisions are compared
MIN_AGREEMENT = 0.98  # share of equal detections from which a lower precision is as good as fp32
MATCH_IOU = 0.8  # overlap of two boxes that are the same detection
RUN_DIR = "run"  # the folder of a training within that of its version; gone when it is done, unless keep_run
SCORE_TOLERANCE = 0.05  # of score: a detection that is only just sure enough need not be so in another precision


class ObjectDetector(Model):
    """Any detector of MMDetection, by its config and checkpoint; `fit` trains it for the labels of a project."""

    parallelism: ClassVar = "threads"
    batch_size: ClassVar[int] = 16
    devices: ClassVar[tuple[str, ...]] = ("cuda", "cpu")
    supports_warm_start: ClassVar[bool] = True
    required_modules: ClassVar[tuple[str, ...]] = toolkit.REQUIRED_MODULES
    install_extra: ClassVar[str | None] = toolkit.INSTALL_EXTRA
    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = dict.fromkeys(CONTROL_TAGS, OBJECT_TAGS)
    auto_params: ClassVar[tuple[str, ...]] = ("precision",)
    file_params: ClassVar[tuple[str, ...]] = ("config_file", "checkpoint_file")
    params: ClassVar[Mapping[str, Json]] = {
        "config_file": DEFAULT_CONFIG,
        "checkpoint_file": None,
        "trust_checkpoint": False,
        "thresholds": {},
        "precision": "auto",
        "epochs": 50,
        "lr": None,
        "batch_size": 8,
        "image_size": None,
        "augment": True,
        "patience": 15,
        "pretrained": True,
        "seed": 0,
        "launch": None,
        "keep_run": False,
    }

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        for name, (is_fine, wanted) in _PARAM_CHECKS.items():
            if not is_fine(self.param(name)):
                raise UsageError(f"{name} must be {wanted}, not {self.param(name)!r}.")
        self._predictor: Predictor | None = None

    @classmethod
    def available_devices(cls) -> Sequence[str]:
        return toolkit.available_devices()

    @classmethod
    def referenced_files(cls, path: Path) -> Sequence[Path]:
        return configs.base_config_paths(path)

    @cached_property
    def config(self) -> Config:
        """Of the version; of an untrained model the one that was asked for, with the model of the one to continue."""
        return configs.load(self.spec.path) if self.spec.path is not None else self._source_config

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """In the order of the model's outputs. Raises ModelError when nobody says what they are."""
        trained = self.spec if self.spec.path is not None else self.spec.init_from
        if trained is not None and trained.path is not None:
            state: Any = trained.state
            try:
                return tuple(map(str, state["classes"]))
            except (KeyError, TypeError) as error:
                raise ModelError(f"The state of {trained.model_version} is not that of a detector.") from error
        checkpoint = self._read_checkpoint()
        named = (checkpoint.classes if checkpoint else ()) or _dataset_classes(self.config)
        checkpoints.require_class_count(named, recipe.num_classes(self.config), self._model_name)
        return named

    def load(self, device: str) -> None:
        torch_runtime.use_all_cpu_cores(device)
        precision: Precision = "fp32" if self.param("precision") == "auto" else self.param("precision")
        self._predictor = Predictor(self._build_model(), SCOPE, configs.test_pipeline(self.config), device, precision)

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> DetectorBinding:
        self._require_unchanged_model()
        pairs = postprocess.find_control_pairs(config, self.spec.name)
        binding = DetectorBinding(config, label_map, project)
        binding.classes = self.classes
        able, least = (
            postprocess.supported_pairs(pairs, recipe.has_masks(self.config), self._model_name),
            self.param("thresholds"),
        )
        if self.spec.path is not None:
            return postprocess.bind(binding, pairs, able, least, self._model_name)
        try:
            found = postprocess.bind(binding, pairs, able, least, self._model_name)
        except LabelMismatch as error:  # it may be about to learn them
            binding.notes = (f"{error.message} {error.hint}",)
            return binding
        if self.param("checkpoint_file") is None and self.spec.init_from is None:
            untrained = "The model has random weights, and what it finds means nothing: name a checkpoint_file."
            found.notes = (untrained, *found.notes)
        return found

    def media_refs(self, task: Task, binding: Binding) -> list[str]:
        assert isinstance(binding, DetectorBinding)
        return [read_media_ref(each, task) for each in binding.objects]

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> tuple[Input, ...]:
        """What the model takes of each picture."""
        assert isinstance(binding, DetectorBinding)
        net = self._loaded_predictor()
        return tuple(
            net.prepare(image_files.decode_image(media[read_media_ref(each, task)])) for each in binding.objects
        )

    def forward(self, inputs: Sequence[Sequence[Input]], binding: Binding) -> Sequence[tuple[ImageDetections, ...]]:
        """What is seen in each picture of each task; all pictures of the batch at once, whatever their sizes."""
        assert isinstance(binding, DetectorBinding)
        net = self._loaded_predictor()
        least = binding.min_class_scores()
        found = iter(
            net.predict([each for given in inputs for each in given], lambda sample: extract_detections(sample, least))
        )
        return [tuple(islice(found, len(given))) for given in inputs]

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        assert isinstance(binding, DetectorBinding)
        of_object = dict(zip([each.name for each in binding.objects], output, strict=True))
        regions = [
            region
            for each in binding.control_bindings
            for region in each.regions(task, of_object[each.object.name], binding.classes, binding.threshold)
        ]
        return Prediction.of(tuple(regions), self.version)

    def autotune(self, binding: Binding, inputs: Sequence[Any], batch_size: int | None) -> AutotuneResult | None:
        """The quickest precision that finds the same, and the smallest batch that is about as quick as any."""
        assert isinstance(binding, DetectorBinding)
        asked = self.param("precision")
        if asked != "auto" and batch_size is not None:
            return None
        params: dict[str, Json] = {} if asked != "auto" else {"precision": "fp32"}
        sample = [each for given in inputs for each in given][:PROBE_SIZE]
        if not sample:
            return AutotuneResult(params, batch_size or self.batch_size, "")
        net, notes = self._loaded_predictor(), []
        if params:
            threshold = DEFAULT_THRESHOLD if binding.threshold is None else binding.threshold
            params["precision"], why = inference.best_precision(
                net, sample, lambda one, other: agreement(one, other, threshold), MIN_AGREEMENT, drop_masks
            )
            notes.append(why)
            net = net.with_precision(params["precision"])  # type: ignore[arg-type]
        if batch_size is None:
            batch_size = inference.best_batch_size(net, sample)
            notes.append(f"{batch_size} pictures at a time.")
        torch_runtime.free_memory()
        return AutotuneResult(params, batch_size, " ".join(notes))

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        """Fine-tune for the labels that the annotations have, by mmengine's Runner; the best epoch is kept."""
        if binding.media is None:
            raise UsageError(
                "Pictures cannot be fetched here.", "Say where they are: fit_version(..., media=Media(...))."
            )
        pairs = postprocess.find_control_pairs(binding.config, self.spec.name)
        classes = dataset.collect_classes(train, pairs, progress)
        start, described = self._initial_model(classes, progress)
        run = out_dir / RUN_DIR
        try:
            shown = train, validation
            source = MediaReader(binding.media.fetch, self.retry_delays)
            found = self._train(run, start, described, pairs, classes, shown, source, binding.device, progress)
            checkpoints.save(found.checkpoint.weights, out_dir)
            configs.save(described, out_dir)
        finally:
            if not self.param("keep_run"):
                shutil.rmtree(run, ignore_errors=True)
        return {"classes": list(classes), "epoch": found.epoch, "toolkit": dict(found.metrics)}

    def _initial_model(self, classes: Sequence[str], progress: Progress) -> tuple[Any, Config]:
        """A model for these classes with the weights to begin with, None for what its config says; and its config."""
        if "optim_wrapper" not in self._source_config:
            progress(f"{self.param('config_file')} is not here, or says nothing of an optimiser: it is AdamW.")
        size = self.param("image_size")
        described = recipe.build_model_config(self._source_config, classes, size)
        if size is not None and recipe.round_to_stride(size) != size:
            progress(
                f"Pictures are looked at with {recipe.round_to_stride(size)} pixels, a multiple of {recipe.STRIDE}."
            )
        configs.require_registered(described, f"The config {self._model_name}")
        earlier = self.spec.init_from
        if earlier is not None and earlier.path is not None:
            known = checkpoints.load(earlier.path)
        elif (given := self._read_checkpoint()) is not None:
            known = given
        elif self.param("pretrained"):
            return None, described
        else:
            described["model"] = configs.without_pretrained(described["model"])
            return None, described
        net = inference.build_model(described, SCOPE)
        anew = checkpoints.load_into(net, known, model_name=self._model_name, allow_shape_mismatch=True)
        if anew:
            progress(f"{len(anew)} of the model's arrays begin anew, since they belong to other classes.")
        return net, described

    @cached_property
    def _source_config(self) -> Config:
        """The config with its optimiser, which a version does not hold; its model is that of the version, if any.

        Without an optimiser where only the version is left. Raises UsageError when there is neither.
        """
        earlier = self.spec.init_from
        if earlier is None or earlier.path is None:
            return configs.read(self.param("config_file"), SCOPE, "config_file")
        stored = configs.load(earlier.path)
        try:
            asked = configs.read(self.param("config_file"), SCOPE, "config_file")
        except UsageError:
            return stored
        return asked | {key: stored[key] for key in ("model", "test_dataloader", "test_evaluator")}

    def _train(
        self,
        run_dir: Path,
        initial_model: Any,
        model_config: Config,
        pairs: ControlPairs,
        classes: Sequence[str],
        splits: Sequence[Sequence[AnnotatedTask]],
        media_reader: MediaReader,
        device: str,
        progress: Progress,
    ) -> running.TrainingResult:
        """The pictures as files, the regions as a dataset, and a training on them. shown: to learn from, held out."""
        counts = []
        for name, examples in zip(("train", "holdout"), splits, strict=True):
            looked_at: list[tuple[TrainingImage, ControlPairs]] = []
            for number, (picture, about) in enumerate(group_by_image(pairs)):
                folder = run_dir / "pictures" / f"{name}-{number}"
                gathered = image_files.fetch_images(examples, media_ref_getter(picture), media_reader, folder, progress)
                looked_at += [(each, about) for each in gathered]
            found = dataset.build_coco(looked_at, classes)
            dataset.write(found, run_dir / f"{name}.json")
            counts.append((len(found["images"]), len(found["annotations"])))
        (learned, regions), (_, held) = counts
        progress(
            f"Learning {len(classes)} classes from {regions:,} regions in {learned:,} pictures ({self._model_name})."
        )
        size = min(self.param("batch_size"), learned)
        config = recipe.build_training_config(
            model_config,
            self._source_config,
            run_dir=str(run_dir.resolve()),
            batch_size=size,
            lr=self.param("lr"),
            augment=self.param("augment"),
            warm_start=initial_model is not None,
            has_validation=held > 0,
            on_gpu=device != "cpu",
            num_workers=min(4, available_cores()) if device != "cpu" else 0,
        )
        measure = "coco/segm_mAP" if recipe.has_masks(self._source_config) else "coco/bbox_mAP"
        plan = running.TrainingSchedule(
            self.param("epochs"),
            self.param("patience"),
            measure if held else "",
            "hold-out mAP",
            has_fixed_lr=self.param("lr") is not None,
        )
        running.apply_schedule(config, plan, image_files.images_per_epoch(learned, size), size)
        return running.train(
            run_dir.resolve(),
            config,
            SCOPE,
            plan,
            initial_model,
            device=device,
            seed=self.param("seed"),
            launcher_args=self.param("launch"),
            progress=progress,
        )

    def _require_unchanged_model(self) -> None:
        """Raises UsageError when a version, which holds its model, is asked to be another one."""
        if self.spec.path is None or self.spec.version is None:
            return
        remembered = self.spec.trained_params
        for name in ("config_file", "checkpoint_file"):
            if name in remembered and self.param(name) != remembered[name]:
                raise UsageError(
                    f"{self.spec.model_version} is a trained version and holds its own model: {name} changes nothing.",
                    f"Leave it out, or start from an untrained model: --model object-detector --with {name}=FILE",
                )

    @property
    def _model_name(self) -> str:
        return self.spec.model_version if self.spec.path is not None else Path(self.param("config_file")).stem

    def _read_checkpoint(self) -> checkpoints.Checkpoint | None:
        given = self.param("checkpoint_file")
        return checkpoints.read(given, trust_pickle=self.param("trust_checkpoint")) if given else None

    def _build_model(self) -> Any:
        """The model with its weights, on the CPU."""
        net = inference.build_model(self.config, SCOPE)
        found = checkpoints.load(self.spec.path) if self.spec.path is not None else self._read_checkpoint()
        if found is not None:
            checkpoints.load_into(net, found, model_name=self._model_name)
        return net

    def _loaded_predictor(self) -> Predictor:
        if self._predictor is None:
            raise ModelError(f"{self.spec.name} has not been loaded.")
        return self._predictor


def read_media_ref(image_object: Object, task: Task) -> str:
    """The value that points to the picture. Raises ValueError with a sentence when there is none."""
    found = image_object.read(task.data)
    if not isinstance(found, str) or not found:
        raise ValueError(
            f'"{image_object.data_key}" is {describe_json_type(found)}, but {image_object} wants one address or path of a picture'
        )
    return found


def extract_detections(sample: Any, min_scores: Sequence[float]) -> ImageDetections:
    """A data sample of the toolkit, as plain numbers. SOLO's heads give masks with empty boxes: theirs are the masks'.

    least  of score, for each class: what is less sure is left out
    """
    height, width = sample.ori_shape[:2]
    found = sample.pred_instances
    found = found[found.scores >= found.scores.new_tensor(min_scores)[found.labels]].cpu()
    masks = map(Mask.from_array, found.masks.numpy()) if "masks" in found else repeat(None)
    every = zip(
        found.bboxes.float().tolist(), found.labels.tolist(), found.scores.float().tolist(), masks, strict=False
    )
    return ImageDetections(
        (width, height),
        [
            Detection(mask.box if mask is not None and _is_empty(box) else tuple(box), label, score, mask)
            for box, label, score, mask in every
        ],
    )


def _is_empty(box: Sequence[float]) -> bool:
    return box[2] <= box[0] or box[3] <= box[1]


def drop_masks(sample: Any) -> Any:
    """A data sample of the toolkit with what `agreement` compares."""
    sample.pred_instances.pop("masks", None)
    return sample


def agreement(reference: Sequence[Any], candidate: Sequence[Any], threshold: float) -> float | None:
    """Share of the sure detections that both have: of one class, and in one place. None where neither is sure."""
    import torch
    from torchvision.ops import box_iou

    matched = total = 0
    for first, second in zip(reference, candidate, strict=True):
        for mine, theirs in (
            (first.pred_instances, second.pred_instances),
            (second.pred_instances, first.pred_instances),
        ):
            mine, theirs = mine[mine.scores >= threshold], theirs[theirs.scores >= threshold - SCORE_TOLERANCE]
            total += len(mine)
            if len(mine) and len(theirs):
                overlap = box_iou(mine.bboxes.float(), theirs.bboxes.float())
                overlap = torch.where(mine.labels[:, None] == theirs.labels[None, :], overlap, 0)
                matched += int((overlap.amax(dim=1) >= MATCH_IOU).sum())
    return matched / total if total else None


def _dataset_classes(config: Config) -> tuple[str, ...]:
    """What the config says about its own dataset; of a dataset that the toolkit knows, what that says."""
    dataset = (config.get("test_dataloader") or {}).get("dataset") or {}
    while isinstance(dataset, dict):
        named = (dataset.get("metainfo") or {}).get("classes")
        if named:
            return (named,) if isinstance(named, str) else tuple(named)
        if "dataset" not in dataset:
            break
        dataset = dataset["dataset"]
    named = (config.get("metainfo") or {}).get("classes")
    if named:
        return tuple(named)
    toolkit.import_mmdet()
    from mmdet.registry import DATASETS

    family = DATASETS.get(str(dataset.get("type", "CocoDataset")))
    return tuple(getattr(family, "METAINFO", {}).get("classes", ()))


def group_by_image(pairs: ControlPairs) -> list[tuple[Object, ControlPairs]]:
    """Each picture that a task shows, with the pairs that are about it."""
    return [
        (each, [pair for pair in pairs if pair[1] == each]) for each in dict.fromkeys(source for _, source in pairs)
    ]


def media_ref_getter(image_object: Object) -> Callable[[AnnotatedTask], str]:
    """What points to the picture of an example."""
    return lambda example: read_media_ref(image_object, example.task)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_score_map(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(each) and 0 <= each <= 1 for each in value.values())


_PARAM_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "config_file": (_is_text, "the path of a config, or the name of one that comes with mmdet"),
    "checkpoint_file": (lambda value: value is None or _is_text(value), "the path of a checkpoint"),
    "trust_checkpoint": (lambda value: isinstance(value, bool), "true or false"),
    "thresholds": (_is_score_map, 'a score for each label that has its own: {"car": 0.5}'),
    "precision": (lambda value: value in ("auto", *PRECISIONS), "auto, fp32, bf16 or fp16"),
    "epochs": (_is_count, "a whole number from 1"),
    "lr": (lambda value: value is None or (_is_number(value) and 0 < value < float("inf")), "a number above 0"),
    "batch_size": (lambda value: _is_count(value) and value >= 2, "a whole number from 2"),
    "image_size": (lambda value: value is None or (_is_count(value) and value >= 32), "at least 32 pixels"),
    "augment": (lambda value: isinstance(value, bool), "true or false"),
    "patience": (_is_count, "a whole number from 1"),
    "pretrained": (lambda value: isinstance(value, bool), "true or false"),
    "seed": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "launch": (lambda value: value is None or _is_text(value), 'arguments of torchrun: "--nproc-per-node 4"'),
    "keep_run": (lambda value: isinstance(value, bool), "true or false"),
}
