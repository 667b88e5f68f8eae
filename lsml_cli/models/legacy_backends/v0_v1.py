"""Run scripts for label_studio_ml 1.0 and label_studio.ml, whose class is created again after each training.

Version 0 calls annotations "completions" and has other module names.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

from lsml_cli.models.legacy_backends import labels
from lsml_cli.models.legacy_backends.import_sandbox import ScriptSandbox, bind_classes
from lsml_cli.models.legacy_backends.module_isolation import make_module
from lsml_cli.models.legacy_backends.sdk_adapter import Params, SdkAdapter, TrainingRequest, accepted_arguments
from lsml_cli.models.legacy_backends.sdk_stub import build_tools_modules, build_utils, skip_server

TRAIN_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "PROJECT_UPDATED")


class LabelStudioMLBase:
    """Base class of scripts for label_studio_ml 1.0."""

    TRAIN_EVENTS = TRAIN_EVENTS
    _sandbox: ClassVar[ScriptSandbox]  # see `bind_classes`

    def __init__(self, label_config: str | None = None, train_output: Any = None, **kwargs: Any) -> None:
        self.label_config = label_config
        self.parsed_label_config = labels.parse_config(label_config) if label_config else {}
        self.train_output = train_output or {}
        self.hostname = kwargs.get("hostname", "")
        self.access_token = kwargs.get("access_token", "")

    def predict(self, tasks: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        """Return a prediction for each task; scripts override this."""
        raise NotImplementedError

    def fit(self, tasks: Any, workdir: str | None = None, **kwargs: Any) -> Any:
        """Train and return `train_output`; scripts override this."""
        return {}

    def process_event(self, event: str, data: Any, job_id: Any, additional_params: Mapping[str, Any]) -> Any:
        """Train after a webhook's event, without tasks as the SDK does."""
        return self.fit((), event=event, data=data, job_id=job_id, **additional_params)

    def get_local_path(self, url: str, project_dir: str | None = None, **kwargs: Any) -> str:
        """Return a file with the content of a media value."""
        return self._sandbox.get_local_path(url, **kwargs)


