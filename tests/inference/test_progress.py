"""How far `lsml predict` says it is: phases, and the share of the input whose tasks are done, not read."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import Interrupted
from lsml_cli.inference.plan import PredictOptions, PredictPlan
from lsml_cli.inference.predict import predict_file
from lsml_cli.inference.preflight import check_file
from lsml_cli.inference.retry_failed import retry_failed
from lsml_cli.registry.resolve import find_model
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers import models
from tests.helpers.predict_runs import WORDS, make_task
from tests.helpers.progress import RecordingReporter

COUNT = 160
BATCH = 16  # of the model


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_plan(tasks: str, model: str = WORDS, **options: Any) -> PredictPlan:
    spec = find_model(model, options.pop("params", {}))
    return PredictPlan.from_options(
        spec, LabelConfig.parse(models.TEXT_CONFIG), PredictOptions(tasks, output="out.json", **options)
    )


def run(tasks: str, model: str = WORDS, **options: Any) -> RecordingReporter:
    reporter = RecordingReporter()
    predict_file(make_plan(tasks, model, **options), reporter)
    return reporter


def equal_tasks(count: int = COUNT) -> list[dict[str, Any]]:
    return [{"id": n + 1_000, "data": {"text": "word " * 5}} for n in range(count)]


def to_csv(tasks: Sequence[dict[str, Any]]) -> bytes:
    return ("id,text\n" + "".join(f"{task['id']},{task['data']['text']}\n" for task in tasks)).encode()


FORMATS: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {
    "array": lambda tasks: json.dumps(tasks).encode(),
    "pretty array": lambda tasks: json.dumps(tasks, indent=2).encode(),
    "lines": lambda tasks: "".join(json.dumps(task) + "\n" for task in tasks).encode(),
    "objects": lambda tasks: " ".join(json.dumps(task, indent=1) for task in tasks).encode(),
    "csv": to_csv,
    "gzip": lambda tasks: gzip.compress("".join(json.dumps(task) + "\n" for task in tasks).encode()),
}


@pytest.mark.parametrize("format", FORMATS)
def test_share_is_of_tasks_that_are_done(work: Path, format: str) -> None:
    """The whole file is read at once, since it is small; what counts is what the model has done."""
    Path("tasks").write_bytes(FORMATS[format](equal_tasks()))
    updates = run("tasks").updates
    expected = [(done, done / COUNT) for done in range(BATCH, COUNT + 1, BATCH)]
    assert [update.done for update in updates] == [*(done for done, _ in expected), COUNT]
    tolerance = 0.15 if format == "gzip" else 0.02
    for update, (done, share) in zip(updates, expected, strict=False):
        assert update.share == pytest.approx(share, abs=tolerance), done
    assert updates[-1].share == 1.0


def test_share_of_plain_text_is_of_its_lines(work: Path) -> None:
    Path("texts").write_text("some words of a line\n" * COUNT)
    for update in run("texts", input_kind="lines").updates:
        assert update.share == pytest.approx(update.done / COUNT, abs=0.02)


def test_share_does_not_run_ahead_with_prefetch(work: Path) -> None:
    """Each process has several batches waiting."""
    Path("tasks.json").write_text(json.dumps(equal_tasks()))
    for update in run("tasks.json", workers=2).updates[:-1]:
        assert update.share == pytest.approx(update.done / COUNT, abs=0.02)


def test_share_with_limit_is_of_the_limit(work: Path) -> None:
    Path("tasks.json").write_text(json.dumps(equal_tasks()))
    assert [update.share for update in run("tasks.json", limit=32).updates] == [0.5, 1.0, 1.0]
    beyond = run("tasks.json", limit=10_000).updates
    assert beyond[4].share == pytest.approx(0.5, abs=0.02)


def test_pipe_has_no_share(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, FORMATS["lines"](equal_tasks(40)))
    os.close(writer)
    with os.fdopen(reader, "rb") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        updates = run("-").updates
    assert [(update.done, update.share) for update in updates] == [(16, None), (32, None), (40, None)]


def test_phases_of_a_run(work: Path) -> None:
    Path("tasks.json").write_text(json.dumps(equal_tasks()))
    reporter = run("tasks.json")
    assert reporter.phases == [("loading model", "tasks", 0), ("predicting", "tasks", 0)]
    assert {update.phase for update in reporter.updates} == {"predicting"}


AUTOTUNED = f"{Path(__file__).parent / 'test_autotune.py'}:Autotuned"


@pytest.mark.parametrize(
    ("options", "phase"),
    [
        ({}, "choosing precision"),
        ({"batch_size": "auto"}, "choosing precision and batch size"),
        ({"batch_size": "auto", "params": {"precision": "fp32"}}, "choosing batch size"),
    ],
)
def test_autotune_is_shown_as_such(work: Path, options: dict[str, Any], phase: str) -> None:
    Path("tasks.json").write_text(json.dumps(equal_tasks()))
    reporter = run("tasks.json", AUTOTUNED, **options)
    assert reporter.phase_names == ["loading model", phase, "loading model", "predicting"]


def test_resumed_run_starts_where_the_earlier_one_ended(work: Path) -> None:
    tasks = equal_tasks()
    Path("tasks.json").write_text(json.dumps(tasks))

    class Stopping(RecordingReporter):
        def progress(self, done: int, failed: int = 0, share: float | None = None) -> None:
            if done == 96:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        predict_file(make_plan("tasks.json"), Stopping())
    reporter = run("tasks.json", resume=True)
    assert reporter.phases[-1] == ("predicting", "tasks", 96)
    assert [update.done for update in reporter.updates] == [112, 128, 144, 160, 160]
    assert reporter.updates[0].share == pytest.approx(112 / COUNT, abs=0.02)


def test_retry_counts_only_what_is_predicted_again(work: Path) -> None:
    tasks = [make_task(n, **({"text": 5} if n in (3, 150) else {})) for n in range(COUNT)]
    Path("tasks.json").write_text(json.dumps(tasks))
    run("tasks.json", errors="errors.jsonl")
    reporter = RecordingReporter()
    retry_failed(make_plan("tasks.json", batch_size=1), Path("errors.jsonl"), reporter)
    assert reporter.phase_names == ["loading model", "predicting again"]
    assert [(update.done, update.share) for update in reporter.updates] == [(1, 0.5), (2, 1.0), (2, 1.0)]


def test_check_shows_how_far_it_is(work: Path) -> None:
    Path("tasks.json").write_text(json.dumps(equal_tasks(1_000)))
    reporter = RecordingReporter()
    check_file(make_plan("tasks.json"), reporter)
    assert reporter.phase_names == ["checking"]
    assert [update.done for update in reporter.updates] == list(range(100, 1_001, 100))
    assert reporter.updates[4].share == pytest.approx(0.5, abs=0.02)
