"""Check which extras of lsml are installed and whether they work, for `lsml doctor`."""

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
from lsml_cli.models.loading import load_class
from lsml_cli.registry.model_location import BUILT_IN
from lsml_cli.runtime import install_command_hint, install_hint, is_one_file, python_command, python_environment

ExtraState = Literal["fine", "not installed", "broken"]

PROBE_TIMEOUT = 120  # seconds; the first import of a toolkit from a slow disk takes long
CORE = "core"


@dataclass(frozen=True)
class Extra:
    """An extra of the package.

    Attributes:
        purpose: What it is for.
        marker_distribution: A distribution that only this extra requires; if it is missing, so is the extra.
        probe: "module:function" that tries the extra and returns a few words about it; raises an error if it fails.
        install_script: File of the package that installs what pip cannot, relative to `lsml_cli/`.
    """

    purpose: str
    marker_distribution: str
    probe: str | None = None
    install_script: str | None = None


EXTRAS = {
    "studio": Extra("pull, push, training in serve", "label-studio-sdk"),
    "vision": Extra("image-classifier", "torchvision", "lsml_cli.models.torch_runtime:probe"),
    "openmmlab": Extra(
        "object-detector, ocr", "onedl-mmengine", "lsml_cli.models.openmmlab.toolkit:probe", "models/openmmlab/install"
    ),
    "evaluate": Extra("measuring regions and texts", "pycocotools"),
    "audio": Extra("lengths of sounds in ASR manifests", "tinytag"),
    "spans": Extra("spaCy's DocBin in convert", "spacy"),
    "parquet": Extra("Parquet in convert", "pyarrow"),
    "redis": Extra("training jobs in a queue", "rq"),
    "s3": Extra("s3:// media", "s3fs"),
    "gcs": Extra("gs:// media", "gcsfs"),
    "azure": Extra("azure-blob:// media", "adlfs"),
}


@dataclass(frozen=True)
class CheckResult:
    """The state of the core or of one extra. The fields are the keys of `lsml doctor --json`.

    Attributes:
        part: "core", or name of the extra.
        state: Whether it is usable.
        what: What it is for.
        detail: What is installed, or what is wrong.
        remedy: The command to run, None if nothing has to be done.
    """

    part: str
    state: ExtraState
    what: str
    detail: str
    remedy: str | None = None


def check_installation(extras: Sequence[str] = ()) -> Iterator[CheckResult]:
    """Check the core and each extra.

    Args:
        extras: Check these only; a missing one is "broken" then, and not only "not installed".

    Raises:
        UsageError: There is no such extra.
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
    if problems := _unmet_requirements(None):
        # Its requirements and not lsml itself, which is on no package index.
        remedy = shlex.join([sys.executable, "-m", "pip", "install", *problems])
        return CheckResult(CORE, "broken", "everything else", "; ".join(problems.values()), remedy)
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
    if problems := _unmet_requirements(name):
        return CheckResult(name, "broken", extra.purpose, "; ".join(problems.values()), remedy)
    if extra.probe is None:
        return CheckResult(
            name, "fine", extra.purpose, f"{extra.marker_distribution} {_installed_version(extra.marker_distribution)}"
        )
    works, detail = _run_probe(extra.probe)
    return CheckResult(name, "fine" if works else "broken", extra.purpose, detail, None if works else remedy)


def install_command(name: str) -> str:
    """Return the command that installs an extra of lsml."""
    extra = EXTRAS[name]
    if extra.install_script is None:
        return install_hint(f"lsml[{name}]")
    if is_one_file():
        return install_command_hint(f"lsml doctor {name}")
    return shlex.join(["bash", str(Path(__file__).parents[1] / extra.install_script), "--python", sys.executable])


def find_extra(module: str) -> str | None:
    """Return the extra that installs a module which a built-in model needs, None for any other module."""
    for target in BUILT_IN.values():
        model_class = load_class(target)
        if module in model_class.required_modules:
            return model_class.install_extra
    return None


def _unmet_requirements(extra: str | None) -> dict[str, str]:
    """Find requirements of an extra, None for the core, that are not met: {"rq>=2": "rq is 1.16, wanted is >=2"}."""
    from packaging.requirements import Requirement

    problems = {}
    for line in _requirements():
        requirement = Requirement(line)
        marker = requirement.marker
        if extra is None:
            applies = marker is None or marker.evaluate({"extra": ""})
        else:
            applies = marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
        if not applies or requirement.name == "lsml":
            continue
        version = _installed_version(requirement.name)
        requirement.marker = None
        if not version:
            problems[str(requirement)] = f"{requirement.name} is missing"
        elif not requirement.specifier.contains(version, prereleases=True):
            problems[str(requirement)] = f"{requirement.name} is {version}, wanted is {requirement.specifier}"
    return problems


@cache
def _requirements() -> tuple[str, ...]:
    return tuple(importlib.metadata.requires("lsml") or ())


def _installed_version(distribution: str) -> str:
    """Return the version of a distribution, "" if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _run_probe(probe: str) -> tuple[bool, str]:
    """Run a probe in a process of its own, which may crash; return whether it works, and its last line."""
    module, _, function = probe.partition(":")
    code = _PROBE_SCRIPT.format(module=module, function=function)
    try:
        run = subprocess.run(
            python_command("-W", "ignore", "-c", code),
            env=python_environment(),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"it did not answer within {PROBE_TIMEOUT} seconds"
    lines = [line for line in (run.stdout or run.stderr).splitlines() if line.strip()]
    last_line = lines[-1].strip() if lines else f"its process ended with {run.returncode}"
    return run.returncode == 0, last_line


_PROBE_SCRIPT = """
import sys
from lsml_cli.errors import LsmlError
from {module} import {function}
try:
    detail = {function}()
except LsmlError as error:
    print(error.message)
    sys.exit(1)
print(detail)
"""
