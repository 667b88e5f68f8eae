"""What the process that trains with OpenMMLab reports, without OpenMMLab."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from lsml_cli.models.openmmlab import train
from lsml_cli.models.openmmlab.train_worker import MessageWriter, TrainingMonitor
from lsml_cli.progress import ReportedTraining
from tests.helpers.progress import RecordingReporter

WORKER = """
import json

print(json.dumps({"say": "A sentence."}))
for epoch in (1, 2):
    for batch in (2, 4):
        print(json.dumps({"steps": f"epoch {epoch} of 2", "unit": "batches", "done": batch, "total": 4}))
print(json.dumps({"done": {"epoch": 2, "metrics": {}}}))
"""


def test_batches_of_the_process_are_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stub_train_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(train, "WORKER_MODULE", "stub_train_worker")
    reporter = RecordingReporter()
    assert train._run_process(tmp_path, "mmdet", "cpu", None, ReportedTraining(reporter))["epoch"] == 2
    assert reporter.notes == ["A sentence."]
    assert reporter.phases == [("epoch 1 of 2", "batches", 0), ("epoch 2 of 2", "batches", 0)]
    assert [(update.done, update.share) for update in reporter.updates] == [(2, 0.5), (4, 1.0)] * 2


def test_batches_are_reported_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    out = StringIO()
    schedule = SimpleNamespace(epochs=3)
    monitor = TrainingMonitor(tmp_path, schedule, MessageWriter(out, True))  # type: ignore[arg-type]
    for batch in range(1, 1_001):
        monitor.report_batch(2, batch, 1_000)
    messages = [json.loads(line) for line in out.getvalue().splitlines()]
    assert messages[0] == {"steps": "epoch 2 of 3", "unit": "batches", "done": 1, "total": 1_000}
    assert messages[-1]["done"] == 1_000
    assert len(messages) < 20
