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
import sys
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from lsml_cli import versions
from lsml_cli.errors import ModelError, UnknownModel, UsageError, closest_first
from lsml_cli.label_config import LabelConfig
from lsml_cli.models.base import Json, Model, ModelSpec, load_class

BUILT_IN = {
    "text-classifier": "lsml_cli.models.text_classifier:TextClassifier",
}
PLUGINS = "lsml.models"  # the entry point group


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


def version_spec(folder: Path, params: Mapping[str, Json] | None = None) -> ModelSpec:
    """The spec of a trained version. `params` override those that it was trained with."""
    version = versions.read(folder)
    given = dict(version.params) | dict(params or {})
    _check_params(load_class(version.family), params or {})
    digest = blake2b(orjson.dumps([version.digest, given], option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()
    return ModelSpec(version.name, version.family, digest, version.version, given, folder, version.state)


def trained_config(spec: ModelSpec) -> LabelConfig | None:
    """The label config that a trained version remembers, None for a model that has no version."""
    return LabelConfig.parse(versions.read(spec.path).label_config) if spec.path else None


def known_models() -> dict[str, str]:
    """Every model that can be called by a plain name, with its target."""
    import importlib.metadata  # costs 20 ms, and only a plugged-in model needs it

    plugins = {point.name: point.value for point in importlib.metadata.entry_points(group=PLUGINS)}
    return BUILT_IN | plugins


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
    _check_params(family, params)
    code = code_digest(family)
    digest = blake2b(orjson.dumps([code, dict(params)], option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()
    return ModelSpec(name, target, digest, params=params)


def _check_params(family: type[Model], params: Mapping[str, Json]) -> None:
    if family.params is None:
        return
    for key in params:
        if key not in family.params:
            known = ", ".join(closest_first(key, family.params)) or "none"
            raise UsageError(f"{family.__name__} has no parameter {key!r}.", f"It has: {known}.")


def code_digest(family: type[Model]) -> str:
    """Digest of the source file that defines a model, and of its neighbours when it is a package."""
    origin = getattr(sys.modules[family.__module__], "__file__", None)
    if origin is None:
        raise ModelError(f"{family.__name__} has no source file that could tell one version from another.")
    file = Path(origin)
    files = sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
    digest = blake2b(digest_size=16)
    for each in files:
        digest.update(each.read_bytes())
    return digest.hexdigest()


def _importable(module: str) -> bool:
    """Whether there is such a module; an error while importing its parents is the user's to see."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
