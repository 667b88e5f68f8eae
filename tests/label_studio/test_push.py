"""`lsml push` against a fake Label Studio with faults on demand; tests/slow has a real one."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lsml_cli import label_studio
from lsml_cli.errors import LsmlError
from lsml_cli.io.json_records import MAX_TASK_BYTES
from lsml_cli.label_studio import create_tasks, pending_import, push
from lsml_cli.label_studio.push_context import SettleTime
from lsml_cli.label_studio.push_options import PushOptions, PushResult
from lsml_cli.label_studio.push_spool import find_prediction_problem
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers.cli import Lsml, run_in_process, run_lsml
from tests.helpers.progress import RecordingReporter
from tests.helpers.stub_http import KEY, make_jwt
from tests.helpers.studio_project import CONFIG, StubProject, run_stub_project

POST = ("POST", "/api/projects/3/import/predictions")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubProject]:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with run_stub_project() as running:
        monkeypatch.setenv("LABEL_STUDIO_URL", running.url)
        yield running


@pytest.fixture
def lsml() -> Lsml:
    """Inside of this process; what kills or races pushes starts processes of its own."""
    return run_in_process


def prediction(choice: str = "ham", version: str = "v1", **fields: Any) -> dict[str, Any]:
    region = {"id": "r", "from_name": "kind", "to_name": "text", "type": "choices", "value": {"choices": [choice]}}
    return {"result": [region], "score": 0.9, "model_version": version, **fields}


def records(tasks: Iterable[int], version: str = "v1") -> list[dict[str, Any]]:
    return [{"task": task} | prediction(version=version) for task in tasks]


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run_push(server: StubProject, path: Path, **options: Any) -> PushResult:
    """Push in this process."""
    with label_studio.connect(server.url, KEY) as client:
        return push.push(client, PushOptions(str(path), 3, **options), RecordingReporter())


def one_each(tasks: Iterable[int]) -> Counter[int]:
    return Counter(tasks)


# --- what is sent


def test_predictions_are_pushed_once_and_activated(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(5)
    file = write_lines(tmp_path / "p.jsonl", records(ids))
    run = lsml("push", file, "--project", "3", "--summary", tmp_path / "summary.json")
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert "5 records: 5 predictions of v1 sent, 5 created, 0 rejected" in run.stderr
    assert server.count_predictions("v1") == one_each(ids)
    assert server.model_version == "v1"
    summary = json.loads((tmp_path / "summary.json").read_bytes())
    assert (summary["sent"], summary["created"], summary["calls"], summary["version"]) == (5, 5, 1, "v1")

    before = len(server.requests)
    run = lsml("push", file, "--project", "3")
    assert run.returncode == 0, run.stderr
    assert "0 created, 5 skipped (5 there already), 0 rejected" in run.stderr
    assert server.count_predictions("v1") == one_each(ids)
    assert all(method == "GET" for method, _, _ in server.requests[before:])


def test_all_input_shapes_are_pushed(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(8)
    array = tmp_path / "array.json"
    array.write_text(json.dumps(records(ids[:2])))
    tasks = [
        {"id": ids[2], "data": {"text": "a"}, "predictions": [prediction()]},
        {"id": ids[3], "data": {"text": "b"}, "predictions": []},
        {"id": ids[4], "data": {"text": "c"}, "predictions": [17, 18]},
    ]
    zipped = tmp_path / "tasks.json.gz"
    zipped.write_bytes(gzip.compress(json.dumps(tasks).encode()))
    assert lsml("push", array, "--project", "3").returncode == 0
    run = lsml("push", zipped, "--project", "3")
    assert "3 records: 1 predictions of v1 sent, 1 created, 2 skipped (2 without a prediction)" in run.stderr
    failed = {"task": ids[6], "result": [], "error": {"stage": "fetch", "reason": "404"}}
    lines = [*records([ids[5]]), failed, {**failed, "task": None}, {"task": ids[7], **prediction(), "result": []}]
    run = run_lsml("push", "-", "--project", "3", input="".join(json.dumps(line) + "\n" for line in lines))
    assert "4 records: 2 predictions of v1 sent, 2 created, 2 skipped (2 failed when they were predicted)" in run.stderr
    assert run.returncode == 0
    assert server.count_predictions("v1") == one_each([*ids[:3], ids[5], ids[7]])


def test_tasks_without_ids_are_rejected_with_what_to_do(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    server.add_tasks(2)
    file = write_lines(tmp_path / "p.jsonl", [{"data": {"text": "a"}, "predictions": [prediction()]}])
    run = lsml("push", file, "--project", "3")
    assert run.returncode == 3
    assert "this task has no id: predict a table with --id-column ID, or make new tasks" in run.stderr
    assert "--create-tasks" in run.stderr


def test_rejections_are_told_by_cause(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(2)
    lines = [*records([*ids, *range(70_000, 70_046)]), {"task": ids[0]} | prediction("eggs")]
    file = write_lines(tmp_path / "p.jsonl", lines)
    run = lsml("push", file, "--project", "3", "--summary", tmp_path / "summary.json")
    assert run.returncode == 3
    rejected = f"{file}, line 49, task {ids[0]}: region 1 of 1, from control 'kind': choices holds 'eggs'"
    unknown = f"{file}, line 3, task 70000: project 3 has no task 70000"
    shown = [line for line in run.stderr.splitlines() if str(file) in line]
    assert len(shown) == 4
    assert shown[0].startswith(f"lsml: rejected: {rejected}")
    assert shown[1] == f"lsml: rejected: {unknown}"
    assert shown[2] == f"lsml: 46 predictions rejected (task), such as {unknown}."
    assert shown[3].startswith(f"lsml: 1 prediction rejected (check): {rejected}")
    assert "lsml: --errors FILE lists every rejection." in run.stderr
    causes = json.loads((tmp_path / "summary.json").read_bytes())["rejection_causes"]
    assert [(cause["stage"], cause["count"]) for cause in causes] == [("task", 46), ("check", 1)]


def test_invalid_records_are_rejected_and_the_rest_pushed(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(6)
    lines: list[object] = [
        *records(ids[:2]),
        {"task": ids[2]} | prediction("eggs"),
        {"task": ids[3]} | prediction(model_version=None),
        {"task": ids[4]} | prediction(score=7),
        {"task": 99999} | prediction(),
        {"task": ids[0]} | prediction("spam"),
        {"hello": "world"},
        prediction(),
        7,
        *records(ids[5:]),
    ]
    file, errors = write_lines(tmp_path / "p.jsonl", lines), tmp_path / "errors.jsonl"
    dry = lsml("push", file, "--project", "3", "--dry-run", "--errors", errors)
    assert dry.returncode == 3
    assert "11 records: 3 predictions of v1 would be sent, 8 rejected" in dry.stderr
    assert not server.predictions
    run = lsml("push", file, "--project", "3", "--errors", errors, "-q")
    assert run.returncode == 3
    assert (
        f"rejected: {file}, line 3, task {ids[2]}: region 1 of 1, from control 'kind': choices holds 'eggs'"
        in run.stderr
    )
    assert f"All rejections are in {errors}." in run.stderr
    rejections = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [(item["index"], item["stage"]) for item in sorted(rejections, key=lambda item: int(item["index"]))] == [
        *((2, "check"), (3, "check"), (4, "check"), (5, "task"), (6, "task"), (7, "read"), (8, "read"), (9, "read")),
    ]
    assert {item["id"]: item["reason"] for item in rejections}[99999] == "project 3 has no task 99999"
    assert "an earlier prediction for the same task" in str(rejections)
    assert server.count_predictions("v1") == one_each([ids[0], ids[1], ids[5]])


@pytest.mark.parametrize("name", ["predictions.json.gz", "predictions.jsonl.gz", "predictions"])
def test_compressed_predictions_are_pushed(server: StubProject, tmp_path: Path, name: str) -> None:
    ids = server.add_tasks(3)
    lines = [json.dumps(record) for record in records(ids)]
    text = f"[{','.join(lines)}]" if ".json." in name else "\n".join(lines)
    file = tmp_path / name
    file.write_bytes(gzip.compress(text.encode()))
    result = run_push(server, file)
    assert (result.records, result.created, result.rejected) == (3, 3, 0)
    assert server.count_predictions("v1") == one_each(ids)


def test_truncated_compressed_file_is_rejected_at_its_end(server: StubProject, tmp_path: Path) -> None:
    ids = server.add_tasks(300)
    lines = [json.dumps(record | {"score": number / 300}) for number, record in enumerate(records(ids))]
    file = tmp_path / "predictions.json.gz"
    file.write_bytes(gzip.compress(f"[{','.join(lines)}]".encode())[:-200])
    result = run_push(server, file)
    assert result.rejected == 1
    assert 0 < result.created == len(server.predictions) < 300


def test_truncated_file_is_rejected_at_its_end(server: StubProject, tmp_path: Path) -> None:
    ids = server.add_tasks(3)
    file = write_lines(tmp_path / "p.jsonl", records(ids))
    file.write_bytes(file.read_bytes()[:-30])
    result = run_push(server, file)
    assert (result.created, result.rejected) == (2, 1)


def test_record_larger_than_a_task_is_pushed(server: StubProject, tmp_path: Path) -> None:
    """A task of nearly the limit, and the prediction about it."""
    [task_id] = server.add_tasks(1)
    task = {"id": task_id, "data": {"text": "x" * MAX_TASK_BYTES}, "predictions": [prediction()]}
    result = run_push(server, write_lines(tmp_path / "p.jsonl", [task]))
    assert (result.created, result.rejected) == (1, 0)


def test_several_versions_need_a_choice(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(3)
    file = write_lines(tmp_path / "p.jsonl", [*records(ids, "v1"), *records(ids[:2], "v2")])
    run = lsml("push", file, "--project", "3")
    assert run.returncode == 2
    assert "predictions of 2 versions: v1 (3), v2 (2).\n      Push one at a time: --version v1" in run.stderr
    run = lsml("push", file, "--project", "3", "--version", "v2", "--no-activate")
    assert "2 predictions of v2 sent, 2 created, 3 skipped (3 of another version)" in run.stderr
    assert "the project shows none" in run.stderr
    assert (server.count_predictions("v1"), server.count_predictions("v2")) == (one_each([]), one_each(ids[:2]))
    assert server.model_version == ""


@pytest.mark.parametrize("more", [[], ["--create-tasks"], ["--dry-run"]])
def test_unknown_version_is_a_usage_error(server: StubProject, lsml: Lsml, tmp_path: Path, more: list[str]) -> None:
    ids = server.add_tasks(3)
    lines: list[dict[str, Any]] = [
        {"id": task, "data": {"text": "x"}, "predictions": [prediction(version="news@1")]} for task in ids
    ]
    lines[0]["predictions"].append(prediction(version="other"))
    run = lsml("push", write_lines(tmp_path / "p.jsonl", lines), "--project", "3", "--version", "nws@1", *more)
    assert run.returncode == 2
    assert "holds no prediction of 'nws@1'.\n      It holds those of: news@1 (3), other (1)." in run.stderr
    assert (len(server.tasks), server.predictions) == (3, [])


def test_version_with_outer_space_is_rejected(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    """Label Studio strips the space, so these would never be found again."""
    ids = server.add_tasks(2)
    lines = [*records(ids[:1]), *records(ids[1:], "v1 ")]
    run = lsml("push", write_lines(tmp_path / "p.jsonl", lines), "--project", "3", "--version", "v1 ")
    assert (run.returncode, server.predictions) == (3, [])
    assert "its model_version 'v1 ' begins or ends with a space" in run.stderr


def test_similar_versions_are_kept_apart(server: StubProject, tmp_path: Path) -> None:
    ids = server.add_tasks(4)
    for task in ids[:2]:
        server.add_prediction(task, "V1.2")
    server.add_prediction(ids[1], "v1")
    result = run_push(server, write_lines(tmp_path / "p.jsonl", records(ids)))
    assert (result.created, result.existing, result.duplicates) == (3, 1, 0)
    assert server.count_predictions("v1") == one_each(ids)
    assert server.count_predictions("V1.2") == one_each(ids[:2])


def test_previously_shown_version_is_reported(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(2)
    server.model_version = "My backend"
    run = lsml("push", write_lines(tmp_path / "p.jsonl", records(ids)), "--project", "3")
    assert (
        "The project shows predictions of v1 now; before: My backend, a connected ML backend, which Label Studio no"
        " longer asks for the annotators' next task until it is selected again" in run.stderr
    )


def test_backend_that_created_tasks_replace_is_reported(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    server.model_version = "My backend"
    server.backends = {"My backend"}
    run = lsml("push", write_lines(tmp_path / "t.jsonl", whole_tasks(3)), "--project", "3", "--create-tasks")
    assert "before: My backend, a connected ML backend, which Label Studio no longer asks" in run.stderr
    assert server.model_version == "v1"


def test_deleting_a_version_keeps_the_shown_backend(server: StubProject, lsml: Lsml) -> None:
    """Label Studio itself forgets the backend when any version is deleted."""
    server.add_prediction(server.add_tasks(1)[0], "v1")
    server.model_version = "My backend"
    server.backends = {"My backend"}
    assert lsml("push", "--delete", "v1", "--project", "3").returncode == 0
    assert (server.model_version, server.predictions) == ("My backend", [])


def test_replacing_without_activation_keeps_the_shown_version(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(2)
    file = write_lines(tmp_path / "p.jsonl", records(ids))
    for shown in ("v1", "My backend"):
        server.predictions.clear()
        for task in ids:
            server.add_prediction(task, "v1")
        server.model_version, server.backends = shown, {"My backend"}
        run = lsml("push", file, "--project", "3", "--existing", "replace", "--no-activate")
        assert run.returncode == 0, run.stderr
        assert (server.model_version, server.count_predictions("v1")) == (shown, one_each(ids))


# --- replace, delete


@pytest.mark.parametrize("others", [False, True])
def test_existing_predictions_are_replaced(server: StubProject, lsml: Lsml, tmp_path: Path, others: bool) -> None:
    ids = server.add_tasks(4)
    for task in ids[:2] if not others else ids:
        server.add_prediction(task, "v1")
        server.add_prediction(task, "v0")
    server.model_version = "v1"
    run = lsml("push", write_lines(tmp_path / "p.jsonl", records(ids[:3])), "--project", "3", "--existing", "replace")
    assert run.returncode == 0, run.stderr
    assert f"{3 if others else 2} older predictions of v1 were replaced." in run.stderr
    assert server.count_predictions("v1") == one_each(ids if others else ids[:3])
    assert server.count_predictions("v0") == one_each(ids if others else ids[:2])
    assert {item["task"] for item in server.predictions if item["result"]} == set(ids[:3])
    assert server.model_version == "v1"


def test_version_is_deleted(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    for task in server.add_tasks(3):
        server.add_prediction(task, "v1")
        server.add_prediction(task, "v2")
    assert (
        "3 predictions of v1 would be deleted" in lsml("push", "--delete", "v1", "--project", "3", "--dry-run").stderr
    )
    assert len(server.predictions) == 6
    server.faults = ["cut"]
    assert "3 predictions of v1 were deleted" in lsml("push", "--delete", "v1", "--project", "3").stderr
    assert len(server.predictions) == 3
    run = lsml("push", "--delete", "v1", "--project", "3")
    assert run.returncode == 2
    assert "has no predictions of 'v1'.\n      It has those of: v2 (3)." in run.stderr
    assert lsml("push", "--delete", "v1", "x.json", "--project", "3").returncode == 2
    assert lsml("push", "--project", "3").returncode == 2


# --- older versions

OLD = [f"news@2026110{day}T120000" for day in range(1, 6)]
OTHERS = ["news-v2@20261101T120000", "news@by-hand", "news", "news@1a2b3c4d", "old news@20261101T120000"]


def add_older_versions(server: StubProject, count: int = 4) -> list[int]:
    ids = server.add_tasks(2)
    for version in [*OLD[:count], *OTHERS]:
        server.add_prediction(ids[0], version)
    return ids


def stored_versions(server: StubProject) -> set[str]:
    return {stored["model_version"] for stored in server.predictions}


def test_older_versions_of_the_model_are_deleted(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "p.jsonl", records(add_older_versions(server), OLD[4]))
    dry = lsml("push", file, "--project", "3", "--keep-versions", "2", "--dry-run")
    assert f"Older versions would be deleted: {OLD[0]} (1 predictions), {OLD[1]} (1 predictions)" in dry.stderr
    assert stored_versions(server) == {*OLD[:4], *OTHERS}
    run = lsml("push", file, "--project", "3", "--keep-versions", "2", "--summary", tmp_path / "s.json")
    assert run.returncode == 0, run.stderr
    assert "Older versions were deleted: " in run.stderr
    assert stored_versions(server) == {*OLD[3:], *OTHERS}
    assert json.loads((tmp_path / "s.json").read_bytes())["deleted_versions"] == dict.fromkeys(OLD[:3], 1)
    assert server.model_version == OLD[4]


def test_pushed_and_shown_versions_stay_however_old(server: StubProject, tmp_path: Path) -> None:
    ids = add_older_versions(server)
    server.model_version = OLD[1]
    file = write_lines(tmp_path / "p.jsonl", records(ids[1:], OLD[0]))
    result = run_push(server, file, keep_versions=1, activate=False)
    assert (dict(result.deleted_versions), server.model_version) == ({OLD[2]: 1}, OLD[1])
    assert stored_versions(server) == {OLD[0], OLD[1], OLD[3], *OTHERS}


@pytest.mark.parametrize(
    "record", [{"task": 99999} | prediction(version=OLD[4]), {"task": 10, "result": [], "error": {"stage": "x"}}]
)
def test_incomplete_push_deletes_no_version(server: StubProject, tmp_path: Path, record: dict[str, Any]) -> None:
    file = write_lines(tmp_path / "p.jsonl", [*records(add_older_versions(server), OLD[4]), record])
    result = run_push(server, file, keep_versions=1, version=OLD[4])
    assert stored_versions(server) == {*OLD, *OTHERS}
    assert "Older versions were not deleted" in " ".join(result.summary_lines())


def test_versions_of_untrained_models_are_not_counted(server: StubProject, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "p.jsonl", records(add_older_versions(server), "news@deadbeef"))
    result = run_push(server, file, keep_versions=1)
    assert stored_versions(server) == {*OLD[:4], *OTHERS, "news@deadbeef"}
    assert "news@deadbeef is no version that `lsml fit` has named" in " ".join(result.summary_lines())


def test_keep_versions_needs_a_push_to_existing_tasks(lsml: Lsml) -> None:
    for option in (["--delete", "v1"], ["x.json", "--create-tasks"]):
        assert lsml("push", *option, "--project", "3", "--keep-versions", "2").returncode == 2
    assert lsml("push", "x.json", "--project", "3", "--keep-versions", "0").returncode == 2


# --- what breaks


@pytest.mark.parametrize("fault", ["cut", "cut before", "lost", "500", "500 after", "502", "503", "504 after", "429"])
def test_faults_neither_lose_nor_duplicate(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(pending_import, "POLL_INTERVAL", 0.05)
    monkeypatch.setattr(push, "SETTLE_TIME", SettleTime(10.0 if fault == "lost" else 0.2, 0.0))
    monkeypatch.setattr(push, "MAX_REQUEST_BYTES", 500)
    server.lost_delay = 0.3
    ids = server.add_tasks(10)
    server.faults = ["", fault]
    result = run_push(server, write_lines(tmp_path / "p.jsonl", records(ids)))
    assert server.count_predictions("v1") == one_each(ids)
    assert (result.sent, result.created, result.rejected) == (10, 10, 0)
    assert result.calls >= 3
    assert not list((tmp_path / "state").rglob("*.json"))


def test_unanswered_requests_end_the_push(server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_import, "POLL_INTERVAL", 0.05)
    monkeypatch.setattr(push, "SETTLE_TIME", SettleTime(0.2, 0.0))
    ids = server.add_tasks(4)
    server.faults = ["cut before"] * 10
    with pytest.raises(LsmlError) as raised:
        run_push(server, write_lines(tmp_path / "p.jsonl", records(ids)))
    assert "broke off over the import of 1 predictions" in str(raised.value)
    assert "0 of 4 predictions are there. Run the same again" in str(raised.value)
    assert len([request for request in server.requests if request[:2] == POST]) == push.MAX_FAILED_REQUESTS


def test_too_large_request_is_split(server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "MIN_REQUEST_BYTES", 100)
    ids = server.add_tasks(40)
    server.max_body_bytes = 1500
    result = run_push(server, write_lines(tmp_path / "p.jsonl", records(ids)))
    assert server.count_predictions("v1") == one_each(ids)
    assert result.calls > 3


def test_deleted_task_is_rejected_alone(server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = server.add_tasks(6)
    respond = server.respond

    def vanishing(*arguments: Any) -> tuple[int, Any]:
        if arguments[:2] == POST:
            server.tasks.pop(ids[2], None)
        return respond(*arguments)

    monkeypatch.setattr(server, "respond", vanishing)
    result = run_push(server, write_lines(tmp_path / "p.jsonl", records(ids)))
    assert (result.sent, result.created, result.rejected) == (5, 5, 1)
    assert server.count_predictions("v1") == one_each([id for id in ids if id != ids[2]])


def test_dropped_predictions_are_reported(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(5)
    server.dropped_task_ids = {ids[1], ids[3]}
    errors = tmp_path / "errors.jsonl"
    run = lsml("push", write_lines(tmp_path / "p.jsonl", records(ids)), "--project", "3", "--errors", errors)
    assert run.returncode == 3
    assert "5 predictions of v1 sent, 3 created, 2 rejected" in run.stderr
    rejections = [json.loads(line) for line in errors.read_text().splitlines()]
    assert {item["id"] for item in rejections} == server.dropped_task_ids
    assert {item["stage"] for item in rejections} == {"send"}
    assert "Label Studio has left it out" in rejections[0]["reason"]


def test_duplicates_of_earlier_push_are_removed(server: StubProject, tmp_path: Path) -> None:
    ids = server.add_tasks(6)
    for task in [*ids[:4], *ids[:2], ids[5]]:
        server.add_prediction(task, "v1", prediction()["result"], 0.9)
    server.add_prediction(ids[5], "v1", [], 0.1)  # says something else: so it is no duplicate
    server.add_prediction(ids[0], "v0")
    first = {item["task"]: item["id"] for item in reversed(server.predictions) if item["model_version"] == "v1"}
    result = run_push(server, write_lines(tmp_path / "p.jsonl", records(ids)))
    assert (result.created, result.duplicates) == (1, 2)
    assert server.count_predictions("v1") == one_each([*ids, ids[5]])
    assert {first[ids[0]], first[ids[1]]} <= {item["id"] for item in server.predictions}
    assert "1 tasks have several predictions of v1 that differ" in " ".join(result.summary_lines())


@pytest.mark.parametrize("lands", ["late", "in time"])
def test_killed_push_resumes(server: StubProject, lsml: Lsml, tmp_path: Path, lands: str) -> None:
    """Killed during its request: the next push waits for that request and sends nothing twice."""
    ids = server.add_tasks(20)
    file = write_lines(tmp_path / "p.jsonl", records(ids))
    server.faults = ["lost" if lands == "late" else "slow"]
    kill_during_request([sys.executable, "-m", "lsml_cli", "push", str(file), "--project", "3"], tmp_path / "state")
    run = lsml("push", file, "--project", "3")
    assert run.returncode == 0, run.stderr
    assert "under way or was interrupted: waiting" in run.stderr
    assert server.count_predictions("v1") == one_each(ids)
    assert len([request for request in server.requests if request[:2] == POST]) == 1
    assert server.model_version == "v1"


def start_push(file: Path, state: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lsml_cli", "push", str(file), "--project", "3"]
    env = os.environ | {"XDG_STATE_HOME": str(state)}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def test_second_push_on_this_machine_waits_for_the_first(server: StubProject, tmp_path: Path) -> None:
    ids = server.add_tasks(20)
    file = write_lines(tmp_path / "p.jsonl", records(ids))
    with pending_import.PendingImport(server.url, 3, "v1").exclusive(pytest.fail):
        pushes = [start_push(file, tmp_path / "state") for _ in range(2)]
        for process in pushes:
            assert process.stderr is not None
            assert "is running on this machine: waiting until it is done" in process.stderr.readline()
        assert POST not in [request[:2] for request in server.requests]
    messages = "".join(process.communicate(timeout=60)[1] for process in pushes)
    assert [process.returncode for process in pushes] == [0, 0], messages
    assert server.count_predictions("v1") == one_each(ids)
    assert len([request for request in server.requests if request[:2] == POST]) == 1
    assert not [request for request in server.requests if request[0] == "DELETE"]


def test_pushes_of_two_machines_leave_the_first_prediction_of_each_task(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They know nothing of each other: both send everything, and both find the duplicates."""
    ids = server.add_tasks(20)
    file = write_lines(tmp_path / "p.jsonl", records(ids))
    respond, both_sent = server.respond, threading.Barrier(2, timeout=60)

    def respond_when_both_sent(*arguments: Any) -> tuple[int, Any]:
        if arguments[:2] == POST:
            both_sent.wait()
        return respond(*arguments)

    monkeypatch.setattr(server, "respond", respond_when_both_sent)
    pushes = [start_push(file, tmp_path / f"state {number}") for number in range(2)]
    messages = "".join(process.communicate(timeout=60)[1] for process in pushes)
    assert [process.returncode for process in pushes] == [0, 0], messages
    assert len([request for request in server.requests if request[:2] == POST]) == 2
    assert server.count_predictions("v1") == one_each(ids)
    assert max(stored["id"] for stored in server.predictions) == min(stored["id"] for stored in server.predictions) + 19
    removed = [int(number) for number in re.findall(r"lsml: (\d+) predictions? that .* (?:was|were) removed", messages)]
    assert sum(removed) == 20  # what the other one has removed does not count


