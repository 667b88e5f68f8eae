"""The `retrain` script against a stub of Label Studio; tests/slow uses a real one."""

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

SCRIPT = ROOT / "examples" / "ci-retrain" / "retrain"
Retrain = Callable[..., subprocess.CompletedProcess[str]]
MESSAGES = {"ham": "see you at the station at eight", "spam": "you win a free prize, call now"}


@pytest.fixture
def server() -> Iterator[StubProject]:
    with run_stub_project() as stub:
        for number in range(60):
            kind = ["ham", "spam"][number % 2]
            choice: dict[str, Any] = {"from_name": "kind", "to_name": "text", "type": "choices"}
            result = [{**choice, "id": "r", "value": {"choices": [kind]}}]
            annotation = {"id": number, "result": result, "was_cancelled": False}
            stub.add_task({"text": f"{MESSAGES[kind]} {number}"}, annotations=[annotation])
        yield stub


@pytest.fixture
def retrain(server: StubProject, tmp_path: Path) -> Retrain:
    def run(
        path: str = "", script: Path = SCRIPT, cwd: Path = tmp_path, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "PATH": f"{path}{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LABEL_STUDIO_URL": server.url,
            "LABEL_STUDIO_API_KEY": KEY,
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "PROJECT": "3",
            **variables,
        }
        return subprocess.run([script], env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_failing_tasks_do_not_stop_the_others(server: StubProject, retrain: Retrain, tmp_path: Path) -> None:
    """One annotated and one unlabelled task cannot be read, in the second run, which has a version to compare with."""
    unlabelled = [server.add_task({"text": "win a prize"}), server.add_task({"text": "at eight"})]
    run = retrain()
    assert run.returncode == 0, run.stderr
    first = server.model_version
    assert server.count_predictions(first) == dict.fromkeys(unlabelled, 1)

    annotated = next(task for task in server.tasks.values() if task["annotations"])
    server.add_task({"title": "no text"}, annotations=annotated["annotations"])
    bad = server.add_task({"title": "no text"})
    unlabelled.append(server.add_task({"text": "the station"}))
    run = retrain()
    assert run.returncode == 3, run.stderr
    assert f"task {bad}" in run.stderr or f"id {bad}" in run.stderr, run.stderr
    second = server.model_version
    assert (second != first, server.count_predictions(second)) == (True, dict.fromkeys(unlabelled, 1))
    versions = tmp_path / "models" / "project-3"
    assert (versions / "current").read_text().strip() == second.partition("@")[2]


def test_nothing_is_trained_if_annotations_are_unchanged(server: StubProject, retrain: Retrain, tmp_path: Path) -> None:
    """New tasks get predictions of the version in use all the same."""
    versions = tmp_path / "models" / "project-3"
    tasks = [server.add_task({"text": "win a prize"})]
    assert retrain().returncode == 0
    first = server.model_version
    tasks.append(server.add_task({"text": "at eight"}))
    run = retrain()
    assert run.returncode == 0, run.stderr
    assert f"Nothing to train: {first}" in run.stderr
    assert "== Let it take over" not in run.stderr
    assert (len(list(versions.glob("2*"))), server.model_version) == (1, first)
    assert server.count_predictions(first) == dict.fromkeys(tasks, 1)


def test_truncated_export_is_not_promoted(server: StubProject, retrain: Retrain, tmp_path: Path) -> None:
    server.add_task({"text": "win a prize"})
    truncating_lsml = tmp_path / "bin" / "lsml"
    truncating_lsml.parent.mkdir()
    truncating_lsml.write_text(
        f'#!/bin/sh\n"{sys.executable}" -m lsml_cli "$@" || exit $?\n'
        'case "$*" in pull*annotated*) truncate -s -40 work/annotated.jsonl;; esac\n'
    )
    truncating_lsml.chmod(0o755)
    run = retrain(f"{truncating_lsml.parent}:")
    assert run.returncode == 1, run.stderr
    assert "ends too early" in run.stderr
    assert (server.model_version, server.predictions) == ("", [])
    assert not (tmp_path / "models" / "project-3" / "current").exists()


def test_project_script_trains_the_model_of_model_toml(server: StubProject, retrain: Retrain, tmp_path: Path) -> None:
    """In the first run, and in one with a version to compare with, which keeps one version here and in Label Studio."""
    server.add_task({"text": "the station"})
    folder = tmp_path / "mine"
    scaffold.write_project(scaffold.ProjectOptions(folder, "text-classifier"))
    with (folder / "model.toml").open("a") as file:
        file.write("\n[with]\nC = 7.5\n")
    shown = []
    for _ in range(2):
        run = retrain(script=folder / "retrain", cwd=folder, KEEP_VERSIONS="1")
        assert run.returncode == 0, run.stderr
        server.add_task({"text": "a prize"}, annotations=next(iter(server.tasks.values()))["annotations"])
        shown.append(server.model_version)
        (path,) = (folder / "models" / "mine").glob("*/model.json")
        assert (path.parent.name, json.loads(path.read_bytes())["params"]["C"]) == (shown[-1].partition("@")[2], 7.5)
    assert shown[0] != shown[1]
    assert f"Older versions were deleted: {shown[0]} (1 predictions)" in run.stderr
    assert [stored["model_version"] for stored in server.predictions] == [shown[1]]
