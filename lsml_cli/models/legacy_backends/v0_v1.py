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
from lsml_cli.models.legacy_backends.import_sandbox import local_path, module

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
        return local_path(url, **kwargs)


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


class V1:
    """How a script of label_studio_ml 1.0 is built, asked and taught."""

    key = "annotations"  # under which a task has what people said

    def modules(self) -> dict[str, ModuleType]:
        tools = utils(self.key)
        base = {"LabelStudioMLBase": LabelStudioMLBase}
        helpers = base | {
            "LabelStudioMLBaseHelper": LabelStudioMLBaseHelper,
            "LabelStudioMLChoices": LabelStudioMLChoices,
        }
        served = {"init_app": _nothing_to_serve, "start_server": _nothing_to_serve}
        return {
            "label_studio_ml": module("label_studio_ml", {}),
            "label_studio_ml.model": module("label_studio_ml.model", base | {"parse_config": labels.parse_config}),
            "label_studio_ml.helpers": module("label_studio_ml.helpers", helpers),
            "label_studio_ml.utils": module("label_studio_ml.utils", tools),
            "label_studio_ml.api": module("label_studio_ml.api", served),
        } | tools_modules()

    def build(
        self, original: Any, config: str, project: str, params: Mapping[str, Any], state: Mapping[str, Any]
    ) -> Any:
        given = {"label_config": config, "train_output": state.get("train_output") or {}}
        return original(**accepted(original.__init__, given | dict(params)))

    def tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [dict(task) for task in raw]

    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any:
        given = {"login": None, "password": None, "context": context}
        return instance.predict(tasks, **accepted(instance.predict, given))

    def fit(self, instance: Any, taught: Taught) -> dict[str, Any]:
        tasks = self.tasks(taught.tasks)
        first = next(iter(inspect.signature(instance.fit).parameters.values()), None)
        webhook = {"event": "ANNOTATION_UPDATED", "data": taught.event(tasks), "job_id": taught.job}
        given = {"workdir": str(taught.workdir), **taught.params}
        if first and first.kind is not first.VAR_KEYWORD and first.name not in webhook:
            # `tasks`, `completions`, …: the webhook gave it nothing there
            wants_event = taught.mentions("event", "data") and not set(taught.params) & {"event", "data"}
            more = webhook if wants_event else {}
            found = instance.fit(iter(tasks), **accepted(instance.fit, given | more))
        else:
            found = instance.fit(**accepted(instance.fit, given | webhook))
        output = dict(found) if isinstance(found, Mapping) else {}
        return {"train_output": output}


class V0(V1):
    """The same for label_studio.ml."""

    key = "completions"

    def modules(self) -> dict[str, ModuleType]:
        found = super().modules()
        renamed = {
            name.replace("label_studio_ml", "label_studio.ml"): each
            for name, each in found.items()
            if name.startswith("label_studio_ml")
        }
        content = {"LabelStudioMLBase": LabelStudioMLBase, "init_app": _nothing_to_serve}
        package = {"label_studio": module("label_studio", {}), "label_studio.ml": module("label_studio.ml", content)}
        return renamed | package | tools_modules()

    def tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [_with_completions(task) for task in raw]


class Taught:
    """What a script learns from: an export, and the folder for what comes of it."""

    def __init__(
        self,
        tasks: Sequence[Mapping[str, Any]],
        label_config: str,
        project: str,
        workdir: Path,
        params: Mapping[str, Any],
        words: frozenset[str],
        imports: frozenset[str],
    ) -> None:
        self.tasks = tasks
        self.label_config = label_config
        self.project = project
        self.workdir = workdir
        self.params = params
        self.imports = imports
        self.job = "1"
        self.served: list[dict[str, Any]] = []
        self._words = words

    def mentions(self, *words: str) -> bool:
        """Whether the script has every one of these words in it."""
        return self._words.issuperset(words)

    def about_project(self) -> dict[str, Any]:
        number = int(self.project) if self.project.isdecimal() else 0
        return {"id": number, "title": "export", "label_config": self.label_config}

    def event(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The webhook about the last task."""
        return self.events(tasks[-1:])[0] if tasks else {"project": self.about_project()}

    def events(self, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The webhook about each task, as Label Studio sends it when somebody has annotated it."""
        return [
            {
                "action": "ANNOTATION_CREATED",
                "annotation": {**annotation, "task": task.get("id"), "project": self.about_project()["id"]},
                "project": self.about_project(),
                "task": {"id": task.get("id"), "data": task["data"], "project": self.about_project()["id"]},
            }
            for task in tasks
            for annotation in (task.get("annotations") or task.get("completions") or ())[:1]
        ]


def accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes by name; all of them where it has **kwargs."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return dict(given)
    names = {each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)}
    return {name: value for name, value in given.items() if name in names}


def utils(key: str) -> dict[str, Any]:
    """The small functions of `utils`. `key`: what annotations are called."""
    return {
        "DATA_UNDEFINED_NAME": labels.DATA_UNDEFINED_NAME,
        "get_single_tag_keys": labels.get_single_tag_keys,
        "get_first_tag_keys": labels.first_tag,
        "is_skipped": partial(labels.is_skipped, key=key),
        "get_choice": partial(labels.get_choice, key=key),
        "get_image_size": labels.get_image_size,
        "get_image_local_path": local_path,
        "get_local_path": local_path,
        "get_env": _environment,
    }


def tools_modules() -> dict[str, ModuleType]:
    """label_studio_tools and label_studio_converter, as far as scripts use them."""
    io = {"get_local_path": local_path, "get_data_dir": _data_folder}
    params = {"get_env": _environment, "get_bool_env": _flag}
    return {
        "label_studio_tools": module("label_studio_tools", {}),
        "label_studio_tools.core": module("label_studio_tools.core", {}),
        "label_studio_tools.core.label_config": module(
            "label_studio_tools.core.label_config", {"parse_config": labels.parse_config}
        ),
        "label_studio_tools.core.utils": module("label_studio_tools.core.utils", {}),
        "label_studio_tools.core.utils.io": module("label_studio_tools.core.utils.io", io),
        "label_studio_tools.core.utils.params": module("label_studio_tools.core.utils.params", params),
        "label_studio_converter": module("label_studio_converter", {}),
        "label_studio_converter.brush": module("label_studio_converter.brush", brush.EXPORTED),
    }


def _with_completions(task: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in task.items() if key != "annotations"}
    if "annotations" in task:
        found["completions"] = task["annotations"]
    return found


def _nothing_to_serve(*_: Any, **__: Any) -> None:
    """`init_app` at the end of a script: the server is `lsml serve`."""


def _environment(name: str, default: Any = None, is_bool: bool = False) -> Any:
    import os

    for prefix in ("LABEL_STUDIO_", "HEARTEX_", ""):
        if (found := os.environ.get(f"{prefix}{name}")) is not None:
            return found.lower() in ("1", "true", "yes", "on") if is_bool else found
    return default


def _flag(name: str, default: bool = False) -> bool:
    return bool(_environment(name, default, is_bool=True))


def _data_folder() -> str:
    """Where the older SDKs keep files between runs."""
    folder = Path.home() / ".local" / "share" / "label-studio"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)
