"""label_studio_ml 1.0, and label_studio.ml before it: a class that is built anew after each training.

What they lend each other: version 0 calls annotations "completions", and its modules have other names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from lsml_cli.models.legacy_backends import brush, labels
from lsml_cli.models.legacy_backends.import_sandbox import get_local_path, make_module

Params = Mapping[str, Any]
TRAIN_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "PROJECT_UPDATED")


class LabelStudioMLBase:
    """What a script of label_studio_ml 1.0 derives from."""

    TRAIN_EVENTS = TRAIN_EVENTS

    def __init__(self, label_config: str | None = None, train_output: Any = None, **kwargs: Any) -> None:
        self.label_config = label_config
        self.parsed_label_config = labels.parse_config(label_config) if label_config else {}
        self.train_output = train_output or {}
        self.hostname = kwargs.get("hostname", "")
        self.access_token = kwargs.get("access_token", "")

    def predict(self, tasks: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        raise NotImplementedError

    def fit(self, tasks: Any, workdir: str | None = None, **kwargs: Any) -> Any:
        return {}

    def process_event(self, event: str, data: Any, job_id: Any, additional_params: Mapping[str, Any]) -> Any:
        return self.fit((), event=event, data=data, job_id=job_id, **additional_params)

    def get_local_path(self, url: str, project_dir: str | None = None, **kwargs: Any) -> str:
        return get_local_path(url, **kwargs)


class LabelStudioMLBaseHelper(LabelStudioMLBase):
    """A script that says how tasks become X and y, and predictions become results."""

    tasks_key = "annotations"

    def prepare_tasks(self, tasks: Any, workdir: str | None = None, **kwargs: Any) -> tuple[Any, Any]:
        raise NotImplementedError

    def convert_predictions(self, predictions: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def predict2(self, X: Any, y: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def fit2(self, X: Any, y: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def predict(self, tasks: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        X, y = self.prepare_tasks(tasks, **kwargs)
        return self.convert_predictions(self.predict2(X, y, **kwargs), **kwargs)

    def fit(self, tasks: Any, workdir: str | None = None, **kwargs: Any) -> Any:
        X, y = self.prepare_tasks(tasks, workdir=workdir, **kwargs)
        return self.fit2(X, y, **kwargs)


class LabelStudioMLChoices(LabelStudioMLBaseHelper):
    """X are the values of one object, y the lists of choices that people have made about them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        [(self.from_name, self.info)] = self.parsed_label_config.items()
        assert self.info["type"] == "Choices"
        [self.to_name], [shown] = self.info["to_name"], self.info["inputs"]
        self.value = shown["value"]

    def prepare_tasks(self, tasks: Any, workdir: str | None = None, **kwargs: Any) -> tuple[list[Any], list[Any]]:
        X, y = [], []
        for task in tasks:
            made = task.get("completions") or task.get("annotations")
            X.append(task["data"][self.value])
            y.append(made[0]["result"][0]["value"]["choices"] if made else None)
        return X, y

    def convert_predictions(self, predictions: Any, **kwargs: Any) -> list[dict[str, Any]]:
        common = {"from_name": self.from_name, "to_name": self.to_name, "type": "choices"}
        return [
            {"result": [{**common, "value": {"choices": choices}}], "score": score}
            for choices, score in zip(*predictions, strict=False)
        ]


class V1Adapter:
    """How a script of label_studio_ml 1.0 is built, asked and taught."""

    annotations_key = "annotations"  # under which a task has what people said

    def modules(self) -> dict[str, ModuleType]:
        tools = build_utils(self.annotations_key)
        base = {"LabelStudioMLBase": LabelStudioMLBase}
        helpers = base | {
            "LabelStudioMLBaseHelper": LabelStudioMLBaseHelper,
            "LabelStudioMLChoices": LabelStudioMLChoices,
        }
        served = {"init_app": _skip_server, "start_server": _skip_server}
        return {
            "label_studio_ml": make_module("label_studio_ml", {}),
            "label_studio_ml.model": make_module("label_studio_ml.model", base | {"parse_config": labels.parse_config}),
            "label_studio_ml.helpers": make_module("label_studio_ml.helpers", helpers),
            "label_studio_ml.utils": make_module("label_studio_ml.utils", tools),
            "label_studio_ml.api": make_module("label_studio_ml.api", served),
        } | build_tools_modules()

    def build(
        self, script_class: Any, config: str, project: str, params: Mapping[str, Any], state: Mapping[str, Any]
    ) -> Any:
        given = {"label_config": config, "train_output": state.get("train_output") or {}}
        return script_class(**accepted_arguments(script_class.__init__, given | dict(params)))

    def convert_tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [dict(task) for task in raw]

    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any:
        given = {"login": None, "password": None, "context": context}
        return instance.predict(tasks, **accepted_arguments(instance.predict, given))

    def fit(self, instance: Any, request: TrainingRequest) -> dict[str, Any]:
        tasks = self.convert_tasks(request.tasks)
        first = next(iter(inspect.signature(instance.fit).parameters.values()), None)
        webhook = {"event": "ANNOTATION_UPDATED", "data": request.last_webhook_payload(tasks), "job_id": request.job_id}
        given = {"workdir": str(request.workdir), **request.params}
        if first and first.kind is not first.VAR_KEYWORD and first.name not in webhook:
            # `tasks`, `completions`, …: the webhook gave it nothing there
            wants_event = request.has_identifiers("event", "data") and not set(request.params) & {"event", "data"}
            more = webhook if wants_event else {}
            found = instance.fit(iter(tasks), **accepted_arguments(instance.fit, given | more))
        else:
            found = instance.fit(**accepted_arguments(instance.fit, given | webhook))
        output = dict(found) if isinstance(found, Mapping) else {}
        return {"train_output": output}


