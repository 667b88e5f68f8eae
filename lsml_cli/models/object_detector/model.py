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
from lsml_cli.inference.replica import cores
from lsml_cli.models import torch_runtime
from lsml_cli.models.base import Binding, Json, Model, ModelSpec, Progress, Tuning
from lsml_cli.models.media_reader import Source
from lsml_cli.models.object_detector import config as recipe
from lsml_cli.models.object_detector import dataset, postprocess
from lsml_cli.models.object_detector.postprocess import (
    CONTROLS,
    SURE,
    TAGS,
    DetectorBinding,
    Instance,
    Mask,
    Pairs,
    Seen,
)
from lsml_cli.models.openmmlab import checkpoints, configs, image_files, inference, toolkit
from lsml_cli.models.openmmlab import train as running
from lsml_cli.models.openmmlab.image_files import Gathered
from lsml_cli.models.openmmlab.inference import Input, Net
from lsml_cli.models.torch_runtime import PRECISIONS, Precision
from lsml_cli.registry import versions
from lsml_cli.schema.label_config import LabelConfig, Object
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import Labelled, Task, kind

if TYPE_CHECKING:
    from lsml_cli.models.openmmlab.configs import Config

__all__ = ["ObjectDetector"]

SCOPE: toolkit.Scope = "mmdet"
DEFAULT_CONFIG = "rtmdet_tiny_8xb32-300e_coco"
PROBED = 8  # pictures by which precisions are compared
AGREEMENT = 0.98  # share of equal detections from which a lower precision is as good as fp32
EQUAL = 0.8  # overlap of two boxes that are the same detection
RUN = "run"  # the folder of a training within that of its version; gone when it is done, unless keep_run
SLACK = 0.05  # of score: a detection that is only just sure enough need not be so in another precision


