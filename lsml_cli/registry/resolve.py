"""Resolve the name of a model to its `ModelSpec`, without importing anything heavy.

A model may be named as

    text-classifier            a built-in model, or one that a package registers under `lsml.models`
    models/news                the current version of a trained model
    models/news@20261120T2130  one particular version
    path/to/file.py:Class      a class in a file, also of a script for an older SDK
    path/to/file.py            the same, if the file has one model; also the folder of a `model.py`
    path/to/project            a folder that `lsml init` wrote: the model of its `model.toml`
    package.module:Class       a class in an installed package
    CLASS@models/news          a trained model (or CLASS@models/news@VERSION) of a class that is not registered; CLASS
                               is one of the two forms with a colon

Trust: a folder may come from anywhere, and only records the name of its class. The registry loads that class if it is
registered, because installing a package is the user's decision. Any other class is code that the user has to name.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import orjson

from lsml_cli.errors import ModelError, UsageError, format_list, suggest_names
from lsml_cli.models.base import Model
from lsml_cli.models.loading import FILE_MODULE_PREFIX, load_class
from lsml_cli.models.parameters import require_valid
from lsml_cli.models.spec import Json, ModelSpec, format_value
from lsml_cli.registry import versions
from lsml_cli.registry.code_digest import code_digest, param_file_digests
from lsml_cli.registry.digests import json_digest
from lsml_cli.registry.model_location import BUILT_IN, is_registered_name, known_models, locate_model, split_class
from lsml_cli.registry.param_safety import find_unconfirmed_params
from lsml_cli.registry.project_file import find_project_label_config
from lsml_cli.schema.label_config import LabelConfig


def find_model(name: str, params: Mapping[str, Json] | None = None) -> ModelSpec:
    """Resolve a name, as `--model` takes it, to a spec.

    Args:
        name: "text-classifier", "models/news", "models/news@VERSION", "file.py:Class", "package.module:Class",
            "CLASS@models/news".
        params: The model's own parameters, `--with` on the command line.

    Returns:
        The spec, from which any process can build the model.

    Raises:
        UnknownModel: There is no such model; the hint lists the known ones, the most similar name first.
        UsageError: The model has no such parameter, or the value is not allowed.
        ModelError: The model is damaged, or its class cannot be imported or is not trusted.

    Example:
        spec = find_model("text-classifier", {"ngrams": 3})
    """
    location = locate_model(name)
    params = dict(params or {})
    if location.version is not None:
        return version_spec(
            location.version,
            params,
            target=location.target,
            display_name=location.display_name,
            confirmed_params=location.params,
        )
    assert location.target is not None
    return _untrained_spec(location.name, location.target, dict(location.params) | params)


def class_spec(model_class: type[Model], params: Mapping[str, Json] | None = None) -> ModelSpec:
    """Make the spec of a class object, of a notebook or a test.

    Raises:
        ModelError: Another process could not import the class.
    """
    module, name = model_class.__module__, model_class.__qualname__
    if "." in name:
        raise ModelError(
            f"{name} cannot be found by another process: it is defined inside of something else.",
            "Move the class to the top level of a file.",
        )
    if module == "__main__" or module.startswith(FILE_MODULE_PREFIX):
        origin = getattr(sys.modules[module], "__file__", None)
        if origin is None or not Path(origin).is_file():  # a prompt, a notebook, a script from standard input
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
    confirmed_params: Mapping[str, Json] | None = None,
) -> ModelSpec:
    """Make the spec of a trained version.

    Args:
        folder: Folder of the version.
        params: Parameters that override those of its training.
        target: Its class, "package.module:Class" or "/path/to/file.py:Class"; required if that is not registered.
        display_name: What the user called the version, for error messages.
        confirmed_params: Parameters that the user gives for other models of this run, such as [with] of a project. They
            replace none of the version's, but one that is the same may run code or open a file.

    Raises:
        ModelError: A file of the version is damaged, or `target` is missing or is another class.
        UsageError: The model has no such parameter, or the value is not allowed.
    """
    version = versions.read(folder)
    target = _resolve_trusted_class(version, target, display_name or str(folder))
    versions.verify(version)
    model_class = load_class(target)
    _check_stored_params(model_class, version)
    check_params(model_class, params or {})
    merged_params = dict(version.params) | dict(params or {})
    identity: list[Any] = [version.digest, merged_params]
    notes = tuple(model_class.version_notes())
    # The code of a registered class belongs to a package with a version; any other file may change at any time.
    code = code_digest(model_class) if _registered_target(version.family) is None else version.code_digest
    if version.code_digest not in ("", code):
        identity.append(code)
        trained = f"{version.name}@{version.version}"
        notes += (f"The code of {model_class.__name__} has changed since {trained} was trained.",)
    return ModelSpec(
        version.name,
        target,
        json_digest(identity),
        version.version,
        merged_params,
        folder,
        version.state,
        notes=notes,
        trained_params=version.params,
        unconfirmed_params=find_unconfirmed_params(
            model_class,
            {name: value for name, value in version.params.items() if name not in (params or {})},
            confirmed_params or {},
        ),
    )


def absolute_model_name(name: str) -> str:
    """Return the name of the same model for a process in another working directory."""
    if is_registered_name(name):
        return name
    if versions.is_model_folder(name):
        return str(Path(name).absolute())
    if (class_and_folder := split_class(name)) is not None:
        class_name, folder = class_and_folder
        return f"{absolute_model_name(class_name)}@{Path(folder).absolute()}"
    if name.endswith(".py"):
        return str(Path(name).absolute())
    file, _, class_name = name.rpartition(":")
    return f"{Path(file).absolute()}:{class_name}" if file.endswith(".py") else name


def family_name(target: str) -> str:
    """Return the name under which a version records its class: the registered one, else the target without a folder."""
    model_class = load_class(target)
    for name, known_target in known_models().items():
        module, _, class_name = known_target.rpartition(":")
        # A package may register a class under another module than the one that defines it; both are imported by now.
        if known_target == target or getattr(sys.modules.get(module), class_name, None) is model_class:
            return name
    return versions.strip_folder(target) if target.rpartition(":")[0].endswith(".py") else target


def model_argument(spec: ModelSpec, folder: Path) -> str:
    """Return the value of `--model` for the versions of a class in a folder, quoted for a shell."""
    if _registered_target(family_name(spec.target)) is not None:
        return shlex.quote(str(folder))
    module, _, class_name = spec.target.rpartition(":")
    if module.endswith(".py") and Path(module).is_relative_to(Path.cwd()):
        module = str(Path(module).relative_to(Path.cwd()))
    return shlex.quote(f"{module}:{class_name}@{folder}")


def _resolve_trusted_class(version: versions.Version, target: str | None, display_name: str) -> str:
    """Decide which class to load for a version: the registered one, or the one that the user names if it matches.

    This is the only place where a folder is trusted with naming code.

    Raises:
        ModelError: The class is not registered and not named, or the named one is another class.
    """
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
        f"{display_name} is a version of {family}, a class that is not registered; "
        "a folder may not decide that its code runs.",
        f"Name the class together with the folder: --model {shlex.quote(f'{written}@{display_name}')}",
    )


def _registered_target(family: str) -> str | None:
    """Return the target of a registered class, None for any other. Versions of format 1 recorded the target itself."""
    if family in BUILT_IN or family in BUILT_IN.values():
        return BUILT_IN.get(family, family)
    known = known_models()  # reads the entry points of all packages, which takes 20 ms
    return known.get(family) or (family if family in known.values() else None)


def _check_stored_params(model_class: type[Model], version: versions.Version) -> None:
    """Check that the class still declares the parameters of a version, and allows their values.

    Raises:
        ModelError: The version has a parameter that the class does not declare, or another kind of value.
    """
    declared = model_class.declared_params()
    if declared is None:
        return
    if unknown := [key for key in version.params if key not in declared]:
        raise ModelError(
            f"{version.folder / versions.METADATA_FILE} is damaged, or was written by another lsml: "
            f"{model_class.__name__} has no parameter {format_list(map(repr, unknown))}.",
            "Train a new version, or use the lsml and the packages that wrote this one.",
        )
    for key, value in version.params.items():
        if not declared[key].accepts(value):
            raise ModelError(
                f"{version.folder / versions.METADATA_FILE} is damaged, or was written by another lsml: {key} must be "
                f"{declared[key].describe()}, not {format_value(value)}.",
                "Train a new version, or use the lsml and the packages that wrote this one.",
            )


def stored_label_config(spec: ModelSpec) -> LabelConfig | None:
    """Return the label config that a version was trained for, None for an untrained model."""
    return LabelConfig.parse(versions.read(spec.path).label_config) if spec.path else None


def find_label_config(spec: ModelSpec, model_name: str) -> LabelConfig | None:
    """Return the label config of a version, else that of a project of `lsml init`; None if the model has none.

    Args:
        spec: The model.
        model_name: What the user called it, which may be the folder of a project; "" if it was not named.

    Raises:
        LabelConfigError: The file of the project is no labelling XML.
    """
    if spec.path is not None:
        return stored_label_config(spec)
    path = find_project_label_config(model_name)
    return LabelConfig.load(path) if path is not None else None


def parse_params(pairs: list[str]) -> dict[str, Json]:
    """Parse `--with KEY=VALUE` options. A value that is JSON (3, true, [1,2]) is decoded; any other is a text.

    Raises:
        UsageError: An option is not KEY=VALUE.
    """
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
    model_class = load_class(target)
    check_params(model_class, params)
    files = param_file_digests(model_class, params)
    # With the class name, because a file may define several models; without its path, so that it can be moved.
    identity: list[Any] = [code_digest(model_class), model_class.__name__, dict(params)]
    return ModelSpec(name, target, json_digest([*identity, *files.values()]), params=params, file_digests=files)


def check_params(model_class: type[Model], params: Mapping[str, Json]) -> None:
    """Check parameters against the declarations of a model.

    Raises:
        UsageError: The model has no such parameter, or the value is not JSON or not allowed.
    """
    declared = model_class.declared_params() if params else None
    for key, value in params.items():
        if declared is not None and key not in declared:
            raise UsageError(
                f"{model_class.__name__} has no parameter {key!r}.", suggest_names(key, declared, "It has")
            )
        try:
            orjson.dumps(value)
        except TypeError as error:
            raise UsageError(f"The parameter {key!r} is not JSON: {error}.") from None
        if declared is not None:
            require_valid(key, declared[key], value)
