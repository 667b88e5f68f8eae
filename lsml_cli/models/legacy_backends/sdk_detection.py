"""Which SDK a script was written for, and which of its classes is the model; found without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from lsml_cli.errors import ModelError, UnknownModel, format_list

Generation = Literal["v0", "v1", "v2", "htx"]
SDK_NAMES: dict[Generation, str] = {
    "v0": "label_studio.ml (Label Studio up to 0.8)",
    "v1": "label_studio_ml 1.0",
    "v2": "label_studio_ml 2.0",
    "htx": "htx (pyheartex)",
}
PREDICT_DECORATOR = "predict_fn"  # of label_studio_ml 2.0: the decorated function predicts, and there is no class
SERVER_FUNCTION = (
    "init_model_server"  # of htx, which is told what the model is; `serve` of its adapter for scikit-learn too
)

# Each is in one generation of label_studio_ml alone.
_V2_IDENTIFIERS = {
    *(
        "ModelResponse",
        "PredictionValue",
        PREDICT_DECORATOR,
        "update_fn",
        "get_first_tag_occurence",
        "preload_task_data",
    ),
    *(
        "build_label_map",
        "label_interface",
        "bump_model_version",
        "use_label_config",
        "extra_params",
        "set_extra_params",
    ),
}
_V1_IDENTIFIERS = {"train_output", "LabelStudioMLBaseHelper", "LabelStudioMLChoices", "hostname", "access_token"}


@dataclass(frozen=True)
class ScriptSource:
    """A script as it is written. Raises ModelError when it is no Python."""

    path: Path

    @cached_property
    def text(self) -> str:
        try:
            return self.path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{self.path} cannot be read: {error}.") from None

    @cached_property
    def tree(self) -> ast.Module:
        try:
            return ast.parse(self.text)
        except (SyntaxError, ValueError) as error:
            line, what = (f", line {error.lineno}", error.msg) if isinstance(error, SyntaxError) else ("", str(error))
            raise ModelError(f"{self.path}{line}: this is no Python ({what}).") from None

    @cached_property
    def imports(self) -> frozenset[str]:
        """The modules that it imports anywhere, with their parents: "label_studio_ml.model", "label_studio_ml"."""
        found = set()
        for node in ast.walk(self.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                parts = name.split(".")
                found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        return frozenset(found)

    @cached_property
    def identifiers(self) -> frozenset[str]:
        """Every name and attribute in it, and every string that is a plain word."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.alias):
                found.add(node.name.rpartition(".")[2])
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
        return frozenset(found)

    @property
    def classes(self) -> list[ast.ClassDef]:
        return [node for node in self.tree.body if isinstance(node, ast.ClassDef)]


def detect_generation(source: ScriptSource) -> Generation | None:
    """None for a script that was written for none of them."""
    if "htx" in source.imports:
        return "htx"
    if "label_studio.ml" in source.imports:
        return "v0"
    if "label_studio_ml" not in source.imports:
        return None
    return "v2" if _is_v2(source) else "v1"


def _is_v2(source: ScriptSource) -> bool:
    if source.identifiers & _V2_IDENTIFIERS or "label_studio_ml.response" in source.imports:
        return True
    if source.identifiers & _V1_IDENTIFIERS:
        return False
    methods = {method.name: method for each in source.classes for method in _methods(each)}
    if "setup" in methods:
        return True
    if (init := methods.get("__init__")) is not None:
        return "project_id" in _argument_names(init)
    if (fit := methods.get("fit")) is not None:
        return _argument_names(fit)[1:3] == ["event", "data"] and "job_id" not in _argument_names(fit)
    return "context" in _argument_names(methods["predict"]) if "predict" in methods else False


def find_model_class_name(path: Path) -> str:
    """The name of the one class in a file that is a model, of whatever kind; for who names the file alone.

    Raises UnknownModel when there is none, or more than one.
    """
    source = ScriptSource(path)
    names = list(_model_candidates(source))
    if len(names) == 1:
        return names[0]
    if not names:
        raise UnknownModel(f"{path} has no model in it.", "A class that is one derives from lsml_cli.Model.")
    raise UnknownModel(
        f"{path} is a file; which class in it is the model? It has {format_list(names)}.",
        f"Name it: {path}:{names[-1]}",
    )


def _model_candidates(source: ScriptSource) -> Iterator[str]:
    """Classes that derive from something and that no other class here derives from; decorated functions."""
    bases = {name for each in source.classes for name in _last_name_parts(each.bases)}
    served = _served_model_names(source)
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef):
            if node.name in bases or not node.bases or not (set(_last_name_parts(node.bases)) - _NON_MODEL_BASES):
                continue
            if not served or node.name in served:
                yield node.name
        elif isinstance(node, ast.FunctionDef) and PREDICT_DECORATOR in _last_name_parts(node.decorator_list):
            yield node.name
    if served == {"serve"}:
        yield "serve"


_NON_MODEL_BASES = {"object", "ABC", "Exception", "NamedTuple", "TypedDict", "Enum", "Dataset", "Module", "Protocol"}


def _served_model_names(source: ScriptSource) -> set[str]:
    """What a script of htx, or the `_wsgi.py` beside it, gives to its server as the model."""
    found = set()
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        called = _last_name_parts([node.func])
        for keyword in node.keywords:
            if keyword.arg in ("create_model_func", "model_class") and isinstance(keyword.value, ast.Name):
                found.add(keyword.value.id)
        if called == ["serve"] and any(name.startswith("htx") for name in source.imports):
            found.add("serve")
    return found


def find_folder_model(folder: Path) -> tuple[Path, str] | None:
    """The file and the class that a folder with a `model.py` means; None where there is none.

    The `_wsgi.py` that the older `init` wrote says which one it is where there are several.
    """
    wsgi, model = folder / "_wsgi.py", folder / "model.py"
    if wsgi.is_file():
        source = ScriptSource(wsgi)
        for name in _served_model_names(source):
            for node in source.tree.body:
                if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
                    file = folder / f"{node.module.replace('.', '/')}.py"
                    if file.is_file():
                        return file, name
    return (model, find_model_class_name(model)) if model.is_file() else None


def _methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (each for each in node.body if isinstance(each, ast.FunctionDef))


def _argument_names(node: ast.FunctionDef) -> list[str]:
    return [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def _last_name_parts(nodes: list[ast.expr]) -> list[str]:
    """The last part of each dotted name."""
    found = []
    for node in nodes:
        node = node.func if isinstance(node, ast.Call) else node
        if isinstance(node, ast.Attribute):
            found.append(node.attr)
        elif isinstance(node, ast.Name):
            found.append(node.id)
    return found
