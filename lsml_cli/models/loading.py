"""Load a model class from an installed module, from a file, or from a script for an older SDK."""

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

# Wraps scripts for older SDKs. It is a model family, and so imports this module.
LEGACY_BACKENDS = "lsml_cli.models.legacy_backends.model"

LEGACY_SDK_IMPORT = re.compile(
    rb"^\s*(?:from|import)\s+(?:label_studio_ml|label_studio\.ml|label_studio|htx)\b", re.MULTILINE
)

FILE_MODULE_PREFIX = "lsml_file_"  # of the names of modules that were loaded from a file


class ImportEnded(BaseException):
    """Ends the import of a model's file early; no Exception, so that the file's own handlers let it pass."""


def end_import_of_caller() -> None:
    """End the import of a model's file if code at its top level is what called.

    A script that defines a model and then checks it is imported again by the model's process. What it has defined up to
    there is what the model consists of; the rest is for the script alone.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    if str(frame.f_globals.get("__name__")).startswith(FILE_MODULE_PREFIX):
        raise ImportEnded


def load_class(target: str) -> type[Model]:
    """Import the class that "package.module:Class" or "/path/to/file.py:Class" names.

    Raises:
        ModelError: The module cannot be imported, or has no complete subclass of `Model` of that name.
    """
    location, _, name = target.rpartition(":")
    if not location:
        raise ModelError(f"{target!r} names no class.", "A model is named package.module:Class.")
    if location.endswith(".py") and (script := _wrap_legacy_script(Path(location), name)) is not None:
        return script
    module = _load_file(Path(location), name) if location.endswith(".py") else _load_module(location)
    model_class = getattr(module, name, None)
    if model_class is None:
        raise ModelError(f"{location} has no {name}.", _list_model_classes(module))
    if not (isinstance(model_class, type) and issubclass(model_class, Model)):
        raise ModelError(f"{target} is not a subclass of lsml_cli.Model.", _list_model_classes(module))
    missing: frozenset[str] = getattr(model_class, "__abstractmethods__", frozenset())
    if missing:
        raise ModelError(f"{target} does not override {' and '.join(sorted(missing))}.")
    return model_class


@cache
def _wrap_legacy_script(path: Path, name: str) -> type[Model] | None:
    """Wrap a class of a script for an older SDK as a model; None for any other file."""
    try:
        if LEGACY_SDK_IMPORT.search(path.read_bytes()) is None:
            return None
    except OSError:
        return None  # importing the file reports the error
    script: type[Model] | None = importlib.import_module(LEGACY_BACKENDS).wrap_script(path, name)
    return script


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
    except (Exception, SystemExit) as error:  # the module may be anybody's code
        raise ModelError(f"{name} cannot be imported: {error_location(error)}.") from error


def _load_file(path: Path, class_name: str) -> ModuleType:
    """Import a file under a module name made of its path, so that two files of one name are two modules.

    The script that runs is not run a second time for a class that it has defined.
    """
    if class_name in vars(main := sys.modules["__main__"]) and _is_script(main, path):
        return main
    name = f"{FILE_MODULE_PREFIX}{path.stem}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ModelError(f"{path} cannot be imported as Python.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up while it runs
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for the modules beside it, which it may import now or later
    try:
        module_spec.loader.exec_module(module)
    except ImportEnded:
        return module
    except LsmlError as error:
        del sys.modules[name]
        raise ModelError(f"{path} cannot be imported: {error.message}", error.hint) from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelError(f"{path} cannot be imported: {error_location(error)}.") from error
    return module


def _is_script(main: ModuleType, path: Path) -> bool:
    """Tell whether a file is the script that this process runs; a process of multiprocessing runs none."""
    origin = getattr(main, "__file__", None)
    return main.__name__ == "__main__" and isinstance(origin, str) and Path(origin).resolve() == path.resolve()


def error_location(error: BaseException) -> str:
    """Describe an error in a model's code: type, text, and the file and line outside of lsml's loading code."""
    loading_files = (__file__, spec.__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in loading_files and not frame.filename.startswith("<frozen ")
    ]
    line = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{line}"
