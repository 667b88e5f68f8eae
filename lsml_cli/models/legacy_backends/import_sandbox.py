"""What a script finds around itself while it runs: old module names, its own folder, files of what tasks point to."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lsml_cli.models.loading import FILE_MODULE_PREFIX

Fetch = Callable[[str, int | None], bytes]
SiblingModules = dict[str, ModuleType]  # what a script has imported from its own folder, by its names in sys.modules
INSTALL_FOLDERS = {"site-packages", "dist-packages"}  # folders, also of an environment that lies beside a script


class MediaFiles:
    """What tasks point to, as files that last as long as the script needs them. See `running`."""

    def __init__(self, fetch: Fetch | None, folder: Path) -> None:
        self._fetch = fetch
        self._folder = folder

    def get_path(self, value: str, task_id: int | None = None) -> str:
        """A file with the bytes at a value; its name ends as the value does. Raises ValueError when there is none.

        Where something fetches, it alone decides which paths may be opened: a task may name any file of this machine.
        """
        if Path(value).parent == self._folder and Path(value).is_file():  # asked for what it was answered with
            return value
        if self._fetch is None:
            if "://" not in value and not value.startswith(("/data/", "data:")) and Path(value).is_file():
                return value
            raise ValueError(f"nothing here can fetch {value}")
        parts = urlsplit(value)
        named = parse_qs(parts.query).get("d", [parts.path])[0]
        suffix = Path(named).suffix if not value.startswith("data:") else ""
        path = self._folder / f"{hashlib.blake2b(value.encode(), digest_size=12).hexdigest()}{suffix}"
        if not path.exists():
            path.write_bytes(self._fetch(value, task_id))
        return str(path)


_active_files: list[MediaFiles] = []  # of the script that runs; the last one counts


def get_local_path(url: str, *_: Any, task_id: int | None = None, **__: Any) -> str:
    """What `get_local_path` of every SDK answers, whatever else it is told: where things are is settled here."""
    if not _active_files:
        raise ValueError(f"{url} cannot be fetched before there are tasks")
    return _active_files[-1].get_path(url, task_id)


def make_module(name: str, content: Mapping[str, Any]) -> ModuleType:
    made = ModuleType(name, "Lent by lsml to a script that was written for it.")
    made.__dict__.update(content)
    return made


@cache
def is_installed(name: str) -> bool:
    """Whether there is a real package of this name."""
    with suppress(ImportError, ValueError):  # ValueError: it is in sys.modules, lent by us
        return importlib.util.find_spec(name) is not None
    return False


@contextmanager
def stub_modules(modules: Mapping[str, ModuleType], folder: Path, siblings: SiblingModules) -> Iterator[None]:
    """The modules, and what lies in the script's folder, are there to be imported; all of it is gone afterwards.

    siblings  what the script has imported from its folder before, and what it imports now

    Where the real package is installed it wins, as a whole.
    """
    mine = {name: each for name, each in modules.items() if not is_installed(_root_package(name))}
    for name, each in mine.items():
        parent, _, last = name.rpartition(".")
        if parent in mine:
            mine[parent].__path__ = []  # a package, as the import of what is in it wants
            setattr(mine[parent], last, each)
    before = {name: sys.modules.get(name) for name in mine}
    sys.modules.update(mine)
    sys.path.insert(0, str(folder))
    try:
        with _isolated_siblings(folder, siblings):
            yield
    finally:
        with suppress(ValueError):  # the script has removed it itself
            sys.path.remove(str(folder))
        for name, known in before.items():
            if known is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = known


@contextmanager
def _isolated_siblings(folder: Path, siblings: SiblingModules) -> Iterator[None]:
    """Of the modules in a script's folder there are those that are its own, and afterwards none.

    Another script's folder may have modules of the same names. And what a module keeps in globals, or takes from the
    SDK and from the environment when it is imported, must not be another version's.
    """
    others = {name: sys.modules[name] for name in _find_shadowed_modules(folder)} | {
        name: sys.modules[name] for name in siblings if name in sys.modules
    }
    for name in others:
        del sys.modules[name]
    known = set(sys.modules)
    sys.modules.update(siblings)
    try:
        yield
    finally:
        mine = [name for name in sys.modules if name not in known and _is_local_module(folder, name)]
        siblings.clear()
        siblings.update({name: sys.modules.pop(name) for name in mine})
        sys.modules.update(others)


def _find_shadowed_modules(folder: Path) -> list[str]:
    """The modules here that somebody has imported from elsewhere, and of which a script's folder has its own."""
    there = [name for name in _importable_names(folder) if name in sys.modules and not _is_in_site_packages(name)]
    return [name for name in sys.modules if name.partition(".")[0] in there] if there else []


@cache
def _importable_names(folder: Path) -> frozenset[str]:
    """What can be imported from a folder, unless Python or lsml have that name for themselves."""
    with os.scandir(folder) as entries:
        names = {each.name.removesuffix(".py") for each in entries if each.name.endswith(".py") or each.is_dir()}
    return frozenset({name for name in names if name.isidentifier()} - RESERVED_MODULE_NAMES)


RESERVED_MODULE_NAMES = sys.stdlib_module_names | {"lsml_cli", "__main__", "__init__"}


def _is_in_site_packages(name: str) -> bool:
    return not INSTALL_FOLDERS.isdisjoint(Path(_module_path(name)).parts)


def _is_local_module(folder: Path, name: str) -> bool:
    """Whether a module is one of those in a folder, and not of an environment there. A script itself is none."""
    if name.startswith(FILE_MODULE_PREFIX) or name.partition(".")[0] in RESERVED_MODULE_NAMES:
        return False
    place = Path(_module_path(name))
    return place.is_relative_to(folder) and INSTALL_FOLDERS.isdisjoint(place.relative_to(folder).parts)


def _module_path(name: str) -> str:
    """The file of a module, or the folder of a package without one; "" for what is built in, or made by a program."""
    known = getattr(sys.modules[name], "__dict__", {})
    return str(known.get("__file__") or next(iter(known.get("__path__") or ()), ""))


def _root_package(name: str) -> str:
    """What is installed or not: newer releases of label_studio come without `ml`."""
    return "label_studio.ml" if f"{name}.".startswith("label_studio.ml.") else name.partition(".")[0]


@contextmanager
def script_environment(
    modules: Mapping[str, ModuleType],
    folder: Path,
    fetch: Fetch | None,
    environ: Mapping[str, str],
    replacements: Mapping[str, ModuleType],
    siblings: SiblingModules,
) -> Iterator[None]:
    """Everything that a script needs while it predicts or learns.

    instead   modules whose content takes the place of the real one's, where that is installed
    siblings  see `lent`
    """
    with ExitStack() as stack:
        stack.enter_context(stub_modules({**modules, **replacements}, folder, siblings))
        for name, each in replacements.items():
            stack.enter_context(_patched_module(name, each))
        stack.enter_context(environment_variables(environ))
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="lsml-script-", ignore_cleanup_errors=True))
        _active_files.append(MediaFiles(fetch, Path(place)))
        stack.callback(_active_files.pop)
        yield


@contextmanager
def _patched_module(name: str, replacement: ModuleType) -> Iterator[None]:
    """Where the real module is there, it has the other one's content for a while."""
    if not is_installed(_root_package(name)):
        yield
        return
    real = importlib.import_module(name)
    mine = {key: value for key, value in vars(replacement).items() if not key.startswith("__")}
    before = {key: vars(real).get(key) for key in mine}
    vars(real).update(mine)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                vars(real).pop(key, None)
            else:
                vars(real)[key] = value


@contextmanager
def environment_variables(environment: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
