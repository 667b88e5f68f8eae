"""Load a model class from an installed module, a file, or a script for an older SDK."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.models import spec
from lsml_cli.models.base import Model

# Wraps scripts for older SDKs. Named, not imported: it is a model family.
LEGACY_BACKENDS = "lsml_cli.models.legacy_backends.model"

LEGACY_SDK_IMPORT = re.compile(
    rb"^\s*(?:from|import)\s+(?:label_studio_ml|label_studio\.ml|label_studio|htx)\b", re.MULTILINE
)

FILE_MODULE_PREFIX = "lsml_file_"  # how the names of modules begin that were loaded from a file


def load_class(target: str) -> type[Model]:
    """The class behind "package.module:Class" or "/path/to/file.py:Class"."""
    place, _, name = target.rpartition(":")
    if not place:
        raise ModelError(f"{target!r} names no class.", "A model is named package.module:Class.")
    if place.endswith(".py") and (script := _wrap_legacy_script(Path(place), name)) is not None:
        return script
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found = getattr(module, name, None)
    if found is None:
        raise ModelError(f"{place} has no {name}.", _list_model_classes(module))
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ModelError(f"{target} is not a subclass of lsml_cli.Model.", _list_model_classes(module))
    missing: frozenset[str] = getattr(found, "__abstractmethods__", frozenset())
    if missing:
        raise ModelError(f"{target} does not override {' and '.join(sorted(missing))}.")
    return found


@cache
def _wrap_legacy_script(path: Path, name: str) -> type[Model] | None:
    """The model that somebody's script for an older SDK stands for; None for a file that is none."""
    try:
        if LEGACY_SDK_IMPORT.search(path.read_bytes()) is None:
            return None
    except OSError:
        return None  # whoever imports it says why
    found: type[Model] | None = importlib.import_module(LEGACY_BACKENDS).wrap_script(path, name)
    return found


def _list_model_classes(module: ModuleType) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Model) and value is not Model
    ]
    return f"It defines: {', '.join(names)}." if names else "It defines no model at all."


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except LsmlError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's module may raise anything
        raise ModelError(f"{name} cannot be imported: {error_location(error)}.") from error


def _load_file(path: Path) -> ModuleType:
    """Import a file under a name of its own, so that two files of one name do not meet in sys.modules."""
    name = f"{FILE_MODULE_PREFIX}{path.stem}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ModelError(f"{path} cannot be imported as Python.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look the module up while it runs
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # it may import what lies beside it, now or later
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelError(f"{path} cannot be imported: {error_location(error)}.") from error
    return module


def error_location(error: BaseException) -> str:
    """An error in somebody else's code: what it is, and the line that it comes from, unless that is none of its own."""
    ours = (__file__, spec.__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in ours and not frame.filename.startswith("<frozen ")
    ]
    line = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{line}"
