"""Define how lsml drives scripts of one SDK generation."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from lsml_cli.models.legacy_backends.import_sandbox import ScriptSandbox

Params = Mapping[str, Any]


class SdkAdapter(ABC):
    """Build, call and train what scripts of one SDK generation define.

    Attributes:
        annotations_key: the key of a task's annotations.
    """

    annotations_key: ClassVar[str] = "annotations"

    @abstractmethod
    def build_stubs(self, sandbox: ScriptSandbox) -> dict[str, ModuleType]:
        """Return the modules of the SDK by their full names."""

    @abstractmethod
    def build(
        self, script_class: Any, sandbox: ScriptSandbox, config: str, project: str, params: Params, state: Params
    ) -> Any:
        """Create the script's model.

        Args:
            config: the label config's XML.
            state: what `fit` of this class has returned; empty before any training.
        """

    @abstractmethod
    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any:
        """Return what the script's `predict` returns: predictions, one for each task if the script is correct."""

    @abstractmethod
    def fit(self, instance: Any, request: TrainingRequest) -> dict[str, Any]:
        """Train the script's model and return its state."""

    def convert_tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return tasks as this SDK has them."""
        return [dict(task) for task in raw]


@dataclass(frozen=True)
class TrainingRequest:
    """What a script trains on.

    Attributes:
        tasks: annotated tasks as in Label Studio's export.
        label_config: its XML.
        project: the project's id.
        workdir: the folder of the new version.
        params: parameters for the training.
        identifiers: names and attributes that the script contains.
        imports: modules that the script imports.
        server_calls: the arguments of each `init_model_server` of htx.
        job_id: the id that scripts see.
    """

    tasks: Sequence[Mapping[str, Any]]
    label_config: str
    project: str
    workdir: Path
    params: Params
    identifiers: frozenset[str]
    imports: frozenset[str]
    server_calls: Sequence[Mapping[str, Any]] = ()
    job_id: str = "1"

    def has_identifiers(self, *names: str) -> bool:
        """Tell whether the script contains every one of these names."""
        return self.identifiers.issuperset(names)

    def project_payload(self) -> dict[str, Any]:
        """Return the project as webhooks contain it."""
        project_id = int(self.project) if self.project.isdecimal() else 0
        return {"id": project_id, "title": "export", "label_config": self.label_config}

    def last_webhook_payload(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the webhook payload about the last task; with the project alone if there are no tasks."""
        return self.webhook_payloads(tasks[-1:])[0] if tasks else {"project": self.project_payload()}

    def webhook_payloads(self, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the payload that Label Studio sends when each task is annotated."""
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


def accepted_arguments(function: Callable[..., Any], arguments: Params) -> dict[str, Any]:
    """Return the arguments that a function accepts by name; all of them if it has **kwargs."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(arguments)
    names = {
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    return {name: value for name, value in arguments.items() if name in names}
