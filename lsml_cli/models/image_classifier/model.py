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
from lsml_cli.models.base import Binding, Json, Model, ModelSpec, Progress, Tuning
from lsml_cli.models.choices.heads import (
    ChoicesBinding,
    Head,
    choices_about,
    stored_heads,
    to_state,
    warm_binding,
)
from lsml_cli.models.choices.logistic import Wanted
from lsml_cli.models.choices.training_set import Lesson, lessons
from lsml_cli.models.image_classifier import backbones, inference
from lsml_cli.models.image_classifier import train as learning
from lsml_cli.models.image_classifier.inference import AGREEMENT, Eye, Question
from lsml_cli.models.image_classifier.preprocessing import Preprocessing
from lsml_cli.models.image_classifier.train import Album, Picture, Recipe
from lsml_cli.models.media_reader import Source
from lsml_cli.models.torch_runtime import Precision
from lsml_cli.schema.annotations import chosen
from lsml_cli.schema.label_config import LabelConfig, Object
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import Labelled, Task, kind

if TYPE_CHECKING:
    from lsml_cli.models.image_classifier.preprocessing import Pixels

__all__ = ["ImageClassifier"]

TAGS = ("Image",)
STRATEGIES = ("head", "full")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # tasks of a batch that are tried for --batch-size auto
GOOD_ENOUGH = 0.97  # of the best rate: the smallest batch that reaches it is taken
PROBED = 16  # pictures of a batch by which precisions are timed


