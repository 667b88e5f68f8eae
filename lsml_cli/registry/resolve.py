"""From what a user calls a model to its `ModelSpec`, without importing anything heavy.

A model may be named as

    text-classifier            one that comes with lsml, or that a package registers under `lsml.models`
    models/news                the current version of a trained model
    models/news@20261120T2130  one particular version
    path/to/file.py:Class      a class in a file, also one that was written for an older SDK
    path/to/file.py            the same, where it has one model; and the folder of a `model.py`
    path/to/project            a folder that `lsml init` wrote: what its `model.toml` says
    package.module:Class       a class in an installed package
    CLASS@models/news          a trained model (or CLASS@models/news@VERSION) of a class that is in nobody's registry;
                               CLASS is one of the two forms above

A folder may come from somebody else, and says only what its class is called. So it is loaded by itself when that is
the name of a registered class, which somebody installed; any other class is code that the user has to name.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import orjson

from lsml_cli.errors import ModelError, UnknownModel, UsageError, format_list, sort_by_similarity
from lsml_cli.models.base import Model
from lsml_cli.models.loading import FILE_MODULE_PREFIX, load_class
from lsml_cli.models.parameters import require_valid
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.registry import plugins, versions
from lsml_cli.registry.code_digest import code_digest, param_file_digests
from lsml_cli.registry.digests import json_digest
from lsml_cli.registry.project_file import ProjectFile, find_single_class, read_project_file
from lsml_cli.schema.label_config import LabelConfig

BUILT_IN = {
    "image-classifier": "lsml_cli.models.image_classifier.model:ImageClassifier",
    "object-detector": "lsml_cli.models.object_detector.model:ObjectDetector",
    "ocr": "lsml_cli.models.ocr.model:Ocr",
    "text-classifier": "lsml_cli.models.text_classifier.model:TextClassifier",
}
_CLASS_AT_FOLDER = re.compile(r"((?:.+?\.py|[\w.]+):[^\W\d]\w*)@(.+)", re.DOTALL)


def find_model(name: str, params: Mapping[str, Json] | None = None) -> ModelSpec:
    """The spec of the model that `name` means; `params` are the model's own parameters (`--with`).

    Raises UnknownModel when nothing is called that, ModelError when it is there but damaged.
    """
    params = params or {}
    if name in BUILT_IN:
        return _untrained_spec(name, BUILT_IN[name], params)
    if (project := read_project_file(Path(name))) is not None:
        return _project_spec(project, params)
    if versions.is_model_folder(name) and find_single_class(name) is None:
        return version_spec(versions.resolve(name), params, display_name=name)
    if (both := split_class(name)) is not None:
        return _spec_of_class_at_folder(*both, params)
    if (script := find_single_class(name)) is not None:
        name = script
    if (target := _class_target(name)) is not None:
        file, _, class_name = name.rpartition(":")
        return _untrained_spec(f"{Path(file).stem}:{class_name}" if file.endswith(".py") else name, target, params)
    targets = known_models()
    if name in targets:
        return _untrained_spec(name, targets[name], params)
    if Path(name).is_file():
        raise UnknownModel(f"{name} is a file, not a model.", "A trained model is the folder that `lsml fit` wrote.")
    raise UnknownModel(
        f"There is no model {name!r}.",
        f"Known models: {', '.join(sort_by_similarity(name, targets))}; or name a folder that `lsml fit` wrote.",
    )


def class_spec(model_class: type[Model], params: Mapping[str, Json] | None = None) -> ModelSpec:
    """The spec of a class that is at hand: in a notebook, in a test.

    Raises ModelError when another process could not import it.
    """
    module, name = model_class.__module__, model_class.__qualname__
    if "." in name:
        raise ModelError(
            f"{name} cannot be found by another process: it is defined inside of something else.",
            "Move the class to the top level of a file.",
        )
    if module == "__main__" or module.startswith(FILE_MODULE_PREFIX):
        origin = getattr(sys.modules[module], "__file__", None)
        if origin is None:
            raise ModelError(
                f"{name} cannot be found by another process: it is in no file.", "Write the class into a file."
            )
        return find_model(f"{origin}:{name}", params)
    return _untrained_spec(f"{module}:{name}", f"{module}:{name}", params or {})


def version_spec(
    folder: Path,
    params: Mapping[str, Json] | None = None,
    *,
    target: str | None = None,
    display_name: str | None = None,
) -> ModelSpec:
    """The spec of a trained version.

    params  override those that it was trained with
    target  the class that it is a version of, as "package.module:Class" or "/path/to/file.py:Class": has to be given
            for one that is not registered
    named   what the user called the version, for sentences about it

    Raises ModelError when a file of the version is damaged, or when its class is another one or has to be given.
    """
    version = versions.read(folder)
    target = _resolve_trusted_class(version, target, display_name or str(folder))
    versions.verify(version)
    family = load_class(target)
    _check_stored_params(family, version)
    check_params(family, params or {})
    given = dict(version.params) | dict(params or {})
    identity: list[Any] = [version.digest, given]
    notes: tuple[str, ...] = ()
    # Nobody vouches for the code of an unregistered class but the user.
    code = code_digest(family) if _registered_target(version.family) is None else version.code_digest
    if version.code_digest not in ("", code):
        identity.append(code)
        notes = (f"The code of {family.__name__} has changed since {version.name}@{version.version} was trained.",)
    return ModelSpec(
        version.name,
        target,
        json_digest(identity),
        version.version,
        given,
        folder,
        version.state,
        notes=notes,
        trained_params=version.params,
    )


def split_class(name: str) -> tuple[str, str] | None:
    """("shouting.py:Shouting", "models/news") of "shouting.py:Shouting@models/news", None for what names no class."""
    match = _CLASS_AT_FOLDER.fullmatch(name)
    return (match[1], match[2]) if match else None


def absolute_model_name(name: str) -> str:
    """The same model's name for a process that runs in another folder."""
    if name in BUILT_IN:
        return name
    if versions.is_model_folder(name):
        return str(Path(name).absolute())
    if (both := split_class(name)) is not None:
        return f"{absolute_model_name(both[0])}@{Path(both[1]).absolute()}"
    if name.endswith(".py"):
        return str(Path(name).absolute())
    file, _, class_name = name.rpartition(":")
    return f"{Path(file).absolute()}:{class_name}" if file.endswith(".py") else name


