"""The contract between lsml and a model.

A model stays in the process that built it; its `ModelSpec` travels instead. All tasks of a batch share one `Binding`,
the result of binding the model to a label config, so `forward` can use it.

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

from lsml_cli.errors import LabelMismatch, ModelError, UsageError
from lsml_cli.media.fetcher import Media
from lsml_cli.models.parameters import Parameter
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task, describe_json_type

# What to do where a model fills none of the controls.
OTHER_MODEL_HINT = (
    "Choose a model that fills these controls (`lsml models` lists them), or write one: lsml init NAME -c config.xml"
)
Progress = Callable[[str], None]  # takes one sentence about the state of the training


@dataclass(frozen=True)
class LabelMapping:
    """How the classes of a model map to the labels of one control.

    Attributes:
        control: Name of the control.
        labels: Its labels, in the order of the label config.
        classes: The model's classes, in the order of its scores.
        label_of: The label of each class that has one.
    """

    control: str
    labels: Sequence[str]
    classes: Sequence[str]
    label_of: Mapping[str, str]


@dataclass
class Binding:
    """A model bound to one label config: which output fills which control, which class is which label.

    It lives as long as its replica, so a model may subclass it to cache what depends on the label config, and name the
    subclass as its type argument: `class TextClassifier(Model[TextBinding])`.

    Attributes:
        config: The label config.
        label_map: Class name -> label, from `--label-map`.
        project: Id of the Label Studio project, None outside of a server.
        threshold: Score below which regions are dropped, None if the model decides.
        applies_threshold: `decode` applies `threshold` itself, so nothing is dropped after it.
        notes: Sentences shown to the user once: classes without a label, an untrained model.
        label_mappings: How classes map to labels, for each control of a model that has classes.
        media: Fetches what the tasks point to; set for `fit` only.
        device: Where `fit` trains: "cpu", "cuda:0".
        fetch: Fetches for a model without `media_refs`: a value of a task and the task's id -> bytes.

    Example:
        class WordsBinding(Binding):
            @cached_property
            def keywords(self) -> dict[str, str]:
                return {label.name.lower(): label.name for label in self.config.only("Choices").labels}
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
        """Tell whether any control can be filled; False until the model has learned the labels (see `notes`)."""
        return True

    @property
    def output_controls(self) -> frozenset[str] | None:
        """Return the names of the controls that the model fills, or None if it does not declare them."""
        return None


@dataclass(frozen=True)
class AutotuneResult:
    """What `Model.autotune` decided for a run.

    Attributes:
        params: Parameters that replace those of the spec.
        batch_size: Tasks per batch, None to keep the requested number.
        note: A sentence for the user.
    """

    params: Mapping[str, Json]
    batch_size: int | None
    note: str


BindingT = TypeVar("BindingT", bound=Binding, default=Any)