class ImageClassifier(Model):
    """Learns from a few dozen pictures on a laptop, and from many on a GPU."""

    place: ClassVar = "threads"
    batch_size: ClassVar[int] = 32
    devices: ClassVar[tuple[str, ...]] = ("cuda", "mps", "cpu")
    can_continue: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("torch", "torchvision")
    extra: ClassVar[str | None] = "vision"
    fills: ClassVar[Mapping[str, Sequence[str]]] = {"Choices": TAGS}
    tunes: ClassVar[tuple[str, ...]] = ("precision",)
    files: ClassVar[tuple[str, ...]] = ("weights",)
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
        self._heads = stored_heads(spec)
        self._arch, self._preprocessing = self._stored()
        if spec.earlier is not None:
            _require_same_arch(spec.earlier, self._arch)
        self._eyes: list[Eye] = []

    @classmethod
    def devices_here(cls) -> Sequence[str]:
        return torch_runtime.devices_here()

    def load(self, device: str) -> None:
        torch_runtime.share_cores(device)
        preprocessing = self._look()
        precision: Precision = "fp32" if self.param("precision") == "auto" else self.param("precision")
        if self.spec.path is not None:
            loaded = backbones.load(self.spec.path, self._arch, preprocessing.crop, _widths(self._heads))
        else:
            loaded = [backbones.with_its_own_classes(self._arch)] if self.param("weights") == backbones.DEFAULT else []
        if self.param("compile"):
            inference.require_compiler(device)
        self._eyes = [Eye(net, device, preprocessing, precision, self.param("compile")) for net in loaded]

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> ChoicesBinding:
        pairs = choices_about(config, TAGS, "The image classifier")
        binding = ChoicesBinding(config, label_map, project)
        if self.spec.path is not None:
            return warm_binding(binding, pairs, self._heads)
        return self._cold(binding, pairs)

    def sources(self, task: Task, binding: Binding) -> list[str]:
        assert isinstance(binding, ChoicesBinding)
        return [_value(source.object, task) for source in binding.sources]

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> tuple[Pixels, ...]:
        """The pixels, (crop, crop, 3), of each picture that the binding looks at."""
        assert isinstance(binding, ChoicesBinding)
        look, fast = self._look(), bool(self.param("fast_decode"))
        return tuple([look.pixels(media[_value(source.object, task)], fast) for source in binding.sources])

    def forward(self, inputs: Sequence[Sequence[Pixels]], binding: Binding) -> Sequence[Any]:
        """One tuple of what `Answer.probabilities` says for each input."""
        assert isinstance(binding, ChoicesBinding)
        if not inputs or not binding.answers:
            return [()] * len(inputs)
        scores = [
            self._eyes[source.scorer].scores([given[i] for given in inputs]) for i, source in enumerate(binding.sources)
        ]
        return list(zip(*(answer.probabilities(scores[answer.source]) for answer in binding.answers), strict=True))

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        assert isinstance(binding, ChoicesBinding)
        return Prediction.of(binding.fill(task, output), self.version)

    def tune(self, binding: Binding, inputs: Sequence[Any], batch_size: int | None) -> Tuning | None:
        """The quickest precision that gives the same answers, and the smallest batch that is about as quick as any."""
        assert isinstance(binding, ChoicesBinding)
        if self.param("precision") != "auto" and batch_size is not None:
            return None
        params: dict[str, Json] = {} if self.param("precision") != "auto" else {"precision": "fp32"}
        if not inputs or not binding.sources:
            return Tuning(params, batch_size or self.batch_size, "")
        trial = _Trial(self._eyes, binding, inputs)
        notes = []
        if params:
            precision, why = self._best_precision(trial)
            params["precision"] = precision
            notes.append(why)
            trial = trial.in_precision(precision, self._look())
        if batch_size is None:
            batch_size = trial.best_size()
            notes.append(f"{batch_size} pictures at a time.")
        torch_runtime.free_memory()  # of the device, which the replicas need
        return Tuning(params, batch_size, " ".join(notes))

    def fit(
        self,
        train: Sequence[Labelled],
        holdout: Sequence[Labelled],
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
            backbones.require_size(self._arch, self._look().crop)
        torch_runtime.share_cores(binding.device)
        torch.manual_seed(self.param("seed"))
        recipe = self._recipe(binding.device)
        source = Source(binding.media.fetch, self.retry_delays)
        heads: list[Json] = []
        trained: list[Any] = []
        agreements: dict[str, list[float]] = {}
        pairs = choices_about(binding.config, TAGS, "The image classifier")
        for lesson in lessons(train, pairs, _picture, progress):
            names = " and ".join(f'"{name}"' for name in lesson.heads)
            progress(f"Learning {names} from {len(lesson.inputs):,} pictures ({recipe.arch}, {recipe.strategy}).")
            album = Album(lesson.inputs, self._look(), source)
            wanted = list(lesson.heads.values())
            net = self._starting_net(lesson, progress)
            seen, checks = _checks(lesson, holdout, album, binding.config)
            learned = learning.learn(net, album, wanted, seen, checks, recipe, progress)
            lesson.heads = dict(zip(lesson.heads, learned, strict=True))
            heads += to_state(lesson, len(trained))
            trained.append(net)
            judges = seen if seen.pictures else album
            for name, share in learning.agreements(net, judges, learned, recipe).items():
                agreements.setdefault(name, []).append(share)
        backbones.save(out_dir, trained)
        return {
            "heads": heads,
            "arch": self._arch,
            "preprocessing": self._look().to_json(),
            "agreement": {name: round(min(shares), 4) for name, shares in agreements.items()},
        }

    def _stored(self) -> tuple[str, Preprocessing | None]:
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

    def _look(self) -> Preprocessing:
        if self._preprocessing is None:
            backbones.require_architecture(self._arch)
            self._preprocessing = backbones.preprocessing_of(self._arch, self.param("image_size"))
        return self._preprocessing

    def _cold(self, binding: ChoicesBinding, pairs: Sequence[tuple[Any, Object]]) -> ChoicesBinding:
        """Before any training: the classes of the weights themselves, where labels have their names."""
        if self.param("weights") != backbones.DEFAULT:
            binding.notes = ("The model is untrained and predicts nothing; `lsml fit` trains it.",)
            return binding
        backbones.require_architecture(self._arch)
        classes = tuple(backbones.categories_of(self._arch))
        heads = [Head(control.name, source.name, 0, 0, classes, False) for control, source in pairs]
        try:
            found = warm_binding(binding, pairs, heads)
        except LabelMismatch:
            binding.notes = (
                f"The model is untrained; {self._arch} knows {len(classes):,} classes, none of which is a label here. "
                "`lsml fit` trains it, or --label-map says which class is which label.",
            )
            return binding
        found.notes = ("The model is untrained and goes by the classes of its weights.", *found.notes)
        return found

    def _starting_net(self, lesson: Lesson[Picture], progress: Progress) -> Any:
        """A net with the weights to begin with: of an earlier version, of a file, torchvision's, or random ones."""
        classes = sum(len(head.classes) for head in lesson.heads.values())
        earlier = self.spec.earlier
        crop = self._look().crop
        if earlier is None or earlier.path is None:
            net = backbones.build(self._arch, classes, crop)
            backbones.fill(net, self._arch, str(self.param("weights")))
            return net
        heads = stored_heads(earlier)
        scorer = next((head.scorer for head in heads if head.object == lesson.source.name), 0)
        net = backbones.load(earlier.path, self._arch, crop, _widths(heads))[scorer]
        names = [list(head.classes) for head in heads if head.scorer == scorer]
        if names != [list(head.classes) for head in lesson.heads.values()]:
            if self.param("strategy") == "full":
                progress("The classes are not those of the earlier version: its last layer begins anew.")
            backbones.renew(net, self._arch, classes)
        return net

    def _recipe(self, device: str) -> Recipe:
        names = ("strategy", "batch_size", "epochs", "lr", "augment", "patience", "seed", "C", "class_weight")
        return Recipe(arch=self._arch, device=device, **{name: self.param(name) for name in names})

    def _best_precision(self, trial: _Trial) -> tuple[Precision, str]:
        """The quickest one here among those that agree with fp32, and a sentence about it."""
        plain = trial.in_precision("fp32", self._look())
        rates: dict[Precision, float] = {"fp32": plain.rate(PROBED)}
        said = []
        state: Any = self.spec.state
        recorded = state.get("agreement", {}) if self.spec.path is not None else {}
        for precision in torch_runtime.lower_precisions(trial.kind):
            other = trial.in_precision(precision, self._look())
            try:
                rate = other.rate(PROBED)
                share = float(recorded[precision]) if precision in recorded else plain.agreement(other)
            except RuntimeError:  # the device, or this PyTorch on it, does not know it
                continue
            said.append(f"{precision} is {rate / rates['fp32']:.1f} times as quick with {share:.1%} equal answers")
            if share >= AGREEMENT:
                rates[precision] = rate
        best = max(rates, key=lambda name: rates[name])
        return best, f"Precision {best}: {'; '.join(said) or 'nothing else works here'}."


class _Trial:
    """Nets in one precision, on the pictures of some tasks."""

    def __init__(self, eyes: Sequence[Eye], binding: ChoicesBinding, inputs: Sequence[Sequence[Pixels]]) -> None:
        self._all = eyes
        self._binding = binding
        self._inputs = inputs
        self._eyes = [eyes[source.scorer] for source in binding.sources]
        self.kind = eyes[0].device.type

    def in_precision(self, precision: Precision, preprocessing: Preprocessing) -> _Trial:
        eyes = [eye.with_precision(precision, preprocessing) for eye in self._all]
        return _Trial(eyes, self._binding, self._inputs)

    def rate(self, size: int) -> float:
        """Tasks per second, in batches of `size`."""
        picked = [self._inputs[i % len(self._inputs)] for i in range(size)]
        seconds = [eye.seconds([given[i] for given in picked]) for i, eye in enumerate(self._eyes)]
        return float(size / sum(seconds))

    def agreement(self, other: _Trial) -> float:
        """Share of tasks with equal answers, of the control where it is least."""
        shares: list[float] = []
        for i, (one, two) in enumerate(zip(self._eyes, other._eyes, strict=True)):
            heads = [answer.head for answer in self._binding.answers if answer.source == i]
            asked = [Question(head.first, len(head.classes), head.multi) for head in heads]
            pictures = [given[i] for given in self._inputs]
            shares.append(inference.agreement(one.scores(pictures), two.scores(pictures), asked))
        return min(shares)

    def best_size(self) -> int:
        """The smallest batch that is about as quick as any; where memory ends, so does the search."""
        rates: dict[int, float] = {}
        for size in SIZES:
            try:
                rates[size] = self.rate(size)
            except RuntimeError:
                break
            if size >= 4 * _smallest_good(rates):  # twice as many did not help, nor did four times as many
                break
        return _smallest_good(rates) if rates else 1


def _smallest_good(rates: Mapping[int, float]) -> int:
    return next(size for size, rate in rates.items() if rate >= GOOD_ENOUGH * max(rates.values()))


def _require_same_arch(version: ModelSpec, arch: str) -> None:
    """Raises UsageError when a version is of another architecture than was asked for."""
    state: Any = version.state
    if version.path is not None and state.get("arch", arch) != arch:
        raise UsageError(f"{version.model_version} is a {state['arch']}, not a {arch}.", "Leave out arch.")


def _checks(
    lesson: Lesson[Picture], holdout: Sequence[Labelled], album: Album, config: LabelConfig
) -> tuple[Album, list[Wanted]]:
    """The hold-out as far as it asks for what the lesson teaches."""
    pictures: list[Picture] = []
    rows: dict[str, list[int]] = {name: [] for name in lesson.heads}
    answers: dict[str, list[Sequence[str]]] = {name: [] for name in lesson.heads}
    for example in holdout:
        try:
            picture = _picture(lesson.source, example.task)
        except ValueError:
            continue
        for name, head in lesson.heads.items():
            given = tuple(dict.fromkeys(chosen(config.controls[name], example.annotation.result)))
            if set(given) <= set(head.classes) and (head.multi or len(given) == 1):
                rows[name].append(len(pictures))
                answers[name].append(given)
        pictures.append(picture)
    checks = [Wanted(rows[name], answers[name], head.classes, head.multi) for name, head in lesson.heads.items()]
    return replace(album, pictures=pictures), checks


def _picture(source: Object, task: Task) -> Picture:
    return Picture(_value(source, task), task.id, task.index)


def _value(source: Object, task: Task) -> str:
    """The value that points to the picture. Raises ValueError with a sentence when there is none."""
    found = source.read(task.data)
    if not isinstance(found, str) or not found:
        raise ValueError(f'"{source.key}" is {kind(found)}, but {source} wants one address or path of a picture')
    return found


def _widths(heads: Sequence[Head]) -> list[int]:
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
        lambda value: value is None or (_is_count(value) and value >= backbones.SMALLEST),
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