def _spec_of_class_at_folder(class_name: str, folder: str, params: Mapping[str, Json]) -> ModelSpec:
    """The spec of "CLASS@FOLDER", whose two halves these are."""
    target = _class_target(class_name)
    if target is None:
        raise UnknownModel(f"There is no module {class_name.rpartition(':')[0]}.", "Is its package installed here?")
    if not versions.is_model_folder(folder):
        raise UnknownModel(f"There is no folder {folder}.", "Name a folder that `lsml fit` wrote.")
    return version_spec(versions.resolve(folder), params, target=target, display_name=folder)


def family_name(target: str) -> str:
    """What a version calls its class: the registered name, else the target without what only this machine knows."""
    family = load_class(target)
    place = target.rpartition(":")[0]
    for name, known in known_models().items():
        known_place, _, known_class = known.rpartition(":")
        # A package may register what one of its modules defines. Having that module, we have the package.
        if known == target or getattr(sys.modules.get(known_place), known_class, None) is family:
            return name
    return versions.strip_folder(target) if place.endswith(".py") else target


def model_argument(spec: ModelSpec, folder: Path) -> str:
    """What to write after `--model` for the versions of a class in a folder; quoted for a shell."""
    if _registered_target(family_name(spec.target)) is not None:
        return shlex.quote(str(folder))
    place, _, class_name = spec.target.rpartition(":")
    if place.endswith(".py") and Path(place).is_relative_to(Path.cwd()):
        place = str(Path(place).relative_to(Path.cwd()))
    return shlex.quote(f"{place}:{class_name}@{folder}")


def _resolve_trusted_class(version: versions.Version, target: str | None, display_name: str) -> str:
    """The class to load for a version: a registered one, or the one that the user names if it is the right one."""
    registered = _registered_target(version.family)
    if target is None and registered is not None:
        return registered
    if target is None:
        _raise_unnamed_class(version.family, display_name)
    if target != registered and version.family not in (versions.strip_folder(target), family_name(target)):
        raise ModelError(
            f"{display_name} is a version of {version.family}, not of {versions.strip_folder(target)}.",
            "Name the class that it was trained with.",
        )
    return target


