"""`lsml push`, against a server that plays Label Studio and breaks off at will; tests/slow has a real one."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lsml_cli import label_studio
from lsml_cli.label_studio import client, create_tasks, pending_import, push
from lsml_cli.label_studio.push_options import PushOptions, PushResult
from lsml_cli.label_studio.push_spool import find_prediction_problem
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers.cli import Lsml
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


def prediction(choice: str = "ham", version: str = "v1", **fields: Any) -> dict[str, Any]:
    region = {"id": "r", "from_name": "kind", "to_name": "text", "type": "choices", "value": {"choices": [choice]}}
    return {"result": [region], "score": 0.9, "model_version": version, **fields}


def records(tasks: Iterable[int], version: str = "v1") -> list[dict[str, Any]]:
    return [{"task": task} | prediction(version=version) for task in tasks]


def written(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Quiet:
    """Collects what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, sentence: str, important: bool = False) -> None:
        self.said.append(sentence)

    def progress(self, tasks: int, failed: int, fraction: float | None) -> None:
        pass


def pushed(server: StubProject, path: Path, **options: Any) -> PushResult:
    """A push in this process."""
    with label_studio.connect(server.url, KEY) as there:
        return push.push(there, PushOptions(str(path), 3, **options), Quiet())


def once(tasks: Iterable[int]) -> Counter[int]:
    return Counter(tasks)


# --- what is sent


