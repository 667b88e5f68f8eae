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

Fetch = Callable[[str, int | None], bytes]


class Files:
    """What tasks point to, as files that last as long as the script needs them. See `running`."""

    def __init__(self, fetch: Fetch | None, folder: Path) -> None:
        self._fetch = fetch
        self._folder = folder

    def path(self, value: str, task_id: int | None = None) -> str:
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


_files: list[Files] = []  # of the script that runs; the last one counts


def local_path(url: str, *_: Any, task_id: int | None = None, **__: Any) -> str:
    """What `get_local_path` of every SDK answers, whatever else it is told: where things are is settled here."""
    if not _files:
        raise ValueError(f"{url} cannot be fetched before there are tasks")
    return _files[-1].path(url, task_id)


def module(name: str, content: Mapping[str, Any]) -> ModuleType:
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
def lent(modules: Mapping[str, ModuleType], folder: Path) -> Iterator[None]:
    """The modules, and what lies in the script's folder, are there to be imported; the modules are gone afterwards.

    Where the real package is installed it wins, as a whole.
    """
    mine = {name: each for name, each in modules.items() if not is_installed(_package(name))}
    for name, each in mine.items():
        parent, _, last = name.rpartition(".")
        if parent in mine:
            mine[parent].__path__ = []  # a package, as the import of what is in it wants
            setattr(mine[parent], last, each)
    before = {name: sys.modules.get(name) for name in mine}
    sys.modules.update(mine)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the script has removed it itself
            sys.path.remove(str(folder))
        for name, known in before.items():
            if known is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = known


def _package(name: str) -> str:
    """What is installed or not: newer releases of label_studio come without `ml`."""
    return "label_studio.ml" if f"{name}.".startswith("label_studio.ml.") else name.partition(".")[0]


@contextmanager
def running(
    modules: Mapping[str, ModuleType],
    folder: Path,
    fetch: Fetch | None,
    environment: Mapping[str, str],
    instead: Mapping[str, ModuleType],
) -> Iterator[None]:
    """Everything that a script needs while it predicts or learns.

    instead  modules whose content takes the place of the real one's, where that is installed
    """
    with ExitStack() as stack:
        stack.enter_context(lent({**modules, **instead}, folder))
        for name, each in instead.items():
            stack.enter_context(_patched(name, each))
        stack.enter_context(variables(environment))
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="lsml-script-", ignore_cleanup_errors=True))
        _files.append(Files(fetch, Path(place)))
        stack.callback(_files.pop)
        yield


@contextmanager
def _patched(name: str, other: ModuleType) -> Iterator[None]:
    """Where the real module is there, it has the other one's content for a while."""
    if not is_installed(_package(name)):
        yield
        return
    real = importlib.import_module(name)
    mine = {key: value for key, value in vars(other).items() if not key.startswith("__")}
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
def variables(environment: Mapping[str, str]) -> Iterator[None]:
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
