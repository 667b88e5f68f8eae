"""Transfer learning with torchvision: fills `Choices` over `Image`.

preprocessing.py  a picture -> the pixels that a net looks at
nets.py           architectures, weights in and out
looking.py        batches of pixels -> scores, on a device, in a precision
learning.py       pictures and answers -> a trained net
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lsml_cli.errors import LabelMismatch, ModelError, UsageError
from lsml_cli.models import torch_runtime
from lsml_cli.models.base import AutotuneResult, Binding, Model, Progress
from lsml_cli.models.choices.heads import (
    ChoicesBinding,
    Head,
    bind_trained_heads,
    find_choices_controls,
    heads_from_state,
    heads_to_state,
)
from lsml_cli.models.choices.logistic import HeadTargets
from lsml_cli.models.choices.training_set import TrainingSet, build_training_sets
from lsml_cli.models.image_classifier import backbones, inference
from lsml_cli.models.image_classifier import train as learning
from lsml_cli.models.image_classifier.inference import MIN_AGREEMENT, HeadColumns, Predictor
from lsml_cli.models.image_classifier.preprocessing import Preprocessing
from lsml_cli.models.image_classifier.train import ImageDataset, ImageRef, TrainConfig
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.models.torch_runtime import Precision
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.label_config import LabelConfig, Object
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task, describe_json_type

if TYPE_CHECKING:
    from lsml_cli.models.image_classifier.preprocessing import Pixels

__all__ = ["ImageClassifier"]

IMAGE_TAGS = ("Image",)
STRATEGIES = ("head", "full")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # tasks of a batch that are tried for --batch-size auto
MIN_RELATIVE_RATE = 0.97  # of the best rate: the smallest batch that reaches it is taken
PROBE_IMAGES = 16  # pictures of a batch by which precisions are timed


class ImageClassifier(Model):
    """Learns from a few dozen pictures on a laptop, and from many on a GPU."""

    parallelism: ClassVar = "threads"
    batch_size: ClassVar[int] = 32
    devices: ClassVar[tuple[str, ...]] = ("cuda", "mps", "cpu")
    supports_warm_start: ClassVar[bool] = True
    required_modules: ClassVar[tuple[str, ...]] = ("torch", "torchvision")
    install_extra: ClassVar[str | None] = "vision"
    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = {"Choices": IMAGE_TAGS}
    auto_params: ClassVar[tuple[str, ...]] = ("precision",)
    file_params: ClassVar[tuple[str, ...]] = ("weights",)
    params: ClassVar[Mapping[str, Json]] = {
        "arch": "resnet18",
        "weights": "default",
        "image_size": None,
        "precision": "auto",
        "compile": False,
        "fast_decode": False,
        "strategy": "head",
        "C": 1.0,
        "class_weight": None,
        "epochs": 25,
        "lr": 0.005,
        "batch_size": 32,
        "augment": True,
        "patience": 10,
        "seed": 0,
    }

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        for name, (is_fine, wanted) in _PARAMS.items():
            if not is_fine(self.param(name)):
                raise UsageError(f"{name} must be {wanted}, not {self.param(name)!r}.")
        self._heads = heads_from_state(spec)
        self._arch, self._preprocessing = self._read_state()
        if spec.init_from is not None:
            _require_same_arch(spec.init_from, self._arch)
        self._predictors: list[Predictor] = []

    @classmethod
    def available_devices(cls) -> Sequence[str]:
        return torch_runtime.available_devices()

    def load(self, device: str) -> None:
        torch_runtime.use_all_cpu_cores(device)
        preprocessing = self._get_preprocessing()
        precision: Precision = "fp32" if self.param("precision") == "auto" else self.param("precision")
        if self.spec.path is not None:
            loaded = backbones.load(self.spec.path, self._arch, preprocessing.crop, _class_counts(self._heads))
        else:
            loaded = (
                [backbones.build_pretrained(self._arch)] if self.param("weights") == backbones.DEFAULT_WEIGHTS else []
            )
        if self.param("compile"):
            inference.require_compiler(device)
        self._predictors = [Predictor(net, device, preprocessing, precision, self.param("compile")) for net in loaded]

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> ChoicesBinding:
        pairs = find_choices_controls(config, IMAGE_TAGS, "The image classifier")
        binding = ChoicesBinding(config, label_map, project)
        if self.spec.path is not None:
            return bind_trained_heads(binding, pairs, self._heads)
        return self._bind_untrained(binding, pairs)

    def media_refs(self, task: Task, binding: Binding) -> list[str]:
        assert isinstance(binding, ChoicesBinding)
        return [_image_value(source.object, task) for source in binding.scorer_inputs]

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> tuple[Pixels, ...]:
        """The pixels, (crop, crop, 3), of each picture that the binding looks at."""
        assert isinstance(binding, ChoicesBinding)
        look, fast = self._get_preprocessing(), bool(self.param("fast_decode"))
        return tuple([look.pixels(media[_image_value(source.object, task)], fast) for source in binding.scorer_inputs])

    def forward(self, inputs: Sequence[Sequence[Pixels]], binding: Binding) -> Sequence[Any]:
        """One tuple of what `Answer.probabilities` says for each input."""
        assert isinstance(binding, ChoicesBinding)
        if not inputs or not binding.head_bindings:
            return [()] * len(inputs)
        scores = [
            self._predictors[source.scorer].scores([given[i] for given in inputs])
            for i, source in enumerate(binding.scorer_inputs)
        ]
        return list(
            zip(*(answer.probabilities(scores[answer.input_index]) for answer in binding.head_bindings), strict=True)
        )

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        assert isinstance(binding, ChoicesBinding)
        return Prediction.of(binding.make_regions(task, output), self.version)

    def autotune(self, binding: Binding, inputs: Sequence[Any], batch_size: int | None) -> AutotuneResult | None:
        """The quickest precision that gives the same answers, and the smallest batch that is about as quick as any."""
        assert isinstance(binding, ChoicesBinding)
        if self.param("precision") != "auto" and batch_size is not None:
            return None
        params: dict[str, Json] = {} if self.param("precision") != "auto" else {"precision": "fp32"}
        if not inputs or not binding.scorer_inputs:
            return AutotuneResult(params, batch_size or self.batch_size, "")
        trial = _PrecisionTrial(self._predictors, binding, inputs)
        notes = []
        if params:
            precision, why = self._best_precision(trial)
            params["precision"] = precision
            notes.append(why)
            trial = trial.in_precision(precision, self._get_preprocessing())
        if batch_size is None:
            batch_size = trial.best_batch_size()
            notes.append(f"{batch_size} pictures at a time.")
        torch_runtime.free_memory()  # of the device, which the replicas need
        return AutotuneResult(params, batch_size, " ".join(notes))

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        """Learn the controls that have annotations, a net for each object; `holdout` is for early stopping."""
        import torch

        if binding.media is None:
            raise UsageError(
                "Pictures cannot be fetched here.", "Say where they are: fit_version(..., media=Media(...))."
            )
        if self.param("image_size") is not None:
            backbones.require_size(self._arch, self._get_preprocessing().crop)
        torch_runtime.use_all_cpu_cores(binding.device)
        torch.manual_seed(self.param("seed"))
        recipe = self._train_config(binding.device)
        source = MediaReader(binding.media.fetch, self.retry_delays)
        heads: list[Json] = []
        trained: list[Any] = []
        agreements: dict[str, list[float]] = {}
        pairs = find_choices_controls(binding.config, IMAGE_TAGS, "The image classifier")
        for lesson in build_training_sets(train, pairs, _image_ref, progress):
            names = " and ".join(f'"{name}"' for name in lesson.targets)
            progress(f"Learning {names} from {len(lesson.inputs):,} pictures ({recipe.arch}, {recipe.strategy}).")
            album = ImageDataset(lesson.inputs, self._get_preprocessing(), source)
            wanted = list(lesson.targets.values())
            net = self._initial_net(lesson, progress)
            seen, checks = _build_validation(lesson, validation, album, binding.config)
            learned = learning.train_net(net, album, wanted, seen, checks, recipe, progress)
            lesson.targets = dict(zip(lesson.targets, learned, strict=True))
            heads += heads_to_state(lesson, len(trained))
            trained.append(net)
            judges = seen if seen.images else album
            for name, share in learning.precision_agreement(net, judges, learned, recipe).items():
                agreements.setdefault(name, []).append(share)
        backbones.save(out_dir, trained)
        return {
            "heads": heads,
            "arch": self._arch,
            "preprocessing": self._get_preprocessing().to_json(),
            "agreement": {name: round(min(shares), 4) for name, shares in agreements.items()},
        }

    def _read_state(self) -> tuple[str, Preprocessing | None]:
        """Architecture and preprocessing: those of the version, for which its weights were made, or as asked for."""
        state: Any = self.spec.state
        if self.spec.path is None or not state:
            return str(self.param("arch")), None
        try:
            arch, look = str(state["arch"]), Preprocessing.from_json(state["preprocessing"])
        except (KeyError, TypeError) as error:
            raise ModelError(f"The state of {self.spec.model_version} is not that of an image classifier.") from error
        _require_same_arch(self.spec, str(self.param("arch")))
        return arch, look

    def _get_preprocessing(self) -> Preprocessing:
        if self._preprocessing is None:
            backbones.require_architecture(self._arch)
            self._preprocessing = backbones.preprocessing_of(self._arch, self.param("image_size"))
        return self._preprocessing

    def _bind_untrained(self, binding: ChoicesBinding, pairs: Sequence[tuple[Any, Object]]) -> ChoicesBinding:
        """Before any training: the classes of the weights themselves, where labels have their names."""
        if self.param("weights") != backbones.DEFAULT_WEIGHTS:
            binding.notes = ("The model is untrained and predicts nothing; `lsml fit` trains it.",)
            return binding
        backbones.require_architecture(self._arch)
        classes = tuple(backbones.categories_of(self._arch))
        heads = [Head(control.name, source.name, 0, 0, classes, False) for control, source in pairs]
        try:
            found = bind_trained_heads(binding, pairs, heads)
        except LabelMismatch:
            binding.notes = (
                f"The model is untrained; {self._arch} knows {len(classes):,} classes, none of which is a label here. "
                "`lsml fit` trains it, or --label-map says which class is which label.",
            )
            return binding
        found.notes = ("The model is untrained and goes by the classes of its weights.", *found.notes)
        return found

    def _initial_net(self, training_set: TrainingSet[ImageRef], progress: Progress) -> Any:
        """A net with the weights to begin with: of an earlier version, of a file, torchvision's, or random ones."""
        classes = sum(len(head.classes) for head in training_set.targets.values())
        earlier = self.spec.init_from
        crop = self._get_preprocessing().crop
        if earlier is None or earlier.path is None:
            net = backbones.build(self._arch, classes, crop)
            backbones.load_initial_weights(net, self._arch, str(self.param("weights")))
            return net
        heads = heads_from_state(earlier)
        scorer = next((head.scorer for head in heads if head.object == training_set.object_tag.name), 0)
        net = backbones.load(earlier.path, self._arch, crop, _class_counts(heads))[scorer]
        names = [list(head.classes) for head in heads if head.scorer == scorer]
        if names != [list(head.classes) for head in training_set.targets.values()]:
            if self.param("strategy") == "full":
                progress("The classes are not those of the earlier version: its last layer begins anew.")
            backbones.reset_last_layer(net, self._arch, classes)
        return net

    def _train_config(self, device: str) -> TrainConfig:
        names = ("strategy", "batch_size", "epochs", "lr", "augment", "patience", "seed", "C", "class_weight")
        return TrainConfig(arch=self._arch, device=device, **{name: self.param(name) for name in names})

    def _best_precision(self, trial: _PrecisionTrial) -> tuple[Precision, str]:
        """The quickest one here among those that agree with fp32, and a sentence about it."""
        plain = trial.in_precision("fp32", self._get_preprocessing())
        rates: dict[Precision, float] = {"fp32": plain.throughput(PROBE_IMAGES)}
        said = []
        state: Any = self.spec.state
        recorded = state.get("agreement", {}) if self.spec.path is not None else {}
        for precision in torch_runtime.lower_precisions(trial.device_type):
            other = trial.in_precision(precision, self._get_preprocessing())
            try:
                rate = other.throughput(PROBE_IMAGES)
                share = float(recorded[precision]) if precision in recorded else plain.agreement(other)
            except RuntimeError:  # the device, or this PyTorch on it, does not know it
                continue
            said.append(f"{precision} is {rate / rates['fp32']:.1f} times as quick with {share:.1%} equal answers")
            if share >= MIN_AGREEMENT:
                rates[precision] = rate
        best = max(rates, key=lambda name: rates[name])
        return best, f"Precision {best}: {'; '.join(said) or 'nothing else works here'}."


