"""Find and read text in images with MMOCR, or read where shapes are drawn already.

binding.py          lines of text -> regions: shape, label, transcription
text_lines.py       a line of text
existing_shapes.py  shapes that a task has already -> lines of text
crops.py            a polygon in an image -> the upright crop of it
components.py       the text detector and the recognizer
inference.py        images -> lines of text
postprocess.py      outputs of the models -> lines, in reading order
dataset.py          annotated images -> datasets in MMOCR's format
config.py           MMOCR's configs -> those that train on these datasets
train.py            these datasets -> weights
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.models import autotune, torch_runtime
from lsml_cli.models.base import AutotuneResult, Model, Progress
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.media_refs import read_image_ref, require_media
from lsml_cli.models.ocr import binding as ocr_binding
from lsml_cli.models.ocr import existing_shapes
from lsml_cli.models.ocr.binding import CONTROL_TAGS, OBJECT_TAGS, ControlBinding, OcrBinding
from lsml_cli.models.ocr.components import SCOPE, ComponentName, OcrComponent
from lsml_cli.models.ocr.inference import PageInput, PageReader, PageText
from lsml_cli.models.ocr.postprocess import agreement
from lsml_cli.models.ocr.text_lines import TextLine
from lsml_cli.models.ocr.train import (
    TrainConfig,
    TrainingPages,
    prepare_detector_training,
    prepare_recognizer_training,
    save_component,
)
from lsml_cli.models.openmmlab import configs, image_files, inference, toolkit
from lsml_cli.models.openmmlab.inference import Predictor
from lsml_cli.models.parameters import Parameter
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.models.torch_runtime import PRECISIONS, Precision
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task

__all__ = ["Ocr"]

RUN_DIR = "run"  # subfolder of a version while it is trained; removed at the end, unless keep_run
PRECISION_POLICY = autotune.PrecisionPolicy(
    min_agreement=0.98, result_noun="texts", timed_batch_size=inference.PROBE_SIZE, min_speedup=inference.MIN_SPEEDUP
)
_TASK_NAMES: Mapping[ComponentName, str] = {"det": "detection", "recog": "recognition"}
_UNTRAINED_NOTES: Mapping[ComponentName, str] = {
    "det": "The text detector has random weights, so what it finds means nothing: name a det_ckpt, train it, or "
    "--with det=none to read where boxes are drawn already.",
    "recog": "The recognizer has random weights, so what it reads means nothing: name a recog_ckpt, or train it.",
}


def _config_parameter(default: str, help: str) -> Parameter:
    return Parameter(
        default, help, check=bool, expected="the path of a config, or the name of one that comes with mmocr"
    )


def _checkpoint_parameter(help: str) -> Parameter:
    return Parameter(None, help, kind="str", check=bool, expected="the path of a checkpoint")


class Ocr(Model[OcrBinding]):
    """Find and read text with any text detector and any recognizer of MMOCR, by their configs and checkpoints."""

    parallelism: ClassVar = "threads"
    batch_size: ClassVar[int] = 8
    devices: ClassVar[tuple[str, ...]] = ("cuda", "cpu")
    supports_warm_start: ClassVar[bool] = True
    required_modules: ClassVar[tuple[str, ...]] = toolkit.REQUIRED_MODULES
    install_extra: ClassVar[str | None] = toolkit.INSTALL_EXTRA
    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = dict.fromkeys(CONTROL_TAGS, OBJECT_TAGS)
    auto_params: ClassVar[tuple[str, ...]] = ("precision",)
    file_params: ClassVar[tuple[str, ...]] = ("det_config", "det_ckpt", "recog_config", "recog_ckpt")
    params: ClassVar[Mapping[str, Json | Parameter]] = {
        "det_config": _config_parameter("dbnet_resnet18_fpnc_1200e_icdar2015", "config of the text detector"),
        "det_ckpt": _checkpoint_parameter("weights of the text detector"),
        "recog_config": _config_parameter("crnn_mini-vgg_5e_mj", "config of the recognizer"),
        "recog_ckpt": _checkpoint_parameter("weights of the recognizer"),
        "det": Parameter(
            "auto",
            "whether text is searched for",
            choices=("auto", "none"),
            expected="auto, or none to read where boxes are drawn already",
        ),
        "trust_checkpoint": Parameter(False, "read a checkpoint that holds more than weights, which may run code"),
        "text_threshold": Parameter(
            0.0,
            "confidence below which a text is dropped; its shape stays",
            minimum=0,
            maximum=1,
            expected="a score in 0..1",
        ),
        "precision": Parameter(
            "auto",
            "precision of the text detector; auto measures which is fastest and equally good",
            choices=("auto", *PRECISIONS),
            expected="auto, fp32, bf16 or fp16",
        ),
        "train": Parameter(
            "recognition",
            "what is trained",
            choices=("recognition", "detection", "both"),
            expected="recognition, detection or both",
        ),
        "dictionary": Parameter(
            "auto",
            "characters that are learned: those of the transcriptions (data) or of the config; auto: config with a "
            "checkpoint, data without",
            choices=("auto", "data", "config"),
            expected="auto, data or config",
        ),
        "epochs": Parameter(60, "most passes over the training data", minimum=1),
        "lr": Parameter(
            None,
            "learning rate; null for 0.001, or a quarter of it for weights that were trained before",
            kind="float",
            above=0,
        ),
        "batch_size": Parameter(
            None, "images or crops per training step; null for 8 images, 8 to 32 crops", kind="int", minimum=2
        ),
        "patience": Parameter(10, "epochs without improvement after which training stops", minimum=1),
        "pretrained": Parameter(
            True, "without a checkpoint, start from the weights that the config names; they are fetched once"
        ),
        "seed": Parameter(0, "seed of everything random in training"),
        "keep_run": Parameter(False, "keep the dataset and the log of a training in its version"),
    }

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._page_reader: PageReader | None = None

    @classmethod
    def available_devices(cls) -> Sequence[str]:
        return toolkit.available_devices()

    @classmethod
    def referenced_files(cls, path: Path) -> Sequence[Path]:
        return configs.base_config_paths(path)

    @cached_property
    def det(self) -> OcrComponent | None:
        """The text detector; None if text is only read in existing shapes."""
        return None if self.param("det") == "none" else self._component("det")

    @cached_property
    def recog(self) -> OcrComponent:
        """The recognizer."""
        return self._component("recog")

    def load(self, device: str) -> None:
        torch_runtime.use_all_cpu_cores(device)
        # A recognizer is not fused: its layers are not always a convolution followed by its normalization.
        recognizer = Predictor(self.recog.build_model(), SCOPE, self.recog.pipeline_steps, device, fuse=False)
        detector = None
        if self.det is not None:
            precision: Precision = "fp32" if self.param("precision") == "auto" else self.param("precision")
            detector = Predictor(self.det.build_model(), SCOPE, self.det.pipeline_steps, device, precision)
        self._page_reader = PageReader(detector, recognizer)

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> OcrBinding:
        binding = ocr_binding.bind(OcrBinding(config, label_map, project), self.spec.name)
        for name in self._component_names(binding):
            component = self.det if name == "det" and self.det is not None else self.recog
            component.config  # noqa: B018 - errors in it are raised here, before any task is read
            if component.is_untrained:
                binding.notes = (*binding.notes, _UNTRAINED_NOTES[name])
        return binding

    def input_controls(self, config: LabelConfig) -> frozenset[str]:
        """Return the shapes and their labels, if text is only read in existing shapes."""
        if self.param("det") != "none":
            return frozenset()
        control_bindings = ocr_binding.bind(OcrBinding(config), self.spec.name).control_bindings
        return frozenset(
            control.name
            for control_binding in control_bindings
            for control in control_binding.controls
            if control is not control_binding.text
        )

    def media_refs(self, task: Task, binding: OcrBinding) -> list[str]:
        return [read_image_ref(control_binding.image, task) for control_binding in binding.control_bindings]

    def encode(self, task: Task, binding: OcrBinding, media: Mapping[str, bytes]) -> tuple[PageInput, ...]:
        """Return what the models take of each image."""
        return tuple(
            self._prepare_page(
                task, control_binding, binding.config, media[read_image_ref(control_binding.image, task)]
            )
            for control_binding in binding.control_bindings
        )

    def forward(self, inputs: Sequence[Sequence[PageInput]], binding: OcrBinding) -> Sequence[tuple[PageText, ...]]:
        """Return the text in the images of each task: found in all of them together, then read together."""
        pages = [page for task_pages in inputs for page in task_pages]
        texts = self._loaded_reader().read(pages, binding.threshold or 0.0)
        return [tuple(islice(texts, len(task_pages))) for task_pages in inputs]

    def decode(self, output: Any, task: Task, binding: OcrBinding) -> Prediction:
        min_score, min_text_confidence = binding.threshold or 0.0, float(self.param("text_threshold"))
        regions = [
            region
            for control_binding, page in zip(binding.control_bindings, output, strict=True)
            for region in control_binding.regions(task, page.lines, page.size, min_score, min_text_confidence)
        ]
        return Prediction.of(tuple(regions), self.version)

    def autotune(self, binding: OcrBinding, inputs: Sequence[Any], batch_size: int | None) -> AutotuneResult | None:
        """Choose the fastest precision in which the text detector finds the same, and a batch size."""
        detector = self._loaded_reader().detector
        images = [
            page.detector_input for task_pages in inputs for page in task_pages if page.detector_input is not None
        ]
        trial = None if detector is None or not images else inference.PredictorTrial(detector, images, agreement)
        return autotune.autotune(self, trial, batch_size, PRECISION_POLICY, batch_sizes=inference.BATCH_SIZES)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: OcrBinding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        """Train the recognizer, the text detector, or both; the best epoch is kept.

        The version also holds the component that is not trained, unless that has random weights.
        """
        require_media(binding)
        names = self._component_names(binding)
        trained = [name for name in names if self.param("train") in ("both", _TASK_NAMES[name])]
        if not trained:
            raise UsageError(
                "There is no text detector to train: text is only read here, and not looked for.",
                "Leave out train=detection, or det=none; a label config with a <Rectangle> or a <Polygon> is needed.",
            )
        components = {name: self._component(name) for name in names}
        stored = [name for name in names if name in trained or not components[name].is_untrained]
        state: dict[str, Any] = {"parts": stored, "trained": trained}
        try:
            # All that can be wrong is found before the first training, which may take hours.
            for name in names:
                if name not in stored:
                    progress(f"{_UNTRAINED_NOTES[name]} The version does without.")
                elif name not in trained:
                    save_component(components[name], out_dir)
            config = self._train_config(train, validation, binding, out_dir, progress)
            prepare = {"det": prepare_detector_training, "recog": prepare_recognizer_training}
            train_functions = {name: prepare[name](components[name], config) for name in trained}
            for name, train_component in train_functions.items():
                state[_TASK_NAMES[name]] = train_component()
        finally:
            if not self.param("keep_run"):
                shutil.rmtree(out_dir / RUN_DIR, ignore_errors=True)
        return state

    def _train_config(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: OcrBinding,
        out_dir: Path,
        progress: Progress,
    ) -> TrainConfig:
        """Fetch the images into files, and say how to train on them."""
        run_dir = out_dir / RUN_DIR
        media_reader = MediaReader(require_media(binding).fetch, self.retry_delays)

        def fetch_pages(split: str, examples: Sequence[AnnotatedTask]) -> TrainingPages:
            pages = []
            for number, control_binding in enumerate(binding.control_bindings):
                folder = run_dir / "pictures" / f"{split}-{number}"
                images = image_files.fetch_images(examples, control_binding.image, media_reader, folder, progress)
                pages += [(image, control_binding) for image in images]
            return pages

        names = ("dictionary", "epochs", "lr", "batch_size", "patience", "pretrained", "seed")
        settings: dict[str, Any] = {name: self.param(name) for name in names}
        return TrainConfig(
            train=fetch_pages("train", train),
            validation=fetch_pages("holdout", validation),
            run_dir=run_dir,
            out_dir=out_dir,
            device=binding.device,
            progress=progress,
            **settings,
        )

    def _component_names(self, binding: OcrBinding) -> list[ComponentName]:
        """Return the components that a label config needs."""
        return ["recog"] if self.det is None or binding.has_only_whole_images else ["det", "recog"]

    def _component(self, name: ComponentName) -> OcrComponent:
        """Return a component of the version or the one to continue from, if that holds it, else of the parameters."""
        spec = self.spec.init_from or self.spec
        state: Any = spec.state
        is_stored = spec.path is not None and name in state.get("parts", ())
        if is_stored:  # nothing that the parameters name is opened
            config = (self.default_params() | dict(self.spec.params))[f"{name}_config"]
            return OcrComponent(name, spec.path, str(config), None, trust_checkpoint=False)
        config, checkpoint = self.param(f"{name}_config"), self.param(f"{name}_ckpt")
        return OcrComponent(name, None, config, checkpoint, self.param("trust_checkpoint"))

    def _prepare_page(
        self, task: Task, control_binding: ControlBinding, config: LabelConfig, content: bytes
    ) -> PageInput:
        reader = self._loaded_reader()
        image = image_files.decode_image(content)
        if control_binding.is_whole_image:
            return reader.prepare_whole_image(image)
        if self.det is not None:
            return reader.prepare_page(image)
        regions = existing_shapes.latest_regions(task, config)
        size = image.shape[1], image.shape[0]
        lines = [
            TextLine(shape.points, has_reading_order=shape.has_reading_order, existing_shape=shape.existing_shape)
            for shape in existing_shapes.transcribed_shapes(regions, control_binding, size)
        ]
        return reader.prepare_lines(image, lines)

    def _loaded_reader(self) -> PageReader:
        if self._page_reader is None:
            raise ModelError(f"{self.spec.name} has not been loaded.")
        return self._page_reader
