"""How far `lsml evaluate` and `lsml rank` say they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.evaluation.evaluate import evaluate
from lsml_cli.evaluation.prediction_records import StoredPrediction
from lsml_cli.evaluation.prediction_sources import FilePredictionSource, PredictionSource
from lsml_cli.evaluation.ranking import rank_file
from lsml_cli.io.task_reader import read_tasks
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import AnnotatedTask
from tests.helpers import models
from tests.helpers.predict_runs import WORDS
from tests.helpers.progress import RecordingReporter

CONFIG = LabelConfig.parse(models.TEXT_CONFIG)
CONTROL = next(iter(CONFIG.controls.values()))
COUNT = 1_536  # three blocks


def regions(id: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{id}",
            "from_name": CONTROL.name,
            "to_name": CONTROL.to_names[0],
            "type": "choices",
            "value": {"choices": ["long"]},
            "score": 0.5,
        }
    ]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    tasks = [
        {"id": 1_000 + n, "data": {"text": "word"}, "annotations": [{"id": n, "result": regions(n)}]}
        for n in range(COUNT)
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    return tmp_path / "export.json"


class ByBatch(FilePredictionSource):
    """Predicts 128 tasks at a time."""

    def predict(
        self, examples: Sequence[AnnotatedTask], on_done: Callable[[int], None]
    ) -> list[StoredPrediction | None]:
        for _ in range(0, len(examples), 128):
            on_done(128)
        return [StoredPrediction(()) for _ in examples]


def run_evaluate(export: Path, *sources: PredictionSource) -> RecordingReporter:
    reporter, tasks = RecordingReporter(), read_tasks(str(export))
    evaluate(tasks, CONFIG, *sources, reporter=reporter, share_read=lambda: tasks.share)
    return reporter


@pytest.mark.parametrize("count", [1, 2])
def test_progress_is_of_predictions_within_a_block(export: Path, count: int) -> None:
    """512 tasks are predicted together, by one source after the other."""
    reporter = run_evaluate(export, *(ByBatch(f"source {n}", lambda task: None) for n in range(count)))
    assert reporter.phases == [("evaluating", "tasks", 0), ("computing metrics", "tasks", 0)]
    step = 128 // count
    assert [update.done for update in reporter.updates] == list(range(step, COUNT + 1, step))
    for update in reporter.updates:
        assert update.share == pytest.approx(update.done / COUNT, abs=0.01)


def test_progress_without_total_has_no_share(export: Path) -> None:
    reporter, tasks = RecordingReporter(), read_tasks(str(export))
    evaluate(tasks, CONFIG, ByBatch("source", lambda task: None), reporter=reporter)
    assert {update.share for update in reporter.updates} == {None}


def test_phases_of_the_command(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lsml_cli.commands.console.progress import Console
    from tests.helpers.cli import run_in_process

    phases: list[str] = []
    monkeypatch.setattr(Console, "start_phase", lambda self, name, unit="tasks", done=0: phases.append(name))
    config = export.with_name("config.xml")
    config.write_text(models.TEXT_CONFIG)
    run = run_in_process("evaluate", export, "-m", WORDS, "--compare", WORDS, "-c", config)
    assert run.returncode == 0, run.stderr
    assert phases == ["loading model", "loading the model to compare with", "evaluating", "computing metrics"]


def test_ranking_shows_reading_and_writing(export: Path, tmp_path: Path) -> None:
    predictions = [
        {"task": n, "model_version": "v", "score": 0.5, "result": regions(n), "cluster": None}
        for n in range(1_000, 6_000)
    ]
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    reporter = RecordingReporter()
    rank_file(str(tmp_path / "predictions.json"), str(tmp_path / "ranked.json"), "json", reporter=reporter)
    assert reporter.phase_names == ["reading predictions", "writing the ranking"]
    reading = [update for update in reporter.updates if update.phase == "reading predictions"]
    assert [update.done for update in reading] == [1_000, 2_000, 3_000, 4_000]
    for update in reading:
        assert update.share == pytest.approx(update.done / 5_000, abs=0.01)
    assert [update.share for update in reporter.updates[4:]] == [0.2, 0.4, 0.6, 0.8, 1.0]