class V0Adapter(V1Adapter):
    """The same for label_studio.ml."""

    annotations_key = "completions"

    def modules(self) -> dict[str, ModuleType]:
        found = super().modules()
        renamed = {
            name.replace("label_studio_ml", "label_studio.ml"): each
            for name, each in found.items()
            if name.startswith("label_studio_ml")
        }
        content = {"LabelStudioMLBase": LabelStudioMLBase, "init_app": _skip_server}
        package = {
            "label_studio": make_module("label_studio", {}),
            "label_studio.ml": make_module("label_studio.ml", content),
        }
        return renamed | package | build_tools_modules()

    def convert_tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [_with_completions(task) for task in raw]


class TrainingRequest:
    """What a script learns from: an export, and the folder for what comes of it."""

    def __init__(
        self,
        tasks: Sequence[Mapping[str, Any]],
        label_config: str,
        project: str,
        workdir: Path,
        params: Mapping[str, Any],
        identifiers: frozenset[str],
        imports: frozenset[str],
    ) -> None:
        self.tasks = tasks
        self.label_config = label_config
        self.project = project
        self.workdir = workdir
        self.params = params
        self.imports = imports
        self.job_id = "1"
        self.server_calls: list[dict[str, Any]] = []
        self._identifiers = identifiers

    def has_identifiers(self, *names: str) -> bool:
        """Whether the script has every one of these words in it."""
        return self._identifiers.issuperset(names)

    def project_payload(self) -> dict[str, Any]:
        number = int(self.project) if self.project.isdecimal() else 0
        return {"id": number, "title": "export", "label_config": self.label_config}

    def last_webhook_payload(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The webhook about the last task."""
        return self.webhook_payloads(tasks[-1:])[0] if tasks else {"project": self.project_payload()}

    def webhook_payloads(self, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The webhook about each task, as Label Studio sends it when somebody has annotated it."""
        return [
            {
                "action": "ANNOTATION_CREATED",
                "annotation": {**annotation, "task": task.get("id"), "project": self.project_payload()["id"]},
                "project": self.project_payload(),
                "task": {"id": task.get("id"), "data": task["data"], "project": self.project_payload()["id"]},
            }
            for task in tasks
            for annotation in (task.get("annotations") or task.get("completions") or ())[:1]
        ]


def accepted_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes by name; all of them where it has **kwargs."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return dict(arguments)
    names = {each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)}
    return {name: value for name, value in arguments.items() if name in names}


def build_utils(annotations_key: str) -> dict[str, Any]:
    """The small functions of `utils`. `key`: what annotations are called."""
    return {
        "DATA_UNDEFINED_NAME": labels.DATA_UNDEFINED_NAME,
        "get_single_tag_keys": labels.get_single_tag_keys,
        "get_first_tag_keys": labels.get_first_tag_keys,
        "is_skipped": partial(labels.is_skipped, key=annotations_key),
        "get_choice": partial(labels.get_choice, key=annotations_key),
        "get_image_size": labels.get_image_size,
        "get_image_local_path": get_local_path,
        "get_local_path": get_local_path,
        "get_env": _get_env,
    }


def build_tools_modules() -> dict[str, ModuleType]:
    """label_studio_tools and label_studio_converter, as far as scripts use them."""
    io = {"get_local_path": get_local_path, "get_data_dir": _get_data_dir}
    params = {"get_env": _get_env, "get_bool_env": _get_bool_env}
    return {
        "label_studio_tools": make_module("label_studio_tools", {}),
        "label_studio_tools.core": make_module("label_studio_tools.core", {}),
        "label_studio_tools.core.label_config": make_module(
            "label_studio_tools.core.label_config", {"parse_config": labels.parse_config}
        ),
        "label_studio_tools.core.utils": make_module("label_studio_tools.core.utils", {}),
        "label_studio_tools.core.utils.io": make_module("label_studio_tools.core.utils.io", io),
        "label_studio_tools.core.utils.params": make_module("label_studio_tools.core.utils.params", params),
        "label_studio_converter": make_module("label_studio_converter", {}),
        "label_studio_converter.brush": make_module("label_studio_converter.brush", brush.BRUSH_FUNCTIONS),
    }


def _with_completions(task: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in task.items() if key != "annotations"}
    if "annotations" in task:
        found["completions"] = task["annotations"]
    return found


def _skip_server(*_: Any, **__: Any) -> None:
    """`init_app` at the end of a script: the server is `lsml serve`."""


def _get_env(name: str, default: Any = None, is_bool: bool = False) -> Any:
    import os

    for prefix in ("LABEL_STUDIO_", "HEARTEX_", ""):
        if (found := os.environ.get(f"{prefix}{name}")) is not None:
            return found.lower() in ("1", "true", "yes", "on") if is_bool else found
    return default


def _get_bool_env(name: str, default: bool = False) -> bool:
    return bool(_get_env(name, default, is_bool=True))


def _get_data_dir() -> str:
    """Where the older SDKs keep files between runs."""
    folder = Path.home() / ".local" / "share" / "label-studio"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)
