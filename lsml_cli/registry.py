"""From what a user calls a model to its `ModelSpec`, without importing anything heavy.

A model may be named as

    text-classifier            one that comes with lsml, or that a package registers under `lsml.models`
    models/news                the current version of a trained model
    models/news@20261120T2130  one particular version
    path/to/file.py:Class      a class in a file
    package.module:Class       a class in an installed package
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from lsml_cli import plugins, versions
from lsml_cli.errors import ModelError, UnknownModel, UsageError, closest_first
from lsml_cli.label_config import LabelConfig
from lsml_cli.models.base import FILE_MODULE, Json, Model, ModelSpec, load_class

BUILT_IN = {
    "text-classifier": "lsml_cli.models.text_classifier:TextClassifier",
}
FAMILIES = ("lsml_cli", "lsml_cli.models")  # packages that are the home of many families, and no family's own


def find_model(name: str, params: Mapping[str, Json] | None = None) -> ModelSpec:
    """The spec of the model that `name` means; `params` are the model's own parameters (`--with`).

    Raises UnknownModel when nothing is called that, ModelError when it is there but damaged.
    """
    params = params or {}
    if name in BUILT_IN:
        return _untrained(name, BUILT_IN[name], params)
    if Path(name).is_dir() or Path(name.rpartition("@")[0] or name).is_dir():
        return version_spec(versions.resolve(name), params)
    file, colon, class_name = name.rpartition(":")
    if colon and file.endswith(".py"):
        if not Path(file).is_file():
            raise UnknownModel(f"There is no file {file}.", "A model in a file is named path/to/file.py:Class.")
        return _untrained(f"{Path(file).stem}:{class_name}", f"{Path(file).resolve()}:{class_name}", params)
    if colon and _importable(file):
        return _untrained(name, name, params)
    targets = known_models()
    if name in targets:
        return _untrained(name, targets[name], params)
    if name.endswith(".py") and Path(name).is_file():
        raise UnknownModel(f"{name} is a file; which class in it is the model?", f"Name it: {name}:Class")
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


def version_spec(folder: Path, params: Mapping[str, Json] | None = None) -> ModelSpec:
    """The spec of a trained version. `params` override those that it was trained with."""
    version = versions.read(folder)
    given = dict(version.params) | dict(params or {})
    check_params(load_class(version.family), params or {})
    digest = blake2b(orjson.dumps([version.digest, given], option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()
    return ModelSpec(version.name, version.family, digest, version.version, given, folder, version.state)


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
    code = code_digest(family)
    digest = blake2b(orjson.dumps([code, dict(params)], option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()
    return ModelSpec(name, target, digest, params=params)


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
    """Digest of the source of a model: of its own package where it has one, else of the file it is in."""
    digest = blake2b(digest_size=16)
    for name, path in source_files(family).items():
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def source_files(family: type[Model]) -> dict[str, Path]:
    """The files that a model's own code is in, by their names relative to its package ("" is a file by itself).

    Its package is the outermost that offers the class, else the innermost that the class is in.
    """
    package = _package_of(family)
    if package is not None:
        folder = Path(package).parent
        return {path.relative_to(folder).as_posix(): path for path in _python_files(folder)}
    origin = getattr(sys.modules[family.__module__], "__file__", None)
    if origin is None:
        raise ModelError(f"{family.__name__} has no source file that could tell one version from another.")
    return {"": Path(origin)}


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


def _python_files(folder: Path) -> list[Path]:
    """The modules of a package and its subpackages. Other folders are not entered: they may hold a million pictures."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.endswith(".py"):
            found.append(path)
        elif entry.is_dir() and (path / "__init__.py").is_file():
            found += _python_files(path)
    return found


def _importable(module: str) -> bool:
    """Whether there is such a module; an error while importing its parents is the user's to see."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
