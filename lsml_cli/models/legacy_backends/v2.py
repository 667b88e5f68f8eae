"""label_studio_ml 2.0: a class with `setup`, small persistent values, and predictions as objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from lsml_cli.models.legacy_backends import brush, labels
from lsml_cli.models.legacy_backends.import_sandbox import get_local_path, is_installed, make_module
from lsml_cli.models.legacy_backends.v0_v1 import TrainingRequest, accepted_arguments, build_tools_modules, build_utils

INITIAL_MODEL_VERSION = "0.0.1"
TRAIN_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING")
SDK_IDENTIFIERS = (
    "label_studio_sdk",
    "get_labeled_tasks",
    "get_tasks",
)  # with which a script asks for the annotations itself


@dataclass
class PredictionValue:
    """One prediction, as scripts make it."""

    result: list[Any] | None = None
    score: float | None = 0.0
    model_version: str | None = None
    cluster: Any = None

    def to_json(self) -> dict[str, Any]:
        return {"result": [_region_to_json(each) for each in self.result or ()], "score": self.score}

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return self.to_json() | {"model_version": self.model_version}

    dict = model_dump


@dataclass
class ModelResponse:
    """All predictions of a call, and the version that made them."""

    predictions: list[Any] = field(default_factory=list)
    model_version: str | None = None

    def has_model_version(self) -> bool:
        return bool(self.model_version)

    def set_version(self, version: str) -> None:
        self.model_version = version
        self.update_predictions_version()

    def update_predictions_version(self) -> None:
        for each in self.predictions:
            for one in each if isinstance(each, list) else [each]:
                if isinstance(one, PredictionValue) and not one.model_version:
                    one.model_version = self.model_version

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {"model_version": self.model_version, "predictions": self.predictions}


class LabelStudioMLBase:
    """What a script of label_studio_ml 2.0 derives from. What `set` is given is kept with the version."""

    INITIAL_MODEL_VERSION = INITIAL_MODEL_VERSION
    TRAIN_EVENTS = TRAIN_EVENTS
    _initial_state: Mapping[str, Any] = {}  # for the instance that is being built

    def __init__(self, project_id: str | None = None, label_config: str | None = None, **kwargs: Any) -> None:
        given = type(self)._initial_state
        self.project_id = project_id or ""
        self.values: dict[str, str] = dict(given.get("values") or {})
        self._params: Any = given.get("params") or {}
        self._label_config = ""
        self.parsed_label_config: dict[str, Any] = {}
        if label_config is not None:
            self.use_label_config(label_config)
        self.setup()

    def setup(self) -> None:
        """For scripts to override."""

    def predict(self, tasks: list[dict[str, Any]], context: Any = None, **kwargs: Any) -> Any:
        """For scripts to override."""
        return ModelResponse([])

    def fit(self, event: str, data: Any, **additional_params: Any) -> Any:
        """For scripts to override."""

    def process_event(self, event: str, data: Any, job_id: Any, additional_params: Mapping[str, Any]) -> Any:
        if event in self.TRAIN_EVENTS:
            return self.fit(event=event, data=data, job_id=job_id, **additional_params)
        return None

    def get(self, key: str) -> str | None:
        return self.values.get(key)

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def has(self, key: str) -> bool:
        return key in self.values

    @property
    def label_config(self) -> str:
        return self._label_config

    def use_label_config(self, label_config: str) -> None:
        self._label_config = label_config
        self.parsed_label_config = labels.parse_config(label_config)

    @property
    def label_interface(self) -> Any:
        """The SDK's own, where it is installed; see `running`."""
        from label_studio_sdk.label_interface import LabelInterface  # type: ignore[attr-defined]

        return LabelInterface(self._label_config)

    @property
    def extra_params(self) -> Any:
        return self._params

    def set_extra_params(self, extra_params: Any) -> None:
        self._params = extra_params

    @property
    def model_version(self) -> str | None:
        return self.get("model_version")

    def bump_model_version(self) -> str:
        major, minor, patch = (self.model_version or INITIAL_MODEL_VERSION).split(".")
        self.set("model_version", f"{major}.{minor}.{int(patch) + 1}")
        return str(self.model_version)

    def get_local_path(self, url: str, *args: Any, task_id: int | None = None, **kwargs: Any) -> str:
        return get_local_path(url, task_id=task_id)

    def preload_task_data(self, task: Mapping[str, Any], value: Any = None, read_file: bool = True) -> Any:
        """The value, with what it points to in the place of each address in it: the text of the file, or its path."""
        value = task["data"] if value is None else value
        if isinstance(value, str) and value.startswith(("http://", "https://", "/data/", "s3://", "gs://")):
            path = get_local_path(value, task_id=task.get("id"))
            if not read_file:
                return path
            with open(path, encoding="utf-8") as file:  # noqa: PTH123
                return file.read()
        if isinstance(value, Mapping):
            return {key: self.preload_task_data(task, each, read_file) for key, each in value.items()}
        if isinstance(value, list):
            return [self.preload_task_data(task, each, read_file) for each in value]
        return value

    def get_first_tag_occurence(
        self,
        control_type: str | tuple[str, ...],
        object_type: str | tuple[str, ...],
        name_filter: Any = None,
        to_name_filter: Any = None,
    ) -> tuple[str, str, str]:
        found = labels.get_first_tag_keys(
            self.parsed_label_config, control_type, object_type, name_filter, to_name_filter
        )
        return found[0], found[1], found[2]

    def build_label_map(self, tag_name: str, names: Sequence[str]) -> dict[str, str]:
        return labels.build_label_map(self.parsed_label_config, tag_name, names)

    def get_label_studio_access_token(self) -> str:
        import os

        return os.environ.get("LABEL_STUDIO_ACCESS_TOKEN") or os.environ.get("LABEL_STUDIO_API_KEY", "")