class Model(ABC, Generic[BindingT]):
    """Base class of every model: one instance is one model on one device.

    Subclass it in a file of your own, override `forward` and `decode`, and name the file: `--model to/file.py:Class`.
    A model with a binding of its own names it as the type argument: `class TextClassifier(Model[TextBinding])`.
    Import heavy packages inside the methods, because `lsml models` imports the module to read the class attributes.

    Args:
        spec: Everything that the model is built from; available as `self.spec`.

    Attributes:
        parallelism: What `--workers N` starts: N replica processes ("process", for models that hold the GIL), or N
            threads that fetch and encode ahead of a single `forward` ("threads").
        batch_size: Tasks per `forward` where `--batch-size` is not given.
        devices: Kinds of device that the model can use, the preferred one first.
        retry_delays: Seconds before each further try of a step that raised a transient error: TransientError, an
            error of a connection, or a response 429 or 5xx, also of requests, httpx, aiohttp, botocore and urllib.
        params: Name -> default or `Parameter`; `--with NAME=VALUE` takes these names only. None: any name.
        supported_controls: Control tags that the model fills, each with the object tags that it can label:
            {"Choices": ("Text", "Paragraphs")}. A label config without such a pair is refused. Empty: any label config.
        required_modules: Modules that `load` imports and that may not be installed: ("torch",).
        install_extra: The extra of the model's package that installs them: "vision".
        supports_warm_start: `fit` can start from the weights of `spec.init_from`.
        auto_params: Parameters that `autotune` decides where their value is "auto".
        file_params: Parameters that may name a file; its content is part of the identity of an untrained model.

    Example:
        class Shouting(Model):
            supported_controls = {"Choices": ("Text",)}
            params = {"share": Parameter(0.5, "share of capitals from which a text is loud", minimum=0, maximum=1)}

            def forward(self, inputs, binding):
                return [mean(char.isupper() for char in task.data["text"]) for task in inputs]

            def decode(self, output, task, binding):
                label = "loud" if output >= self.param("share") else "quiet"
                region = binding.config.only("Choices").region(task, {"choices": [label]}, score=1.0)
                return Prediction.of((region,), self.version)
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
        """Return the `model_version` of the predictions: `news@20261120T213015`."""
        return self.spec.model_version

    @classmethod
    def available_devices(cls) -> Sequence[str]:
        """Return the devices of this machine that the model can use, the best first: ("cuda:0", "cuda:1", "cpu")."""
        return cls.devices

    @classmethod
    def referenced_files(cls, path: Path) -> Sequence[Path]:
        """Return the files that a file named by a parameter refers to, such as the bases of a config.

        They belong to the identity of an untrained model as well. They need not exist.
        """
        return ()

    @classmethod
    def version_notes(cls) -> Sequence[str]:
        """Return sentences that the user is shown whenever a trained version of the model is used."""
        return ()

    @classmethod
    def declared_params(cls) -> Mapping[str, Parameter] | None:
        """Return the declaration of each parameter by name, or None if the model takes any.

        Raises:
            ModelError: `params` is not a mapping.
        """
        params: Any = cls.params
        if params is None:
            return None
        if not isinstance(params, Mapping):
            raise ModelError(
                f"{cls.__name__}.params is {describe_json_type(params)}; it has to map each name to its default."
            )
        return {name: value if isinstance(value, Parameter) else Parameter(value) for name, value in params.items()}

    @classmethod
    def default_params(cls) -> dict[str, Json]:
        """Return the default of each declared parameter by name."""
        return {name: parameter.default for name, parameter in (cls.declared_params() or {}).items()}

    def param(self, name: str) -> Any:
        """Return the value given with `--with NAME=VALUE`, else the declared default.

        Raises:
            UsageError: Only the version has set it, and it may run code or open a file.
        """
        self.spec.require_confirmed(name)
        return self.spec.params[name] if name in self.spec.params else self.default_params().get(name)

    def load(self, device: str) -> None:
        """Load the weights into memory; called once per process, before the first batch.

        Args:
            device: "cpu", "cuda:0", "mps".

        Raises:
            ModelError: The weights are missing or damaged, or the model has to be trained first.
        """

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> BindingT:
        """Bind the model to a label config; called before `load`, and also without it.

        Args:
            config: The label config.
            label_map: Class name -> label, from `--label-map`.
            project: Id of the Label Studio project, None outside of a server.

        Raises:
            LabelMismatch: The model can fill none of the controls; the message shows the labels of both sides.
        """
        fills = type(self).supported_controls
        if fills and not any(config.find_pairs(control, objects) for control, objects in fills.items()):
            available = ", ".join(map(str, config.controls.values())) or "no control at all"
            raise LabelMismatch(
                f"{self.spec.name} fills {' and '.join(describe_controls(fills))}, "
                f"but the label config has {available}.",
                OTHER_MODEL_HINT,
            )
        return cast(BindingT, Binding(config, label_map, project))

    def input_controls(self, config: LabelConfig) -> frozenset[str]:
        """Return the names of the controls whose regions the model reads, such as boxes that it transcribes.

        Evaluation leaves these regions in the task and does not score them; it hides all other annotations from the
        model. Called before `load`, and also without it.
        """
        return frozenset()

    def media_refs(self, task: Task, binding: BindingT) -> Sequence[str]:
        """Return the values of the task that point to media; their bytes are passed to `encode`."""
        return ()

    def encode(self, task: Task, binding: BindingT, media: Mapping[str, bytes]) -> Any:
        """Turn a task and its media into one input of `forward`. Runs on the CPU, in several threads at once.

        Args:
            task: The task, which must not be changed.
            binding: What `bind` returned.
            media: The bytes of each value that `media_refs` returned.

        Raises:
            ValueError: The task cannot be used, with a sentence that says why; only this task fails.
        """
        return task

    @abstractmethod
    def forward(self, inputs: Sequence[Any], binding: BindingT) -> Sequence[Any]:
        """Compute one output for each of n inputs, in their order. No other call uses the device meanwhile."""

    @abstractmethod
    def decode(self, output: Any, task: Task, binding: BindingT) -> Prediction:
        """Turn one output into a prediction; one without regions says that nothing was found."""

    def autotune(self, binding: BindingT, inputs: Sequence[Any], batch_size: int | None) -> AutotuneResult | None:
        """Decide on the device what has to stay the same during a run: a precision, a batch size.

        Called on a loaded model before the first batch. Every replica gets the parameters that are returned, and a
        resumed run gets those of its first start.

        Args:
            binding: What `bind` returned.
            inputs: What `encode` returned for the first tasks; may be empty.
            batch_size: Tasks per batch, None to choose a good number.

        Returns:
            The decisions, None if there is nothing to decide.
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
        """Train on annotated tasks and write the weights into `out_dir`.

        Args:
            train: Tasks to learn from.
            validation: Held-out tasks, for early stopping only: the caller computes the metrics. May be empty.
            binding: What `bind` returned, with `media` and `device` set.
            out_dir: An empty folder for the weights. It is renamed afterwards, so do not store its path.
            progress: Takes one sentence about the state of the training.

        Returns:
            The JSON that `ModelSpec.state` holds from then on: class names, the architecture.

        Raises:
            ModelError: There is nothing to learn.
        """
        raise UsageError(f"{self.spec.name} cannot be trained.", "`lsml fit` needs a model that overrides `fit`.")


def describe_controls(supported_controls: Mapping[str, Sequence[str]]) -> list[str]:
    """Describe `Model.supported_controls`: ["Choices over Text, HyperText, Paragraphs"]."""
    controls_of: dict[tuple[str, ...], list[str]] = {}
    for control, objects in supported_controls.items():
        controls_of.setdefault(tuple(objects), []).append(control)
    return [f"{', '.join(controls)} over {', '.join(objects)}" for objects, controls in controls_of.items()]
