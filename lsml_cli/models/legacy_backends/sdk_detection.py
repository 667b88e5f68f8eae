"""Detect which SDK a script was written for and which of its classes is the model, without running it."""

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
PREDICT_DECORATOR = "predict_fn"  # of label_studio_ml 2.0, for a function that predicts instead of a class

# Names that only one generation of label_studio_ml has.
_V2_IDENTIFIERS = {
    "ModelResponse",
    "PredictionValue",
    PREDICT_DECORATOR,
    "update_fn",
    "get_first_tag_occurence",
    "preload_task_data",
    "build_label_map",
    "label_interface",
    "bump_model_version",
    "use_label_config",
    "extra_params",
    "set_extra_params",
}
_V1_IDENTIFIERS = {"train_output", "LabelStudioMLBaseHelper", "LabelStudioMLChoices", "hostname", "access_token"}


@dataclass(frozen=True)
class ScriptSource:
    """The source code of a script.

    Raises:
        ModelError: the file cannot be read, or is not Python.
    """

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
            line, cause = (f", line {error.lineno}", error.msg) if isinstance(error, SyntaxError) else ("", str(error))
            raise ModelError(f"{self.path}{line}: this is no Python ({cause}).") from None

    @cached_property
    def imports(self) -> frozenset[str]:
        """Names of all imported modules and their parents: "label_studio_ml.model", "label_studio_ml"."""
        modules = set()
        for node in ast.walk(self.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                parts = name.split(".")
                modules |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        return frozenset(modules)

    @cached_property
    def identifiers(self) -> frozenset[str]:
        """All names, attributes and arguments, and strings that are identifiers."""
        identifiers = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name):
                identifiers.add(node.id)
            elif isinstance(node, ast.Attribute):
                identifiers.add(node.attr)
            elif isinstance(node, ast.alias):
                identifiers.add(node.name.rpartition(".")[2])
            elif isinstance(node, ast.arg):
                identifiers.add(node.arg)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                identifiers.add(node.value)
        return frozenset(identifiers)

    @property
    def classes(self) -> list[ast.ClassDef]:
        return [node for node in self.tree.body if isinstance(node, ast.ClassDef)]


def detect_generation(source: ScriptSource) -> Generation | None:
    """Return the SDK generation that a script was written for, None if for none of them."""
    if "htx" in source.imports:
        return "htx"
    if "label_studio.ml" in source.imports:
        return "v0"
    if "label_studio_ml" not in source.imports:
        return None
    return "v2" if _is_v2(source) else "v1"


def _is_v2(source: ScriptSource) -> bool:
    """Tell label_studio_ml 2.0 from 1.0 by names and, without any, by the signatures of methods."""
    if source.identifiers & _V2_IDENTIFIERS or "label_studio_ml.response" in source.imports:
        return True
    if source.identifiers & _V1_IDENTIFIERS:
        return False
    methods = {method.name: method for class_node in source.classes for method in _methods(class_node)}
    if "setup" in methods:
        return True
    if (init := methods.get("__init__")) is not None:
        return "project_id" in _argument_names(init)
    if (fit := methods.get("fit")) is not None:
        return _argument_names(fit)[1:3] == ["event", "data"] and "job_id" not in _argument_names(fit)
    return "context" in _argument_names(methods["predict"]) if "predict" in methods else False


def find_model_class_name(path: Path) -> str:
    """Return the name of the only model class in a file, be it lsml's or an SDK's.

    Raises:
        UnknownModel: the file has no model class, or more than one.
    """
    source = ScriptSource(path)
    names = list(_model_candidates(source))
    if len(names) == 1:
        return names[0]
    if not names:
        raise UnknownModel(f"{path} has no model in it.", "A model is a class that derives from lsml_cli.Model.")
    raise UnknownModel(
        f"{path} is a file; which class in it is the model? It has {format_list(names)}.",
        f"Name it: {path}:{names[-1]}",
    )


def _model_candidates(source: ScriptSource) -> Iterator[str]:
    """Yield the classes that may be models: derived ones from which no other class derives, and decorated functions."""
    bases = {name for class_node in source.classes for name in _last_name_parts(class_node.bases)}
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
    """Return the model classes that a script or a `_wsgi.py` passes to its server; "serve" for htx's scikit-learn."""
    names = set()
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        called = _last_name_parts([node.func])
        for keyword in node.keywords:
            if keyword.arg in ("create_model_func", "model_class") and isinstance(keyword.value, ast.Name):
                names.add(keyword.value.id)
        if called == ["serve"] and any(name.startswith("htx") for name in source.imports):
            names.add("serve")
    return names


def find_folder_model(folder: Path) -> tuple[Path, str] | None:
    """Return the file and class name of the model in a folder with a `model.py`; None without such a file.

    If there is a `_wsgi.py`, written by the SDK's own `init`, the model is the class that it serves.
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
    return (statement for statement in node.body if isinstance(statement, ast.FunctionDef))


def _argument_names(node: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def _last_name_parts(nodes: list[ast.expr]) -> list[str]:
    """Return the last part of each dotted name; of a call, that of the called function."""
    parts = []
    for node in nodes:
        node = node.func if isinstance(node, ast.Call) else node
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        elif isinstance(node, ast.Name):
            parts.append(node.id)
    return parts
