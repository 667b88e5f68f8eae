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
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

import orjson

from lsml_cli.errors import ModelError, UnknownModel, UsageError, closest_first, listed
from lsml_cli.models.base import FILE_MODULE, Json, Model, ModelSpec, load_class
from lsml_cli.registry import plugins, versions
from lsml_cli.registry.local_imports import modules_beside, python_files
from lsml_cli.registry.project_file import Project, only_class, read_project
from lsml_cli.schema.label_config import LabelConfig

BUILT_IN = {
    "image-classifier": "lsml_cli.models.image_classifier.model:ImageClassifier",
    "object-detector": "lsml_cli.models.object_detector.model:ObjectDetector",
    "ocr": "lsml_cli.models.ocr.model:Ocr",
    "text-classifier": "lsml_cli.models.text_classifier.model:TextClassifier",
}
_CLASS_AT_FOLDER = re.compile(r"((?:.+?\.py|[\w.]+):[^\W\d]\w*)@(.+)", re.DOTALL)
FAMILIES = ("lsml_cli", "lsml_cli.models")  # packages that are the home of many families, and no family's own


def find_model(name: str, params: Mapping[str, Json] | None = None) -> ModelSpec:
    """The spec of the model that `name` means; `params` are the model's own parameters (`--with`).

    Raises UnknownModel when nothing is called that, ModelError when it is there but damaged.
    """
    params = params or {}
    if name in BUILT_IN:
        return _untrained(name, BUILT_IN[name], params)
    if (project := read_project(Path(name))) is not None:
        return _of_project(project, params)
    if versions.is_folder(name) and only_class(name) is None:
        return version_spec(versions.resolve(name), params, named=name)
    if (both := split_class(name)) is not None:
        return _version_of(*both, params)
    if (script := only_class(name)) is not None:
        name = script
    if (target := _class_target(name)) is not None:
        file, _, class_name = name.rpartition(":")
        return _untrained(f"{Path(file).stem}:{class_name}" if file.endswith(".py") else name, target, params)
    targets = known_models()
    if name in targets:
        return _untrained(name, targets[name], params)
    if Path(name).is_file():
        raise UnknownModel(f"{name} is a file, not a model.", "A trained model is the folder that `lsml fit` wrote.")
    raise UnknownModel(
        f"There is no model {name!r}.",
        f"Known models: {', '.join(closest_first(name, targets))}; or name a folder that `lsml fit` wrote.",
    )


def class_spec(family: type[Model], params: Mapping[str, Json] | None = None) -> ModelSpec:
    """The spec of a class that is at hand: in a notebook, in a test.

    Raises ModelError when another process could not import it.
    """
    module, name = family.__module__, family.__qualname__
    if "." in name:
        raise ModelError(
            f"{name} cannot be found by another process: it is defined inside of something else.",
            "Move the class to the top level of a file.",
        )
    if module == "__main__" or module.startswith(FILE_MODULE):
        origin = getattr(sys.modules[module], "__file__", None)
        if origin is None:
            raise ModelError(
                f"{name} cannot be found by another process: it is in no file.", "Write the class into a file."
            )
        return find_model(f"{origin}:{name}", params)
    return _untrained(f"{module}:{name}", f"{module}:{name}", params or {})


def version_spec(
    folder: Path, params: Mapping[str, Json] | None = None, *, target: str | None = None, named: str | None = None
) -> ModelSpec:
    """The spec of a trained version.

    params  override those that it was trained with
    target  the class that it is a version of, as "package.module:Class" or "/path/to/file.py:Class": has to be given
            for one that is not registered
    named   what the user called the version, for sentences about it

    Raises ModelError when a file of the version is damaged, or when its class is another one or has to be given.
    """
    version = versions.read(folder)
    target = _trusted(version, target, named or str(folder))
    versions.verify(version)
    family = load_class(target)
    _check_stored(family, version)
    check_params(family, params or {})
    given = dict(version.params) | dict(params or {})
    identity: list[Any] = [version.digest, given]
    notes: tuple[str, ...] = ()
    # Nobody vouches for the code of an unregistered class but the user.
    code = code_digest(family) if _registered(version.family) is None else version.code_digest
    if version.code_digest not in ("", code):
        identity.append(code)
        notes = (f"The code of {family.__name__} has changed since {version.name}@{version.version} was trained.",)
    return ModelSpec(
        version.name, target, _digest(identity), version.version, given, folder, version.state, notes=notes
    )


