"""Wrap a script for an older SDK in an lsml model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import orjson

from lsml_cli.errors import LsmlError, ModelError, UsageError
from lsml_cli.models.base import Binding, Model, Progress
from lsml_cli.models.legacy_backends.htx import HtxAdapter
from lsml_cli.models.legacy_backends.import_sandbox import ScriptSandbox, open_sandbox
from lsml_cli.models.legacy_backends.json_values import replace_path_prefix, to_json_value
from lsml_cli.models.legacy_backends.offline_client import build_offline_sdk
from lsml_cli.models.legacy_backends.sdk_adapter import SdkAdapter, TrainingRequest
from lsml_cli.models.legacy_backends.sdk_detection import SDK_NAMES, Generation, ScriptSource, detect_generation
from lsml_cli.models.legacy_backends.v0_v1 import V0Adapter, V1Adapter
from lsml_cli.models.legacy_backends.v2 import V2Adapter, class_from_functions
from lsml_cli.models.legacy_backends.version_folder import MODEL_DIR, require_contained
from lsml_cli.models.loading import error_location
from lsml_cli.models.spec import Json
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction, Region, region_id
from lsml_cli.schema.tasks import AnnotatedTask, Task, describe_json_type

VERSION_FOLDER_PLACEHOLDER = "{version}"  # stands for the version's folder in the state that a script's `fit` returned
PICKLE_MODULES = frozenset({"pickle", "joblib", "dill", "cloudpickle"})

SDK_ADAPTERS: dict[Generation, SdkAdapter] = {
    "v0": V0Adapter(),
    "v1": V1Adapter(),
    "v2": V2Adapter(),
    "htx": HtxAdapter(),
}


@dataclass
class ScriptBinding(Binding):
    """A binding with the script's own model, which is created for the first batch."""

    script_object: Any = None


