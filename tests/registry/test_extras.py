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
from lsml_cli.registry import catalog
from lsml_cli.registry import extras as doctor


def test_what_is_here_is_fine_and_nothing_is_said_about_what_nobody_wanted(lsml):
    run = lsml("doctor", "evaluate", "redis", "vision", "--json")
    found = {each["part"]: each for each in json.loads(run.stdout)}
    assert (run.returncode, {each["state"] for each in found.values()}) == (0, {"fine"}), run.stdout
    assert "PyTorch" in found["vision"]["detail"]
    assert found["redis"]["detail"] == f"rq {importlib.metadata.version('rq')}"


def test_an_extra_that_is_asked_for_has_to_be_there(lsml):
    run = lsml("doctor", "azure")  # which no test needs
    assert run.returncode == 1
    assert "adlfs is missing" in run.stdout
    assert "To repair azure, run:  pip install 'lsml[azure]'" in run.stdout


def test_what_was_never_installed_is_no_fault():
    found = {each.part: each for each in doctor.check_installation()}
    assert found["core"].state == "fine"
    assert found["azure"].state == "not installed"


def test_an_extra_that_there_is_none_of(lsml):
    run = lsml("doctor", "visoin")
    assert run.returncode == 2
    assert "It has: vision" in run.stderr


@pytest.mark.parametrize("requirement", ["rq>=900", "no-such-distribution-of-ours>=1"])
def test_a_release_that_does_not_fit_is_named(monkeypatch, requirement):
    monkeypatch.setattr(doctor, "_requirements", lambda: (f'{requirement}; extra == "redis"',))
    (found,) = doctor.check_installation(["redis"])
    assert found.state == "broken"
    assert ("wanted is >=900" in found.detail) or ("is missing" in found.detail)
    assert found.remedy == "pip install 'lsml[redis]'"


def test_a_broken_core_is_mended_by_what_it_asks_for(monkeypatch):
    """In this environment, and without asking an index for lsml."""
    marked = 'no-such-distribution-of-ours[x]<2,>=1; python_version > "3"'
    asked = ("pillow>=900", marked, "typer", 'rq; extra == "redis"')
    monkeypatch.setattr(doctor, "_requirements", lambda: asked)
    found = next(doctor.check_installation())
    assert (found.part, found.state) == ("core", "broken")
    assert "pillow is" in found.detail
    command = shlex.split(found.remedy)
    assert command == [sys.executable, "-m", "pip", "install", "pillow>=900", "no-such-distribution-of-ours[x]<2,>=1"]


def test_a_probe_that_fails_crashes_or_hangs_costs_only_itself(tmp_path, monkeypatch):
    (tmp_path / "probes.py").write_text(
        "import os, time\n"
        "from lsml_cli.errors import ModelError\n"
        "def refused(): raise ModelError('The ops are missing.', 'Install them.')\n"
        "def raised(): raise RuntimeError('operator torchvision::nms does not exist')\n"
        "def died(): os._exit(7)\n"
        "def hung(): time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT", 5)
    said = {}
    for name in ("refused", "raised", "died", "hung"):
        monkeypatch.setitem(doctor.EXTRAS, "redis", doctor.Extra("jobs", "rq", f"probes:{name}"))
        (found,) = doctor.check_installation(["redis"])
        assert found.state == "broken"
        said[name] = found.detail
    assert said == {
        "refused": "The ops are missing.",
        "raised": "RuntimeError: operator torchvision::nms does not exist",
        "died": "its process ended with 7",
        "hung": "it did not answer within 5 seconds",
    }


def test_the_doctor_knows_no_extra_that_the_package_does_not_have():
    extras = set(importlib.metadata.metadata("lsml").get_all("Provides-Extra"))
    assert {each for each in extras if each != "dev" and not each.endswith("tests")} == set(doctor.EXTRAS)
    with pytest.raises(UsageError, match="no extra"):
        list(doctor.check_installation(["dev"]))


def test_installing_openmmlab_asks_for_an_environment_and_says_what_it_does_not_know():
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
        ("not available", "99.0", [], "PyTorch is 2 GB"),  # who has installed that toolkit runs it again
        ("not available", "12.4", [], "no nvcc of CUDA 99.0"),
        ("not available", "99.0", ["--cpu"], "nothing to do"),
        ("99.0", "12.4", [], "nothing to do"),
        ("99.0", "99.0", ["--cpu"], "PyTorch is 2 GB"),
    ],
)
def test_installing_openmmlab_again_asks_what_the_ops_are_for(tmp_path, ops, release, options, sentence):
    """Where there is a GPU, and an nvcc that is not on the PATH."""
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


def test_what_lists_models_installs_them_as_the_doctor_does(monkeypatch):
    """pip alone does not bring MMDetection."""
    monkeypatch.setattr(catalog, "_is_installed", lambda module: module != "mmdet")
    listed = {entry.name: entry.install for entry in catalog.list_models()}
    assert listed["object-detector"] == doctor.install_command("openmmlab")
    assert listed["object-detector"].endswith(f"models/openmmlab/install --python {sys.executable}")
    assert listed["text-classifier"] is None