def split_class(name: str) -> tuple[str, str] | None:
    """("shouting.py:Shouting", "models/news") of "shouting.py:Shouting@models/news", None for what names no class."""
    match = _CLASS_AT_FOLDER.fullmatch(name)
    return (match[1], match[2]) if match else None


def from_anywhere(name: str) -> str:
    """The same model's name for a process that runs in another folder."""
    if name in BUILT_IN:
        return name
    if versions.is_folder(name):
        return str(Path(name).absolute())
    if (both := split_class(name)) is not None:
        return f"{from_anywhere(both[0])}@{Path(both[1]).absolute()}"
    if name.endswith(".py"):
        return str(Path(name).absolute())
    file, _, class_name = name.rpartition(":")
    return f"{Path(file).absolute()}:{class_name}" if file.endswith(".py") else name


def _version_of(class_name: str, folder: str, params: Mapping[str, Json]) -> ModelSpec:
    """The spec of "CLASS@FOLDER", whose two halves these are."""
    target = _class_target(class_name)
    if target is None:
        raise UnknownModel(f"There is no module {class_name.rpartition(':')[0]}.", "Is its package installed here?")
    if not versions.is_folder(folder):
        raise UnknownModel(f"There is no folder {folder}.", "Name a folder that `lsml fit` wrote.")
    return version_spec(versions.resolve(folder), params, target=target, named=folder)


def family_name(target: str) -> str:
    """What a version calls its class: the registered name, else the target without what only this machine knows."""
    family = load_class(target)
    place = target.rpartition(":")[0]
    for name, known in known_models().items():
        known_place, _, known_class = known.rpartition(":")
        # A package may register what one of its modules defines. Having that module, we have the package.
        if known == target or getattr(sys.modules.get(known_place), known_class, None) is family:
            return name
    return versions.without_folder(target) if place.endswith(".py") else target


def how_to_name(spec: ModelSpec, folder: Path) -> str:
    """What to write after `--model` for the versions of a class in a folder; quoted for a shell."""
    if _registered(family_name(spec.target)) is not None:
        return shlex.quote(str(folder))
    place, _, class_name = spec.target.rpartition(":")
    if place.endswith(".py") and Path(place).is_relative_to(Path.cwd()):
        place = str(Path(place).relative_to(Path.cwd()))
    return shlex.quote(f"{place}:{class_name}@{folder}")


def _trusted(version: versions.Version, target: str | None, named: str) -> str:
    """The class to load for a version: a registered one, or the one that the user names if it is the right one."""
    registered = _registered(version.family)
    if target is None and registered is not None:
        return registered
    if target is None:
        _refuse_class(version.family, named)
    if target != registered and version.family not in (versions.without_folder(target), family_name(target)):
        raise ModelError(
            f"{named} is a version of {version.family}, not of {versions.without_folder(target)}.",
            "Name the class that it was trained with.",
        )
    return target


def _refuse_class(family: str, named: str) -> NoReturn:
    if ":" not in family:
        raise ModelError(
            f"{named} is a version of {family}, and no installed package has a model of that name.",
            "Install the package that brings it; `lsml models` lists what is there.",
        )
    written = f"path/to/{family}" if family.rpartition(":")[0].endswith(".py") else family
    raise ModelError(
        f"{named} is a version of {family}, a class of somebody's own; a folder may not decide that its code runs.",
        f"Name the class together with the folder: --model {shlex.quote(f'{written}@{named}')}",
    )


def _registered(family: str) -> str | None:
    """The target of a class that can be called by a plain name. Versions of format 1 recorded the target itself."""
    if family in BUILT_IN or family in BUILT_IN.values():
        return BUILT_IN.get(family, family)
    known = known_models()  # asks the installed packages, which takes 20 ms
    return known.get(family) or (family if family in known.values() else None)


def _check_stored(family: type[Model], version: versions.Version) -> None:
    """Raises ModelError when a version has parameters that its class does not know."""
    unknown = [key for key in version.params if family.params is not None and key not in family.params]
    if unknown:
        raise ModelError(
            f"{version.folder / versions.DESCRIPTION} is damaged, or was written by another lsml: "
            f"{family.__name__} has no parameter {listed(map(repr, unknown))}.",
            "Train a new version, or use the lsml and the packages that wrote this one.",
        )


def _of_project(project: Project, params: Mapping[str, Json]) -> ModelSpec:
    file, colon, class_name = project.model.rpartition(":")
    model = f"{project.folder / file}:{class_name}" if colon and file.endswith(".py") else project.model
    given = dict(project.params) | dict(params)
    if (project.versions / versions.CURRENT).is_file():
        home = str(project.versions)
        return _version_of(model, home, params) if colon else find_model(home, params)
    return replace(find_model(model, given), name=project.folder.resolve().name)


