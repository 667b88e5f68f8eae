"""Test fit and predict on real texts: 5,574 exported messages, 4,000 of them annotated."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from label_studio_sdk.label_interface.interface import LabelInterface

from lsml_cli.evaluation.metrics import classification_metrics


@pytest.fixture(scope="module")
def predicted(lsml, sms_model, shared_data, tmp_path_factory) -> list[dict]:
    output = tmp_path_factory.mktemp("sms") / "out.json"
    run = lsml("predict", shared_data / "exports" / "sms-spam-all-tasks.json", "--model", sms_model, "-o", output)
    assert run.returncode == 0, run.stderr
    return json.loads(output.read_bytes())


def test_label_studio_accepts_every_prediction(predicted, shared_data):
    export = json.loads((shared_data / "exports" / "sms-spam-all-tasks.json").read_bytes())
    assert [task["id"] for task in predicted] == [task["id"] for task in export]
    assert [task["data"] for task in predicted] == [task["data"] for task in export]
    interface = LabelInterface((shared_data / "exports" / "sms-spam.xml").read_text())
    for task in predicted:
        [prediction] = task["predictions"]
        assert interface.validate_prediction(prediction, return_errors=True) == []


def test_unannotated_messages_are_classified(predicted, shared_data):
    with (shared_data / "sms-spam" / "messages.tsv").open(newline="", encoding="utf-8") as file:
        truth = [row["label"] for row in csv.DictReader(file, delimiter="\t")][4000:]
    guess = [task["predictions"][0]["result"][0]["value"]["choices"][0] for task in predicted][4000:]
    metrics = classification_metrics(([right], [said]) for right, said in zip(truth, guess, strict=True))
    spam = next(each for each in metrics.classes if each.name == "spam")
    assert metrics.count == 1574
    assert (metrics.accuracy or 0) >= 0.98
    assert spam.f1 >= 0.92


def test_closed_pipe_gives_three_records_and_no_error(sms_model, shared_data):
    export = json.loads((shared_data / "exports" / "sms-spam-all-tasks.json").read_bytes())
    lines = "\n".join(json.dumps(task) for task in export).encode()
    command = f"{sys.executable} -m lsml_cli predict - --model {sms_model} | head -3"
    run = subprocess.run(["bash", "-c", command], input=lines, capture_output=True, timeout=60, check=True)
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert [record["id"] for record in records] == [1, 2, 3]
    assert run.stderr == b""


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_worker_count_does_not_change_output(lsml, sms_model, shared_data, tmp_path: Path, form):
    source = shared_data / "exports" / "sms-spam-all-tasks.json"
    for workers in ("1", "2"):
        run = lsml("predict", source, "--model", sms_model, "-o", tmp_path / f"{workers}.{form}", "--workers", workers)
        assert run.returncode == 0, run.stderr
    assert (tmp_path / f"1.{form}").read_bytes() == (tmp_path / f"2.{form}").read_bytes()
