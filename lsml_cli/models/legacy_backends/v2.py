"""Run scripts for label_studio_ml 2.0: a class with `setup`, persistent values, and predictions as objects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

from lsml_cli.models.legacy_backends import labels
from lsml_cli.models.legacy_backends.import_sandbox import ScriptSandbox, bind_classes
from lsml_cli.models.legacy_backends.module_isolation import is_installed, make_module
from lsml_cli.models.legacy_backends.sdk_adapter import Params, SdkAdapter, TrainingRequest, accepted_arguments
from lsml_cli.models.legacy_backends.sdk_stub import build_sdk_modules, build_tools_modules, build_utils, skip_server

INITIAL_MODEL_VERSION = "0.0.1"
TRAIN_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING")
# Names in scripts that fetch annotations from Label Studio by themselves.
SDK_IDENTIFIERS = ("label_studio_sdk", "get_labeled_tasks", "get_tasks")


@dataclass
class PredictionValue:
    """One prediction of a script."""

    result: list[Any] | None = None
    score: float | None = 0.0
    model_version: str | None = None
    cluster: Any = None

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as JSON, without its version."""
        return {"result": [_region_to_json(region) for region in self.result or ()], "score": self.score}

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """Return all fields as JSON."""
        return self.to_json() | {"model_version": self.model_version}

    dict = model_dump


@dataclass
class ModelResponse:
    """The predictions of one call, and the version that made them."""

    predictions: list[Any] = field(default_factory=list)
    model_version: str | None = None

    def has_model_version(self) -> bool:
        return bool(self.model_version)

    def set_version(self, version: str) -> None:
        """Set the version, also of predictions without one."""
        self.model_version = version
        self.update_predictions_version()

    def update_predictions_version(self) -> None:
        """Set the version of predictions that have none."""
        for item in self.predictions:
            for prediction in item if isinstance(item, list) else [item]:
                if isinstance(prediction, PredictionValue) and not prediction.model_version:
                    prediction.model_version = self.model_version

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {"model_version": self.model_version, "predictions": self.predictions}