def _raise_unnamed_class(family: str, display_name: str) -> NoReturn:
    if ":" not in family:
        raise ModelError(
            f"{display_name} is a version of {family}, and no installed package has a model of that name.",
            "Install the package that brings it; `lsml models` lists what is there.",
        )
    written = f"path/to/{family}" if family.rpartition(":")[0].endswith(".py") else family
    raise ModelError(
        f"{display_name} is a version of {family}, a class of somebody's own; a folder may not decide that its code runs.",
        f"Name the class together with the folder: --model {shlex.quote(f'{written}@{display_name}')}",
    )


def _registered_target(family: str) -> str | None:
    """The target of a class that can be called by a plain name. Versions of format 1 recorded the target itself."""
    if family in BUILT_IN or family in BUILT_IN.values():
        return BUILT_IN.get(family, family)
    known = known_models()  # asks the installed packages, which takes 20 ms
    return known.get(family) or (family if family in known.values() else None)


def _check_stored_params(model_class: type[Model], version: versions.Version) -> None:
    """Raises ModelError when a version has parameters that its class does not know."""
    unknown = [key for key in version.params if model_class.params is not None and key not in model_class.params]
    if unknown:
        raise ModelError(
            f"{version.folder / versions.METADATA_FILE} is damaged, or was written by another lsml: "
            f"{model_class.__name__} has no parameter {format_list(map(repr, unknown))}.",
            "Train a new version, or use the lsml and the packages that wrote this one.",
        )


def _project_spec(project: ProjectFile, params: Mapping[str, Json]) -> ModelSpec:
    file, colon, class_name = project.model.rpartition(":")
    model = f"{project.folder / file}:{class_name}" if colon and file.endswith(".py") else project.model
    given = dict(project.params) | dict(params)
    if (project.versions_root / versions.CURRENT_FILE).is_file():
        home = str(project.versions_root)
        return _spec_of_class_at_folder(model, home, params) if colon else find_model(home, params)
    return replace(find_model(model, given), name=project.folder.resolve().name)


def _class_target(name: str) -> str | None:
    """The target of "path/to/file.py:Class" or "package.module:Class", None for what is called neither."""
    file, colon, class_name = name.rpartition(":")
    if colon and file.endswith(".py"):
        if not Path(file).is_file():
            raise UnknownModel(f"There is no file {file}.", "A model in a file is named path/to/file.py:Class.")
        return f"{Path(file).resolve()}:{class_name}"
    return name if colon and _is_importable(file) else None


def stored_label_config(spec: ModelSpec) -> LabelConfig | None:
    """The label config that a trained version remembers, None for a model that has no version."""
    return LabelConfig.parse(versions.read(spec.path).label_config) if spec.path else None


def known_models() -> dict[str, str]:
    """Every model that can be called by a plain name, with its target. What comes with lsml wins, then who is first."""
    plugged_in = {plugin.name: plugin.target for plugin in reversed(plugins.find_plugins())}
    return plugged_in | BUILT_IN


def parse_params(pairs: list[str]) -> dict[str, Json]:
    """`--with KEY=VALUE` options as parameters: a value that is JSON (3, true, [1,2]) is taken as such."""
    params: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--with {pair!r} is not KEY=VALUE.")
        try:
            params[key] = orjson.loads(value)
        except orjson.JSONDecodeError:
            params[key] = value
    return params


def _untrained_spec(name: str, target: str, params: Mapping[str, Json]) -> ModelSpec:
    family = load_class(target)
    check_params(family, params)
    files = param_file_digests(family, params)
    # A file may define several models. Where it lies is no part of what they are.
    identity: list[Any] = [code_digest(family), family.__name__, dict(params)]
    return ModelSpec(name, target, json_digest([*identity, *files.values()]), params=params, file_digests=files)


def check_params(model_class: type[Model], params: Mapping[str, Json]) -> None:
    """Raises UsageError when the model does not have one of these parameters, or when one of them is not JSON."""
    declared = model_class.declared_params() if params else None
    for key, value in params.items():
        if declared is not None and key not in declared:
            known = ", ".join(sort_by_similarity(key, declared)) or "none"
            raise UsageError(f"{model_class.__name__} has no parameter {key!r}.", f"It has: {known}.")
        try:
            orjson.dumps(value)
        except TypeError as error:
            raise UsageError(f"The parameter {key!r} is not JSON: {error}.") from None
        if declared is not None:
            require_valid(key, declared[key], value)


def _is_importable(module: str) -> bool:
    """Whether there is such a module; an error while importing its parents is the user's to see."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
