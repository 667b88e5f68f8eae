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
from lsml_cli.errors import UsageError, sort_by_similarity

ExtraState = Literal["fine", "not installed", "broken"]

PROBE_TIMEOUT = 120  # seconds for a toolkit to be imported and tried, on a slow disk for the first time
CORE = "core"


@dataclass(frozen=True)
class Extra:
    """An extra of the package.

    what   what it is for
    sign   the distribution that nothing else brings: where it is missing, nobody wanted the extra
    probe  module:function that tries it, and says in a few words what works; raises what does not
    more   a file of the package that installs what pip cannot
    """

    purpose: str
    marker_distribution: str
    probe: str | None = None
    install_script: str | None = None


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
class CheckResult:
    """About one part.

    what    what it is for
    detail  what there is, or what is wrong
    remedy  the command to run, None where there is nothing to do
    """

    part: str
    state: ExtraState
    what: str
    detail: str
    remedy: str | None = None


def check_installation(extras: Sequence[str] = ()) -> Iterator[CheckResult]:
    """A finding for the core and for each extra, or for those that are `wanted`, which then have to be there.

    Raises UsageError for an extra that there is none of.
    """
    for name in extras:
        if name not in EXTRAS:
            known = ", ".join(sort_by_similarity(name, EXTRAS))
            raise UsageError(f"lsml has no extra {name!r}.", f"It has: {known}.")
    if not extras:
        yield _check_core()
    for name in extras or EXTRAS:
        yield _check_extra(name, EXTRAS[name], name in extras)


def _check_core() -> CheckResult:
    detail = f"lsml {__version__}, Python {platform.python_version()}"
    if wrong := _unmet_requirements(None):
        # What it asks for, and not lsml itself: that is on no index that pip would ask.
        remedy = shlex.join([sys.executable, "-m", "pip", "install", *wrong])
        return CheckResult(CORE, "broken", "everything else", "; ".join(wrong.values()), remedy)
    return CheckResult(CORE, "fine", "everything else", detail)


def _check_extra(name: str, extra: Extra, is_required: bool) -> CheckResult:
    remedy = install_command(name)
    if not _installed_version(extra.marker_distribution):
        return CheckResult(
            name,
            "broken" if is_required else "not installed",
            extra.purpose,
            f"{extra.marker_distribution} is missing",
            remedy,
        )
    if wrong := _unmet_requirements(name):
        return CheckResult(name, "broken", extra.purpose, "; ".join(wrong.values()), remedy)
    if extra.probe is None:
        return CheckResult(
            name, "fine", extra.purpose, f"{extra.marker_distribution} {_installed_version(extra.marker_distribution)}"
        )
    works, said = _run_probe(extra.probe)
    return CheckResult(name, "fine" if works else "broken", extra.purpose, said, None if works else remedy)


def install_command(name: str) -> str:
    """The command that installs an extra of lsml."""
    extra = EXTRAS[name]
    if extra.install_script is None:
        return f"pip install 'lsml[{name}]'"
    return shlex.join(["bash", str(Path(__file__).parents[1] / extra.install_script), "--python", sys.executable])


def _unmet_requirements(extra: str | None) -> dict[str, str]:
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
        found = _installed_version(requirement.name)
        requirement.marker = None
        if not found:
            wrong[str(requirement)] = f"{requirement.name} is missing"
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong[str(requirement)] = f"{requirement.name} is {found}, wanted is {requirement.specifier}"
    return wrong


@cache
def _requirements() -> tuple[str, ...]:
    return tuple(importlib.metadata.requires("lsml") or ())


def _installed_version(distribution: str) -> str:
    """ "" for one that is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _run_probe(probe: str) -> tuple[bool, str]:
    """Whether a probe works, and what it says; in a process of its own, which may crash."""
    module, _, function = probe.partition(":")
    code = _PROBE_SCRIPT.format(module=module, function=function)
    try:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"it did not answer within {PROBE_TIMEOUT} seconds"
    said = [line for line in (run.stdout or run.stderr).splitlines() if line.strip()]
    last = said[-1].strip() if said else f"its process ended with {run.returncode}"
    return run.returncode == 0, last


_PROBE_SCRIPT = """
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