class LabelStudioMLBase:
    """Base class of scripts for label_studio_ml 2.0. Values given to `set` are stored in the version."""

    INITIAL_MODEL_VERSION = INITIAL_MODEL_VERSION
    TRAIN_EVENTS = TRAIN_EVENTS
    _sandbox: ClassVar[ScriptSandbox]  # see `bind_classes`

    def __init__(self, project_id: str | None = None, label_config: str | None = None, **kwargs: Any) -> None:
        initial = self._sandbox.initial_state
        self.project_id = project_id or ""
        self.values: dict[str, str] = dict(initial.get("values") or {})
        self._params: Any = initial.get("params") or {}
        self._label_config = ""
        self.parsed_label_config: dict[str, Any] = {}
        if label_config is not None:
            self.use_label_config(label_config)
        self.setup()

    def setup(self) -> None:
        """Do nothing: scripts override this."""

    def predict(self, tasks: list[dict[str, Any]], context: Any = None, **kwargs: Any) -> Any:
        """Do nothing: scripts override this."""
        return ModelResponse([])

    def fit(self, event: str, data: Any, **additional_params: Any) -> Any:
        """Do nothing: scripts override this."""

    def process_event(self, event: str, data: Any, job_id: Any, additional_params: Mapping[str, Any]) -> Any:
        """Train after a webhook's event if it is one of TRAIN_EVENTS."""
        if event in self.TRAIN_EVENTS:
            return self.fit(event=event, data=data, job_id=job_id, **additional_params)
        return None

    def get(self, key: str) -> str | None:
        """Return a stored value."""
        return self.values.get(key)

    def set(self, key: str, value: str) -> None:
        """Store a value in the version."""
        self.values[key] = value

    def has(self, key: str) -> bool:
        return key in self.values

    @property
    def label_config(self) -> str:
        return self._label_config

    def use_label_config(self, label_config: str) -> None:
        """Parse a label config and use it from now on."""
        self._label_config = label_config
        self.parsed_label_config = labels.parse_config(label_config)

    @property
    def label_interface(self) -> Any:
        """The SDK's LabelInterface of the label config; the stub's if the SDK is not installed."""
        from label_studio_sdk.label_interface import LabelInterface  # type: ignore[attr-defined]

        return LabelInterface(self._label_config)

    @property
    def extra_params(self) -> Any:
        """The parameters of lsml's --with, unless the script has set others."""
        return self._params

    def set_extra_params(self, extra_params: Any) -> None:
        self._params = extra_params

    @property
    def model_version(self) -> str | None:
        return self.get("model_version")

    def bump_model_version(self) -> str:
        """Increase the last part of the version, and return the version."""
        major, minor, patch = (self.model_version or INITIAL_MODEL_VERSION).split(".")
        self.set("model_version", f"{major}.{minor}.{int(patch) + 1}")
        return str(self.model_version)

    def get_local_path(self, url: str, *args: Any, task_id: int | None = None, **kwargs: Any) -> str:
        """Return a file with the content of a media value."""
        return self._sandbox.get_local_path(url, task_id=task_id)

    def preload_task_data(self, task: Mapping[str, Any], value: Any = None, read_file: bool = True) -> Any:
        """Replace each URL in a value, by default in the task's data, by the text of the file, or by its path."""
        value = task["data"] if value is None else value
        if isinstance(value, str) and value.startswith(("http://", "https://", "/data/", "s3://", "gs://")):
            path = self._sandbox.get_local_path(value, task_id=task.get("id"))
            if not read_file:
                return path
            with open(path, encoding="utf-8") as file:  # noqa: PTH123
                return file.read()
        if isinstance(value, Mapping):
            return {key: self.preload_task_data(task, item, read_file) for key, item in value.items()}
        if isinstance(value, list):
            return [self.preload_task_data(task, item, read_file) for item in value]
        return value

    def get_first_tag_occurence(
        self,
        control_type: str | tuple[str, ...],
        object_type: str | tuple[str, ...],
        name_filter: Any = None,
        to_name_filter: Any = None,
    ) -> tuple[str, str, str]:
        """Return (from_name, to_name, value) of the first control of these types."""
        return labels.get_first_tag_keys(
            self.parsed_label_config, control_type, object_type, name_filter, to_name_filter
        )[:3]

    def build_label_map(self, tag_name: str, names: Sequence[str]) -> dict[str, str]:
        """Map model classes to the labels of a control."""
        return labels.build_label_map(self.parsed_label_config, tag_name, names)

    def get_label_studio_access_token(self) -> str:
        """Return the API key of Label Studio in the environment."""
        return os.environ.get("LABEL_STUDIO_ACCESS_TOKEN") or os.environ.get("LABEL_STUDIO_API_KEY", "")


class InMemoryLRUDictCache:
    """Cache of the most recently used values."""

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
    """Mark a function that predicts, of a script without a class; see `class_from_functions`."""
    return function


