"""Validate output paths: writable, and distinct from every input and from each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lsml_cli.errors import UsageError

STDOUT = "-"


def is_stream(output: str) -> bool:
    """Return whether `output` is standard output, a pipe or a device: written directly, never renamed into place."""
    path = Path(output)
    return output == STDOUT or (path.exists() and not path.is_file() and not path.is_dir())


def require_different_files(inputs: Mapping[str, str | None], outputs: Mapping[str, str | None]) -> None:
    """Reject an output that is also an input or another output.

    Args:
        inputs: Paths that are read, by the name that a message gives them ("the input"); None is skipped.
        outputs: Paths that are written, likewise ("--output"). Streams may coincide with anything.

    Raises:
        UsageError: Two names lead to one file, also through links.
    """
    names: dict[object, str] = {}
    for name, path in (*inputs.items(), *outputs.items()):
        if not path or (name in outputs and is_stream(path)):
            continue
        identity = file_identity(path)
        if identity in names and name in outputs:
            raise UsageError(f"{path} is {names[identity]} and {name} at once.", "Name another file.")
        names.setdefault(identity, name)


def require_one_stdout(outputs: Mapping[str, str | Path | None]) -> None:
    """Raise UsageError if more than one output, by the names of their options, is standard output."""
    names = [name for name, path in outputs.items() if is_stdout(path)]
    if len(names) > 1:
        raise UsageError(f"{names[0]} and {names[1]} both go to standard output.", "Name a file for one of them.")


def is_stdout(path: str | Path | None) -> bool:
    """Return whether `path` is "-", which stands for standard output."""
    return path is not None and str(path) == STDOUT


def file_identity(path: str) -> object:
    """Return a key that is equal for two names of one file, also through links; "-" stands for standard input."""
    try:
        return existing_file_identity(0 if path == "-" else path)
    except OSError:  # does not exist yet
        return os.path.realpath(path)


def existing_file_identity(file: int | str) -> object:
    """Return the identity of an existing file, given its path or an open descriptor."""
    status = os.stat(file)  # noqa: PTH116 - takes descriptors too
    return status.st_dev, status.st_ino


def resolve_output_path(path: str) -> Path:
    """Return where a file named `path` will be created; a link is followed, so that it stays a link.

    A pipe or a device is returned as it is named.

    Raises:
        UsageError: No file can be created there.
    """
    target = Path(path)
    if path != STDOUT and is_stream(path):
        return target
    if target.is_symlink():
        target = Path(os.path.realpath(path))
    if path in ("", STDOUT):
        raise UsageError(f"{path!r} is no name of a file.")
    if target.is_dir():
        raise UsageError(f"{path} is a folder.", "Name a file in it.")
    if not target.parent.is_dir():
        raise UsageError(f"There is no folder {target.parent}.", f"Create it first: mkdir -p {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"The folder {target.parent} is not writable.")
    return target


def sibling_path(path: Path, suffix: str) -> Path:
    """Return the path beside `path` whose name has `suffix` appended: `out.json` -> `out.json.part`."""
    return path.with_name(path.name + suffix)