def _class_target(name: str) -> str | None:
    """The target of "path/to/file.py:Class" or "package.module:Class", None for what is called neither."""
    file, colon, class_name = name.rpartition(":")
    if colon and file.endswith(".py"):
        if not Path(file).is_file():
            raise UnknownModel(f"There is no file {file}.", "A model in a file is named path/to/file.py:Class.")
        return f"{Path(file).resolve()}:{class_name}"
    return name if colon and _importable(file) else None


def trained_config(spec: ModelSpec) -> LabelConfig | None:
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


def _untrained(name: str, target: str, params: Mapping[str, Json]) -> ModelSpec:
    family = load_class(target)
    check_params(family, params)
    files = _files_named(family, params)
    # A file may define several models. Where it lies is no part of what they are.
    identity: list[Any] = [code_digest(family), family.__name__, dict(params)]
    return ModelSpec(name, target, _digest([*identity, *files.values()]), params=params, files=files)


def _files_named(family: type[Model], params: Mapping[str, Json]) -> dict[str, str]:
    """{path: digest of its content}, of each file that the parameters name and of those that it reads in its turn."""
    given = dict(family.params or {}) | dict(params)
    paths = [Path(value) for name in family.files if isinstance(value := given.get(name), str)]
    found: dict[str, str] = {}
    for path in paths:  # which grows
        if str(path) not in found and (digest := _content(path)) is not None:
            found[str(path)] = digest
            paths += family.files_behind(path)
    return found


def _content(path: Path) -> str | None:
    """Digest of a file's content; None where there is none, or none to be read: whoever opens it says why."""
    try:
        stat = path.stat()
        return _hashed(path.absolute(), stat.st_mtime_ns, stat.st_size) if S_ISREG(stat.st_mode) else None
    except (OSError, ValueError):  # the latter of a null byte
        return None


@lru_cache
def _hashed(path: Path, changed: int, size: int) -> str:
    """Once in a process: a checkpoint may have gigabytes."""
    return versions.content_digest(path)


def _digest(identity: list[Any]) -> str:
    return blake2b(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def check_params(family: type[Model], params: Mapping[str, Json]) -> None:
    """Raises UsageError when the model does not have one of these parameters, or when one of them is not JSON."""
    for key, value in params.items():
        if family.params is not None and key not in family.params:
            known = ", ".join(closest_first(key, family.params)) or "none"
            raise UsageError(f"{family.__name__} has no parameter {key!r}.", f"It has: {known}.")
        try:
            orjson.dumps(value)
        except TypeError as error:
            raise UsageError(f"The parameter {key!r} is not JSON: {error}.") from None


def code_digest(family: type[Model]) -> str:
    """Digest of the source of a model: of its own package where it has one, else of the file it is in.

    What a file imports from beside it counts with it.
    """
    digest = blake2b(digest_size=16)
    for name, path in source_files(family).items():
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def source_files(family: type[Model]) -> dict[str, Path]:
    """The files that a model's own code is in, by their names relative to its package ("" is a file by itself; what it
    imports from its folder comes by their names there).

    Its package is the outermost that offers the class, else the innermost that the class is in.
    """
    package = _package_of(family)
    if package is not None:
        folder = Path(package).parent
        return {path.relative_to(folder).as_posix(): path for path in python_files(folder)}
    origin = getattr(sys.modules[family.__module__], "__file__", None)
    if origin is None:
        raise ModelError(f"{family.__name__} has no source file that could tell one version from another.")
    script = Path(origin)
    # A module of an installed distribution lies beside all others; only a file by itself has a folder of its own.
    beside = modules_beside(script) if family.__module__.startswith(FILE_MODULE) else ()
    return {"": script} | {path.relative_to(script.parent).as_posix(): path for path in beside}


def _package_of(family: type[Model]) -> str | None:
    """The `__init__.py` of the package that is the model's own, None for a model in a plain file."""
    parts = family.__module__.split(".")
    innermost = None
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        module = sys.modules.get(name)
        origin: str | None = getattr(module, "__file__", None)
        if name in FAMILIES or origin is None or Path(origin).name != "__init__.py":
            continue
        innermost = origin
        if vars(module).get(family.__name__) is family:
            break
    return innermost


def _importable(module: str) -> bool:
    """Whether there is such a module; an error while importing its parents is the user's to see."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
