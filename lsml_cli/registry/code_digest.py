"""Digest the code of a model and the files that its parameters name, so that a changed model is another model."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

from lsml_cli.errors import ModelError
from lsml_cli.models.base import Model
from lsml_cli.models.loading import FILE_MODULE_PREFIX
from lsml_cli.models.spec import Json
from lsml_cli.registry.digests import DIGEST_BYTES, file_digest
from lsml_cli.registry.local_imports import find_local_modules, list_package_files

# Packages that hold several model families. None of them is the package of one family.
SHARED_PACKAGES = ("lsml_cli", "lsml_cli.models")


def code_digest(model_class: type[Model]) -> str:
    """Digest the names and contents of `source_files`; hexadecimal."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name, path in source_files(model_class).items():
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def source_files(model_class: type[Model]) -> dict[str, Path]:
    """List the files of a model's own code.

    These are all modules of its package: the outermost package that exports the class, else the innermost one that
    contains it. For a class in a file outside of a package they are the file and what it imports from beside it.

    Returns:
        Path by name: relative to the package, or to the folder of a single file, whose own name is "".

    Raises:
        ModelError: The class has no source file.
    """
    package = _find_package(model_class)
    if package is not None:
        folder = Path(package).parent
        return {path.relative_to(folder).as_posix(): path for path in list_package_files(folder)}
    origin = getattr(sys.modules[model_class.__module__], "__file__", None)
    if origin is None:
        raise ModelError(f"{model_class.__name__} has no source file that could tell one version from another.")
    script = Path(origin)
    # The neighbours of an installed module belong to other distributions; only a file loaded by its path has its own.
    is_own_file = model_class.__module__.startswith((FILE_MODULE_PREFIX, "__main__"))
    siblings = find_local_modules(script) if is_own_file else ()
    return {"": script} | {path.relative_to(script.parent).as_posix(): path for path in siblings}


def param_file_digests(model_class: type[Model], params: Mapping[str, Json]) -> dict[str, str]:
    """Digest the files that parameters name, and those that they refer to in turn.

    Returns:
        Digest of the content by path. A name without a readable file is left out.
    """
    if not model_class.file_params:
        return {}
    values = model_class.default_params() | dict(params)
    paths = [Path(value) for name in model_class.file_params if isinstance(value := values.get(name), str)]
    digests: dict[str, str] = {}
    for path in paths:  # grows while it is read
        if str(path) not in digests and (digest := _digest_if_readable(path)) is not None:
            digests[str(path)] = digest
            paths += model_class.referenced_files(path)
    return digests


def _find_package(model_class: type[Model]) -> str | None:
    """Return the `__init__.py` of the model's own package, None for a model in a plain file."""
    parts = model_class.__module__.split(".")
    innermost = None
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        module = sys.modules.get(name)
        origin: str | None = getattr(module, "__file__", None)
        if name in SHARED_PACKAGES or origin is None or Path(origin).name != "__init__.py":
            continue
        innermost = origin
        if vars(module).get(model_class.__name__) is model_class:
            break
    return innermost


def _digest_if_readable(path: Path) -> str | None:
    """Digest a regular file; None for anything else, because opening it reports the error."""
    try:
        stat = path.stat()
        return _cached_file_digest(path.absolute(), stat.st_mtime_ns, stat.st_size) if S_ISREG(stat.st_mode) else None
    except (OSError, ValueError):  # ValueError: the name has a null byte
        return None


@lru_cache
def _cached_file_digest(path: Path, mtime_ns: int, size: int) -> str:
    """Digest a file once per process, because a checkpoint may have gigabytes."""
    return file_digest(path)
