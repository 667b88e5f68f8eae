"""How far `lsml pull` and `lsml push` say they are, against a fake Label Studio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lsml_cli import label_studio
from lsml_cli.label_studio import create_tasks, pull, push, task_pages
from lsml_cli.label_studio.pull import PullOptions
from lsml_cli.label_studio.push_options import PushOptions
from tests.helpers.progress import RecordingReporter
from tests.helpers.stub_http import KEY
from tests.helpers.studio_project import StubProject, run_stub_project

REGION = {"id": "r", "from_name": "kind", "to_name": "text", "type": "choices", "value": {"choices": ["ham"]}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubProject]:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    with run_stub_project() as running:
        yield running


def run_pull(server: StubProject, reporter: RecordingReporter, output: Path, **options: Any) -> None:
    with label_studio.connect(server.url, KEY) as client:
        pull.pull_to_output(client, PullOptions(3, fields="data", output=str(output), **options), reporter)


def run_push(server: StubProject, path: Path, **options: Any) -> RecordingReporter:
    reporter = RecordingReporter()
    with label_studio.connect(server.url, KEY) as client:
        push.push(client, PushOptions(str(path), 3, **options), reporter)
    return reporter


def test_pull_counts_what_is_written(server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_pages, "PAGE_SIZE", 25)
    server.add_tasks(100)
    reporter = RecordingReporter()
    run_pull(server, reporter, tmp_path / "out.jsonl")
    assert reporter.phases == [("pulling", "tasks", 0)]
    assert [(update.done, update.share) for update in reporter.updates] == [(25, 0.25), (50, 0.5), (75, 0.75), (100, 1)]


def test_resumed_pull_starts_at_what_is_there(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_pages, "PAGE_SIZE", 25)
    server.add_tasks(100)

    class Stopping(RecordingReporter):
        def progress(self, done: int, failed: int = 0, share: float | None = None) -> None:
            if done == 50:
                raise KeyboardInterrupt

    with pytest.raises(Exception, match="Interrupted after 50 tasks"):
        run_pull(server, Stopping(), tmp_path / "out.jsonl")
    reporter = RecordingReporter()
    run_pull(server, reporter, tmp_path / "out.jsonl", resume=True)
    assert reporter.phases == [("pulling", "tasks", 50)]
    assert [(update.done, update.share) for update in reporter.updates] == [(75, 0.75), (100, 1)]


def write_predictions(path: Path, ids: list[int]) -> Path:
    lines = [{"task": id, "model_version": "v1", "score": 0.5, "result": [REGION]} for id in ids]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_push_shows_checking_and_sending(server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "MIN_BATCH_PREDICTIONS", 300)
    ids = server.add_tasks(600)
    reporter = run_push(server, write_predictions(tmp_path / "p.jsonl", ids))
    assert reporter.phases == [
        ("checking", "records", 0),
        ("listing the project's tasks", "tasks", 0),
        ("sending", "predictions", 0),
        ("looking at what has arrived", "tasks", 0),
    ]
    checking = [update for update in reporter.updates if update.phase == "checking"]
    assert [update.done for update in checking] == [100, 200, 300, 400, 500, 600]
    for update in checking:
        assert update.share == pytest.approx(update.done / 600, abs=0.01)
    sending = [update for update in reporter.updates if update.phase == "sending"]
    assert sending[-1].share == 1.0


def test_replacing_shows_what_is_deleted(server: StubProject, tmp_path: Path) -> None:
    ids = server.add_tasks(8)
    for id in ids[:6]:
        server.add_prediction(id, "v1", [REGION])
    path = write_predictions(tmp_path / "p.jsonl", ids[:4])
    reporter = run_push(server, path, existing="replace")
    deleting = [(update.done, update.share) for update in reporter.updates if update.phase == "deleting"]
    assert deleting == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]


def test_creating_tasks_counts_what_was_created(
    server: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create_tasks, "MAX_BATCH_TASKS", 2)
    tasks = [
        {"data": {"text": f"t{n}"}, "predictions": [{"model_version": "v1", "score": 0.5, "result": [REGION]}]}
        for n in range(4)
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    reporter = run_push(server, tmp_path / "tasks.json", create_tasks=True)
    assert reporter.phase_names == ["checking", "creating tasks"]
    assert [(update.done, update.share) for update in reporter.updates] == [(2, 0.5), (4, 1.0)]
