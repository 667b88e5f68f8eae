"""Scripts that were written for older SDKs, as they are: `label_studio.ml`, `label_studio_ml` 1.0 and 2.0, `htx`.

    recognising.py   which SDK, and which class, without running anything
    surroundings.py  what a script finds while it runs: modules under their old names, files of what tasks point to
    v1.py, v2.py, htx.py   a generation each: what it lends, how its class is built, asked and taught; v1 has v0 in it
    labels.py        what they all made of a label config, and the small functions of their `utils`
    offline.py       label_studio_sdk, answered from the export that a script learns from

None of these SDKs has to be installed; where one is, the real one wins.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

import orjson

from lsml_cli.errors import LsmlError, ModelError, UsageError
from lsml_cli.models.base import Binding, Model, Progress
from lsml_cli.models.legacy_backends import htx, import_sandbox, sdk_stub
from lsml_cli.models.legacy_backends.htx import HtxAdapter
from lsml_cli.models.legacy_backends.sdk_detection import (
    PREDICT_DECORATOR,
    SDK_NAMES,
    Generation,
    ScriptSource,
    detect_generation,
    find_folder_model,
    find_model_class_name,
)
from lsml_cli.models.legacy_backends.v0_v1 import Params, TrainingRequest, V0Adapter, V1Adapter
from lsml_cli.models.legacy_backends.v2 import V2Adapter, class_from_functions
from lsml_cli.models.loading import FILE_MODULE_PREFIX, error_location
from lsml_cli.models.spec import Json
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction, Region, region_id
from lsml_cli.schema.tasks import AnnotatedTask, Task, describe_json_type

__all__ = ["PREDICT_DECORATOR", "Script", "find_folder_model", "find_model_class_name", "wrap_script"]

VERSION_FOLDER_PLACEHOLDER = (
    "{version}"  # stands for the folder of a version in what a script has returned from its training
)
SERVER_CALLS_ATTR = "_lsml_served"  # in a script of htx: what it has told `init_model_server`
MODEL_DIR = "MODEL_DIR"  # the environment variable that says where scripts keep what they have learned


class SdkAdapter(Protocol):
    """A generation: what it lends to scripts, and how it builds, asks and teaches what they define."""

    def modules(self) -> dict[str, ModuleType]: ...

    def build(self, script_class: Any, config: str, project: str, params: Params, state: Params) -> Any: ...

    def convert_tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]: ...

    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any: ...

    def fit(self, instance: Any, request: TrainingRequest) -> dict[str, Any]: ...


SDK_ADAPTERS: dict[Generation, SdkAdapter] = {
    "v0": V0Adapter(),
    "v1": V1Adapter(),
    "v2": V2Adapter(),
    "htx": HtxAdapter(),
}


@dataclass
class ScriptBinding(Binding):
    """A script's own object for one label config and project, built when it is first needed."""

    script_object: Any = None


