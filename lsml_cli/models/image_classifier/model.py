"""Classify images by transfer learning with torchvision: fills `Choices` over `Image`.

config.py         parameters
preprocessing.py  an image -> the pixels that a network sees
backbones.py      architectures, weights in and out
dataset.py        annotated tasks -> batches of images
train.py          images and answers -> a trained network; loss.py
inference.py      batches of images -> scores, on a device, in a precision
precision.py      what lower precisions cost
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lsml_cli.errors import LabelMismatch, ModelError, UsageError
from lsml_cli.models import autotune, torch_runtime
from lsml_cli.models.base import AutotuneResult, Model, Progress
from lsml_cli.models.choices.heads import (
    ChoicesBinding,
    Head,
    bind_trained_heads,
    find_choices_controls,
    heads_from_state,
    heads_to_state,
    scorer_widths,
)
from lsml_cli.models.choices.training_set import TrainingSet, build_training_sets
from lsml_cli.models.image_classifier import backbones, inference, precision
from lsml_cli.models.image_classifier.config import DEFAULT_WEIGHTS, PARAMS, TrainConfig
from lsml_cli.models.image_classifier.dataset import ImageDataset, ImageRef, build_validation
from lsml_cli.models.image_classifier.inference import Predictor
from lsml_cli.models.image_classifier.preprocessing import Preprocessing
from lsml_cli.models.image_classifier.train import Validation, train_net
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.media_refs import read_image_ref, require_media
from lsml_cli.models.parameters import Parameter
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.models.torch_runtime import Precision
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task

if TYPE_CHECKING:
    from torch import nn

    from lsml_cli.models.image_classifier.preprocessing import Pixels

__all__ = ["ImageClassifier"]

IMAGE_TAGS = ("Image",)
DISPLAY_NAME = "The image classifier"


class ImageClassifier(Model[ChoicesBinding]):
    """Classify images; learns from a few dozen images on a laptop, and from many on a GPU."""

    parallelism: ClassVar = "threads"
    batch_size: ClassVar[int] = 32
    devices: ClassVar[tuple[str, ...]] = ("cuda", "mps", "cpu")
    supports_warm_start: ClassVar[bool] = True
    required_modules: ClassVar[tuple[str, ...]] = ("torch", "torchvision")
    install_extra: ClassVar[str | None] = "vision"
    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = {"Choices": IMAGE_TAGS}
    auto_params: ClassVar[tuple[str, ...]] = ("precision",)
    file_params: ClassVar[tuple[str, ...]] = ("weights",)
    params: ClassVar[Mapping[str, Json | Parameter]] = PARAMS

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._heads = heads_from_state(spec)
        self._arch, self._stored_preprocessing = self._read_state()
        if spec.init_from is not None:
            _require_same_arch(spec.init_from, self._arch)
        self._predictors: list[Predictor] = []

    @classmethod
    def available_devices(cls) -> Sequence[str]:
        return torch_runtime.available_devices()

    def load(self, device: str) -> None:
        torch_runtime.use_all_cpu_cores(device)
        preprocessing = self._preprocessing()
        loaded_precision: Precision = "fp32" if self.param("precision") == "auto" else self.param("precision")
        is_compiled = bool(self.param("compile"))
        nets = self._load_nets(preprocessing.crop)
        if is_compiled:
            inference.require_compiler(device)
        self._predictors = [Predictor(net, device, preprocessing, loaded_precision, is_compiled) for net in nets]

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> ChoicesBinding:
        pairs = find_choices_controls(config, IMAGE_TAGS, DISPLAY_NAME)
        binding = ChoicesBinding(config, label_map, project)
        if self.spec.path is not None:
            return bind_trained_heads(binding, pairs, self._heads)
        return self._bind_untrained(binding, pairs)

    def media_refs(self, task: Task, binding: ChoicesBinding) -> list[str]:
        return [read_image_ref(scorer_input.object, task) for scorer_input in binding.scorer_inputs]

    def encode(self, task: Task, binding: ChoicesBinding, media: Mapping[str, bytes]) -> tuple[Pixels, ...]:
        """Return the pixels, (crop, crop, 3), of each image that the binding needs."""
        preprocessing, is_fast = self._preprocessing(), bool(self.param("fast_decode"))
        refs = self.media_refs(task, binding)
        return tuple([preprocessing.pixels(media[ref], is_fast) for ref in refs])

    def forward(self, inputs: Sequence[Sequence[Pixels]], binding: ChoicesBinding) -> Sequence[Any]:
        """Return for each input what `HeadBinding.probabilities` says for each head."""
        if not inputs or not binding.head_bindings:
            return [()] * len(inputs)
        scores = [
            self._predictors[scorer_input.scorer].scores([images[i] for images in inputs])
            for i, scorer_input in enumerate(binding.scorer_inputs)
        ]
        return list(zip(*(head.probabilities(scores[head.input_index]) for head in binding.head_bindings), strict=True))

    def decode(self, output: Any, task: Task, binding: ChoicesBinding) -> Prediction:
        return Prediction.of(binding.make_regions(task, output), self.version)

    def autotune(self, binding: ChoicesBinding, inputs: Sequence[Any], batch_size: int | None) -> AutotuneResult | None:
        """Choose the fastest precision that gives the same answers, and a batch size."""
        trial = None
        if inputs and binding.scorer_inputs:
            state: Any = self.spec.state
            recorded = state.get("agreement", {}) if self.spec.path is not None else {}
            trial = precision.NetTrial(self._predictors, binding, inputs, recorded)
        return autotune.autotune(self, trial, batch_size, precision.POLICY)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: ChoicesBinding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        """Train the controls that have annotations, one network per object; `validation` is for early stopping."""
        import torch

        media = require_media(binding)
        if self.param("image_size") is not None:
            backbones.require_size(self._arch, self._preprocessing().crop)
        torch_runtime.use_all_cpu_cores(binding.device)
        torch.manual_seed(self.param("seed"))
        config = self._train_config(binding.device)
        media_reader = MediaReader(media.fetch, self.retry_delays)
        heads: list[Json] = []
        nets: list[nn.Module] = []
        agreements: dict[str, list[float]] = {}
        pairs = find_choices_controls(binding.config, IMAGE_TAGS, DISPLAY_NAME)
        for training_set in build_training_sets(train, pairs, ImageRef.from_task, progress):
            names = " and ".join(f'"{name}"' for name in training_set.targets)
            progress(f"Learning {names} from {len(training_set.inputs):,} images ({config.arch}, {config.strategy}).")
            dataset = ImageDataset(training_set.inputs, self._preprocessing(), media_reader)
            targets = list(training_set.targets.values())
            net = self._initial_net(training_set, progress)
            held_out = Validation(*build_validation(training_set, validation, dataset, binding.config))
            learned = train_net(net, dataset, targets, held_out, config, progress)
            training_set.targets = dict(zip(training_set.targets, learned, strict=True))
            heads += heads_to_state(training_set, len(nets))
            nets.append(net)
            sample = held_out.dataset if held_out.dataset.images else dataset
            for name, share in precision.measure_agreement(net, sample, learned, config).items():
                agreements.setdefault(name, []).append(share)
        backbones.save(out_dir, nets)
        return {
            "heads": heads,
            "arch": self._arch,
            "preprocessing": self._preprocessing().to_json(),
            "agreement": {name: round(min(shares), 4) for name, shares in agreements.items()},
        }

    def _read_state(self) -> tuple[str, Preprocessing | None]:
        """Return architecture and preprocessing of the version, or those that the parameters name."""
        state: Any = self.spec.state
        if self.spec.path is None or not state:
            return str(self.param("arch")), None
        try:
            arch, preprocessing = str(state["arch"]), Preprocessing.from_json(state["preprocessing"])
        except (KeyError, TypeError) as error:
            raise ModelError(f"The state of {self.spec.model_version} is not that of an image classifier.") from error
        _require_same_arch(self.spec, str(self.param("arch")))
        return arch, preprocessing

    def _preprocessing(self) -> Preprocessing:
        if self._stored_preprocessing is None:
            backbones.require_architecture(self._arch)
            self._stored_preprocessing = backbones.preprocessing_of(self._arch, self.param("image_size"))
        return self._stored_preprocessing

    def _load_nets(self, crop: int) -> list[nn.Module]:
        if self.spec.path is not None:
            return backbones.load(self.spec.path, self._arch, crop, scorer_widths(self._heads))
        return [backbones.build_pretrained(self._arch)] if self.param("weights") == DEFAULT_WEIGHTS else []

    def _bind_untrained(self, binding: ChoicesBinding, pairs: Sequence[tuple[Control, Object]]) -> ChoicesBinding:
        """Bind the classes of torchvision's own weights, where labels have their names."""
        if self.param("weights") != DEFAULT_WEIGHTS:
            binding.notes = ("The model is untrained and predicts nothing; `lsml fit` trains it.",)
            return binding
        backbones.require_architecture(self._arch)
        classes = tuple(backbones.categories_of(self._arch))
        heads = [Head(control.name, image.name, 0, 0, classes, False) for control, image in pairs]
        try:
            bound = bind_trained_heads(binding, pairs, heads)
        except LabelMismatch:
            binding.notes = (
                f"The model is untrained; {self._arch} knows {len(classes):,} classes, none of which is a label here. "
                "`lsml fit` trains it, or --label-map says which class is which label.",
            )
            return binding
        bound.notes = ("The model is untrained and goes by the classes of its weights.", *bound.notes)
        return bound

    def _initial_net(self, training_set: TrainingSet[ImageRef], progress: Progress) -> nn.Module:
        """Build a network with initial weights: of an earlier version, of a file, torchvision's, or random ones."""
        num_classes = sum(len(head.classes) for head in training_set.targets.values())
        earlier = self.spec.init_from
        crop = self._preprocessing().crop
        if earlier is None or earlier.path is None:
            net = backbones.build(self._arch, num_classes, crop)
            backbones.load_initial_weights(net, self._arch, str(self.param("weights")))
            return net
        heads = heads_from_state(earlier)
        scorer = next((head.scorer for head in heads if head.object == training_set.object_tag.name), 0)
        net = backbones.load(earlier.path, self._arch, crop, scorer_widths(heads))[scorer]
        earlier_classes = [list(head.classes) for head in heads if head.scorer == scorer]
        if earlier_classes != [list(head.classes) for head in training_set.targets.values()]:
            if self.param("strategy") == "full":
                progress("The classes are not those of the earlier version: its last layer is reinitialized.")
            backbones.reset_last_layer(net, self._arch, num_classes)
        return net

    def _train_config(self, device: str) -> TrainConfig:
        names = ("strategy", "batch_size", "epochs", "lr", "augment", "patience", "seed", "C", "class_weight")
        return TrainConfig(arch=self._arch, device=device, **{name: self.param(name) for name in names})


def _require_same_arch(version: ModelSpec, arch: str) -> None:
    """Raise UsageError if a version has another architecture than the parameters ask for."""
    state: Any = version.state
    if version.path is not None and state.get("arch", arch) != arch:
        raise UsageError(f"{version.model_version} is a {state['arch']}, not a {arch}.", "Leave out arch.")