def test_records_arrive_once_and_are_shown(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(5)
    file = written(tmp_path / "p.jsonl", records(ids))
    run = lsml("push", file, "--project", "3", "--summary", tmp_path / "summary.json")
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert "5 records: 5 predictions of v1 sent, 5 created, 0 rejected" in run.stderr
    assert server.count_predictions("v1") == once(ids)
    assert server.model_version == "v1"
    summary = json.loads((tmp_path / "summary.json").read_bytes())
    assert (summary["sent"], summary["created"], summary["calls"], summary["version"]) == (5, 5, 1, "v1")

    before = len(server.requests)
    run = lsml("push", file, "--project", "3")
    assert run.returncode == 0, run.stderr
    assert "0 created, 5 skipped (5 there already), 0 rejected" in run.stderr
    assert server.count_predictions("v1") == once(ids)
    assert all(method == "GET" for method, _, _ in server.requests[before:])


def test_every_shape_and_form(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(8)
    array = tmp_path / "array.json"
    array.write_text(json.dumps(records(ids[:2])))
    tasks = [
        {"id": ids[2], "data": {"text": "a"}, "predictions": [prediction()]},
        {"id": ids[3], "data": {"text": "b"}, "predictions": []},
        {"id": ids[4], "data": {"text": "c"}, "predictions": [17, 18]},
    ]
    zipped = tmp_path / "tasks.jsonl.gz"
    zipped.write_bytes(gzip.compress("\n".join(map(json.dumps, tasks)).encode()))
    assert lsml("push", array, "--project", "3").returncode == 0
    run = lsml("push", zipped, "--project", "3")
    assert "3 records: 1 predictions of v1 sent, 1 created, 2 skipped (2 without a prediction)" in run.stderr
    failed = {"task": ids[6], "result": [], "error": {"stage": "fetch", "reason": "404"}}
    lines = [*records([ids[5]]), failed, {**failed, "task": None}, {"task": ids[7], **prediction(), "result": []}]
    run = lsml("push", "-", "--project", "3", input="".join(json.dumps(line) + "\n" for line in lines))
    assert "4 records: 2 predictions of v1 sent, 2 created, 2 skipped (2 failed when they were predicted)" in run.stderr
    assert run.returncode == 0
    assert server.count_predictions("v1") == once([*ids[:3], ids[5], ids[7]])


def test_what_is_wrong_is_named_and_the_rest_is_there(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
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
    file, errors = written(tmp_path / "p.jsonl", lines), tmp_path / "errors.jsonl"
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
    told = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [(each["index"], each["stage"]) for each in sorted(told, key=lambda each: int(each["index"]))] == [
        *((2, "check"), (3, "check"), (4, "check"), (5, "task"), (6, "task"), (7, "read"), (8, "read"), (9, "read")),
    ]
    assert {each["id"]: each["reason"] for each in told}[99999] == "project 3 has no task 99999"
    assert "an earlier prediction for the same task" in str(told)
    assert server.count_predictions("v1") == once([ids[0], ids[1], ids[5]])


def test_a_torn_file_is_told_of(server: StubProject, tmp_path: Path) -> None:
    ids = server.add_tasks(3)
    file = written(tmp_path / "p.jsonl", records(ids))
    file.write_bytes(file.read_bytes()[:-30])
    found = pushed(server, file)
    assert (found.created, found.rejected) == (2, 1)


def test_several_versions(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(3)
    file = written(tmp_path / "p.jsonl", [*records(ids, "v1"), *records(ids[:2], "v2")])
    run = lsml("push", file, "--project", "3")
    assert run.returncode == 2
    assert "predictions of 2 versions: v1 (3), v2 (2).\n      Push one at a time: --version v1" in run.stderr
    run = lsml("push", file, "--project", "3", "--version", "v2", "--no-activate")
    assert "2 predictions of v2 sent, 2 created, 3 skipped (3 of another version)" in run.stderr
    assert "the project shows none" in run.stderr
    assert (server.count_predictions("v1"), server.count_predictions("v2")) == (once([]), once(ids[:2]))
    assert server.model_version == ""


@pytest.mark.parametrize("more", [[], ["--create-tasks"], ["--dry-run"]])
def test_a_version_that_is_not_there_is_no_success(
    server: StubProject, lsml: Lsml, tmp_path: Path, more: list[str]
) -> None:
    ids = server.add_tasks(3)
    lines = [{"id": task, "data": {"text": "x"}, "predictions": [prediction(version="news@1")]} for task in ids]
    lines[0]["predictions"].append(prediction(version="other"))
    run = lsml("push", written(tmp_path / "p.jsonl", lines), "--project", "3", "--version", "nws@1", *more)
    assert run.returncode == 2
    assert "holds no prediction of 'nws@1'.\n      It holds those of: news@1 (3), other (1)." in run.stderr
    assert (len(server.tasks), server.predictions) == (3, [])


def test_a_version_with_a_space_around_it_is_rejected(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    """Label Studio takes the space away, and nobody would find these again."""
    ids = server.add_tasks(2)
    lines = [*records(ids[:1]), *records(ids[1:], "v1 ")]
    run = lsml("push", written(tmp_path / "p.jsonl", lines), "--project", "3", "--version", "v1 ")
    assert (run.returncode, server.predictions) == (3, [])
    assert "its model_version 'v1 ' begins or ends with a space" in run.stderr


def test_versions_that_look_alike_are_told_apart(server: StubProject, tmp_path: Path) -> None:
    ids = server.add_tasks(4)
    for task in ids[:2]:
        server.add_prediction(task, "V1.2")
    server.add_prediction(ids[1], "v1")
    found = pushed(server, written(tmp_path / "p.jsonl", records(ids)))
    assert (found.created, found.existing, found.duplicates) == (3, 1, 0)
    assert server.count_predictions("v1") == once(ids)
    assert server.count_predictions("V1.2") == once(ids[:2])


def test_what_was_shown_before_is_said(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(2)
    server.model_version = "My backend"
    run = lsml("push", written(tmp_path / "p.jsonl", records(ids)), "--project", "3")
    assert "The project shows predictions of v1 now; before: My backend, a connected ML backend." in run.stderr


# --- replace, delete


@pytest.mark.parametrize("others", [False, True])
def test_replacing(server: StubProject, lsml: Lsml, tmp_path: Path, others: bool) -> None:
    ids = server.add_tasks(4)
    for task in ids[:2] if not others else ids:
        server.add_prediction(task, "v1")
        server.add_prediction(task, "v0")
    server.model_version = "v1"
    run = lsml("push", written(tmp_path / "p.jsonl", records(ids[:3])), "--project", "3", "--existing", "replace")
    assert run.returncode == 0, run.stderr
    assert f"{3 if others else 2} older predictions of v1 were replaced." in run.stderr
    assert server.count_predictions("v1") == once(ids if others else ids[:3])
    assert server.count_predictions("v0") == once(ids if others else ids[:2])
    assert {each["task"] for each in server.predictions if each["result"]} == set(ids[:3])
    assert server.model_version == "v1"


def test_a_version_is_taken_back(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
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


# --- what breaks


@pytest.mark.parametrize("fault", ["cut", "cut before", "lost", "500", "500 after", "502", "503", "429"])
def test_nothing_is_lost_or_doubled(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(pending_import, "POLL_INTERVAL", 0.1)
    monkeypatch.setattr(push, "SETTLE_SECONDS", (2.0, 0.0))
    monkeypatch.setattr(push, "MAX_REQUEST_BYTES", 500)
    ids = server.add_tasks(10)
    server.faults = ["", fault]
    found = pushed(server, written(tmp_path / "p.jsonl", records(ids)))
    assert server.count_predictions("v1") == once(ids)
    assert (found.sent, found.created, found.rejected) == (10, 10, 0)
    assert found.calls >= 3
    assert not list((tmp_path / "state").rglob("*.json"))


def test_a_server_that_never_answers_is_given_up(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_import, "POLL_INTERVAL", 0.05)
    monkeypatch.setattr(push, "SETTLE_SECONDS", (0.2, 0.0))
    ids = server.add_tasks(4)
    server.faults = ["cut before"] * 10
    with pytest.raises(client.LsmlError) as raised:
        pushed(server, written(tmp_path / "p.jsonl", records(ids)))
    assert "broke off over the import of 1 predictions" in str(raised.value)
    assert "0 of 4 predictions are there. Run the same again" in str(raised.value)
    assert len([each for each in server.requests if each[:2] == POST]) == push.MAX_FAILED_REQUESTS


def test_a_body_that_is_too_large_is_divided(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "MIN_REQUEST_BYTES", 100)
    ids = server.add_tasks(40)
    server.max_body_bytes = 1500
    found = pushed(server, written(tmp_path / "p.jsonl", records(ids)))
    assert server.count_predictions("v1") == once(ids)
    assert found.calls > 3


def test_a_task_that_vanishes_costs_itself(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = server.add_tasks(6)
    kept = server.respond

    def vanishing(*given: Any) -> tuple[int, Any]:
        if given[:2] == POST:
            server.tasks.pop(ids[2], None)
        return kept(*given)

    monkeypatch.setattr(server, "respond", vanishing)
    found = pushed(server, written(tmp_path / "p.jsonl", records(ids)))
    assert (found.sent, found.created, found.rejected) == (5, 5, 1)
    assert server.count_predictions("v1") == once([each for each in ids if each != ids[2]])


def test_what_label_studio_drops_is_found(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(5)
    server.dropped_task_ids = {ids[1], ids[3]}
    errors = tmp_path / "errors.jsonl"
    run = lsml("push", written(tmp_path / "p.jsonl", records(ids)), "--project", "3", "--errors", errors)
    assert run.returncode == 3
    assert "5 predictions of v1 sent, 3 created, 2 rejected" in run.stderr
    told = [json.loads(line) for line in errors.read_text().splitlines()]
    assert {each["id"] for each in told} == server.dropped_task_ids
    assert {each["stage"] for each in told} == {"send"}
    assert "Label Studio has left it out" in told[0]["reason"]


def test_doubles_of_an_earlier_push_go(server: StubProject, tmp_path: Path) -> None:
    ids = server.add_tasks(6)
    for task in [*ids[:4], *ids[:2], ids[5]]:
        server.add_prediction(task, "v1", prediction()["result"], 0.9)
    server.add_prediction(ids[5], "v1", [], 0.1)  # says something else: nobody's double
    server.add_prediction(ids[0], "v0")
    first = {each["task"]: each["id"] for each in reversed(server.predictions) if each["model_version"] == "v1"}
    found = pushed(server, written(tmp_path / "p.jsonl", records(ids)))
    assert (found.created, found.duplicates) == (1, 2)
    assert server.count_predictions("v1") == once([*ids, ids[5]])
    assert {first[ids[0]], first[ids[1]]} <= {each["id"] for each in server.predictions}
    assert "1 tasks have several predictions of v1 that differ" in " ".join(found.summary_lines())


@pytest.mark.parametrize("lands", ["late", "in time"])
def test_a_killed_push_goes_on(server: StubProject, lsml: Lsml, tmp_path: Path, lands: str) -> None:
    """Killed while the server works on its call: the next push waits for that call, and sends nothing twice."""
    ids = server.add_tasks(20)
    file = written(tmp_path / "p.jsonl", records(ids))
    server.faults = ["lost" if lands == "late" else "slow"]
    kill_in_a_call([sys.executable, "-m", "lsml_cli", "push", str(file), "--project", "3"], tmp_path / "state")
    run = lsml("push", file, "--project", "3")
    assert run.returncode == 0, run.stderr
    assert "under way or was interrupted: waiting" in run.stderr
    assert server.count_predictions("v1") == once(ids)
    assert len([each for each in server.requests if each[:2] == POST]) == 1
    assert server.model_version == "v1"


def kill_in_a_call(command: list[str], state: Path) -> None:
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not list(state.rglob("*.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        process.kill()


def test_without_a_place_for_notes_it_works_too(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(3)
    (tmp_path / "file").write_text("")
    file = written(tmp_path / "p.jsonl", records(ids))
    run = lsml("push", file, "--project", "3", env={"XDG_STATE_HOME": str(tmp_path / "file")})
    assert run.returncode == 0, run.stderr
    assert server.count_predictions("v1") == once(ids)


def test_a_personal_access_token_that_ends_is_renewed(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    ids = server.add_tasks(3)
    server.expired_token_count = 1
    file = written(tmp_path / "p.jsonl", records(ids))
    run = lsml("push", file, "--project", "3", env={"LABEL_STUDIO_API_KEY": make_jwt("refresh")})
    assert run.returncode == 0, run.stderr
    assert server.count_predictions("v1") == once(ids)


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (["403"], "refuses the import of 3 predictions to the user of the API key."),
        (["400"], "the import of 3 predictions: as the test wants it. Correct what it does not like;"),
    ],
)
def test_what_is_refused_is_a_sentence(
    server: StubProject, lsml: Lsml, tmp_path: Path, faults: list[str], sentence: str
) -> None:
    ids = server.add_tasks(3)
    server.faults = faults
    run = lsml("push", written(tmp_path / "p.jsonl", records(ids)), "--project", "3")
    assert run.returncode == 1
    assert sentence in run.stderr.replace("\n     ", "")
    assert "0 of 3 predictions are there" in run.stderr
    assert not server.predictions


def test_nobody_there_and_no_project(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", records([1]))
    assert (
        "cannot be reached" in lsml("push", file, "--project", "3", "--label-studio-url", "http://127.0.0.1:9").stderr
    )
    assert "knows nothing of project 4" in lsml("push", file, "--project", "4").stderr
    run = lsml("push", file, "--project", "3", env={"LABEL_STUDIO_API_KEY": "0" * 40})
    assert (run.returncode, "does not accept the API key" in run.stderr) == (1, True)
    server.add_tasks(1)
    assert "--create-tasks imports whole tasks" in lsml("push", file, "--project", "3").stderr


# --- new tasks


def whole(count: int) -> list[dict[str, Any]]:
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


def test_tasks_are_made_with_their_predictions(server: StubProject, lsml: Lsml, tmp_path: Path) -> None:
    lines = [*whole(4), {"id": 1, "data": {"other": "x"}, "predictions": []}, {"task": 3} | prediction()]
    file = written(tmp_path / "tasks.jsonl", lines)
    dry = lsml("push", file, "--project", "3", "--create-tasks", "--dry-run")
    assert "6 records: 4 tasks would be sent, 2 rejected" in dry.stderr
    assert "1 task would have no prediction." in dry.stderr
    assert not server.tasks
    run = lsml("push", file, "--project", "3", "--create-tasks")
    assert run.returncode == 3
    assert "6 records: 4 tasks sent, 4 created, 2 rejected" in run.stderr
    assert "1 task has no prediction." in run.stderr
    assert 'the task has no "text"' in run.stderr
    assert [task["data"] for task in server.tasks.values()] == [task["data"] for task in whole(4)]
    assert server.count_predictions("v1") == once(list(server.tasks)[1:])
    assert server.model_version == "v1"


@pytest.mark.parametrize(
    ("fault", "there", "sentence"),
    [
        ("cut", 10, ""),
        ("lost", 10, ""),
        ("cut before", 4, "4 of 10 tasks are there for certain"),
        ("500", 4, "4 of 10 tasks are there for certain"),
        ("500 after", 8, "Its 4 tasks are there all the same, perhaps without their predictions."),
    ],
)
def test_tasks_are_never_sent_twice(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, there: int, sentence: str
) -> None:
    monkeypatch.setattr(pending_import, "POLL_INTERVAL", 0.1)
    monkeypatch.setattr(create_tasks, "SETTLE_SECONDS", (2.0, 0.0))
    monkeypatch.setattr(create_tasks, "MAX_BATCH_TASKS", 4)
    server.faults = ["", fault]
    file = written(tmp_path / "tasks.jsonl", whole(10))
    if sentence:
        with pytest.raises(client.LsmlError) as raised:
            pushed(server, file, create_tasks=True)
        assert sentence in str(raised.value)
    else:
        assert pushed(server, file, create_tasks=True).created == 10
    texts = Counter(task["data"]["text"] for task in server.tasks.values())
    assert texts == Counter(f"text {n}" for n in range(there))


# --- the parts


SOME = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.sampled_from(["ham", "v1", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["result", "score", "model_version", "id", "type", "value", "choices"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["result", "score", "model_version", "task"]), SOME))
@settings(max_examples=200, deadline=None)
def test_whatever_stands_there_is_checked_and_nothing_raises(found: dict[str, Any]) -> None:
    wrong = find_prediction_problem(found, LabelConfig.parse(CONFIG))
    assert wrong is None or (isinstance(wrong, str) and "\n" not in wrong)


@given(
    faults=st.lists(st.sampled_from(["", "cut", "cut before", "500", "500 after", "502"]), max_size=6),
    there=st.sets(st.integers(0, 11)),
    each=st.integers(1, 12),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_breaks_every_task_ends_with_one(
    server: StubProject, tmp_path: Path, faults: list[str], there: set[int], each: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_import, "POLL_INTERVAL", 0.01)
        patch.setattr(push, "SETTLE_SECONDS", (0.05, 0.0))
        patch.setattr(push, "MAX_REQUEST_BYTES", each * 200)
        patch.setattr(push, "MAX_FAILED_REQUESTS", 99)
        server.tasks.clear()
        server.predictions.clear()
        ids = server.add_tasks(12)
        for number in there:
            server.add_prediction(ids[number], "v1", prediction()["result"], 0.9)
        server.faults = faults
        server.model_version = "v1"
        found = pushed(server, written(tmp_path / "p.jsonl", records(ids)))
    assert server.count_predictions("v1") == once(ids)
    assert found.created == 12 - len(there)


def test_the_settings_beside_foreign_data_send_nothing_anywhere(
    server: StubProject, lsml: Lsml, tmp_path: Path
) -> None:
    file = written(tmp_path / "p.jsonl", records(server.add_tasks(1)))
    for line in ("project = 3", 'label-studio-url = "http://evil.example"', "create-tasks = true"):
        (tmp_path / "lsml.toml").write_text(f"[push]\n{line}\n")
        option = ("--project", "3") if "project" not in line else ()
        env = {"LABEL_STUDIO_URL": ""} if "url" in line else {}
        run = lsml("push", file, *option, env=env)
        assert run.returncode == 2, line
        assert "may not decide that" in run.stderr
    assert not server.requests
    assert os.environ["LABEL_STUDIO_URL"]