class LabelStudioMLBaseHelper(LabelStudioMLBase):
    """Base class of scripts that convert tasks to X and y, and predictions to results."""

    tasks_key = "annotations"

    def prepare_tasks(self, tasks: Any, workdir: str | None = None, **kwargs: Any) -> tuple[Any, Any]:
        """Convert tasks to (X, y); scripts override this."""
        raise NotImplementedError

    def convert_predictions(self, predictions: Any, **kwargs: Any) -> Any:
        """Convert what `predict2` returns to predictions; scripts override this."""
        raise NotImplementedError

    def predict2(self, X: Any, y: Any = None, **kwargs: Any) -> Any:
        """Predict X; scripts override this."""
        raise NotImplementedError

    def fit2(self, X: Any, y: Any, **kwargs: Any) -> Any:
        """Train on X and y, and return `train_output`; scripts override this."""
        raise NotImplementedError

    def predict(self, tasks: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        X, y = self.prepare_tasks(tasks, **kwargs)
        return self.convert_predictions(self.predict2(X, y, **kwargs), **kwargs)

    def fit(self, tasks: Any, workdir: str | None = None, **kwargs: Any) -> Any:
        X, y = self.prepare_tasks(tasks, workdir=workdir, **kwargs)
        return self.fit2(X, y, **kwargs)


class LabelStudioMLChoices(LabelStudioMLBaseHelper):
    """Base class of classifiers: X are the values of one object tag, y the lists of annotated choices."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        [(self.from_name, self.info)] = self.parsed_label_config.items()
        assert self.info["type"] == "Choices"
        [self.to_name], [object_tag] = self.info["to_name"], self.info["inputs"]
        self.value = object_tag["value"]

    def prepare_tasks(self, tasks: Any, workdir: str | None = None, **kwargs: Any) -> tuple[list[Any], list[Any]]:
        X, y = [], []
        for task in tasks:
            annotations = task.get("completions") or task.get("annotations")
            X.append(task["data"][self.value])
            y.append(annotations[0]["result"][0]["value"]["choices"] if annotations else None)
        return X, y

    def convert_predictions(self, predictions: Any, **kwargs: Any) -> list[dict[str, Any]]:
        common = {"from_name": self.from_name, "to_name": self.to_name, "type": "choices"}
        return [
            {"result": [{**common, "value": {"choices": choices}}], "score": score}
            for choices, score in zip(*predictions, strict=False)
        ]


class V1Adapter(SdkAdapter):
    """Drive scripts for label_studio_ml 1.0."""

    def build_stubs(self, sandbox: ScriptSandbox) -> dict[str, ModuleType]:
        classes = bind_classes(sandbox, (LabelStudioMLBase, LabelStudioMLBaseHelper, LabelStudioMLChoices))
        base = {"LabelStudioMLBase": classes["LabelStudioMLBase"]}
        server = {"init_app": skip_server, "start_server": skip_server}
        utils = build_utils(sandbox, self.annotations_key)
        return {
            "label_studio_ml": make_module("label_studio_ml", {}),
            "label_studio_ml.model": make_module("label_studio_ml.model", base | {"parse_config": labels.parse_config}),
            "label_studio_ml.helpers": make_module("label_studio_ml.helpers", classes),
            "label_studio_ml.utils": make_module("label_studio_ml.utils", utils),
            "label_studio_ml.api": make_module("label_studio_ml.api", server),
        } | build_tools_modules(sandbox)

    def build(
        self, script_class: Any, sandbox: ScriptSandbox, config: str, project: str, params: Params, state: Params
    ) -> Any:
        arguments = {"label_config": config, "train_output": state.get("train_output") or {}}
        return script_class(**accepted_arguments(script_class.__init__, arguments | dict(params)))

    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any:
        arguments = {"login": None, "password": None, "context": context}
        return instance.predict(tasks, **accepted_arguments(instance.predict, arguments))

    def fit(self, instance: Any, request: TrainingRequest) -> dict[str, Any]:
        """Call `fit` in the style that its signature shows: with tasks, or with a webhook's event."""
        tasks = self.convert_tasks(request.tasks)
        first = next(iter(inspect.signature(instance.fit).parameters.values()), None)
        webhook = {"event": "ANNOTATION_UPDATED", "data": request.last_webhook_payload(tasks), "job_id": request.job_id}
        arguments = {"workdir": str(request.workdir), **request.params}
        if first and first.kind is not first.VAR_KEYWORD and first.name not in webhook:
            # `fit(tasks, …)` or `fit(completions, …)`. The SDK's webhook passed no tasks here, so a script may read the
            # event instead.
            wants_event = request.has_identifiers("event", "data") and not set(request.params) & {"event", "data"}
            arguments |= webhook if wants_event else {}
            output = instance.fit(iter(tasks), **accepted_arguments(instance.fit, arguments))
        else:
            output = instance.fit(**accepted_arguments(instance.fit, arguments | webhook))
        return {"train_output": dict(output) if isinstance(output, Mapping) else {}}


class V0Adapter(V1Adapter):
    """Drive scripts for label_studio.ml."""

    annotations_key = "completions"

    def build_stubs(self, sandbox: ScriptSandbox) -> dict[str, ModuleType]:
        v1_stubs = super().build_stubs(sandbox)
        renamed = {name.replace("label_studio_ml", "label_studio.ml"): module for name, module in v1_stubs.items()}
        base = vars(v1_stubs["label_studio_ml.model"])["LabelStudioMLBase"]
        content = {"LabelStudioMLBase": base, "init_app": skip_server}
        return renamed | {
            "label_studio": make_module("label_studio", {}),
            "label_studio.ml": make_module("label_studio.ml", content),
        }

    def convert_tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [_with_completions(task) for task in raw]


def _with_completions(task: Mapping[str, Any]) -> dict[str, Any]:
    converted = {key: value for key, value in task.items() if key != "annotations"}
    if "annotations" in task:
        converted["completions"] = task["annotations"]
    return converted