class _PrecisionTrial:
    """Nets in one precision, on the pictures of some tasks."""

    def __init__(
        self, predictors: Sequence[Predictor], binding: ChoicesBinding, inputs: Sequence[Sequence[Pixels]]
    ) -> None:
        self._all_predictors = predictors
        self._binding = binding
        self._inputs = inputs
        self._predictors = [predictors[source.scorer] for source in binding.scorer_inputs]
        self.device_type = predictors[0].device.type

    def in_precision(self, precision: Precision, preprocessing: Preprocessing) -> _PrecisionTrial:
        eyes = [eye.with_precision(precision, preprocessing) for eye in self._all_predictors]
        return _PrecisionTrial(eyes, self._binding, self._inputs)

    def throughput(self, batch_size: int) -> float:
        """Tasks per second, in batches of `size`."""
        picked = [self._inputs[i % len(self._inputs)] for i in range(batch_size)]
        seconds = [eye.seconds([given[i] for given in picked]) for i, eye in enumerate(self._predictors)]
        return float(batch_size / sum(seconds))

    def agreement(self, other: _PrecisionTrial) -> float:
        """Share of tasks with equal answers, of the control where it is least."""
        shares: list[float] = []
        for i, (one, two) in enumerate(zip(self._predictors, other._predictors, strict=True)):
            heads = [answer.head for answer in self._binding.head_bindings if answer.input_index == i]
            asked = [HeadColumns(head.first, len(head.classes), head.multi) for head in heads]
            pictures = [given[i] for given in self._inputs]
            shares.append(inference.agreement(one.scores(pictures), two.scores(pictures), asked))
        return min(shares)

    def best_batch_size(self) -> int:
        """The smallest batch that is about as quick as any; where memory ends, so does the search."""
        rates: dict[int, float] = {}
        for size in BATCH_SIZES:
            try:
                rates[size] = self.throughput(size)
            except RuntimeError:
                break
            if size >= 4 * _smallest_fast_batch(rates):  # twice as many did not help, nor did four times as many
                break
        return _smallest_fast_batch(rates) if rates else 1


