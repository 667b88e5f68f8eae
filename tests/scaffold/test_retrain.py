"""`retrain`, which `lsml init` writes, against a server that plays Label Studio; tests/slow has a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lsml_cli import scaffold
from tests.helpers.cli import ROOT
from tests.helpers.studio_project import StubProject, run_stub_project
from tests.helpers.studio_server import KEY

SCRIPT = ROOT / "lsml_cli" / "scaffold" / "templates" / "common" / "retrain"
Retrain = Callable[..., subprocess.CompletedProcess[str]]
SAID = {"ham": "see you at the station at eight", "spam": "you win a free prize, call now"}


@pytest.fixture
def server() -> Iterator[StubProject]:
    with run_stub_project() as running:
        for number in range(60):
            kind = ["ham", "spam"][number % 2]
            choice: dict[str, Any] = {"from_name": "kind", "to_name": "text", "type": "choices"}
            result = [{**choice, "id": "r", "value": {"choices": [kind]}}]
            made = {"id": number, "result": result, "was_cancelled": False}
            running.add_task({"text": f"{SAID[kind]} {number}"}, annotations=[made])
        yield running


@pytest.fixture
def retrain(server: StubProject, tmp_path: Path) -> Retrain:
    def run(path: str = "", script: Path = SCRIPT, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "PATH": f"{path}{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LABEL_STUDIO_URL": server.url,
            "LABEL_STUDIO_API_KEY": KEY,
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "PROJECT": "3",
        }
        return subprocess.run([script], env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_one_task_that_cannot_be_predicted_does_not_keep_the_others(
    server: StubProject, retrain: Retrain, tmp_path: Path
) -> None:
    """Nor does one that nothing can be learned from; and there is a version to be compared with."""
    fresh = [server.add_task({"text": "win a prize"}), server.add_task({"text": "at eight"})]
    run = retrain()
    assert run.returncode == 0, run.stderr
    one = server.model_version
    assert server.count_predictions(one) == dict.fromkeys(fresh, 1)

    annotated = next(task for task in server.tasks.values() if task["annotations"])
    server.add_task({"title": "no text"}, annotations=annotated["annotations"])
    bad = server.add_task({"title": "no text"})
    fresh.append(server.add_task({"text": "the station"}))
    run = retrain()
    assert run.returncode == 3, run.stderr
    assert f"task {bad}" in run.stderr or f"id {bad}" in run.stderr, run.stderr
    two = server.model_version
    assert (two != one, server.count_predictions(two)) == (True, dict.fromkeys(fresh, 1))
    versions = tmp_path / "models" / "project-3"
    assert (versions / "current").read_text().strip() == two.partition("@")[2]


def test_a_torn_file_ends_it(server: StubProject, retrain: Retrain, tmp_path: Path) -> None:
    server.add_task({"text": "win a prize"})
    tearing = tmp_path / "bin" / "lsml"
    tearing.parent.mkdir()
    tearing.write_text(
        f'#!/bin/sh\n"{sys.executable}" -m lsml_cli "$@" || exit $?\n'
        'case "$*" in pull*annotated*) truncate -s -40 work/annotated.jsonl;; esac\n'
    )
    tearing.chmod(0o755)
    run = retrain(f"{tearing.parent}:")
    assert run.returncode == 1, run.stderr
    assert "ends too early" in run.stderr
    assert (server.model_version, server.predictions) == ("", [])
    assert not (tmp_path / "models" / "project-3" / "current").exists()


def test_that_of_a_project_trains_what_its_model_toml_says(retrain: Retrain, tmp_path: Path) -> None:
    """On the first night, and when there is a version to be compared with; nothing is left to be predicted."""
    folder = tmp_path / "mine"
    scaffold.write_project(scaffold.ProjectOptions(folder, "text-classifier"))
    with (folder / "model.toml").open("a") as file:
        file.write("\n[with]\nC = 7.5\n")
    for _ in range(2):
        run = retrain(script=folder / "retrain", cwd=folder)
        assert run.returncode == 0, run.stderr
    found = sorted((folder / "models" / "mine").glob("*/model.json"))
    assert [json.loads(path.read_bytes())["params"]["C"] for path in found] == [7.5, 7.5]
