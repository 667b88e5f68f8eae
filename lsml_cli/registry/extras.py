"""What of lsml is installed here, and whether it works."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from lsml_cli._version import __version__
from lsml_cli.errors import UsageError, closest_first

State = Literal["fine", "not installed", "broken"]

PATIENCE = 120  # seconds for a toolkit to be imported and tried, on a slow disk for the first time
CORE = "core"


@dataclass(frozen=True)
class Extra:
    """An extra of the package.

    what   what it is for
    sign   the distribution that nothing else brings: where it is missing, nobody wanted the extra
    probe  module:function that tries it, and says in a few words what works; raises what does not
    more   a file of the package that installs what pip cannot
    """

    what: str
    sign: str
    probe: str | None = None
    more: str | None = None


EXTRAS = {
    "vision": Extra("image-classifier", "torchvision", "lsml_cli.models.torch_runtime:probe"),
    "openmmlab": Extra(
        "object-detector, ocr", "onedl-mmengine", "lsml_cli.models.openmmlab.toolkit:probe", "models/openmmlab/install"
    ),
    "evaluate": Extra("measuring regions and texts", "pycocotools"),
    "redis": Extra("training jobs in a queue", "rq"),
    "s3": Extra("s3:// media", "s3fs"),
    "gcs": Extra("gs:// media", "gcsfs"),
    "azure": Extra("azure-blob:// media", "adlfs"),
}


@dataclass(frozen=True)
class Finding:
    """About one part.

    what    what it is for
    detail  what there is, or what is wrong
    remedy  the command to run, None where there is nothing to do
    """

    part: str
    state: State
    what: str
    detail: str
    remedy: str | None = None


def examine(wanted: Sequence[str] = ()) -> Iterator[Finding]:
    """A finding for the core and for each extra, or for those that are `wanted`, which then have to be there.

    Raises UsageError for an extra that there is none of.
    """
    for name in wanted:
        if name not in EXTRAS:
            known = ", ".join(closest_first(name, EXTRAS))
            raise UsageError(f"lsml has no extra {name!r}.", f"It has: {known}.")
    if not wanted:
        yield _core()
    for name in wanted or EXTRAS:
        yield _examined(name, EXTRAS[name], name in wanted)


def _core() -> Finding:
    detail = f"lsml {__version__}, Python {platform.python_version()}"
    if wrong := _wrong(None):
        # What it asks for, and not lsml itself: that is on no index that pip would ask.
        remedy = shlex.join([sys.executable, "-m", "pip", "install", *wrong])
        return Finding(CORE, "broken", "everything else", "; ".join(wrong.values()), remedy)
    return Finding(CORE, "fine", "everything else", detail)


def _examined(name: str, extra: Extra, wanted: bool) -> Finding:
    remedy = remedy_for(name)
    if not _version(extra.sign):
        return Finding(name, "broken" if wanted else "not installed", extra.what, f"{extra.sign} is missing", remedy)
    if wrong := _wrong(name):
        return Finding(name, "broken", extra.what, "; ".join(wrong.values()), remedy)
    if extra.probe is None:
        return Finding(name, "fine", extra.what, f"{extra.sign} {_version(extra.sign)}")
    works, said = _tried(extra.probe)
    return Finding(name, "fine" if works else "broken", extra.what, said, None if works else remedy)


def remedy_for(name: str) -> str:
    """The command that installs an extra of lsml."""
    extra = EXTRAS[name]
    if extra.more is None:
        return f"pip install 'lsml[{name}]'"
    return shlex.join(["bash", str(Path(__file__).parent / extra.more), "--python", sys.executable])


def _wrong(extra: str | None) -> dict[str, str]:
    """{"rq>=2": what is wrong with it}, of what the package asks for, by itself or for an extra."""
    from packaging.requirements import Requirement

    wrong = {}
    for line in _requirements():
        requirement = Requirement(line)
        marker = requirement.marker
        if extra is None:
            asked = marker is None or marker.evaluate({"extra": ""})
        else:
            asked = marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
        if not asked or requirement.name == "lsml":
            continue
        found = _version(requirement.name)
        requirement.marker = None
        if not found:
            wrong[str(requirement)] = f"{requirement.name} is missing"
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong[str(requirement)] = f"{requirement.name} is {found}, wanted is {requirement.specifier}"
    return wrong


@cache
def _requirements() -> tuple[str, ...]:
    return tuple(importlib.metadata.requires("lsml") or ())


def _version(distribution: str) -> str:
    """ "" for one that is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _tried(probe: str) -> tuple[bool, str]:
    """Whether a probe works, and what it says; in a process of its own, which may crash."""
    module, _, function = probe.partition(":")
    code = _TRY.format(module=module, function=function)
    try:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"it did not answer within {PATIENCE} seconds"
    said = [line for line in (run.stdout or run.stderr).splitlines() if line.strip()]
    last = said[-1].strip() if said else f"its process ended with {run.returncode}"
    return run.returncode == 0, last


_TRY = """
import sys
from lsml_cli.errors import LsmlError
from {module} import {function}
try:
    said = {function}()
except LsmlError as error:
    print(error.message)
    sys.exit(1)
print(said)
"""
