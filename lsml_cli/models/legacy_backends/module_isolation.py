"""Change sys.modules, sys.path and environment variables while a script runs, and restore them afterwards."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from lsml_cli.models.loading import FILE_MODULE_PREFIX

SiblingModules = dict[str, ModuleType]  # modules that a script has imported from its own folder, by sys.modules key
INSTALL_FOLDERS = {"site-packages", "dist-packages"}  # also those of an environment beside a script
RESERVED_MODULE_NAMES = sys.stdlib_module_names | {"lsml_cli", "__main__", "__init__"}


def make_module(name: str, content: Mapping[str, Any]) -> ModuleType:
    """Create a stub module with these attributes."""
    module = ModuleType(name, "A stub by lsml for scripts that were written for this module.")
    module.__dict__.update(content)
    return module


@cache
def is_installed(name: str) -> bool:
    """Tell whether a real package of this name can be imported."""
    with suppress(ImportError, ValueError):  # ValueError: sys.modules has a stub of ours
        return importlib.util.find_spec(name) is not None
    return False


@contextmanager
def stub_modules(modules: Mapping[str, ModuleType], folder: Path, siblings: SiblingModules) -> Iterator[None]:
    """Make stub modules and the modules in a script's folder importable; remove all of them afterwards.

    An installed package is used instead of all stubs of that package.

    Args:
        modules: the stubs by their full names.
        folder: the script's folder.
        siblings: what the script has imported from its folder; updated afterwards.
    """
    stubs = {name: module for name, module in modules.items() if not is_installed(_root_package(name))}
    for name, module in stubs.items():
        parent, _, last = name.rpartition(".")
        if parent in stubs:
            stubs[parent].__path__ = []  # makes it a package, which importing its submodules requires
            setattr(stubs[parent], last, module)
    previous = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    sys.path.insert(0, str(folder))
    try:
        with _isolated_siblings(folder, siblings):
            yield
    finally:
        with suppress(ValueError):  # the script may have removed it
            sys.path.remove(str(folder))
        for name, previous_module in previous.items():
            if previous_module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = previous_module


@contextmanager
def _isolated_siblings(folder: Path, siblings: SiblingModules) -> Iterator[None]:
    """Replace modules that a script's folder shadows by the script's own; remove the script's own afterwards.

    Another script's folder may have modules of the same names. Also, a module may keep state of one version in globals,
    or read the SDK and the environment when it is imported: other versions must not see it.
    """
    shadowed = {name: sys.modules[name] for name in _find_shadowed_modules(folder)} | {
        name: sys.modules[name] for name in siblings if name in sys.modules
    }
    for name in shadowed:
        del sys.modules[name]
    unrelated = set(sys.modules)
    sys.modules.update(siblings)
    try:
        yield
    finally:
        local_names = [name for name in sys.modules if name not in unrelated and _is_local_module(folder, name)]
        siblings.clear()
        siblings.update({name: sys.modules.pop(name) for name in local_names})
        sys.modules.update(shadowed)


def _find_shadowed_modules(folder: Path) -> list[str]:
    """Return the loaded modules from elsewhere whose top-level name a script's folder also has."""
    names = [name for name in _importable_names(folder) if name in sys.modules and not _is_in_site_packages(name)]
    return [name for name in sys.modules if name.partition(".")[0] in names] if names else []


@cache
def _importable_names(folder: Path) -> frozenset[str]:
    """Return the top-level names that can be imported from a folder, except the reserved ones."""
    with os.scandir(folder) as entries:
        names = {entry.name.removesuffix(".py") for entry in entries if entry.name.endswith(".py") or entry.is_dir()}
    return frozenset({name for name in names if name.isidentifier()} - RESERVED_MODULE_NAMES)


def _is_in_site_packages(name: str) -> bool:
    return not INSTALL_FOLDERS.isdisjoint(Path(_module_path(name)).parts)


def _is_local_module(folder: Path, name: str) -> bool:
    """Tell whether a module lies in a script's folder; not the script itself, nor packages of an environment there."""
    if name.startswith(FILE_MODULE_PREFIX) or name.partition(".")[0] in RESERVED_MODULE_NAMES:
        return False
    path = Path(_module_path(name))
    return path.is_relative_to(folder) and INSTALL_FOLDERS.isdisjoint(path.relative_to(folder).parts)


def _module_path(name: str) -> str:
    """Return the file of a module, or the folder of a namespace package; "" for built-in and generated modules."""
    attributes = getattr(sys.modules[name], "__dict__", {})
    return str(attributes.get("__file__") or next(iter(attributes.get("__path__") or ()), ""))


def _root_package(name: str) -> str:
    """Return the package whose installation decides about a stub: newer releases of label_studio come without `ml`."""
    return "label_studio.ml" if f"{name}.".startswith("label_studio.ml.") else name.partition(".")[0]


@contextmanager
def patched_module(name: str, replacement: ModuleType) -> Iterator[None]:
    """Give an installed module the attributes of another one for the duration; do nothing if it is not installed."""
    if not is_installed(_root_package(name)):
        yield
        return
    installed = importlib.import_module(name)
    attributes = {key: value for key, value in vars(replacement).items() if not key.startswith("__")}
    previous = {key: vars(installed).get(key) for key in attributes}
    vars(installed).update(attributes)
    try:
        yield
    finally:
        for key, value in previous.items():
            if value is None:
                vars(installed).pop(key, None)
            else:
                vars(installed)[key] = value


@contextmanager
def environment_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the duration."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