def _smallest_fast_batch(throughputs: Mapping[int, float]) -> int:
    return next(size for size, rate in throughputs.items() if rate >= MIN_RELATIVE_RATE * max(throughputs.values()))


def _require_same_arch(version: ModelSpec, arch: str) -> None:
    """Raises UsageError when a version is of another architecture than was asked for."""
    state: Any = version.state
    if version.path is not None and state.get("arch", arch) != arch:
        raise UsageError(f"{version.model_version} is a {state['arch']}, not a {arch}.", "Leave out arch.")


def _build_validation(
    training_set: TrainingSet[ImageRef], validation: Sequence[AnnotatedTask], dataset: ImageDataset, config: LabelConfig
) -> tuple[ImageDataset, list[HeadTargets]]:
    """The hold-out as far as it asks for what the lesson teaches."""
    pictures: list[ImageRef] = []
    rows: dict[str, list[int]] = {name: [] for name in training_set.targets}
    answers: dict[str, list[Sequence[str]]] = {name: [] for name in training_set.targets}
    for example in validation:
        try:
            picture = _image_ref(training_set.object_tag, example.task)
        except ValueError:
            continue
        for name, head in training_set.targets.items():
            given = tuple(dict.fromkeys(extract_labels(config.controls[name], example.annotation.result)))
            if set(given) <= set(head.classes) and (head.is_multi_label or len(given) == 1):
                rows[name].append(len(pictures))
                answers[name].append(given)
        pictures.append(picture)
    checks = [
        HeadTargets(rows[name], answers[name], head.classes, head.is_multi_label)
        for name, head in training_set.targets.items()
    ]
    return replace(dataset, images=pictures), checks