class Script(Model):
    """A class of somebody else's that was written for an older SDK."""

    parallelism = "process"
    batch_size = 16
    params = None  # whatever the script takes

    source: ClassVar[ScriptSource]
    class_name: ClassVar[str]
    generation: ClassVar[Generation]

    @property
    def adapter(self) -> SdkAdapter:
        return SDK_ADAPTERS[self.generation]

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> ScriptBinding:
        note = f"{self.source.path.name} was written for {SDK_NAMES[self.generation]}."
        return ScriptBinding(config, label_map, project, notes=(note,) if self.spec.version is None else ())

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Any:
        raw = dict(task.raw) if "data" in task.raw else {"id": task.id}
        return raw | {"id": task.id, "data": dict(task.data)}, task.context

    def forward(self, inputs: Sequence[Any], binding: Binding) -> Sequence[Any]:
        assert isinstance(binding, ScriptBinding)
        edition = _module_name(self.source, self.spec.path)
        with self._script_environment(edition, self.spec.path, binding.fetch):
            if binding.script_object is None:
                binding.script_object = self._build_instance(binding, edition, self.spec.path, self.spec.state)
            if len(inputs) == 1 or not any(context for _, context in inputs):
                return self._predict_tasks(binding.script_object, [task for task, _ in inputs], inputs[0][1])
            return [self._predict_tasks(binding.script_object, [task], context)[0] for task, context in inputs]

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        """A script's version is lsml's: it says what the predictions of a run have in common."""
        one = output[0] if isinstance(output, list) and len(output) == 1 else output
        if hasattr(one, "to_json") or hasattr(one, "model_dump"):
            one = one.to_json() if hasattr(one, "to_json") else one.model_dump()
        if not isinstance(one, Mapping) or not isinstance(one.get("result"), list | tuple):
            what = "no prediction" if not one else f"{describe_json_type(one)} without a result"
            raise ValueError(f"the script returned {what} for this task")
        regions = tuple(self._to_region(each, number, task, binding) for number, each in enumerate(one["result"]))
        prediction = Prediction.of(regions, self.version)
        score = _to_json_value(one.get("score"))
        return prediction if score is None else Prediction(regions, float(score), self.version)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        assert isinstance(binding, ScriptBinding)
        tasks = [_to_export_task(each, binding.config) for each in train]
        project = binding.project or next((each.task.project for each in train if each.task.project), None) or "0"
        taught = TrainingRequest(
            tasks, binding.config.xml, project, out_dir, self.spec.params, self.source.identifiers, self.source.imports
        )
        number = int(project) if project.isdecimal() else 0
        sdk = sdk_stub.build_sdk_stub(number, tasks, binding.config.xml)
        progress(f"{self.source.path.name} learns as {SDK_NAMES[self.generation]} taught it.")
        edition = _module_name(self.source, out_dir, "learning")
        with self._script_environment(edition, out_dir, binding.media.fetch if binding.media else None, sdk):
            instance = self._build_instance(binding, edition, out_dir, {})
            taught.server_calls = vars(sys.modules[edition])[SERVER_CALLS_ATTR]
            state = self.adapter.fit(instance, taught)
        written: dict[str, Json] = _replace_path_prefix(_to_json_value(state), str(out_dir), VERSION_FOLDER_PLACEHOLDER)
        if not any(written.values()) and not any(out_dir.iterdir()):
            raise ModelError(
                f"{self.spec.name} has learned nothing that could be kept: its fit returned and wrote nothing.",
                f"It should return a dict, call self.set(…), or write into workdir (also in the variable {MODEL_DIR}).",
            )
        return written

    def _build_instance(self, binding: Binding, module_name: str, folder: Path | None, state: Mapping[str, Any]) -> Any:
        settled = _replace_path_prefix(dict(state), VERSION_FOLDER_PLACEHOLDER, str(folder)) if folder else dict(state)
        original = _get_script_class(
            _import_script(self.source, self.generation, module_name), self.class_name, self.generation
        )
        params = _load_config_json(self.source.path) | dict(self.spec.params)
        try:
            return self.adapter.build(original, binding.config.xml, binding.project or "0", params, settled)
        except LsmlError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{self._recognition_message()}, but {self.class_name} cannot be built: {error_location(error)}."
            ) from error

    @contextmanager
    def _script_environment(
        self,
        module_name: str,
        folder: Path | None,
        fetch: import_sandbox.Fetch | None,
        sdk: Mapping[str, ModuleType] | None = None,
    ) -> Iterator[None]:
        learned = {MODEL_DIR: str(folder)} if folder else {}
        lent, home = self.adapter.modules(), self.source.path.parent
        with import_sandbox.script_environment(lent, home, fetch, learned, sdk or {}, _sibling_modules[module_name]):
            yield

    def _predict_tasks(self, instance: Any, tasks: list[dict[str, Any]], context: Any) -> list[Any]:
        found = self.adapter.predict(instance, self.adapter.convert_tasks(tasks), context)
        if isinstance(found, Mapping) or not hasattr(found, "__iter__"):
            raise ValueError(
                f"the script's predict returned {describe_json_type(found)}, expected a list of predictions"
            )
        return _align_with_tasks(list(found), tasks)

    def _to_region(self, raw: Any, index: int, task: Task, binding: Binding) -> Region:
        fields = _to_json_value(raw)
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
        given = fields.pop("id", None)
        name, to_name = fields.pop("from_name"), fields.pop("to_name")
        known = str(given) if given else region_id(task.id if task.id is not None else task.index, name, index)
        return Region(known, name, to_name, type_, value, None if score is None else float(score), fields)

    @classmethod
    def _recognition_message(cls) -> str:
        return f"{cls.source.path} was recognised as a script for {SDK_NAMES[cls.generation]}"


def wrap_script(path: Path, name: str) -> type[Script] | None:
    """The model that a class in a file stands for; None for a file that was written for none of the older SDKs.

    Raises ModelError when the file cannot be imported, or has no such class.
    """
    source = ScriptSource(path)
    generation = detect_generation(source)
    if generation is None:
        return None
    edition = _module_name(source, None)
    with import_sandbox.stub_modules(SDK_ADAPTERS[generation].modules(), path.parent, _sibling_modules[edition]):
        module = _import_script(source, generation, edition)
    _get_script_class(module, name, generation)
    content = {"source": source, "class_name": name, "generation": generation, "__module__": edition}
    return type(name, (Script,), content | {"__doc__": f"Written for {SDK_NAMES[generation]}."})