def _make_update_decorator(sandbox: ScriptSandbox) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator `update_fn`, which marks the function that trains; the first one of a module counts."""

    def update_fn(function: Callable[..., Any]) -> Callable[..., Any]:
        sandbox.update_functions.setdefault(function.__module__, function)
        return function

    return update_fn


def class_from_functions(function: Callable[..., Any], sandbox: ScriptSandbox) -> type:
    """Return a class that predicts with a decorated function, and trains with the `update_fn` of the same module."""
    base: Any = vars(sandbox.stubs["label_studio_ml.model"])["LabelStudioMLBase"]

    class FunctionModel(base):  # type: ignore[misc]
        def predict(self, tasks: list[dict[str, Any]], context: Any = None, **kwargs: Any) -> Any:
            return function(tasks, context, helper=self, **kwargs)

        def fit(self, event: str, data: Any, **additional_params: Any) -> Any:
            update = sandbox.update_functions.get(function.__module__)
            return update(event, data, helper=self, **additional_params) if update else None

    return FunctionModel


class V2Adapter(SdkAdapter):
    """Drive scripts for label_studio_ml 2.0."""

    def build_stubs(self, sandbox: ScriptSandbox) -> dict[str, ModuleType]:
        utils = build_utils(sandbox, self.annotations_key) | {
            "InMemoryLRUDictCache": InMemoryLRUDictCache,
            "match_labels": labels.match_labels,
            "compare_nested_structures": labels.compare_nested_structures,
        }
        base: dict[str, Any] = dict(bind_classes(sandbox, (LabelStudioMLBase,)))
        decorators = {"predict_fn": predict_fn, "update_fn": _make_update_decorator(sandbox)}
        response = {"ModelResponse": ModelResponse, "PredictionValue": PredictionValue}
        stubs = {
            "label_studio_ml": make_module("label_studio_ml", {}),
            "label_studio_ml.model": make_module("label_studio_ml.model", base | decorators | response),
            "label_studio_ml.response": make_module("label_studio_ml.response", response),
            "label_studio_ml.utils": make_module("label_studio_ml.utils", utils),
            "label_studio_ml.api": make_module("label_studio_ml.api", {"init_app": skip_server}),
        } | build_tools_modules(sandbox)
        return stubs if is_installed("label_studio_sdk") else stubs | build_sdk_modules(sandbox, response)

    def build(
        self, script_class: Any, sandbox: ScriptSandbox, config: str, project: str, params: Params, state: Params
    ) -> Any:
        arguments = {"project_id": project, "label_config": config}
        if script_class.__init__ is not LabelStudioMLBase.__init__:
            arguments = accepted_arguments(script_class.__init__, arguments | dict(params))
        sandbox.initial_state = {"values": state.get("values"), "params": dict(params)}
        instance = script_class(**arguments)
        if not isinstance(instance, LabelStudioMLBase):  # an installed SDK, which keeps values in a file of its own
            for key, value in (state.get("values") or {}).items():
                instance.set(key, value)
        return instance

    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any:
        response = instance.predict(list(tasks), **accepted_arguments(instance.predict, {"context": context}))
        return getattr(response, "predictions", response)

    def fit(self, instance: Any, request: TrainingRequest) -> dict[str, Any]:
        tasks = self.convert_tasks(request.tasks)
        arguments = {"job_id": request.job_id, "workdir": str(request.workdir)} | dict(request.params)
        for event, data in self._training_events(request, tasks):
            instance.fit(event, data, **accepted_arguments(instance.fit, arguments))
        return {"values": dict(getattr(instance, "values", {}))}

    def _training_events(
        self, request: TrainingRequest, tasks: list[dict[str, Any]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events that train a script: (event, payload).

        START_TRAINING for a script that handles it or fetches annotations by itself; otherwise ANNOTATION_CREATED for
        each task. Label Studio sends START_TRAINING without an annotation, but scripts look for the project in it.
        """
        fetches = bool(request.imports & set(SDK_IDENTIFIERS)) or any(
            request.has_identifiers(name) for name in SDK_IDENTIFIERS
        )
        handles_start = request.has_identifiers("START_TRAINING")
        if handles_start or (fetches and not request.has_identifiers("ANNOTATION_CREATED")):
            yield "START_TRAINING", {**request.last_webhook_payload(tasks), "action": "START_TRAINING"}
        elif fetches:
            yield "ANNOTATION_CREATED", request.last_webhook_payload(tasks)
        else:
            for data in request.webhook_payloads(tasks):
                yield "ANNOTATION_CREATED", data


def _region_to_json(region: Any) -> Any:
    """Return a region as JSON; scripts may create the SDK's region objects."""
    for name in ("_dict", "model_dump", "to_dict", "dict"):
        if not isinstance(region, Mapping) and callable(method := getattr(region, name, None)):
            return method()
    return region
