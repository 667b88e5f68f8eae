"""`lsml pull` against a fake Label Studio; tests/slow has a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.label_studio import task_pages
from tests.helpers.cli import Lsml
from tests.helpers.stub_http import KEY, make_jwt
from tests.helpers.studio_project import CONFIG, StubProject, run_stub_project

RESULT = [{"id": "r", "from_name": "kind", "to_name": "text", "type": "choices", "value": {"choices": ["ham"]}}]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubProject]:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    with run_stub_project() as running:
        monkeypatch.setenv("LABEL_STUDIO_URL", running.url)
        yield running


def annotate(server: StubProject, task: int, **fields: Any) -> None:
    server.tasks[task]["annotations"].append({"id": task, "result": RESULT, "was_cancelled": False, **fields})


def run_pull(lsml: Lsml, *options: str | Path) -> list[dict[str, Any]]:
    run = lsml("pull", "--project", "3", *options)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_filters_select_tasks(server: StubProject, lsml: Lsml) -> None:
    ids = server.add_tasks(6)
    annotate(server, ids[1])
    annotate(server, ids[2], was_cancelled=True)
    server.add_prediction(ids[4], "v1", RESULT)

    everything = run_pull(lsml)
    assert [task["id"] for task in everything] == ids
    assert everything[1]["annotations"] == server.tasks[ids[1]]["annotations"]
    assert everything[4]["predictions"] == [server.predictions[0]["id"]]

    [annotated] = run_pull(lsml, "--only", "annotated")
    assert annotated == everything[1]
    unlabelled = run_pull(lsml, "--only", "unlabelled")
    assert unlabelled == [{"id": id, "data": server.tasks[id]["data"]} for id in ids if id != ids[1]]
    assert [task["id"] for task in run_pull(lsml, "--only", "unpredicted")] == [id for id in ids if id != ids[4]]


def test_fields_are_selected(server: StubProject, lsml: Lsml) -> None:
    [task_id] = server.add_tasks(1)
    annotate(server, task_id)
    server.add_prediction(task_id, "v1", RESULT)
    assert run_pull(lsml, "--fields", "data") == [{"id": task_id, "data": {"text": "message 0"}}]
    assert run_pull(lsml, "--fields", "meta,id") == [{"id": task_id, "meta": {}}]
    assert run_pull(lsml, "--fields", "annotations") == [
        {"id": task_id, "annotations": server.tasks[task_id]["annotations"]}
    ]
    [full] = run_pull(lsml, "--fields", "annotations, predictions")
    assert full["predictions"][0]["result"] == RESULT
    run = lsml("pull", "--project", "3", "--fields", "id,dat")
    assert run.returncode == 2
    assert run.stdout == ""
    assert "no field 'dat'.\n      They have: data, " in run.stderr


@pytest.mark.parametrize(
    "count",
    [0, 1, task_pages.PAGE_SIZE - 1, task_pages.PAGE_SIZE, task_pages.PAGE_SIZE + 1, 2 * task_pages.PAGE_SIZE + 5],
)
def test_every_task_is_pulled_once(server: StubProject, lsml: Lsml, count: int) -> None:
    ids = server.add_tasks(count)
    assert [task["id"] for task in run_pull(lsml, "--only", "unlabelled")] == ids


def test_since_and_view_filter_tasks(server: StubProject, lsml: Lsml) -> None:
    ids = server.add_tasks(5)
    server.tasks[ids[3]]["updated_at"] = "2026-11-20T12:00:00.000000Z"
    below = {"filter": "filter:tasks:id", "operator": "less", "type": "Number", "value": ids[2]}
    late = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": ids[3]}
    server.views[7] = {"id": 7, "project": 3, "data": {"filters": {"conjunction": "and", "items": [below]}}}
    server.views[8] = {"id": 8, "project": 3, "data": {"filters": {"conjunction": "or", "items": [below, late]}}}
    server.views[9] = {"id": 9, "project": 4, "data": {}}
    annotate(server, ids[0])

    assert [task["id"] for task in run_pull(lsml, "--since", "2026-11-20T12:00:00Z")] == [ids[3]]
    assert run_pull(lsml, "--since", "2026-11-20T15:00:00+01:00") == []
    assert [task["id"] for task in run_pull(lsml, "--view", "7")] == ids[:2]
    assert [task["id"] for task in run_pull(lsml, "--view", "8")] == [*ids[:2], ids[4]]
    assert [task["id"] for task in run_pull(lsml, "--view", "8", "--only", "unlabelled")] == [ids[1], ids[4]]
    run = lsml("pull", "--project", "3", "--view", "9")
    assert (run.returncode, "is a tab of project 4" in run.stderr) == (2, True)
    assert lsml("pull", "--project", "3", "--since", "yesterday").returncode == 2


def test_files_and_label_config_are_written(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(3)
    run = lsml(
        *("pull", "--project", "3", "-o", tmp_path / "tasks.json", "--summary", tmp_path / "summary.json"),
        *("--label-config-out", tmp_path / "config.xml"),
    )
    assert run.returncode == 0, run.stderr
    assert "3 tasks of project 3 in" in run.stderr
    assert [task["id"] for task in json.loads((tmp_path / "tasks.json").read_bytes())] == ids
    assert (tmp_path / "config.xml").read_text() == CONFIG
    assert json.loads((tmp_path / "summary.json").read_bytes())["tasks"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"tasks.json", "config.xml", "summary.json"}


def test_interrupted_pull_resumes(
    server: StubProject, lsml: Lsml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_tasks(2 * task_pages.PAGE_SIZE)
    whole = tmp_path / "whole.jsonl"
    run_pull(lsml, "-o", whole, "--fields", "data")

    command = ("pull", "--project", "3", "--fields", "data", "-o", tmp_path / "out.jsonl")
    respond = server.respond
    pages = iter(range(100))

    def failing(*arguments: Any) -> tuple[int, Any]:
        return (
            (400, {"detail": "enough"}) if arguments[1] == "/api/tasks/" and next(pages) == 1 else respond(*arguments)
        )

    monkeypatch.setattr(server, "respond", failing)
    run = lsml(*command)
    assert run.returncode == 1
    assert not (tmp_path / "out.jsonl").exists()
    without_resume = lsml(*command)
    assert "1,000 tasks of an unfinished run" in without_resume.stderr
    with_other_options = lsml(*command, "--resume", "--only", "unlabelled")
    assert "--only was all, now it is unlabelled" in with_other_options.stderr
    monkeypatch.setattr(server, "respond", respond)
    run = lsml(*command, "--resume")
    assert run.returncode == 0, run.stderr
    assert "2,000 tasks of project 3, 1,000 of them before" in run.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()


def test_deleted_tasks_do_not_shift_pages(server: StubProject, lsml: Lsml, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = server.add_tasks(2 * task_pages.PAGE_SIZE)
    respond = server.respond
    pages = iter(range(100))

    def moving(*arguments: Any) -> tuple[int, Any]:
        answer = respond(*arguments)
        if arguments[1] == "/api/tasks/" and next(pages) == 0:
            for id in ids[:500]:
                del server.tasks[id]
        return answer

    monkeypatch.setattr(server, "respond", moving)
    assert [task["id"] for task in run_pull(lsml, "--only", "unlabelled")] == ids


def test_closed_pipe_exits_0(server: StubProject) -> None:
    server.add_tasks(3 * task_pages.PAGE_SIZE)
    command = f"{sys.executable} -m lsml_cli pull --project 3 -q | head -1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout.splitlines()) == 1


def test_expired_access_token_is_renewed(server: StubProject, lsml: Lsml, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add_tasks(2)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", make_jwt("refresh"))
    server.expired_token_count = 1
    assert len(run_pull(lsml)) == 2
    assert [path for _, path, _ in server.requests].count("/api/token/refresh/") == 2


def test_transient_errors_are_retried(server: StubProject, lsml: Lsml, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add_tasks(2)
    respond = server.respond
    answers = iter([502, 429])

    def troubled(*arguments: Any) -> tuple[int, Any]:
        status = next(answers, 200)
        return respond(*arguments) if status == 200 else (status, {"detail": "busy"})

    monkeypatch.setattr(server, "respond", troubled)
    assert len(run_pull(lsml)) == 2


@pytest.mark.parametrize(
    ("trouble", "code", "sentence"),
    [
        ("no url", 2, "Which Label Studio?"),
        ("no project", 1, "knows nothing of the tasks of project 4. "),
        ("wrong key", 1, "does not accept the API key."),
        ("forbidden", 1, "does not allow the user of the API key to access the tasks of project 3."),
        ("unreachable", 1, "cannot be reached"),
        ("moved", 1, "redirects the tasks of project 3 to https://elsewhere.example/."),
        ("no json", 1, "it may not be a Label Studio"),
    ],
)
def test_error_is_one_sentence(
    server: StubProject, lsml: Lsml, monkeypatch: pytest.MonkeyPatch, trouble: str, code: int, sentence: str
) -> None:
    answers: dict[str, tuple[int, Any]] = {
        "forbidden": (403, {"detail": "no"}),
        "moved": (302, None),
        "no json": (200, None),
    }
    env = {}
    if trouble in answers:
        monkeypatch.setattr(server, "respond", lambda *arguments: answers[trouble])
    elif trouble == "wrong key":
        env = {"LABEL_STUDIO_API_KEY": "0" * 40}
    elif trouble == "unreachable":
        env = {"LABEL_STUDIO_URL": "http://127.0.0.1:9"}
    elif trouble == "no url":
        env = {"LABEL_STUDIO_URL": ""}
    run = lsml("pull", "--project", "4" if trouble == "no project" else "3", env=env)
    assert run.returncode == code
    assert sentence in run.stderr.replace("\n     ", "")
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert KEY not in run.stderr