def _image_ref(object_tag: Object, task: Task) -> ImageRef:
    return ImageRef(_image_value(object_tag, task), task.id, task.index)


def _image_value(object_tag: Object, task: Task) -> str:
    """The value that points to the picture. Raises ValueError with a sentence when there is none."""
    found = object_tag.read(task.data)
    if not isinstance(found, str) or not found:
        raise ValueError(
            f'"{object_tag.data_key}" is {describe_json_type(found)}, but {object_tag} wants one address or path of a picture'
        )
    return found


def _class_counts(heads: Sequence[Head]) -> list[int]:
    """The number of classes of each net."""
    widths = [0] * (1 + max((head.scorer for head in heads), default=-1))
    for head in heads:
        widths[head.scorer] += len(head.classes)
    return widths


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_PARAMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "image_size": (
        lambda value: value is None or (_is_count(value) and value >= backbones.MIN_IMAGE_SIZE),
        "at least 32 pixels",
    ),
    "precision": (lambda value: value in ("auto", *torch_runtime.PRECISIONS), "auto, fp32, bf16 or fp16"),
    "compile": (lambda value: isinstance(value, bool), "true or false"),
    "fast_decode": (lambda value: isinstance(value, bool), "true or false"),
    "augment": (lambda value: isinstance(value, bool), "true or false"),
    "strategy": (lambda value: value in STRATEGIES, "head or full"),
    "C": (lambda value: _is_number(value) and 0 < value < float("inf"), "a number above 0"),
    "class_weight": (lambda value: value in (None, "balanced"), '"balanced" or null'),
    "epochs": (_is_count, "a whole number from 1"),
    "lr": (lambda value: _is_number(value) and 0 < value < float("inf"), "a number above 0"),
    "batch_size": (lambda value: _is_count(value) and value >= 2, "a whole number from 2"),
    "patience": (_is_count, "a whole number from 1"),
    "seed": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "weights": (lambda value: isinstance(value, str) and bool(value), '"default", "none", or a file'),
    "arch": (lambda value: isinstance(value, str) and bool(value), "the name of a torchvision architecture"),
}
