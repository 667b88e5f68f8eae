"""List the models that have a plain name, with what their classes declare."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lsml_cli._version import __version__
from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.models.base import Model, describe_controls
from lsml_cli.models.loading import load_class
from lsml_cli.models.spec import Json
from lsml_cli.registry import extras, plugins, resolve
from lsml_cli.registry.model_location import BUILT_IN
from lsml_cli.runtime import error_reason, install_hint


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a model.

    Attributes:
        name: The name that `--with` takes.
        default: The value where `--with` gives none; of a trained version, the value that it was trained with.
        allowed: The allowed values in words.
        help: What it is for; empty if the model does not say.
    """

    name: str
    default: Json
    allowed: str
    help: str


@dataclass(frozen=True)
class ModelInfo:
    """One model, as `lsml models` shows it.

    Attributes:
        name: The name that `--model` takes.
        target: Its class: "package.module:Class".
        package: The distribution that brings it, "lsml" for a built-in model, "" for a class in a file.
        version: Version of that distribution.
        fills: ("Choices over Text, HyperText",); empty if the model does not declare it.
        trainable: `lsml fit` can train it.
        needs: Modules that it needs and that are not installed.
        install: The command that installs them, None if nothing is missing.
        problem: One sentence about why it cannot be used, None if it can.
        params: Its parameters, None if it takes any.
    """

    name: str
    target: str
    package: str
    version: str
    fills: tuple[str, ...] = ()
    trainable: bool = False
    needs: tuple[str, ...] = ()
    install: str | None = None
    problem: str | None = None
    params: tuple[ParameterInfo, ...] | None = None


def list_models() -> Iterator[ModelInfo]:
    """Describe the built-in models, then those of other packages, also the ones that cannot be imported."""
    owners: dict[str, str] = {}
    for name, target in BUILT_IN.items():
        owners[name] = "the one that comes with lsml"
        yield _describe_model(name, target, "lsml", __version__)
    for plugin in plugins.find_plugins():
        if plugin.name in owners:
            problem = f"Not used: {plugin.name} is {owners[plugin.name]}; call this one {plugin.target}."
            yield ModelInfo(plugin.name, plugin.target, plugin.package, plugin.version, problem=problem)
            continue
        owners[plugin.name] = f"the one of {plugin.package} {plugin.version}"
        yield _describe_model(plugin.name, plugin.target, plugin.package, plugin.version)


def get_model(name: str) -> ModelInfo:
    """Describe one model by any name that `--model` takes.

    Raises:
        UnknownModel: There is no such model.
        ModelError: The model cannot be used.
    """
    spec = resolve.find_model(name)
    package, version = ("lsml", __version__) if name in BUILT_IN else ("", "")
    for plugin in [] if package else plugins.find_plugins():
        if plugin.name == name:
            package, version = plugin.package, plugin.version
            break
    info = _describe_model(name, spec.target, package, version, spec.trained_params)
    if info.problem is not None:
        raise ModelError(info.problem)
    return info


def _describe_model(
    name: str, target: str, package: str, version: str, trained_params: Mapping[str, Json] | None = None
) -> ModelInfo:
    try:
        model_class = load_class(target)
        missing = tuple(module for module in model_class.required_modules if not _is_installed(module))
        return ModelInfo(
            name,
            target,
            package,
            version,
            fills=tuple(describe_controls(model_class.supported_controls)),
            trainable=model_class.fit is not Model.fit,
            needs=missing,
            install=_install_command(package, model_class.install_extra, missing) if missing else None,
            params=_describe_params(model_class, trained_params or {}),
        )
    except LsmlError as error:
        return ModelInfo(name, target, package, version, problem=error.message)
    except Exception as error:  # the attributes of a class of another package may hold anything
        return ModelInfo(name, target, package, version, problem=f"It cannot be listed: {error_reason(error)}.")


def _describe_params(model_class: type[Model], trained_params: Mapping[str, Json]) -> tuple[ParameterInfo, ...] | None:
    declared = model_class.declared_params()
    if declared is None:
        return None
    return tuple(
        ParameterInfo(name, trained_params.get(name, parameter.default), parameter.describe(), parameter.help)
        for name, parameter in declared.items()
    )


def _is_installed(module: str) -> bool:
    """Tell whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _install_command(package: str, extra: str | None, missing: tuple[str, ...]) -> str:
    if package == "lsml" and extra:
        return extras.install_command(extra)
    return install_hint(f"{package}[{extra}]") if package and extra else install_hint(*missing)
