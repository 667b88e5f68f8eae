"""Where something is to be written: whether it can be, and that it is nothing that is read or written already."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from lsml_cli.errors import OutputError, UsageError

STDOUT = "-"


def is_stream(output: str) -> bool:
    """Whether records can only be written there, not put in place at the end: standard output, a pipe, a device."""
    path = Path(output)
    return output == STDOUT or (path.exists() and not path.is_file() and not path.is_dir())


def require_different_files(inputs: Mapping[str, str | None], outputs: Mapping[str, str | None]) -> None:
    """Refuse to write over something that is read, or over something else that is written; names tell what is what."""
    seen: dict[object, str] = {}
    for name, path in (*inputs.items(), *outputs.items()):
        if not path or (name in outputs and is_stream(path)):
            continue
        file = file_identity(path)
        if file in seen and name in outputs:
            raise UsageError(f"{path} is {seen[file]} and {name} at once.", "Name another file.")
        seen.setdefault(file, name)


def part_files(outputs: Mapping[str, str | None]) -> dict[str, str | None]:
    """The files that stand beside those that are written until they are finished."""
    parts: dict[str, str | None] = {}
    for name, path in outputs.items():
        if path and not is_stream(path):
            parts |= {f"{name} in progress": f"{path}.part", f"{name}'s journal": f"{path}.part.journal"}
    return parts


def file_identity(path: str) -> object:
    """What tells whether two names mean one file, also through links; `-` is whatever standard input comes from."""
    try:
        return existing_file_identity(0 if path == "-" else path)
    except OSError:  # not there yet
        return os.path.realpath(path)


def existing_file_identity(file: int | str) -> object:
    """The same for a file that is there, by its name or its descriptor."""
    status = os.stat(file)  # noqa: PTH116 - takes descriptors too
    return status.st_dev, status.st_ino


def disk_space_note(output: str, size: int | None) -> str | None:
    """A sentence if the disk may be too small for the output of an input of `size` bytes."""
    if size is None or is_stream(output):
        return None
    free = shutil.disk_usage(resolve_output_path(output).parent).free
    if free > size * 1.2:
        return None
    return f"The input has {size / 1e6:,.0f} MB and only {free / 1e6:,.0f} MB are free where {output} goes."


def resolve_output_path(path: str) -> Path:
    """Where a file named `path` would be made; links are followed. Raises UsageError when none can be made there."""
    target = Path(path)
    if target.is_symlink():  # the link stays, and what it points to gets the content
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
    """The file that stands beside another one while that is written: `out.json.part`."""
    return path.with_name(path.name + suffix)


def open_locked(path: Path) -> io.FileIO:
    """The file, open and locked, so that two runs cannot write the same output."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder, and lsml needs that name.", "Remove it, or choose another --output.")
    while True:
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            output = path.with_suffix("")
            raise OutputError(f"Another lsml is writing {output} right now.", "Choose another --output.") from None
        if file_identity(str(path)) == existing_file_identity(file.fileno()):
            return file
        file.close()  # the run that had it finished in this very moment, and renamed it
