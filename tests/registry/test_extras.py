"""`lsml doctor`: what is installed, and whether it works."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import lsml_cli
from lsml_cli.errors import UsageError
from lsml_cli.registry import catalog, extras
from lsml_cli.runtime import ONE_FILE_VARIABLE, install_hint
from tests.helpers.cli import Lsml
from tests.helpers.models import IMAGE_CONFIG


def test_installed_extras_are_reported_as_fine(lsml):
    run = lsml("doctor", "evaluate", "redis", "studio", "vision", "--json")
    results = {result["part"]: result for result in json.loads(run.stdout)}
    assert (run.returncode, {result["state"] for result in results.values()}) == (0, {"fine"}), run.stdout
    assert "PyTorch" in results["vision"]["detail"]
    assert results["redis"]["detail"] == f"rq {importlib.metadata.version('rq')}"


def test_requested_extra_that_is_missing_is_broken(lsml):
    run = lsml("doctor", "azure")  # which no test needs
    assert run.returncode == 1
    assert "adlfs is missing" in run.stdout
    assert "To repair azure, run:  pip install 'lsml[azure]'" in run.stdout


def test_missing_extra_is_no_failure_unless_requested():
    results = {result.part: result for result in extras.check_installation()}
    assert results["core"].state == "fine"
    assert results["azure"].state == "not installed"


def test_install_commands_stand_whole_below_the_table(lsml, monkeypatch):
    findings = [extras.CheckResult("azure", "not installed", "azure-blob:// media", "", "pip install 'lsml[azure]'")]
    monkeypatch.setattr(extras, "check_installation", lambda names: findings)
    monkeypatch.setenv("COLUMNS", "30")
    run = lsml("doctor")
    assert run.returncode == 0
    assert run.stdout.endswith("To install what is missing, run:\n  pip install 'lsml[azure]'\n")


def test_unknown_extra_is_a_usage_error(lsml):
    run = lsml("doctor", "visoin")
    assert run.returncode == 2
    assert "It has: vision" in run.stderr


@pytest.mark.parametrize("requirement", ["rq>=900", "no-such-distribution-of-ours>=1"])
def test_unmet_requirement_is_named(monkeypatch, requirement):
    monkeypatch.setattr(extras, "_requirements", lambda: (f'{requirement}; extra == "redis"',))
    (result,) = extras.check_installation(["redis"])
    assert result.state == "broken"
    assert ("wanted is >=900" in result.detail) or ("is missing" in result.detail)
    assert result.remedy == "pip install 'lsml[redis]'"


def test_remedy_of_broken_core_installs_its_requirements(monkeypatch):
    """lsml itself is on no package index."""
    marked = 'no-such-distribution-of-ours[x]<2,>=1; python_version > "3"'
    requirements = ("pillow>=900", marked, "typer", 'rq; extra == "redis"')
    monkeypatch.setattr(extras, "_requirements", lambda: requirements)
    result = next(extras.check_installation())
    assert (result.part, result.state) == ("core", "broken")
    assert "pillow is" in result.detail
    command = shlex.split(result.remedy)
    assert command == [sys.executable, "-m", "pip", "install", "pillow>=900", "no-such-distribution-of-ours[x]<2,>=1"]


def test_probe_that_fails_crashes_or_hangs_is_reported(tmp_path, monkeypatch):
    (tmp_path / "probes.py").write_text(
        "import os, time\n"
        "from lsml_cli.errors import ModelError\n"
        "def refused(): raise ModelError('The ops are missing.', 'Install them.')\n"
        "def raised(): raise RuntimeError('operator torchvision::nms does not exist')\n"
        "def died(): os._exit(7)\n"
        "def hung(): time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(extras, "PROBE_TIMEOUT", 5)
    details = {}
    for name in ("refused", "raised", "died", "hung"):
        monkeypatch.setitem(extras.EXTRAS, "redis", extras.Extra("jobs", "rq", f"probes:{name}"))
        (result,) = extras.check_installation(["redis"])
        assert result.state == "broken"
        details[name] = result.detail
    assert details == {
        "refused": "The ops are missing.",
        "raised": "RuntimeError: operator torchvision::nms does not exist",
        "died": "its process ended with 7",
        "hung": "it did not answer within 5 seconds",
    }


def test_extras_are_those_of_the_package():
    provided = set(importlib.metadata.metadata("lsml").get_all("Provides-Extra") or ())
    for_users = {name for name in provided - {"dev", "docs"} if not name.endswith("tests")}
    assert for_users == set(extras.EXTRAS)
    with pytest.raises(UsageError, match="no extra"):
        list(extras.check_installation(["dev"]))


def test_openmmlab_installer_rejects_unknown_arguments_and_missing_python():
    script = str(Path(lsml_cli.__file__).parent / "models/openmmlab/install")
    run = subprocess.run([script, "--pyhton", "x"], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, "unknown argument '--pyhton'" in run.stderr) == (2, True)
    run = subprocess.run([script, "--python", "/no/python"], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, "there is no /no/python" in run.stderr) == (1, True)
    run = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert "usage: install-openmmlab" in run.stdout
    assert sys.prefix != sys.base_prefix


@pytest.mark.parametrize(
    ("ops", "release", "options", "sentence"),
    [
        ("not available", "99.0", [], "PyTorch is 2 GB"),  # for a toolkit that was installed afterwards
        ("not available", "12.4", [], "no nvcc of CUDA 99.0"),
        ("not available", "99.0", ["--cpu"], "nothing to do"),
        ("99.0", "12.4", [], "nothing to do"),
        ("99.0", "99.0", ["--cpu"], "PyTorch is 2 GB"),
    ],
)
def test_openmmlab_installer_checks_what_the_installed_ops_were_compiled_for(tmp_path, ops, release, options, sentence):
    """On a machine with a GPU, and an nvcc that is not on the PATH."""
    programs = {
        "cuda/bin/nvcc": f'echo "Cuda compilation tools, release {release}, V{release}.1"',
        "python": 'case "$*" in *get_compiling*) echo "$OPS";; *version.cuda*) echo 99.0;; "-m pip"*) exit 1; esac',
    }
    for name, text in programs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = str(Path(lsml_cli.__file__).parent / "models/openmmlab/install")
    env = os.environ | {"CUDA_HOME": str(tmp_path / "cuda"), "OPS": ops}
    command = [script, "--python", tmp_path / "python", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert sentence in run.stdout, run.stdout + run.stderr
    assert ("nothing to do" in run.stdout) == (run.returncode == 0) == (sentence != "PyTorch is 2 GB")
    assert ("no nvcc" in run.stdout) == ("no nvcc" in sentence)


def test_models_and_doctor_give_the_same_install_command(monkeypatch):
    """pip alone does not install MMDetection."""
    monkeypatch.setattr(catalog, "_is_installed", lambda module: module != "mmdet")
    commands = {entry.name: entry.install for entry in catalog.list_models()}
    command = commands["object-detector"]
    assert command == extras.install_command("openmmlab")
    assert command.endswith(f"models/openmmlab/install --python {sys.executable}")
    assert Path(shlex.split(command)[1]).is_file()
    assert commands["text-classifier"] is None


@pytest.mark.parametrize(("command", "module"), [("predict", "torchvision"), ("fit", "torch"), ("serve", "torch")])
def test_model_without_its_packages_names_the_extra(
    lsml: Lsml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    (tmp_path / "tasks.json").write_text('[{"data": {"image": "a.jpg"}}]')
    (tmp_path / "config.xml").write_text(IMAGE_CONFIG)
    tasks: list[str | Path] = [] if command == "serve" else [tmp_path / "tasks.json", "-c", tmp_path / "config.xml"]
    output: list[str | Path] = ["-o", tmp_path / "model"] if command == "fit" else []
    run = lsml(command, *tasks, "-m", "image-classifier", *output)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.split("\n") == [
        f"lsml: This model needs {module}, which is not installed.",
        "      pip install 'lsml[vision]'",
        "",
    ]


def test_one_file_says_who_can_run_the_command(lsml: Lsml) -> None:
    assert install_hint("a", "b[c]") == "pip install a 'b[c]'"
    run = lsml("doctor", "azure", env={ONE_FILE_VARIABLE: "/usr/local/bin/lsml"})
    assert run.returncode == 1
    sentence = "This one-file lsml cannot install packages; an lsml installed with pip can: pip install 'lsml[azure]'"
    assert f"azure: {sentence}" in run.stdout
    assert "To repair" not in run.stdout
