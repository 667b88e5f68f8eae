"""The modules beside a file that it imports: they are part of what it does, and go where it goes."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

from lsml_cli.errors import ModelError

OWN_PACKAGE = "lsml_cli"  # beside a file in a checkout of lsml; no part of it


def find_local_modules(script: Path) -> list[Path]:
    """Every file of Python below a script's folder that it imports, directly or not, in the order of their paths.

    Of a package that is all of its modules. Raises ModelError when the script is no Python; a sibling that is none
    imports nothing.
    """
    found: set[Path] = set()
    names = _imported_names(_parse_module(script))
    while names:
        fresh = {file for name in names for file in _module_files(script.parent, name)} - found - {script}
        found |= fresh
        names = {name for file in fresh for name in _imported_names_if_valid(file)}
    return sorted(found)


def list_package_files(folder: Path) -> list[Path]:
    """The modules of a package and its subpackages. Other folders are not entered: they may hold a million pictures."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.endswith(".py"):
            found.append(path)
        elif entry.is_dir() and (path / "__init__.py").is_file():
            found += list_package_files(path)
    return found


def _module_files(folder: Path, name: str) -> Iterator[Path]:
    """The files that `import name` means in a folder; none where that is somebody else's module."""
    first, *rest = name.split(".")
    file, package = folder / f"{first}.py", folder / first
    if first == OWN_PACKAGE:
        return
    if (package / "__init__.py").is_file():
        yield from list_package_files(package)
    elif file.is_file():
        yield file
    elif rest:  # a folder without __init__.py is a package too
        place = package.joinpath(*rest)
        if place.with_suffix(".py").is_file():
            yield from list_package_files(place.parent)
        elif (place / "__init__.py").is_file():
            yield from list_package_files(place)


def _imported_names(tree: ast.Module) -> set[str]:
    """The dotted names of all that is imported anywhere; relative imports do not leave their package."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _imported_names_if_valid(file: Path) -> set[str]:
    try:
        return _imported_names(_parse_module(file))
    except ModelError:  # whoever imports it says why
        return set()


def _parse_module(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from None
    except (SyntaxError, ValueError) as error:
        line, what = (f", line {error.lineno}", error.msg) if isinstance(error, SyntaxError) else ("", str(error))
        raise ModelError(f"{file}{line}: this is no Python ({what}).") from None
