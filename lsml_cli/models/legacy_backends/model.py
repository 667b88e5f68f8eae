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
from lsml_cli.models.base import FILE_MODULE, Binding, Json, Model, Progress, where
from lsml_cli.models.legacy_backends import htx, import_sandbox, sdk_stub
from lsml_cli.models.legacy_backends.htx import Htx
from lsml_cli.models.legacy_backends.sdk_detection import (
    DECORATOR,
    SPOKEN,
    Generation,
    Source,
    generation_of,
    model_in,
    model_name,
)
from lsml_cli.models.legacy_backends.v0_v1 import V0, V1, Params, Taught
from lsml_cli.models.legacy_backends.v2 import V2, class_of
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction, Region, region_id
from lsml_cli.schema.tasks import Labelled, Task, kind

__all__ = ["DECORATOR", "Script", "adapted", "model_in", "model_name"]

HERE = "{version}"  # stands for the folder of a version in what a script has returned from its training
SERVED = "_lsml_served"  # in a script of htx: what it has told `init_model_server`
MODEL_DIR = "MODEL_DIR"  # the environment variable that says where scripts keep what they have learned


class Kind(Protocol):
    """A generation: what it lends to scripts, and how it builds, asks and teaches what they define."""

    def modules(self) -> dict[str, ModuleType]: ...

    def build(self, original: Any, config: str, project: str, params: Params, state: Params) -> Any: ...

    def tasks(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]: ...

    def predict(self, instance: Any, tasks: Sequence[Mapping[str, Any]], context: Any) -> Any: ...

    def fit(self, instance: Any, taught: Taught) -> dict[str, Any]: ...


KINDS: dict[Generation, Kind] = {"v0": V0(), "v1": V1(), "v2": V2(), "htx": Htx()}


@dataclass
class Hired(Binding):
    """A script's own object for one label config and project, built when it is first needed."""

    instance: Any = None