class InMemoryLRUDictCache:
    """The values used last, by key."""

    def __init__(self, capacity: int = 1) -> None:
        self.capacity = capacity
        self.cache: dict[Any, Any] = {}

    def get(self, key: Any) -> Any:
        if key in self.cache:
            self.cache[key] = self.cache.pop(key)
        return self.cache.get(key)

    def put(self, key: Any, value: Any) -> None:
        self.cache.pop(key, None)
        self.cache[key] = value
        while len(self.cache) > self.capacity:
            del self.cache[next(iter(self.cache))]


def predict_fn(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks what predicts in a script without a class; see `class_of`."""
    function.__globals__.setdefault("_lsml_predict", function)
    return function


def update_fn(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__globals__.setdefault("_lsml_update", function)
    return function


def class_from_functions(function: Callable[..., Any]) -> type:
    """The class that decorated functions stand for."""

    class Decorated(LabelStudioMLBase):
        def predict(self, tasks: list[dict[str, Any]], context: Any = None, **kwargs: Any) -> Any:
            return function(tasks, context, helper=self, **kwargs)

        def fit(self, event: str, data: Any, **additional_params: Any) -> Any:
            update = function.__globals__.get("_lsml_update")
            return update(event, data, helper=self, **additional_params) if update else None

    return Decorated


class V2Adapter:
    """How a script of label_studio_ml 2.0 is built, asked and taught."""

    annotations_key = "annotations"

    def modules(self) -> dict[str, ModuleType]:
        tools = build_utils(self.annotations_key) | {
            "InMemoryLRUDictCache": InMemoryLRUDictCache,
            "match_labels": labels.match_labels,
            "compare_nested_structures": labels.compare_nested_structures,
        }
        base = {"LabelStudioMLBase": LabelStudioMLBase, "predict_fn": predict_fn, "update_fn": update_fn}
        response = {"ModelResponse": ModelResponse, "PredictionValue": PredictionValue}
        served = {"init_app": lambda *_, **__: None}
        found = {
            "label_studio_ml": make_module("label_studio_ml", {}),
            "label_studio_ml.model": make_module("label_studio_ml.model", base | response),
            "label_studio_ml.response": make_module("label_studio_ml.response", response),
            "label_studio_ml.utils": make_module("label_studio_ml.utils", tools),
            "label_studio_ml.api": make_module("label_studio_ml.api", served),
        } | build_tools_modules()
        if not is_installed("label_studio_sdk"):  # as far as scripts name its classes in annotations of types
            found |= _build_sdk_modules()
        return found

    def build(
        self, script_class: Any, config: str, project: str, params: Mapping[str, Any], state: Mapping[str, Any]
    ) -> Any:
        given = {"project_id": project, "label_config": config}
        named = accepted_arguments(script_class.__init__, given | dict(params))
        if script_class.__init__ is LabelStudioMLBase.__init__:
            named = given
        for base in script_class.__mro__:
            if base.__name__ == "LabelStudioMLBase":
                base._initial_state = {"values": state.get("values"), "params": dict(params)}
        instance = script_class(**named)
        if not isinstance(instance, LabelStudioMLBase):  # the real one keeps its values in a file of its own
            for key, value in (state.get("values") or {}).items():
                instance.set(key, value)
        return instance

    def convert_tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [dict(task) for task in raw]

    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any:
        found = instance.predict(list(tasks), **accepted_arguments(instance.predict, {"context": context}))
        return getattr(found, "predictions", found)

    def fit(self, instance: Any, request: TrainingRequest) -> dict[str, Any]:
        tasks = self.convert_tasks(request.tasks)
        named = {"job_id": request.job_id, "workdir": str(request.workdir)} | dict(request.params)
        for event, data in self._training_events(request, tasks):
            instance.fit(event, data, **accepted_arguments(instance.fit, named))
        return {"values": dict(getattr(instance, "values", {}))}

    def _training_events(
        self, request: TrainingRequest, tasks: list[dict[str, Any]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """START_TRAINING for a script that knows it, or that asks for the annotations itself; else one for each.

        Label Studio says START_TRAINING without an annotation, but scripts look for the project there all the same.
        """
        asks = bool(request.imports & set(SDK_IDENTIFIERS)) or any(
            request.has_identifiers(word) for word in SDK_IDENTIFIERS
        )
        if request.has_identifiers("START_TRAINING") or (asks and not request.has_identifiers("ANNOTATION_CREATED")):
            yield "START_TRAINING", {**request.last_webhook_payload(tasks), "action": "START_TRAINING"}
        elif asks:
            yield "ANNOTATION_CREATED", request.last_webhook_payload(tasks)
        else:
            for data in request.webhook_payloads(tasks):
                yield "ANNOTATION_CREATED", data


def _region_to_json(region: Any) -> Any:
    """A region as JSON: scripts may make the SDK's own objects."""
    for name in ("_dict", "model_dump", "to_dict", "dict"):
        if not isinstance(region, Mapping) and callable(method := getattr(region, name, None)):
            return method()
    return region


def _build_sdk_modules() -> dict[str, ModuleType]:
    def absent(name: str) -> type:
        def __init__(self: Any, *_: Any, **__: Any) -> None:
            raise ModuleNotFoundError(f"{name} needs label_studio_sdk, which is not installed here")

        return type(name, (), {"__init__": __init__})

    clients = {name: absent(name) for name in ("Client", "LabelStudio")}
    values = {"PredictionValue": PredictionValue, "ModelResponse": ModelResponse}
    tools = "label_studio_sdk._extensions.label_studio_tools"
    content: dict[str, dict[str, Any]] = {
        "label_studio_sdk": clients,
        "label_studio_sdk.client": clients,
        "label_studio_sdk.objects": values,
        "label_studio_sdk.label_interface": {"LabelInterface": labels.LabelInterface},
        "label_studio_sdk.label_interface.objects": values,
        "label_studio_sdk.converter": {},
        "label_studio_sdk.converter.brush": brush.BRUSH_FUNCTIONS,
        "label_studio_sdk._extensions": {},
        tools: {},
        f"{tools}.core": {},
        f"{tools}.core.label_config": {"parse_config": labels.parse_config},
        f"{tools}.core.utils": {},
        f"{tools}.core.utils.io": {"get_local_path": get_local_path},
    }
    return {name: make_module(name, each) for name, each in content.items()}
