"""OCR with MMOCR: finds the text in pictures and reads it; or reads where somebody has drawn boxes already.

filling.py  text meets a label config: shape, label and transcription
drawn.py    what is drawn in a task already
crops.py    a polygon in a picture -> the upright crop of it
parts.py    the text detector and the recogniser
dataset.py  annotated pictures -> datasets of MMOCR's kind
recipe.py   configs -> those that train on them
learning.py a training of either
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median, median_low
from typing import TYPE_CHECKING, Any, ClassVar

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.models import torch_runtime
from lsml_cli.models.base import AutotuneResult, Binding, Model, Progress
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.ocr import crops, existing_shapes, postprocess
from lsml_cli.models.ocr import train as learning
from lsml_cli.models.ocr.components import SCOPE, ComponentName, OcrComponent
from lsml_cli.models.ocr.postprocess import CONTROL_TAGS, OBJECT_TAGS, ControlBinding, OcrBinding, TextLine
from lsml_cli.models.openmmlab import configs, image_files, inference, toolkit
from lsml_cli.models.openmmlab.inference import Input, Predictor
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.models.torch_runtime import PRECISIONS, Precision
from lsml_cli.schema.label_config import LabelConfig, Object
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task, describe_json_type

if TYPE_CHECKING:
    from lsml_cli.models.openmmlab.image_files import ImageArray, TrainingImage

__all__ = ["Ocr"]

PROBE_SIZE = 8  # pictures by which precisions are compared
MIN_AGREEMENT = 0.98  # share of equal polygons from which a lower precision is as good as fp32
MATCH_IOU = 0.8  # overlap of two texts that are the same
MIN_CROSSWISE_ANGLE = 45.0  # degrees between a text and the others of its page from which it runs across them
RUN_DIR = "run"  # the folder of a training within that of its version; gone when it is done, unless keep_run


@dataclass(frozen=True)
class PageInput:
    """A picture on its way.

    size     (width, height)
    picture  for the crops of what is found in it, and `input` what the text detector takes of it; None where it is
             known already where the text is
    lines    those that are known, with what the recogniser takes of each; None for what is too small to be read
    """

    size: tuple[int, int]
    image: ImageArray | None = None
    input: Input | None = None
    lines: Sequence[TextLine] = ()
    crops: Sequence[Input | None] = ()


@dataclass(frozen=True)
class PageText:
    """What is written in a picture."""

    size: tuple[int, int]
    lines: Sequence[TextLine]


class Ocr(Model):
    """Any text detector and any recogniser of MMOCR, by their configs and checkpoints."""

    parallelism: ClassVar = "threads"
    batch_size: ClassVar[int] = 8
    devices: ClassVar[tuple[str, ...]] = ("cuda", "cpu")
    supports_warm_start: ClassVar[bool] = True
    required_modules: ClassVar[tuple[str, ...]] = toolkit.REQUIRED_MODULES
    install_extra: ClassVar[str | None] = toolkit.INSTALL_EXTRA
    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = dict.fromkeys(CONTROL_TAGS, OBJECT_TAGS)
    auto_params: ClassVar[tuple[str, ...]] = ("precision",)
    file_params: ClassVar[tuple[str, ...]] = ("det_config", "det_ckpt", "recog_config", "recog_ckpt")
    params: ClassVar[Mapping[str, Json]] = {
        "det_config": "dbnet_resnet18_fpnc_1200e_icdar2015",
        "det_ckpt": None,
        "recog_config": "crnn_mini-vgg_5e_mj",
        "recog_ckpt": None,
        "det": "auto",
        "trust_checkpoint": False,
        "text_threshold": 0.0,
        "precision": "auto",
        "train": "recognition",
        "dictionary": "auto",
        "epochs": 60,
        "lr": None,
        "batch_size": None,
        "patience": 10,
        "pretrained": True,
        "seed": 0,
        "keep_run": False,
    }

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        for name, (is_fine, wanted) in _PARAM_CHECKS.items():
            if not is_fine(self.param(name)):
                raise UsageError(f"{name} must be {wanted}, not {self.param(name)!r}.")
        self._detector: Predictor | None = None
        self._recognizer: Predictor | None = None

    @classmethod
    def available_devices(cls) -> Sequence[str]:
        return toolkit.available_devices()

    @classmethod
    def referenced_files(cls, path: Path) -> Sequence[Path]:
        return configs.base_config_paths(path)

    @cached_property
    def det(self) -> OcrComponent | None:
        """The text detector; None where text is only read where it is drawn already."""
        return None if self.param("det") == "none" else self._component("det")

    @cached_property
    def recog(self) -> OcrComponent:
        return self._component("recog")

    def load(self, device: str) -> None:
        torch_runtime.use_all_cpu_cores(device)
        # Recognisers are not fused: theirs are not always a convolution and then its normalisation.
        self._recognizer = Predictor(self.recog.build_model(), SCOPE, self.recog.pipeline_steps, device, fuse=False)
        if self.det is not None:
            precision: Precision = "fp32" if self.param("precision") == "auto" else self.param("precision")
            self._detector = Predictor(self.det.build_model(), SCOPE, self.det.pipeline_steps, device, precision)

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> OcrBinding:
        found = postprocess.bind(OcrBinding(config, label_map, project), self.spec.name)
        for part in [self.recog] if self.det is None or _has_only_whole_images(found) else [self.det, self.recog]:
            part.config  # noqa: B018 - what is wrong with it is said here, before anything is read
            if part.is_untrained:
                found.notes = (*found.notes, _UNTRAINED_NOTES[part.name])
        return found

    def input_controls(self, config: LabelConfig) -> frozenset[str]:
        """The shapes and their labels, where text is only read."""
        if self.param("det") != "none":
            return frozenset()
        fillings = postprocess.bind(OcrBinding(config), self.spec.name).control_bindings
        return frozenset(control.name for each in fillings for control in each.controls if control is not each.text)

    def media_refs(self, task: Task, binding: Binding) -> list[str]:
        assert isinstance(binding, OcrBinding)
        return [read_media_ref(each.image, task) for each in binding.control_bindings]

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> tuple[PageInput, ...]:
        """What the models take of each picture."""
        assert isinstance(binding, OcrBinding)
        return tuple(
            self._prepare_page(task, each, binding.config, media[read_media_ref(each.image, task)])
            for each in binding.control_bindings
        )

    def forward(self, inputs: Sequence[Sequence[PageInput]], binding: Binding) -> Sequence[tuple[PageText, ...]]:
        """What is written in the pictures of each task: found in all of them together, then read together."""
        assert isinstance(binding, OcrBinding)
        least = binding.threshold or 0.0
        pages = self._detect([page for given in inputs for page in given], least)
        read = iter(self._recognize(pages))
        return [tuple(islice(read, len(given))) for given in inputs]

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        assert isinstance(binding, OcrBinding)
        least, least_text = binding.threshold or 0.0, float(self.param("text_threshold"))
        regions = [
            region
            for each, read in zip(binding.control_bindings, output, strict=True)
            for region in each.regions(task, read.lines, read.size, least, least_text)
        ]
        return Prediction.of(tuple(regions), self.version)

    def autotune(self, binding: Binding, inputs: Sequence[Any], batch_size: int | None) -> AutotuneResult | None:
        """The quickest precision in which the detector finds the same, and the smallest batch about as quick as any."""
        asked = self.param("precision")
        if asked != "auto" and batch_size is not None:
            return None
        params: dict[str, Json] = {} if asked != "auto" else {"precision": "fp32"}
        sample = [page.input for given in inputs for page in given if page.input is not None][:PROBE_SIZE]
        net, notes = self._detector, []
        if not sample or net is None:
            return AutotuneResult(params, batch_size or self.batch_size, "")
        if params:
            params["precision"], why = inference.best_precision(net, sample, agreement, MIN_AGREEMENT)
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
        """Learn to read, to find, or both, by mmengine's Runner; the best epoch is kept.

        The version also holds the part that is not trained, unless nobody ever has.
        """
        assert isinstance(binding, OcrBinding)
        if binding.media is None:
            raise UsageError(
                "Pictures cannot be fetched here.", "Say where they are: fit_version(..., media=Media(...))."
            )
        run = out_dir / RUN_DIR
        names: list[ComponentName] = (
            ["recog"] if self.det is None or _has_only_whole_images(binding) else ["det", "recog"]
        )
        wanted = [name for name in names if self.param("train") in ("both", _TASK_NAMES[name])]
        if not wanted:
            raise UsageError(
                "There is no text detector to train: text is only read here, and not looked for.",
                "Leave out train=detection, or det=none; a label config with a <Rectangle> or a <Polygon> is needed.",
            )
        parts = {name: self._component(name) for name in names}
        held = [name for name in names if name in wanted or not parts[name].is_untrained]
        state: dict[str, Any] = {"parts": held, "trained": wanted}
        try:
            # Whatever can be wrong is found before anything is trained: that may take hours.
            for name in names:
                if name not in held:
                    progress(f"{_UNTRAINED_NOTES[name]} The version does without.")
                elif name not in wanted:
                    learning.save_component(parts[name], out_dir)
            lesson = self._train_config(train, validation, binding, out_dir, progress)
            learns = {
                name: (learning.prepare_detector_training if name == "det" else learning.prepare_recognizer_training)(
                    parts[name], lesson
                )
                for name in wanted
            }
            for name, learn in learns.items():
                state[_TASK_NAMES[name]] = learn()
        finally:
            if not self.param("keep_run"):
                shutil.rmtree(run, ignore_errors=True)
        return state

    def _train_config(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: OcrBinding,
        out_dir: Path,
        progress: Progress,
    ) -> learning.TrainConfig:
        """The pictures as files, and how to learn from them."""
        assert binding.media is not None
        source = MediaReader(binding.media.fetch, self.retry_delays)
        shown: dict[str, list[tuple[TrainingImage, ControlBinding]]] = {"train": [], "holdout": []}
        for side, examples in (("train", train), ("holdout", validation)):
            for number, each in enumerate(binding.control_bindings):
                folder = out_dir / RUN_DIR / "pictures" / f"{side}-{number}"
                found = image_files.fetch_images(examples, media_ref_getter(each), source, folder, progress)
                shown[side] += [(one, each) for one in found]
        settings = ("dictionary", "epochs", "lr", "batch_size", "patience", "pretrained", "seed")
        given: dict[str, Any] = {name: self.param(name) for name in settings}
        return learning.TrainConfig(
            train=shown["train"],
            validation=shown["holdout"],
            run_dir=out_dir / RUN_DIR,
            out_dir=out_dir,
            device=binding.device,
            progress=progress,
            **given,
        )

    def _component(self, name: ComponentName) -> OcrComponent:
        """Of the version where that holds it, or of the one to continue from."""
        of = self.spec.init_from or self.spec
        state: Any = of.state
        held = of.path is not None and name in state.get("parts", ())
        config, checkpoint = self.param(f"{name}_config"), self.param(f"{name}_ckpt")
        return OcrComponent(name, of.path if held else None, config, checkpoint, self.param("trust_checkpoint"))

    def _prepare_page(
        self, task: Task, control_binding: ControlBinding, config: LabelConfig, content: bytes
    ) -> PageInput:
        picture = image_files.decode_image(content)
        size = picture.shape[1], picture.shape[0]
        if control_binding.is_whole_image:
            whole = crops.fit_crop(picture)
            return PageInput(
                size, lines=[TextLine()], crops=[None if whole is None else self._predictor("recog").prepare(whole)]
            )
        if self.det is not None:
            return PageInput(size, picture, self._predictor("det").prepare(picture))
        known = existing_shapes.transcribed_shapes(existing_shapes.latest_regions(task, config), control_binding, size)
        lines = [
            TextLine(one.points, has_reading_order=one.has_reading_order, existing_shape=one.existing_shape)
            for one in known
        ]
        return PageInput(size, lines=lines, crops=[self._prepare_crop(picture, line) for line in lines])

    def _prepare_crop(self, image: ImageArray, line: TextLine) -> Input | None:
        crop = crops.rectify(image, line.points, has_reading_order=line.has_reading_order)
        return None if crop is None else self._predictor("recog").prepare(crop)

    def _detect(self, pages: Sequence[PageInput], min_score: float) -> list[PageInput]:
        """The pages with the lines that are at least that sure, from top to bottom, and their crops."""
        asked = [page.input for page in pages if page.input is not None]
        samples = iter(self._predictor("det").predict(asked) if asked else ())

        def searched(page: PageInput, sample: Any) -> PageInput:
            assert page.image is not None
            lines = sort_in_reading_order(
                [line for line in extract_lines(sample) if line.score is None or line.score >= min_score]
            )
            return PageInput(page.size, lines=lines, crops=[self._prepare_crop(page.image, line) for line in lines])

        return [page if page.input is None else searched(page, next(samples)) for page in pages]

    def _recognize(self, pages: Sequence[PageInput]) -> Iterator[PageText]:
        """The pages with what is written in their lines; the crops of all of them are read together."""
        asked = [crop for page in pages for crop in page.crops if crop is not None]
        samples = iter(self._predictor("recog").predict_same_shape(asked) if asked else ())
        for page in pages:
            lines = [
                line if crop is None else replace(line, **extract_text(next(samples)))
                for line, crop in zip(page.lines, page.crops, strict=True)
            ]
            yield PageText(page.size, lines)

    def _predictor(self, name: ComponentName) -> Predictor:
        found = self._detector if name == "det" else self._recognizer
        if found is None:
            raise ModelError(f"{self.spec.name} has not been loaded.")
        return found


_TASK_NAMES: Mapping[ComponentName, str] = {"det": "detection", "recog": "recognition"}
_UNTRAINED_NOTES: Mapping[ComponentName, str] = {
    "det": "The text detector has random weights, so what it finds means nothing: name a det_ckpt, train it, or "
    "--with det=none to read where boxes are drawn already.",
    "recog": "The recogniser has random weights, so what it reads means nothing: name a recog_ckpt, or train it.",
}


def _has_only_whole_images(binding: OcrBinding) -> bool:
    """Whether nothing has to be looked for, since each picture is one line of text."""
    return all(each.is_whole_image for each in binding.control_bindings)


def read_media_ref(image_object: Object, task: Task) -> str:
    """The value that points to the picture. Raises ValueError with a sentence when there is none."""
    found = image_object.read(task.data)
    if not isinstance(found, str) or not found:
        raise ValueError(
            f'"{image_object.data_key}" is {describe_json_type(found)}, but {image_object} wants one address or path of a picture'
        )
    return found


def media_ref_getter(control_binding: ControlBinding) -> Callable[[AnnotatedTask], str]:
    """What points to the picture of an example."""
    return lambda example: read_media_ref(control_binding.image, example.task)


def extract_lines(sample: Any) -> list[TextLine]:
    """What a text detector found."""
    found = sample.pred_instances
    return [
        TextLine(tuple((float(x), float(y)) for x, y in zip(each[::2], each[1::2], strict=True)), float(score))
        for each, score in zip(found.polygons, found.scores, strict=True)
    ]


def extract_text(sample: Any) -> dict[str, Any]:
    """What a recogniser read: `text`, and `sure`, the mean of what it says about each character."""
    found = sample.pred_text
    scores = [float(each) for each in found.score]
    sure = min(max(sum(scores) / len(scores), 0.0), 1.0) if scores else 0.0
    return {"text": found.item.strip(), "sure": sure}


def sort_in_reading_order(lines: Sequence[TextLine]) -> list[TextLine]:
    """From top to bottom, and in a row from left to right, as the page is turned: by the median angle of its lines.

    The first of a row says how far down that reaches: as the text is high, at most the median height below its middle.
    Text across the others, as in a margin, comes where its middle is, and makes no row for others.

    A list of regions is read by people, and a detector has no order of its own.
    """
    if not lines:
        return []
    quads = [crops.reading_quad(line.points) for line in lines]
    angles = [crops.text_angle(quad) for quad in quads]
    heights = [math.dist(quad[0], quad[3]) for quad in quads]
    turn, most = median_low(angles), median(heights)
    sine, cosine = math.sin(math.radians(turn)), math.cos(math.radians(turn))
    middles = [quad.mean(axis=0).tolist() for quad in quads]
    places = [(x * cosine + y * sine, y * cosine - x * sine) for x, y in middles]
    rows: list[list[int]] = []
    bottom = float("-inf")
    for i in sorted(range(len(lines)), key=lambda i: places[i][1]):
        if places[i][1] > bottom:
            rows.append([])
            if abs(angles[i] - turn) < MIN_CROSSWISE_ANGLE or abs(angles[i] - turn) > 180 - MIN_CROSSWISE_ANGLE:
                bottom = places[i][1] + min(heights[i] / 2, most)
        rows[-1].append(i)
    return [lines[i] for row in rows for i in sorted(row, key=lambda i: places[i][0])]


def agreement(reference: Sequence[Any], candidate: Sequence[Any]) -> float | None:
    """Share of the texts that both find in one place. None where neither finds any."""
    import torch
    from torchvision.ops import box_iou

    matched = total = 0
    for first, second in zip(reference, candidate, strict=True):
        boxes = [
            torch.tensor([crops.bounding_box(line.points) for line in extract_lines(each)]) for each in (first, second)
        ]
        total += len(boxes[0]) + len(boxes[1])
        if len(boxes[0]) and len(boxes[1]):
            same = box_iou(*boxes) >= MATCH_IOU
            matched += int(same.any(dim=0).sum()) + int(same.any(dim=1).sum())
    return matched / total if total else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_file(value: Any) -> bool:
    return value is None or _is_text(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_PARAM_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "det_config": (_is_text, "the path of a config, or the name of one that comes with mmocr"),
    "det_ckpt": (_is_file, "the path of a checkpoint"),
    "recog_config": (_is_text, "the path of a config, or the name of one that comes with mmocr"),
    "recog_ckpt": (_is_file, "the path of a checkpoint"),
    "det": (lambda value: value in ("auto", "none"), "auto, or none to read where boxes are drawn already"),
    "trust_checkpoint": (_is_bool, "true or false"),
    "text_threshold": (lambda value: _is_number(value) and 0 <= value <= 1, "a score in 0..1"),
    "precision": (lambda value: value in ("auto", *PRECISIONS), "auto, fp32, bf16 or fp16"),
    "train": (lambda value: value in ("recognition", "detection", "both"), "recognition, detection or both"),
    "dictionary": (lambda value: value in ("auto", "data", "config"), "auto, data or config"),
    "epochs": (_is_count, "a whole number from 1"),
    "lr": (lambda value: value is None or (_is_number(value) and 0 < value < float("inf")), "a number above 0"),
    "batch_size": (lambda value: value is None or (_is_count(value) and value >= 2), "a whole number from 2"),
    "patience": (_is_count, "a whole number from 1"),
    "pretrained": (_is_bool, "true or false"),
    "seed": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "keep_run": (_is_bool, "true or false"),
}
