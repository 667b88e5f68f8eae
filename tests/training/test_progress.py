"""How far `lsml fit` says it is, within an epoch, while it extracts features, and while it measures."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lsml_cli.commands.console.progress import Console
from lsml_cli.models.base import Binding, Progress
from lsml_cli.progress import ReportedTraining, Steps
from lsml_cli.registry.resolve import find_model
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import AnnotatedTask, Task
from lsml_cli.training.fit import fit_version
from tests.helpers import models
from tests.helpers.cli import run_in_process
from tests.helpers.progress import RecordingReporter

CONFIG = LabelConfig.parse(models.TEXT_CONFIG)


class Stepwise(models.Words):
    """Reports its two epochs."""

    batch_size = 8
    params: ClassVar = {"pause": 0.0}

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Any]:
        progress("A sentence.")
        for epoch in (1, 2):
            steps = Steps(progress, f"epoch {epoch} of 2", "batches", 4)
            for batch in range(4):
                steps.update(batch + 1)
        return {}


STEPWISE = f"{__file__}:Stepwise"


def make_tasks(count: int) -> list[Task]:
    control = next(iter(CONFIG.controls.values()))
    rng = random.Random(0)
    tasks = []
    for n in range(count):
        words = rng.randrange(12)
        value = {"choices": ["long" if words > 5 else "short"]}
        region = {"id": f"r{n}", "from_name": control.name, "to_name": control.to_names[0], "type": "choices"}
        data = {"text": f"{n} " + "word " * words}
        tasks.append(
            Task(n, n, data, {"id": n, "data": data, "annotations": [{"id": n, "result": [region | {"value": value}]}]})
        )
    return tasks


def test_phases_of_a_fit(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    result = fit_version(
        find_model(STEPWISE), make_tasks(100), CONFIG, tmp_path / "m", progress=ReportedTraining(reporter)
    )
    held_out = result.split.counts["holdout"]
    assert reporter.phases == [
        ("training", "tasks", 0),
        ("epoch 1 of 2", "batches", 0),
        ("epoch 2 of 2", "batches", 0),
        ("loading model", "tasks", 0),
        ("measuring", "tasks", 0),
    ]
    assert "A sentence." in reporter.notes
    epochs = [update for update in reporter.updates if update.phase.startswith("epoch")]
    assert [update.share for update in epochs] == [0.25, 0.5, 0.75, 1.0] * 2
    measured = [update for update in reporter.updates if update.phase == "measuring"]
    assert [update.done for update in measured] == [*range(8, held_out, 8), held_out]
    assert measured[-1].share == 1.0


def test_reading_the_export_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(Console, "start_phase", lambda self, name, unit="tasks", done=0: calls.append(name))
    monkeypatch.setattr(
        Console, "progress", lambda self, done, failed=0, share=None: calls.append((done, round(share, 1)))
    )
    (tmp_path / "export.json").write_text(json.dumps([task.raw for task in make_tasks(1_000)]))
    (tmp_path / "config.xml").write_text(models.TEXT_CONFIG)
    run = run_in_process(
        "fit", tmp_path / "export.json", "-m", STEPWISE, "-c", tmp_path / "config.xml", "-o", tmp_path / "m"
    )
    assert run.returncode == 0, run.stderr
    assert calls[:5] == ["reading annotations", (100, 0.1), (200, 0.2), (300, 0.3), (400, 0.4)]
    assert calls[11:13] == ["training", "epoch 1 of 2"]


def test_steps_become_sentences_where_only_these_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a training job of a server."""
    now = 0.0
    monkeypatch.setattr("lsml_cli.progress.time.monotonic", lambda: now)
    sentences: list[str] = []
    steps = Steps(sentences.append, "extracting features", "images", 2_000)
    for second in range(1, 101):
        now = float(second)
        steps.update(10 * second)
    assert sentences == [
        "Extracting features: 100 of 2,000 images are done, about 3 min left.",
        "Extracting features: 700 of 2,000 images are done, about 2 min left.",
    ]
