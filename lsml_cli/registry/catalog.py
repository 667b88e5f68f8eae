"""Every model that can be called by a plain name, and what its class says about itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from lsml_cli._version import __version__
from lsml_cli.errors import LsmlError
from lsml_cli.models.base import Model, describe_controls
from lsml_cli.models.loading import load_class
from lsml_cli.registry import extras, plugins, resolve
from lsml_cli.runtime import error_reason


@dataclass(frozen=True)
class ModelInfo:
    """One line of `lsml models`.

    package    what it comes with, "lsml" or a distribution, and `version` of that
    fills      ("Choices over Text, HyperText",); empty when the model does not say
    trainable  whether `lsml fit` can train it
    needs      modules that it needs and that are not installed
    install    the command that installs them, None when nothing is missing
    problem    one sentence about why it cannot be used, None when it can
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


def list_models() -> Iterator[ModelInfo]:
    """What comes with lsml, then what other packages register. A model that cannot be imported is listed with why."""
    owners: dict[str, str] = {}
    for name, target in resolve.BUILT_IN.items():
        owners[name] = "the one that comes with lsml"
        yield _describe_model(name, target, "lsml", __version__)
    for plugin in plugins.find_plugins():
        if plugin.name in owners:
            problem = f"Not used: {plugin.name} is {owners[plugin.name]}; call this one {plugin.target}."
            yield ModelInfo(plugin.name, plugin.target, plugin.package, plugin.version, problem=problem)
            continue
        owners[plugin.name] = f"the one of {plugin.package} {plugin.version}"
        yield _describe_model(plugin.name, plugin.target, plugin.package, plugin.version)


def _describe_model(name: str, target: str, package: str, version: str) -> ModelInfo:
    try:
        family = load_class(target)
        missing = tuple(module for module in family.required_modules if not _is_installed(module))
        return ModelInfo(
            name,
            target,
            package,
            version,
            fills=tuple(describe_controls(family.supported_controls)),
            trainable=family.fit is not Model.fit,
            needs=missing,
            install=_install_command(package, family.install_extra, missing) if missing else None,
        )
    except LsmlError as error:
        return ModelInfo(name, target, package, version, problem=error.message)
    except Exception as error:  # what a class says about itself may be anything
        return ModelInfo(name, target, package, version, problem=f"It cannot be listed: {error_reason(error)}.")


def _is_installed(module: str) -> bool:
    """Whether there is such a module; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _install_command(package: str, extra: str | None, missing: tuple[str, ...]) -> str:
    if package == "lsml" and extra:
        return extras.install_command(extra)
    return f"pip install '{package}[{extra}]'" if extra else f"pip install {' '.join(missing)}"