class ObjectDetector(Model):
    """Any detector of MMDetection, by its config and checkpoint; `fit` trains it for the labels of a project."""

    place: ClassVar = "threads"
    batch_size: ClassVar[int] = 16
    devices: ClassVar[tuple[str, ...]] = ("cuda", "cpu")
    can_continue: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = toolkit.NEEDS
    extra: ClassVar[str | None] = toolkit.EXTRA
    fills: ClassVar[Mapping[str, Sequence[str]]] = dict.fromkeys(CONTROLS, TAGS)
    tunes: ClassVar[tuple[str, ...]] = ("precision",)
    files: ClassVar[tuple[str, ...]] = ("config_file", "checkpoint_file")
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
        for name, (is_fine, wanted) in _PARAMS.items():
            if not is_fine(self.param(name)):
                raise UsageError(f"{name} must be {wanted}, not {self.param(name)!r}.")
        self._net: Net | None = None

    @classmethod
    def devices_here(cls) -> Sequence[str]:
        return toolkit.devices_here()

    @classmethod
    def files_behind(cls, path: Path) -> Sequence[Path]:
        return configs.bases(path)

    @cached_property
    def config(self) -> Config:
        """Of the version; of an untrained model the one that was asked for, with the model of the one to continue."""
        return configs.stored(self.spec.path) if self.spec.path is not None else self._original

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """In the order of the model's outputs. Raises ModelError when nobody says what they are."""
        trained = self.spec if self.spec.path is not None else self.spec.earlier
        if trained is not None and trained.path is not None:
            state: Any = trained.state
            try:
                return tuple(map(str, state["classes"]))
            except (KeyError, TypeError) as error:
                raise ModelError(f"The state of {trained.model_version} is not that of a detector.") from error
        checkpoint = self._checkpoint()
        named = (checkpoint.classes if checkpoint else ()) or _classes_of(self.config)
        checkpoints.require_classes(named, recipe.outputs(self.config), self._who)
        return named

    def load(self, device: str) -> None:
        torch_runtime.share_cores(device)
        precision: Precision = "fp32" if self.param("precision") == "auto" else self.param("precision")
        self._net = Net(self._built(), SCOPE, configs.test_pipeline(self.config), device, precision)

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> DetectorBinding:
        self._require_own_model()
        pairs = postprocess.pairs_of(config, self.spec.name)
        binding = DetectorBinding(config, label_map, project)
        binding.classes = self.classes
        able, least = postprocess.fillable(pairs, recipe.has_masks(self.config), self._who), self.param("thresholds")
        if self.spec.path is not None:
            return postprocess.bind(binding, pairs, able, least, self._who)
        try:
            found = postprocess.bind(binding, pairs, able, least, self._who)
        except LabelMismatch as error:  # it may be about to learn them
            binding.notes = (f"{error.message} {error.hint}",)
            return binding
        if self.param("checkpoint_file") is None and self.spec.earlier is None:
            untrained = "The model has random weights, and what it finds means nothing: name a checkpoint_file."
            found.notes = (untrained, *found.notes)
        return found

    def sources(self, task: Task, binding: Binding) -> list[str]:
        assert isinstance(binding, DetectorBinding)
        return [value_of(each, task) for each in binding.objects]

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> tuple[Input, ...]:
        """What the model takes of each picture."""
        assert isinstance(binding, DetectorBinding)
        net = self._loaded()
        return tuple(net.prepare(image_files.pixels(media[value_of(each, task)])) for each in binding.objects)

    def forward(self, inputs: Sequence[Sequence[Input]], binding: Binding) -> Sequence[tuple[Seen, ...]]:
        """What is seen in each picture of each task; all pictures of the batch at once, whatever their sizes."""
        assert isinstance(binding, DetectorBinding)
        net = self._loaded()
        least = binding.lowest()
        found = iter(net.found([each for given in inputs for each in given], lambda sample: seen(sample, least)))
        return [tuple(islice(found, len(given))) for given in inputs]

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        assert isinstance(binding, DetectorBinding)
        of_object = dict(zip([each.name for each in binding.objects], output, strict=True))
        regions = [
            region
            for each in binding.fillings
            for region in each.regions(task, of_object[each.object.name], binding.classes, binding.threshold)
        ]
        return Prediction.of(tuple(regions), self.version)

    def tune(self, binding: Binding, inputs: Sequence[Any], batch_size: int | None) -> Tuning | None:
        """The quickest precision that finds the same, and the smallest batch that is about as quick as any."""
        assert isinstance(binding, DetectorBinding)
        asked = self.param("precision")
        if asked != "auto" and batch_size is not None:
            return None
        params: dict[str, Json] = {} if asked != "auto" else {"precision": "fp32"}
        sample = [each for given in inputs for each in given][:PROBED]
        if not sample:
            return Tuning(params, batch_size or self.batch_size, "")
        net, notes = self._loaded(), []
        if params:
            threshold = SURE if binding.threshold is None else binding.threshold
            params["precision"], why = inference.best_precision(
                net, sample, lambda one, other: agreement(one, other, threshold), AGREEMENT, without_masks
            )
            notes.append(why)
            net = net.with_precision(params["precision"])  # type: ignore[arg-type]
        if batch_size is None:
            batch_size = inference.best_size(net, sample)
            notes.append(f"{batch_size} pictures at a time.")
        torch_runtime.free_memory()
        return Tuning(params, batch_size, " ".join(notes))

    def fit(
        self,
        train: Sequence[Labelled],
        holdout: Sequence[Labelled],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        """Fine-tune for the labels that the annotations have, by mmengine's Runner; the best epoch is kept."""
        if binding.media is None:
            raise UsageError(
                "Pictures cannot be fetched here.", "Say where they are: fit_version(..., media=Media(...))."
            )
        pairs = postprocess.pairs_of(binding.config, self.spec.name)
        classes = dataset.classes_of(train, pairs, progress)
        start, described = self._beginning(classes, progress)
        run = out_dir / RUN
        try:
            shown = train, holdout
            source = Source(binding.media.fetch, self.retry_delays)
            found = self._trained(run, start, described, pairs, classes, shown, source, binding.device, progress)
            checkpoints.save(found.checkpoint.weights, out_dir)
            configs.store(described, out_dir)
        finally:
            if not self.param("keep_run"):
                shutil.rmtree(run, ignore_errors=True)
        return {"classes": list(classes), "epoch": found.epoch, "toolkit": dict(found.metrics)}

    def _beginning(self, classes: Sequence[str], progress: Progress) -> tuple[Any, Config]:
        """A model for these classes with the weights to begin with, None for what its config says; and its config."""
        if "optim_wrapper" not in self._original:
            progress(f"{self.param('config_file')} is not here, or says nothing of an optimiser: it is AdamW.")
        size = self.param("image_size")
        described = recipe.for_labels(self._original, classes, size)
        if size is not None and recipe.fitting(size) != size:
            progress(f"Pictures are looked at with {recipe.fitting(size)} pixels, a multiple of {recipe.STRIDE}.")
        configs.require_registered(described, f"The config {self._who}")
        earlier = self.spec.earlier
        if earlier is not None and earlier.path is not None:
            known = checkpoints.load(earlier.path)
        elif (given := self._checkpoint()) is not None:
            known = given
        elif self.param("pretrained"):
            return None, described
        else:
            described["model"] = configs.without_pretrained(described["model"])
            return None, described
        net = inference.build(described, SCOPE)
        anew = checkpoints.fill(net, known, what=self._who, new_ends=True)
        if anew:
            progress(f"{len(anew)} of the model's arrays begin anew, since they belong to other classes.")
        return net, described

    @cached_property
    def _original(self) -> Config:
        """The config with its optimiser, which a version does not hold; its model is that of the version, if any.

        Without an optimiser where only the version is left. Raises UsageError when there is neither.
        """
        earlier = self.spec.earlier
        if earlier is None or earlier.path is None:
            return configs.read(self.param("config_file"), SCOPE, "config_file")
        stored = configs.stored(earlier.path)
        try:
            asked = configs.read(self.param("config_file"), SCOPE, "config_file")
        except UsageError:
            return stored
        return asked | {key: stored[key] for key in ("model", "test_dataloader", "test_evaluator")}

    def _trained(
        self,
        run: Path,
        start: Any,
        described: Config,
        pairs: Pairs,
        classes: Sequence[str],
        shown: Sequence[Sequence[Labelled]],
        source: Source,
        device: str,
        progress: Progress,
    ) -> running.Trained:
        """The pictures as files, the regions as a dataset, and a training on them. shown: to learn from, held out."""
        counts = []
        for name, examples in zip(("train", "holdout"), shown, strict=True):
            looked_at: list[tuple[Gathered, Pairs]] = []
            for number, (picture, about) in enumerate(by_picture(pairs)):
                folder = run / "pictures" / f"{name}-{number}"
                gathered = image_files.gather(examples, shown_by(picture), source, folder, progress)
                looked_at += [(each, about) for each in gathered]
            found = dataset.coco(looked_at, classes)
            dataset.write(found, run / f"{name}.json")
            counts.append((len(found["images"]), len(found["annotations"])))
        (learned, regions), (_, held) = counts
        progress(f"Learning {len(classes)} classes from {regions:,} regions in {learned:,} pictures ({self._who}).")
        size = min(self.param("batch_size"), learned)
        config = recipe.for_training(
            described,
            self._original,
            folder=str(run.resolve()),
            batch_size=size,
            lr=self.param("lr"),
            augment=self.param("augment"),
            warm=start is not None,
            measured=held > 0,
            on_gpu=device != "cpu",
            workers=min(4, cores()) if device != "cpu" else 0,
        )
        measure = "coco/segm_mAP" if recipe.has_masks(self._original) else "coco/bbox_mAP"
        plan = running.Plan(
            self.param("epochs"),
            self.param("patience"),
            measure if held else "",
            "hold-out mAP",
            own_rate=self.param("lr") is not None,
        )
        running.scheduled(config, plan, image_files.batched(learned, size), size)
        return running.train(
            run.resolve(),
            config,
            SCOPE,
            plan,
            start,
            device=device,
            seed=self.param("seed"),
            launch=self.param("launch"),
            progress=progress,
        )

    def _require_own_model(self) -> None:
        """Raises UsageError when a version, which holds its model, is asked to be another one."""
        if self.spec.path is None or self.spec.version is None:
            return
        remembered = versions.read(self.spec.path).params
        for name in ("config_file", "checkpoint_file"):
            if name in remembered and self.param(name) != remembered[name]:
                raise UsageError(
                    f"{self.spec.model_version} is a trained version and holds its own model: {name} changes nothing.",
                    f"Leave it out, or start from an untrained model: --model object-detector --with {name}=FILE",
                )

    @property
    def _who(self) -> str:
        return self.spec.model_version if self.spec.path is not None else Path(self.param("config_file")).stem

    def _checkpoint(self) -> checkpoints.Checkpoint | None:
        given = self.param("checkpoint_file")
        return checkpoints.read(given, trusted=self.param("trust_checkpoint")) if given else None

    def _built(self) -> Any:
        """The model with its weights, on the CPU."""
        net = inference.build(self.config, SCOPE)
        found = checkpoints.load(self.spec.path) if self.spec.path is not None else self._checkpoint()
        if found is not None:
            checkpoints.fill(net, found, what=self._who)
        return net

    def _loaded(self) -> Net:
        if self._net is None:
            raise ModelError(f"{self.spec.name} has not been loaded.")
        return self._net


def value_of(source: Object, task: Task) -> str:
    """The value that points to the picture. Raises ValueError with a sentence when there is none."""
    found = source.read(task.data)
    if not isinstance(found, str) or not found:
        raise ValueError(f'"{source.key}" is {kind(found)}, but {source} wants one address or path of a picture')
    return found


def seen(sample: Any, least: Sequence[float]) -> Seen:
    """A data sample of the toolkit, as plain numbers. SOLO's heads give masks with empty boxes: theirs are the masks'.

    least  of score, for each class: what is less sure is left out
    """
    height, width = sample.ori_shape[:2]
    found = sample.pred_instances
    found = found[found.scores >= found.scores.new_tensor(least)[found.labels]].cpu()
    masks = map(Mask.of, found.masks.numpy()) if "masks" in found else repeat(None)
    every = zip(
        found.bboxes.float().tolist(), found.labels.tolist(), found.scores.float().tolist(), masks, strict=False
    )
    return Seen(
        (width, height),
        [
            Instance(mask.box if mask is not None and _is_empty(box) else tuple(box), label, score, mask)
            for box, label, score, mask in every
        ],
    )


def _is_empty(box: Sequence[float]) -> bool:
    return box[2] <= box[0] or box[3] <= box[1]


def without_masks(sample: Any) -> Any:
    """A data sample of the toolkit with what `agreement` compares."""
    sample.pred_instances.pop("masks", None)
    return sample


def agreement(one: Sequence[Any], other: Sequence[Any], threshold: float) -> float | None:
    """Share of the sure detections that both have: of one class, and in one place. None where neither is sure."""
    import torch
    from torchvision.ops import box_iou

    matched = total = 0
    for first, second in zip(one, other, strict=True):
        for mine, theirs in (
            (first.pred_instances, second.pred_instances),
            (second.pred_instances, first.pred_instances),
        ):
            mine, theirs = mine[mine.scores >= threshold], theirs[theirs.scores >= threshold - SLACK]
            total += len(mine)
            if len(mine) and len(theirs):
                overlap = box_iou(mine.bboxes.float(), theirs.bboxes.float())
                overlap = torch.where(mine.labels[:, None] == theirs.labels[None, :], overlap, 0)
                matched += int((overlap.amax(dim=1) >= EQUAL).sum())
    return matched / total if total else None


def _classes_of(config: Config) -> tuple[str, ...]:
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
    toolkit.mmdet()
    from mmdet.registry import DATASETS

    family = DATASETS.get(str(dataset.get("type", "CocoDataset")))
    return tuple(getattr(family, "METAINFO", {}).get("classes", ()))


def by_picture(pairs: Pairs) -> list[tuple[Object, Pairs]]:
    """Each picture that a task shows, with the pairs that are about it."""
    return [
        (each, [pair for pair in pairs if pair[1] == each]) for each in dict.fromkeys(source for _, source in pairs)
    ]


def shown_by(source: Object) -> Callable[[Labelled], str]:
    """What points to the picture of an example."""
    return lambda example: value_of(source, example.task)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(each) and 0 <= each <= 1 for each in value.values())


_PARAMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "config_file": (_is_text, "the path of a config, or the name of one that comes with mmdet"),
    "checkpoint_file": (lambda value: value is None or _is_text(value), "the path of a checkpoint"),
    "trust_checkpoint": (lambda value: isinstance(value, bool), "true or false"),
    "thresholds": (_are_shares, 'a score for each label that has its own: {"car": 0.5}'),
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