class Script(Model[ScriptBinding]):
    """A model whose class was written for an older SDK; see `wrap_script`."""

    parallelism = "process"
    batch_size = 16
    params = None  # the script takes any parameters

    source: ClassVar[ScriptSource]
    class_name: ClassVar[str]
    generation: ClassVar[Generation]

    @property
    def adapter(self) -> SdkAdapter:
        """The adapter for the script's SDK."""
        return SDK_ADAPTERS[self.generation]

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> ScriptBinding:
        self.spec.require_confirmed()
        if self.spec.path is not None:
            require_contained(_with_folder(self.spec.state, self.spec.path), self.spec.path)
        note = f"{self.source.path.name} was written for {SDK_NAMES[self.generation]}."
        return ScriptBinding(config, label_map, project, notes=(note,) if self.spec.version is None else ())

    @classmethod
    def version_notes(cls) -> Sequence[str]:
        if not cls.source.imports & PICKLE_MODULES and (cls.generation, cls.class_name) != ("htx", "serve"):
            return ()
        return (
            f"{cls.source.path.name} reads pickles, and reading one runs the code in it: use only versions that you or "
            "somebody you trust has trained.",
        )

    def encode(self, task: Task, binding: ScriptBinding, media: Mapping[str, bytes]) -> Any:
        """Return the task as a script gets it, and the interactive context."""
        raw = dict(task.raw) if "data" in task.raw else {"id": task.id}
        return raw | {"id": task.id, "data": dict(task.data)}, task.context

    def forward(self, inputs: Sequence[Any], binding: ScriptBinding) -> Sequence[Any]:
        """Call the script's `predict` with all tasks, or with single tasks if they have contexts."""
        if not inputs:
            return []
        folder = self.spec.path
        sandbox = open_sandbox(self.source, self.generation, self.adapter.build_stubs, folder)
        with sandbox.running(binding.fetch, _script_variables(folder), {}):
            if binding.script_object is None:
                binding.script_object = self._build_instance(binding, sandbox, folder, self.spec.state)
            if len(inputs) == 1 or not any(context for _, context in inputs):
                return self._predict_tasks(binding.script_object, [task for task, _ in inputs], inputs[0][1])
            return [self._predict_tasks(binding.script_object, [task], context)[0] for task, context in inputs]

    def decode(self, output: Any, task: Task, binding: ScriptBinding) -> Prediction:
        """Convert a script's prediction. Its `model_version` is replaced by lsml's: predictions of a run share one."""
        raw = output[0] if isinstance(output, list) and len(output) == 1 else output
        if hasattr(raw, "to_json") or hasattr(raw, "model_dump"):
            raw = raw.to_json() if hasattr(raw, "to_json") else raw.model_dump()
        if not isinstance(raw, Mapping) or not isinstance(raw.get("result"), list | tuple):
            problem = "no prediction" if not raw else f"{describe_json_type(raw)} without a result"
            raise ValueError(f"the script returned {problem} for this task")
        regions = tuple(self._to_region(region, index, task, binding) for index, region in enumerate(raw["result"]))
        prediction = Prediction.of(regions, self.version)
        score = to_json_value(raw.get("score"))
        return prediction if score is None else Prediction(regions, float(score), self.version)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: ScriptBinding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        tasks = [_to_export_task(example, binding.config) for example in train]
        project = binding.project or next((task.project for task, _ in train if task.project), None) or "0"
        sandbox = open_sandbox(self.source, self.generation, self.adapter.build_stubs, out_dir, "learning")
        request = TrainingRequest(
            tasks=tasks,
            label_config=binding.config.xml,
            project=project,
            workdir=out_dir,
            params=self.spec.params,
            identifiers=self.source.identifiers,
            imports=self.source.imports,
            server_calls=sandbox.server_calls,
        )
        offline_sdk = build_offline_sdk(request.project_payload()["id"], tasks, binding.config.xml)
        progress(f"{self.source.path.name} trains through {SDK_NAMES[self.generation]}.")
        fetch = binding.media.fetch if binding.media else None
        with sandbox.running(fetch, _script_variables(out_dir), offline_sdk):
            state = self.adapter.fit(self._build_instance(binding, sandbox, out_dir, {}), request)
        stored: dict[str, Json] = replace_path_prefix(to_json_value(state), str(out_dir), VERSION_FOLDER_PLACEHOLDER)
        if not any(stored.values()) and not any(out_dir.iterdir()):
            raise ModelError(
                f"{self.spec.name} has learned nothing that could be kept: its fit returned and wrote nothing.",
                f"It should return a dict, call self.set(…), or write into workdir (also in the variable {MODEL_DIR}).",
            )
        return stored

    def _build_instance(
        self, binding: Binding, sandbox: ScriptSandbox, folder: Path | None, state: Mapping[str, Any]
    ) -> Any:
        if folder is not None:
            state = _with_folder(state, folder)
        script_class = _get_script_class(sandbox, sandbox.import_script(), self.class_name)
        params = _load_config_json(self.source.path) | dict(self.spec.params)
        config, project = binding.config.xml, binding.project or "0"
        try:
            return self.adapter.build(script_class, sandbox, config, project, params, state)
        except LsmlError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{self.source.path} was recognised as a script for {SDK_NAMES[self.generation]}, but "
                f"{self.class_name} cannot be built: {error_location(error)}."
            ) from error

    def _predict_tasks(self, instance: Any, tasks: list[dict[str, Any]], context: Any) -> list[Any]:
        predictions = self.adapter.predict(instance, self.adapter.convert_tasks(tasks), context)
        if isinstance(predictions, Mapping) or not hasattr(predictions, "__iter__"):
            raise ValueError(
                f"the script's predict returned {describe_json_type(predictions)}, expected a list of predictions"
            )
        return _align_with_tasks(list(predictions), tasks)

    def _to_region(self, raw: Any, index: int, task: Task, binding: Binding) -> Region:
        fields = to_json_value(raw)
        if not isinstance(fields, dict) or not {"from_name", "to_name", "value"} <= fields.keys():
            raise ValueError(
                f"the script returned {describe_json_type(fields)} as a region, expected from_name, to_name and value"
            )
        control = binding.config.controls.get(fields["from_name"])
        type_ = fields.pop("type", None) or (control.type if control else "")
        value = fields.pop("value")
        if binding.label_map and isinstance(value.get(type_), list):
            value = value | {type_: [binding.label_map.get(label, label) for label in value[type_]]}
        score = fields.pop("score", None)
        script_id = fields.pop("id", None)
        name, to_name = fields.pop("from_name"), fields.pop("to_name")
        id_ = str(script_id) if script_id else region_id(task, name, index)
        return Region(id_, name, to_name, type_, value, None if score is None else float(score), fields)