class Script(Model):
    """A class of somebody else's that was written for an older SDK."""

    place = "process"
    batch_size = 16
    params = None  # whatever the script takes

    source: ClassVar[Source]
    name: ClassVar[str]
    generation: ClassVar[Generation]

    @property
    def kind(self) -> Kind:
        return KINDS[self.generation]

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> Hired:
        note = f"{self.source.path.name} was written for {SPOKEN[self.generation]}."
        return Hired(config, label_map, project, notes=(note,) if self.spec.version is None else ())

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Any:
        raw = dict(task.raw) if "data" in task.raw else {"id": task.id}
        return raw | {"id": task.id, "data": dict(task.data)}, task.context

    def forward(self, inputs: Sequence[Any], binding: Binding) -> Sequence[Any]:
        assert isinstance(binding, Hired)
        edition = _edition(self.source, self.spec.path)
        with self._running(edition, self.spec.path, binding.fetch):
            if binding.instance is None:
                binding.instance = self._built(binding, edition, self.spec.path, self.spec.state)
            if len(inputs) == 1 or not any(context for _, context in inputs):
                return self._asked(binding.instance, [task for task, _ in inputs], inputs[0][1])
            return [self._asked(binding.instance, [task], context)[0] for task, context in inputs]

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        """A script's version is lsml's: it says what the predictions of a run have in common."""
        one = output[0] if isinstance(output, list) and len(output) == 1 else output
        if hasattr(one, "to_json") or hasattr(one, "model_dump"):
            one = one.to_json() if hasattr(one, "to_json") else one.model_dump()
        if not isinstance(one, Mapping) or not isinstance(one.get("result"), list | tuple):
            what = "no prediction" if not one else f"{kind(one)} without a result"
            raise ValueError(f"the script returned {what} for this task")
        regions = tuple(self._region(each, number, task, binding) for number, each in enumerate(one["result"]))
        prediction = Prediction.of(regions, self.version)
        score = _plain(one.get("score"))
        return prediction if score is None else Prediction(regions, float(score), self.version)

    def fit(
        self,
        train: Sequence[Labelled],
        holdout: Sequence[Labelled],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Json]:
        assert isinstance(binding, Hired)
        tasks = [_as_exported(each, binding.config) for each in train]
        project = binding.project or next((each.task.project for each in train if each.task.project), None) or "0"
        taught = Taught(
            tasks, binding.config.xml, project, out_dir, self.spec.params, self.source.words, self.source.imports
        )
        number = int(project) if project.isdecimal() else 0
        sdk = sdk_stub.sdk(number, tasks, binding.config.xml)
        progress(f"{self.source.path.name} learns as {SPOKEN[self.generation]} taught it.")
        edition = _edition(self.source, out_dir, "learning")
        with self._running(edition, out_dir, binding.media.fetch if binding.media else None, sdk):
            instance = self._built(binding, edition, out_dir, {})
            taught.served = vars(sys.modules[edition])[SERVED]
            state = self.kind.fit(instance, taught)
        written: dict[str, Json] = _rewritten(_plain(state), str(out_dir), HERE)
        if not any(written.values()) and not any(out_dir.iterdir()):
            raise ModelError(
                f"{self.spec.name} has learned nothing that could be kept: its fit returned and wrote nothing.",
                f"It should return a dict, call self.set(…), or write into workdir (also in the variable {MODEL_DIR}).",
            )
        return written

    def _built(self, binding: Binding, edition: str, folder: Path | None, state: Mapping[str, Any]) -> Any:
        settled = _rewritten(dict(state), HERE, str(folder)) if folder else dict(state)
        original = _defined(_imported(self.source, self.generation, edition), self.name, self.generation)
        params = _config_beside(self.source.path) | dict(self.spec.params)
        try:
            return self.kind.build(original, binding.config.xml, binding.project or "0", params, settled)
        except LsmlError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{self._recognised()}, but {self.name} cannot be built: {where(error)}.") from error

    @contextmanager
    def _running(
        self,
        edition: str,
        folder: Path | None,
        fetch: import_sandbox.Fetch | None,
        sdk: Mapping[str, ModuleType] | None = None,
    ) -> Iterator[None]:
        learned = {MODEL_DIR: str(folder)} if folder else {}
        lent, home = self.kind.modules(), self.source.path.parent
        with import_sandbox.running(lent, home, fetch, learned, sdk or {}, _siblings[edition]):
            yield

    def _asked(self, instance: Any, tasks: list[dict[str, Any]], context: Any) -> list[Any]:
        found = self.kind.predict(instance, self.kind.tasks(tasks), context)
        if isinstance(found, Mapping) or not hasattr(found, "__iter__"):
            raise ValueError(f"the script's predict returned {kind(found)}, expected a list of predictions")
        return _in_order(list(found), tasks)

    def _region(self, each: Any, number: int, task: Task, binding: Binding) -> Region:
        fields = _plain(each)
        if not isinstance(fields, dict) or not {"from_name", "to_name", "value"} <= fields.keys():
            raise ValueError(f"the script returned {kind(fields)} as a region, expected from_name, to_name and value")
        control = binding.config.controls.get(fields["from_name"])
        type_ = fields.pop("type", None) or (control.type if control else "")
        value = fields.pop("value")
        if binding.label_map and isinstance(value.get(type_), list):
            value = value | {type_: [binding.label_map.get(label, label) for label in value[type_]]}
        score = fields.pop("score", None)
        given = fields.pop("id", None)
        name, to_name = fields.pop("from_name"), fields.pop("to_name")
        known = str(given) if given else region_id(task.id if task.id is not None else task.index, name, number)
        return Region(known, name, to_name, type_, value, None if score is None else float(score), fields)

    @classmethod
    def _recognised(cls) -> str:
        return f"{cls.source.path} was recognised as a script for {SPOKEN[cls.generation]}"


def adapted(path: Path, name: str) -> type[Script] | None:
    """The model that a class in a file stands for; None for a file that was written for none of the older SDKs.

    Raises ModelError when the file cannot be imported, or has no such class.
    """
    source = Source(path)
    generation = generation_of(source)
    if generation is None:
        return None
    edition = _edition(source, None)
    with import_sandbox.lent(KINDS[generation].modules(), path.parent, _siblings[edition]):
        module = _imported(source, generation, edition)
    _defined(module, name, generation)
    content = {"source": source, "name": name, "generation": generation, "__module__": edition}
    return type(name, (Script,), content | {"__doc__": f"Written for {SPOKEN[generation]}."})


