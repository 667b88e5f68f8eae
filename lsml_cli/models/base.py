"""The contract between lsml and a model.

A model never crosses a process boundary; its `ModelSpec` does. A batch belongs to one `Binding`: a model
that met one label config, so that `forward` may know which labels are wanted.

The smallest model overrides `forward` and `decode`:

    class Shouting(Model):
        def forward(self, inputs, binding):
            return [task.data["text"].isupper() for task in inputs]

        def decode(self, output, task, binding):
            control = binding.config.only("Choices")
            region = control.region(task, {"choices": ["loud" if output else "quiet"]}, score=1.0)
            return Prediction.of((region,), self.version)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, cast

from typing_extensions import TypeVar

from lsml_cli.errors import LabelMismatch, UsageError
from lsml_cli.media.fetcher import Media
from lsml_cli.models.parameters import Parameter
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task

Progress = Callable[[str], None]  # takes one plain sentence about how far training is


@dataclass(frozen=True)
class LabelMapping:
    """How one control's labels and a model's classes meet: `label_of[class]`, for the classes that have a label."""

    control: str
    labels: Sequence[str]
    classes: Sequence[str]
    label_of: Mapping[str, str]


@dataclass
class Binding:
    """A model that met one label config: which output fills which control, which class is which label.

    One binding lives as long as its replica, so a family may subclass it to cache what depends on the config.
    `notes` are sentences the user should read once: classes without a label, a model that is untrained.
    `meetings` tell which class became which label, for a model that has classes.
    `media` and `device` are for `fit`: it fetches for itself what the tasks point to, and trains where it is told to.
    `own_threshold` says that `decode` goes by `threshold` itself: nothing is left out after it.
    `fetch` is for a model that does without `sources`: the value of a task, and the task's id -> bytes.
    """

    config: LabelConfig
    label_map: Mapping[str, str] = field(default_factory=dict)
    project: str | None = None
    threshold: float | None = None
    applies_threshold: bool = False
    notes: tuple[str, ...] = ()
    label_mappings: tuple[LabelMapping, ...] = ()
    media: Media | None = None
    device: str = "cpu"
    fetch: Callable[[str, int | None], bytes] | None = None

    @property
    def can_predict(self) -> bool:
        """Whether any control can be filled; False for a model that has yet to learn the labels (see `notes`)."""
        return True

    @property
    def output_controls(self) -> frozenset[str] | None:
        """The names of the controls that it fills; None where nobody knows."""
        return None


@dataclass(frozen=True)
class AutotuneResult:
    """What a model settled about a run: parameters, tasks of a batch (None: as asked), and a sentence to read."""

    params: Mapping[str, Json]
    batch_size: int | None
    note: str


BindingT = TypeVar("BindingT", bound=Binding, default=Any)


class Model(ABC, Generic[BindingT]):
    """One model on one device. Subclass it in one file and name that file: `--model path/to/file.py:Class`.

    place       what `--workers N` means: N replica processes ("process", for models that hold the GIL), or
                N threads that fetch and encode ahead of one forward lane ("threads")
    batch_size  tasks per forward when `--batch-size` is not given
    devices     kinds of device the model can use, the preferred one first
    retry_delays  seconds before each further try of a step that raised TransientError, ConnectionError or TimeoutError
    params      the model's own parameters and their defaults; `--with` may set these and no others
                (None: any)
    files       parameters that may name a file: what is in it belongs to the identity of an untrained model
    can_continue  whether `fit` starts from the weights of `spec.earlier` where there is one
    tunes       parameters that `tune` settles when their value is "auto"
    fills       control tags it fills, each with the object tags it can be about: {"Choices": ("Text", "Paragraphs")}.
                A label config without such a pair is refused. Empty: the model does not say
    needs       modules that it imports when it loads and that its package may come without: ("torch",)
    extra       the extra of its package that brings them: "vision"

    Import what is heavy inside the methods: `lsml models` imports the module to read this.
    """

    parallelism: ClassVar[Literal["process", "threads"]] = "process"
    batch_size: ClassVar[int] = 64
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    retry_delays: ClassVar[tuple[float, ...]] = (0.5, 2.0, 8.0)
    params: ClassVar[Mapping[str, Json | Parameter] | None] = None
    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = {}
    required_modules: ClassVar[tuple[str, ...]] = ()
    install_extra: ClassVar[str | None] = None
    supports_warm_start: ClassVar[bool] = False
    auto_params: ClassVar[tuple[str, ...]] = ()
    file_params: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @property
    def version(self) -> str:
        return self.spec.model_version

    @classmethod
    def available_devices(cls) -> Sequence[str]:
        """The devices of this machine that the model can use, the best first: ("cuda:0", "cuda:1", "cpu")."""
        return cls.devices

    @classmethod
    def referenced_files(cls, path: Path) -> Sequence[Path]:
        """What a file that a parameter names reads in its turn, as a config its bases; it need not be there."""
        return ()

    def param(self, name: str) -> Any:
        """The value given with `--with NAME=VALUE`, else the class's default."""
        declared = (type(self).params or {}).get(name)
        default = declared.default if isinstance(declared, Parameter) else declared
        return self.spec.params.get(name, default)

    @classmethod
    def declared_params(cls) -> Mapping[str, Parameter] | None:
        """Return the declaration of each parameter by name; None if the model takes any."""
        if cls.params is None:
            return None
        return {name: value if isinstance(value, Parameter) else Parameter(value) for name, value in cls.params.items()}

    def load(self, device: str) -> None:  # noqa: B027 - a model without weights has nothing to do here
        """Bring the weights into memory. Called once per process, before the first batch."""

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> BindingT:
        """Meet a label config, before and without `load`.

        Raises LabelMismatch when the model can fill none of its controls, naming both lists of labels.
        """
        fills = type(self).supported_controls
        if fills and not any(config.find_pairs(control, objects) for control, objects in fills.items()):
            there = ", ".join(map(str, config.controls.values())) or "no control at all"
            raise LabelMismatch(
                f"{self.spec.name} fills {' and '.join(describe_controls(fills))}, but the label config has {there}.",
                "Choose a model that fills these controls: `lsml models` lists them.",
            )
        return cast(BindingT, Binding(config, label_map, project))

    def input_controls(self, config: LabelConfig) -> frozenset[str]:
        """The controls whose regions belong to the question, by name; asked before and without `load`.

        A model that reads what stands in boxes is given the boxes. Where it is measured they stay in the task, and are
        not measured; everything else that people have said is hidden from it.
        """
        return frozenset()

    def media_refs(self, task: Task, binding: BindingT) -> Sequence[str]:
        """The values of the task that point to media; their bytes reach `encode`."""
        return ()

    def encode(self, task: Task, binding: BindingT, media: Mapping[str, bytes]) -> Any:
        """CPU work that can run ahead in threads: a task and its media -> one input of `forward`.

        Raises ValueError with a sentence when the task cannot be used; it costs this task only.
        """
        return task

    @abstractmethod
    def forward(self, inputs: Sequence[Any], binding: BindingT) -> Sequence[Any]:
        """n inputs -> n outputs, in order. Has the device to itself."""

    @abstractmethod
    def decode(self, output: Any, task: Task, binding: BindingT) -> Prediction:
        """One output -> the prediction in Label Studio's terms; no regions when nothing was found."""

    def autotune(self, binding: BindingT, inputs: Sequence[Any], batch_size: int | None) -> AutotuneResult | None:
        """Settle once, on the device, what a run must not decide twice: a precision, a batch size.

        inputs      what `encode` made of the first tasks; may be empty
        batch_size  tasks of a batch, None when a good number is to be found

        Called on a loaded model before the first batch; every replica gets the parameters that come back, and a
        resumed run those of its beginning. None: there is nothing to settle.
        """
        return None

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: BindingT,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        """Train, write the weights into `out_dir`, return what `ModelSpec.state` should hold from then on.

        `holdout` is for early stopping only; metrics are computed by the caller, with the finished model.
        """
        raise UsageError(f"{self.spec.name} cannot be trained.", "`lsml fit` needs a model that overrides `fit`.")


def describe_controls(fills: Mapping[str, Sequence[str]]) -> list[str]:
    """What a model fills, in words: ["Choices over Text, HyperText, Paragraphs"]."""
    about: dict[tuple[str, ...], list[str]] = {}
    for control, objects in fills.items():
        about.setdefault(tuple(objects), []).append(control)
    return [f"{', '.join(controls)} over {', '.join(objects)}" for objects, controls in about.items()]