def wrap_script(path: Path, name: str) -> type[Script] | None:
    """Return a model class for a class in a script; None if the file was not written for an older SDK.

    Raises:
        ModelError: the file cannot be imported, or has no such class.
    """
    source = ScriptSource(path)
    generation = detect_generation(source)
    if generation is None:
        return None
    sandbox = open_sandbox(source, generation, SDK_ADAPTERS[generation].build_stubs, None)
    with sandbox.importing():
        module = sandbox.import_script()
    script_class = _get_script_class(sandbox, module, name)
    attributes: dict[str, Any] = {"__module__": sandbox.module_name, "__doc__": f"Written for {SDK_NAMES[generation]}."}
    if not _can_train(script_class, generation):
        attributes["fit"] = Model.fit  # as in any model that cannot be trained
    wrapper: type[Script] = type(name, (Script,), attributes)
    wrapper.source, wrapper.class_name, wrapper.generation = source, name, generation
    return wrapper


def _can_train(script_class: Any, generation: Generation) -> bool:
    """Tell whether a script trains; a class that leaves that to the base class of its SDK learns nothing."""
    if generation == "htx" or not isinstance(script_class, type):
        return True
    own = (part for part in script_class.__mro__ if not part.__module__.startswith("label_studio"))
    names = {name for part in own if part.__module__.partition(".")[0] != "lsml_cli" for name in vars(part)}
    is_function_based = script_class.__module__.partition(".")[0] == "lsml_cli"
    return is_function_based or bool(names & {"fit", "fit2", "process_event"})


def _get_script_class(sandbox: ScriptSandbox, module: ModuleType, name: str) -> Any:
    """Return the class of this name, or one that stands for a decorated function or for a served pipeline."""
    if sandbox.generation == "htx" and name == "serve":
        return sandbox.server_calls[-1]["model"]
    script_class = getattr(module, name, None)
    if script_class is None:
        raise ModelError(f"{module.__file__} has no {name}.", f"It has: {', '.join(_public_names(module))}.")
    if sandbox.generation == "v2" and not isinstance(script_class, type):
        return class_from_functions(script_class, sandbox)
    if not callable(getattr(script_class, "predict", None)):
        raise ModelError(f"{module.__file__}: {name} cannot predict.", f"It has: {', '.join(_public_names(module))}.")
    return script_class


def _public_names(module: ModuleType) -> list[str]:
    """Return the names that a module defines itself; ["nothing"] if there are none."""
    names = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return names or ["nothing"]


def _with_folder(state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a stored state with the paths that it has in this folder."""
    return dict(replace_path_prefix(dict(state), VERSION_FOLDER_PLACEHOLDER, str(folder)))


def _script_variables(folder: Path | None) -> dict[str, str]:
    """Return the environment variables for a script whose version is in this folder."""
    return {MODEL_DIR: str(folder)} if folder else {}


def _load_config_json(script: Path) -> dict[str, Any]:
    """Return the parameters in the `config.json` beside a script, which the SDK's own `init` writes."""
    file = script.with_name("config.json")
    if not file.is_file():
        return {}
    try:
        config = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{file} is no JSON: {error}.") from None
    return config if isinstance(config, dict) else {}


def _to_export_task(example: AnnotatedTask, config: LabelConfig) -> dict[str, Any]:
    """Return a task as in Label Studio's export, with its annotation."""
    task, annotation = example
    exported = {
        "id": annotation.id,
        "result": [dict(region) for region in annotation.result],
        "was_cancelled": annotation.cancelled,
        "ground_truth": annotation.ground_truth,
    }
    return {**task.raw, "id": task.id, "data": dict(task.data), "annotations": [exported]}


def _align_with_tasks(predictions: list[Any], tasks: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Put predictions in the order of the tasks if each names its task's id, with None where there is none."""
    task_ids = [item.get("task", item.get("task_id")) if isinstance(item, Mapping) else None for item in predictions]
    ids = [task["id"] for task in tasks]
    if None in task_ids or None in ids or len(set(ids)) != len(ids) or not set(task_ids) <= set(ids) or task_ids == ids:
        return predictions
    by_task = dict(zip(task_ids, predictions, strict=True))
    return [by_task.get(id_) for id_ in ids]
