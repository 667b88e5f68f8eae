"""Locate what the name of a model leads to, without importing anything of it.

`locate_model` is the one place that reads names: `resolve.find_model` loads what it found, and a settings file that
nobody named may only lead to what is no code (`ModelLocation.code` is None).

Order: a registered name (built in, or of an installed package) always means the registered model; a folder of that
name is `./NAME`. A folder that holds versions is data, whatever else lies in it. Then come projects, scripts, classes.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from lsml_cli.errors import UnknownModel, suggest_names
from lsml_cli.models.spec import Json
from lsml_cli.registry import plugins, versions
from lsml_cli.registry.project_file import ProjectFile, find_single_class, read_project_file

BUILT_IN = {
    "image-classifier": "lsml_cli.models.image_classifier.model:ImageClassifier",
    "object-detector": "lsml_cli.models.object_detector.model:ObjectDetector",
    "ocr": "lsml_cli.models.ocr.model:Ocr",
    "text-classifier": "lsml_cli.models.text_classifier.model:TextClassifier",
}
MAX_SIBLINGS = 500  # entries of a folder that are compared with a misspelled name

_CLASS_AT_FOLDER = re.compile(r"((?:.+?\.py|[\w.]+):[^\W\d]\w*)@(.+)", re.DOTALL)


@dataclass(frozen=True)
class ModelLocation:
    """What a name leads to.

    Attributes:
        name: What the model is called in predictions: "text-classifier", "shouting:Shouting".
        target: The class, "package.module:Class" or "/path/to/file.py:Class"; None for a version whose class has to be
            registered.
        code: The file or module of a class that is not registered, so that loading it runs somebody's code; None if
            nothing but lsml and registered packages runs.
        version: Folder of the trained version, None for an untrained model.
        params: Parameters that the `model.toml` of a project sets. They do not replace those of its trained version.
        display_name: What the user called the version, for error messages.
        versions_root: Folder whose promoted version the name means, so that another one can be promoted there; None
            for a name that means a fixed model.
    """

    name: str
    target: str | None
    code: str | None = None
    version: Path | None = None
    params: Mapping[str, Json] = field(default_factory=dict)
    display_name: str = ""
    versions_root: Path | None = None


def locate_model(name: str) -> ModelLocation:
    """Locate a model by a name that `--model` takes.

    Raises:
        UnknownModel: There is no such model; the hint lists the known ones, the most similar name first.
        ModelError: A file on the way cannot be read.
    """
    if "\0" in name:
        raise UnknownModel("The name of the model holds a NUL character.", "Correct the name.")
    if (target := _registered_name_target(name)) is not None:
        return ModelLocation(name, target)
    if versions.is_model_folder(name):
        if not versions.is_data_folder(Path(name)):
            if (project := read_project_file(Path(name))) is not None:
                return _locate_project(project)
            if (script := find_single_class(name)) is not None:
                return _locate_class(script)
        return _at_folder(ModelLocation(name, None), name)
    if (class_and_folder := split_class(name)) is not None:
        return _locate_class_at_folder(*class_and_folder)
    return _locate_class(find_single_class(name) or name)


def split_class(name: str) -> tuple[str, str] | None:
    """Split "shouting.py:Shouting@models/news" into class and folder; None for a name of another form."""
    match = _CLASS_AT_FOLDER.fullmatch(name)
    return (match[1], match[2]) if match else None


def known_models() -> dict[str, str]:
    """Return the target of every model with a plain name. Built-in models come first, then the first package."""
    registered = {plugin.name: plugin.target for plugin in reversed(plugins.find_plugins())}
    return registered | BUILT_IN


def is_registered_name(name: str) -> bool:
    """Tell whether a name is that of a built-in model, or of one that an installed package brings."""
    return _registered_name_target(name) is not None


def _registered_name_target(name: str) -> str | None:
    """Return the class of a registered name. Reading the entry points takes 20 ms, which other names do not pay."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    return None if re.search(r"[/:@]|\.py$|^\.*$", name) else known_models().get(name)


def _locate_project(project: ProjectFile) -> ModelLocation:
    """Locate the promoted version of a project, or its untrained model if there is no version yet."""
    model = project.model
    file = model.partition(":")[0]
    if file.endswith(".py"):
        model = str(project.folder / model)
        located = _locate_class(find_single_class(model) or model)
    elif ":" in model:
        located = _locate_class(model)
    else:
        target = _registered_name_target(model)
        if target is None:
            raise UnknownModel(
                f"{project.path}: there is no model {model!r}.",
                f"{suggest_names(model, known_models(), 'Known models')} A class in a file is file.py:Class.",
            )
        located = ModelLocation(model, target)
    if (project.versions_root / versions.CURRENT_FILE).is_file():
        target = located.target if located.code else None
        return _at_folder(replace(located, target=target, params=project.params), str(project.versions_root))
    name = project.folder.resolve().name
    return replace(located, name=name, params=project.params, versions_root=project.versions_root)


def _locate_class_at_folder(class_name: str, folder: str) -> ModelLocation:
    """Locate "CLASS@FOLDER" by its two parts."""
    located = _locate_class(class_name)
    if not versions.is_model_folder(folder):
        raise UnknownModel(f"There is no folder {folder}.", "Name a folder that `lsml fit` wrote.")
    return _at_folder(located, folder)


def _at_folder(located: ModelLocation, folder: str) -> ModelLocation:
    """Return the location of the version that a folder, or FOLDER@VERSION, names."""
    root = Path(folder) if (Path(folder) / versions.CURRENT_FILE).is_file() else None
    return replace(located, version=versions.resolve(folder), display_name=folder, versions_root=root)


def _locate_class(name: str) -> ModelLocation:
    """Locate "path/to/file.py:Class" or "package.module:Class".

    Only the outermost package of a module is looked for, because finding an inner one imports those around it.
    """
    file, colon, class_name = name.rpartition(":")
    if colon and file.endswith(".py"):
        if not Path(file).is_file():
            raise UnknownModel(f"There is no file {file}.", "A model in a file is named path/to/file.py:Class.")
        path = Path(file).resolve()
        return ModelLocation(f"{Path(file).stem}:{class_name}", f"{path}:{class_name}", code=file)
    if colon and _is_installed(file.partition(".")[0]):
        is_registered = name in known_models().values()
        return ModelLocation(name, name, code=None if is_registered else file)
    if colon and re.fullmatch(r"[\w.]+", file):
        raise UnknownModel(f"There is no module {file}.", "Is its package installed here?")
    if Path(name).is_file():
        raise UnknownModel(f"{name} is a file, not a model.", "A trained model is the folder that `lsml fit` wrote.")
    raise UnknownModel(
        f"There is no model {name!r}.",
        f"{suggest_names(name, [*known_models(), *_sibling_models(name)], 'Known models')} "
        "Or name a folder that `lsml fit` wrote.",
    )


def _sibling_models(name: str) -> Iterator[str]:
    """Yield the folders of models beside the one that a name spells, spelled likewise."""
    parent = Path(name).parent
    try:
        entries = list(islice(os.scandir(parent), MAX_SIBLINGS))
    except (OSError, ValueError):
        return
    for entry in entries:
        if Path(entry.path, versions.CURRENT_FILE).is_file():
            yield os.path.relpath(entry.path) if parent == Path() else entry.path


def _is_installed(module: str) -> bool:
    try:
        return bool(module) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
