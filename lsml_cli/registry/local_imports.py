"""Find the modules beside a script that it imports: they belong to its code, and are copied with it."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

from lsml_cli.errors import ModelError

OWN_PACKAGE = "lsml_cli"  # lies beside a script in a checkout of lsml, and does not belong to the script


def find_local_modules(script: Path) -> list[Path]:
    """List the Python files below a script's folder that it imports, directly or not, sorted by path.

    Importing a package includes all of its modules. A sibling with a syntax error imports nothing.

    Raises:
        ModelError: The script cannot be read, or has a syntax error.
    """
    files: set[Path] = set()
    names = _imported_names(_parse_module(script))
    while names:
        new_files = {file for name in names for file in _module_files(script.parent, name)} - files - {script}
        files |= new_files
        names = {name for file in new_files for name in _imported_names_if_valid(file)}
    return sorted(files)


def list_package_files(folder: Path) -> list[Path]:
    """List the modules of a package and its subpackages. Other folders are skipped: they may hold a million images."""
    files = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.endswith(".py"):
            files.append(path)
        elif entry.is_dir() and (path / "__init__.py").is_file():
            files += list_package_files(path)
    return files


def _module_files(folder: Path, name: str) -> Iterator[Path]:
    """Yield the files of a folder that `import name` imports; none if the module is elsewhere."""
    first, *rest = name.split(".")
    file, package = folder / f"{first}.py", folder / first
    if first == OWN_PACKAGE:
        return
    if (package / "__init__.py").is_file():
        yield from list_package_files(package)
    elif file.is_file():
        yield file
    elif rest:  # a folder without __init__.py is a package too
        path = package.joinpath(*rest)
        if path.with_suffix(".py").is_file():
            yield from list_package_files(path.parent)
        elif (path / "__init__.py").is_file():
            yield from list_package_files(path)


def _imported_names(tree: ast.Module) -> set[str]:
    """Collect the dotted names of all absolute imports in a module; relative ones stay within their package."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _imported_names_if_valid(file: Path) -> set[str]:
    try:
        return _imported_names(_parse_module(file))
    except ModelError:  # importing it reports the error
        return set()


def _parse_module(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from None
    except (SyntaxError, ValueError) as error:
        line, reason = (f", line {error.lineno}", error.msg) if isinstance(error, SyntaxError) else ("", str(error))
        raise ModelError(f"{file}{line}: this is no Python ({reason}).") from None