def kill_during_request(command: list[str], state: Path) -> None:
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not list(state.rglob("*.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        process.kill()


def test_push_works_without_state_folder(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(3)
    (tmp_path / "file").write_text("")
    file = write_lines(tmp_path / "p.jsonl", records(ids))
    run = lsml("push", file, "--project", "3", env={"XDG_STATE_HOME": str(tmp_path / "file")})
    assert run.returncode == 0, run.stderr
    assert server.count_predictions("v1") == one_each(ids)


def test_expired_access_token_is_renewed(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(3)
    server.expired_token_count = 1
    file = write_lines(tmp_path / "p.jsonl", records(ids))
    run = lsml("push", file, "--project", "3", env={"LABEL_STUDIO_API_KEY": make_jwt("refresh")})
    assert run.returncode == 0, run.stderr
    assert server.count_predictions("v1") == one_each(ids)


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (["403"], "does not allow the user of the API key to access the import of 3 predictions."),
        (["400"], "the import of 3 predictions: as the test wants it. Correct what it complains about;"),
    ],
)
def test_rejected_request_gives_one_sentence(
    server: StubProject, lsml: Lsml, tmp_path: Path, faults: list[str], sentence: str
) -> None:
    ids = server.add_tasks(3)
    server.faults = faults
    run = lsml("push", write_lines(tmp_path / "p.jsonl", records(ids)), "--project", "3")
    assert run.returncode == 1
    assert sentence in run.stderr.replace("\n     ", "")
    assert "0 of 3 predictions are there" in run.stderr
    assert not server.predictions


def test_connection_and_project_errors(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "p.jsonl", records([1]))
    assert (
        "cannot be reached" in lsml("push", file, "--project", "3", "--label-studio-url", "http://127.0.0.1:9").stderr
    )
    assert "knows nothing of project 4" in lsml("push", file, "--project", "4").stderr
    run = lsml("push", file, "--project", "3", env={"LABEL_STUDIO_API_KEY": "0" * 40})
    assert (run.returncode, "does not accept the API key" in run.stderr) == (1, True)
    server.add_tasks(1)
    assert "--create-tasks imports whole tasks" in lsml("push", file, "--project", "3").stderr


# --- new tasks


def whole_tasks(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": 500 + n,
            "data": {"text": f"text {n}"},
            "annotations": [{"id": 9, "completed_by": 77, "result": []}],
            "predictions": [4711, prediction()] if n else [4711],
            "project": 12,
        }
        for n in range(count)
    ]


def test_tasks_are_created_with_predictions(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    lines = [*whole_tasks(4), {"id": 1, "data": {"other": "x"}, "predictions": []}, {"task": 3} | prediction()]
    file = write_lines(tmp_path / "tasks.jsonl", lines)
    dry = lsml("push", file, "--project", "3", "--create-tasks", "--dry-run")
    assert "6 records: 4 tasks would be sent, 2 rejected" in dry.stderr
    assert "1 task would have no prediction." in dry.stderr
    assert not server.tasks
    run = lsml("push", file, "--project", "3", "--create-tasks")
    assert run.returncode == 3
    assert "6 records: 4 tasks sent, 4 created, 2 rejected" in run.stderr
    assert "1 task has no prediction." in run.stderr
    assert 'the task has no "text"' in run.stderr
    assert [task["data"] for task in server.tasks.values()] == [task["data"] for task in whole_tasks(4)]
    assert server.count_predictions("v1") == one_each(list(server.tasks)[1:])
    assert server.model_version == "v1"


@pytest.mark.parametrize(
    ("fault", "created", "sentence"),
    [
        ("cut", 10, ""),
        ("lost", 10, ""),
        ("504 after", 10, ""),
        ("cut before", 4, "4 of 10 tasks are there for certain"),
        ("500", 4, "4 of 10 tasks are there for certain"),
        ("500 after", 8, "Its 4 tasks are there all the same, perhaps without their predictions."),
    ],
)
def test_faults_never_create_tasks_twice(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, created: int, sentence: str
) -> None:
    monkeypatch.setattr(pending_import, "POLL_INTERVAL", 0.05)
    monkeypatch.setattr(create_tasks, "SETTLE_TIME", SettleTime(10.0 if fault == "lost" else 0.2, 0.0))
    server.lost_delay = 0.3
    monkeypatch.setattr(create_tasks, "MAX_BATCH_TASKS", 4)
    server.faults = ["", fault]
    file = write_lines(tmp_path / "tasks.jsonl", whole_tasks(10))
    if sentence:
        with pytest.raises(LsmlError) as raised:
            run_push(server, file, create_tasks=True)
        assert sentence in str(raised.value)
    else:
        assert run_push(server, file, create_tasks=True).created == 10
    texts = Counter(task["data"]["text"] for task in server.tasks.values())
    assert texts == Counter(f"text {n}" for n in range(created))


# --- the parts


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.sampled_from(["ham", "v1", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["result", "score", "model_version", "id", "type", "value", "choices"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["result", "score", "model_version", "task"]), JSON_VALUES))
@settings(max_examples=200, deadline=None)
def test_find_prediction_problem_never_raises(stored: dict[str, Any]) -> None:
    problem = find_prediction_problem(stored, LabelConfig.parse(CONFIG))
    assert problem is None or (isinstance(problem, str) and "\n" not in problem)


@given(
    faults=st.lists(st.sampled_from(["", "cut", "cut before", "500", "500 after", "502"]), max_size=6),
    predicted=st.sets(st.integers(0, 11)),
    batch_size=st.integers(1, 12),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_faults_leave_one_prediction_per_task(
    server: StubProject, tmp_path: Path, faults: list[str], predicted: set[int], batch_size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_import, "POLL_INTERVAL", 0.01)
        patch.setattr(push, "SETTLE_TIME", SettleTime(0.05, 0.0))
        patch.setattr(push, "MAX_REQUEST_BYTES", batch_size * 200)
        patch.setattr(push, "MAX_FAILED_REQUESTS", 99)
        server.tasks.clear()
        server.predictions.clear()
        ids = server.add_tasks(12)
        for number in predicted:
            server.add_prediction(ids[number], "v1", prediction()["result"], 0.9)
        server.faults = faults
        server.model_version = "v1"
        result = run_push(server, write_lines(tmp_path / "p.jsonl", records(ids)))
    assert server.count_predictions("v1") == one_each(ids)
    assert result.created == 12 - len(predicted)


def test_untrusted_settings_send_no_request(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "p.jsonl", records(server.add_tasks(1)))
    for line in ("project = 3", 'label-studio-url = "http://evil.example"', "create-tasks = true", "keep-versions = 1"):
        (tmp_path / "lsml.toml").write_text(f"[push]\n{line}\n")
        option = ("--project", "3") if "project" not in line else ()
        env = {"LABEL_STUDIO_URL": ""} if "url" in line else {}
        run = lsml("push", file, *option, env=env)
        assert run.returncode == 2, line
        assert "a settings file beside the data may not set that" in run.stderr.replace("\n     ", "")
    assert not server.requests
    assert os.environ["LABEL_STUDIO_URL"]