def _edition(source: Source, folder: Path | None, purpose: str = "predicting") -> str:
    """The name that a script has as a module. What belongs to a version has a module of its own: what a script keeps in
    globals, and reads from the environment when it is imported, must not be another version's."""
    version = f"{folder}, {purpose}" if folder else ""
    key = blake2b(f"{source.path}\0{version}".encode(), digest_size=4).hexdigest()
    return f"{FILE_MODULE}{source.path.stem}_{key}"


_siblings: defaultdict[str, import_sandbox.Siblings] = defaultdict(dict)  # of each edition


def _imported(source: Source, generation: Generation, name: str) -> ModuleType:
    """The script as a module of this name. What it imports must have been lent.

    To itself, and to what lies beside it, it is called like its file: so a class of its own that one edition has
    pickled is found by another.
    """
    if name in sys.modules:
        return sys.modules[name]
    stem = source.path.stem
    plain = name if stem in import_sandbox.RESERVED or stem in sys.modules or "." in stem else stem
    found = importlib.util.spec_from_file_location(plain, source.path)
    if found is None or found.loader is None:
        raise ModelError(f"{source.path} cannot be imported as Python.")
    made = importlib.util.module_from_spec(found)
    sys.modules[name] = sys.modules[plain] = made
    htx.served.clear()
    try:
        found.loader.exec_module(made)
    except (Exception, SystemExit) as error:
        for each in (name, plain):
            sys.modules.pop(each, None)
        missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
        hint = f"pip install what brings {missing}, if it is a package of its own." if missing else None
        raise ModelError(
            f"{source.path} was recognised as a script for {SPOKEN[generation]}, and cannot be imported: "
            f"{where(error)}.",
            hint,
        ) from error
    vars(made)[SERVED] = list(htx.served)
    return made


def _defined(module: ModuleType, name: str, generation: Generation) -> Any:
    if generation == "htx" and name == "serve":
        return vars(module)[SERVED][-1]["model"]
    found = getattr(module, name, None)
    if found is None:
        raise ModelError(f"{module.__file__} has no {name}.", f"It has: {', '.join(_public(module))}.")
    if generation == "v2" and not isinstance(found, type):
        return class_of(found)
    if not callable(getattr(found, "predict", None)):
        raise ModelError(f"{module.__file__}: {name} cannot predict.", f"It has: {', '.join(_public(module))}.")
    return found


def _public(module: ModuleType) -> list[str]:
    mine = [name for name, each in vars(module).items() if getattr(each, "__module__", None) == module.__name__]
    return mine or ["nothing"]


def _config_beside(path: Path) -> dict[str, Any]:
    """The parameters that the older `init` left in a `config.json` beside the script."""
    file = path.with_name("config.json")
    if not file.is_file():
        return {}
    try:
        found = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{file} is no JSON: {error}.") from None
    return found if isinstance(found, dict) else {}


def _as_exported(example: Labelled, config: LabelConfig) -> dict[str, Any]:
    """A task as Label Studio's export has it, with the one annotation that counts."""
    task, annotation = example
    made = {
        "id": annotation.id,
        "result": [dict(each) for each in annotation.result],
        "was_cancelled": annotation.cancelled,
        "ground_truth": annotation.ground_truth,
    }
    return {**task.raw, "id": task.id, "data": dict(task.data), "annotations": [made]}


def _in_order(found: list[Any], tasks: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Predictions in the order of the tasks, where each says which task it is about."""
    about = [each.get("task", each.get("task_id")) if isinstance(each, Mapping) else None for each in found]
    ids = [task["id"] for task in tasks]
    if None in about or None in ids or len(set(ids)) != len(ids) or not set(about) <= set(ids) or about == ids:
        return found
    by_task = dict(zip(about, found, strict=True))
    return [by_task.get(each) for each in ids]


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy, tuples and objects as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ in ("numpy", "torch") and hasattr(value, "tolist"):
        return _plain(value.tolist())
    for name in ("_dict", "model_dump", "to_dict"):
        if callable(method := getattr(value, name, None)):
            return _plain(method())
    return value


def _rewritten(value: Any, old: str, new: str) -> Any:
    """The same with another beginning of every path below a folder."""
    if isinstance(value, dict):
        return {key: _rewritten(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [_rewritten(each, old, new) for each in value]
    if isinstance(value, str):
        return re.sub(rf"^{re.escape(old)}(?=$|[/\\])", lambda _: new, value)
    return value