def _module_name(source: ScriptSource, folder: Path | None, purpose: str = "predicting") -> str:
    """The name that a script has as a module. What belongs to a version has a module of its own: what a script keeps in
    globals, and reads from the environment when it is imported, must not be another version's."""
    version = f"{folder}, {purpose}" if folder else ""
    key = blake2b(f"{source.path}\0{version}".encode(), digest_size=4).hexdigest()
    return f"{FILE_MODULE_PREFIX}{source.path.stem}_{key}"


_sibling_modules: defaultdict[str, import_sandbox.SiblingModules] = defaultdict(dict)  # of each edition


def _import_script(source: ScriptSource, generation: Generation, name: str) -> ModuleType:
    """The script as a module of this name. What it imports must have been lent.

    To itself, and to what lies beside it, it is called like its file: so a class of its own that one edition has
    pickled is found by another.
    """
    if name in sys.modules:
        return sys.modules[name]
    stem = source.path.stem
    plain = name if stem in import_sandbox.RESERVED_MODULE_NAMES or stem in sys.modules or "." in stem else stem
    found = importlib.util.spec_from_file_location(plain, source.path)
    if found is None or found.loader is None:
        raise ModelError(f"{source.path} cannot be imported as Python.")
    made = importlib.util.module_from_spec(found)
    sys.modules[name] = sys.modules[plain] = made
    htx.recorded_server_calls.clear()
    try:
        found.loader.exec_module(made)
    except (Exception, SystemExit) as error:
        for each in (name, plain):
            sys.modules.pop(each, None)
        missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
        hint = f"pip install what brings {missing}, if it is a package of its own." if missing else None
        raise ModelError(
            f"{source.path} was recognised as a script for {SDK_NAMES[generation]}, and cannot be imported: "
            f"{error_location(error)}.",
            hint,
        ) from error
    vars(made)[SERVER_CALLS_ATTR] = list(htx.recorded_server_calls)
    return made


def _get_script_class(module: ModuleType, name: str, generation: Generation) -> Any:
    if generation == "htx" and name == "serve":
        return vars(module)[SERVER_CALLS_ATTR][-1]["model"]
    found = getattr(module, name, None)
    if found is None:
        raise ModelError(f"{module.__file__} has no {name}.", f"It has: {', '.join(_public_names(module))}.")
    if generation == "v2" and not isinstance(found, type):
        return class_from_functions(found)
    if not callable(getattr(found, "predict", None)):
        raise ModelError(f"{module.__file__}: {name} cannot predict.", f"It has: {', '.join(_public_names(module))}.")
    return found


def _public_names(module: ModuleType) -> list[str]:
    mine = [name for name, each in vars(module).items() if getattr(each, "__module__", None) == module.__name__]
    return mine or ["nothing"]


def _load_config_json(path: Path) -> dict[str, Any]:
    """The parameters that the older `init` left in a `config.json` beside the script."""
    file = path.with_name("config.json")
    if not file.is_file():
        return {}
    try:
        found = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{file} is no JSON: {error}.") from None
    return found if isinstance(found, dict) else {}


def _to_export_task(example: AnnotatedTask, config: LabelConfig) -> dict[str, Any]:
    """A task as Label Studio's export has it, with the one annotation that counts."""
    task, annotation = example
    made = {
        "id": annotation.id,
        "result": [dict(each) for each in annotation.result],
        "was_cancelled": annotation.cancelled,
        "ground_truth": annotation.ground_truth,
    }
    return {**task.raw, "id": task.id, "data": dict(task.data), "annotations": [made]}


def _align_with_tasks(predictions: list[Any], tasks: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Predictions in the order of the tasks, where each says which task it is about."""
    about = [each.get("task", each.get("task_id")) if isinstance(each, Mapping) else None for each in predictions]
    ids = [task["id"] for task in tasks]
    if None in about or None in ids or len(set(ids)) != len(ids) or not set(about) <= set(ids) or about == ids:
        return predictions
    by_task = dict(zip(about, predictions, strict=True))
    return [by_task.get(each) for each in ids]


def _to_json_value(value: Any) -> Any:
    """Numbers and arrays of NumPy, tuples and objects as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _to_json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_to_json_value(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ in ("numpy", "torch") and hasattr(value, "tolist"):
        return _to_json_value(value.tolist())
    for name in ("_dict", "model_dump", "to_dict"):
        if callable(method := getattr(value, name, None)):
            return _to_json_value(method())
    return value


def _replace_path_prefix(value: Any, old: str, new: str) -> Any:
    """The same with another beginning of every path below a folder."""
    if isinstance(value, dict):
        return {key: _replace_path_prefix(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [_replace_path_prefix(each, old, new) for each in value]
    if isinstance(value, str):
        return re.sub(rf"^{re.escape(old)}(?=$|[/\\])", lambda _: new, value)
    return value
