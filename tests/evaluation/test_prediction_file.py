from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import InputError
from lsml_cli.evaluation.prediction_file import PredictionFile
from lsml_cli.evaluation.prediction_records import StoredPrediction
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task

CONFIG = LabelConfig.parse(
    '<View><Text name="t" value="$text"/><Choices name="c" toName="t">'
    '<Choice value="a"/><Choice value="b"/></Choices></View>'
)


def task(id: int | None, text: str) -> Task:
    return Task(0, id, {"text": text}, {"data": {"text": text}})


def region(label: str) -> dict[str, Any]:
    return {"id": "r", "from_name": "c", "to_name": "t", "type": "choices", "value": {"choices": [label]}}


def task_record(id: int | None, text: str, *predictions: tuple[str, str]) -> dict[str, Any]:
    """Return a whole task with predictions (label, version)."""
    stored = [{"result": [region(label)], "score": 0.5, "model_version": version} for label, version in predictions]
    return ({} if id is None else {"id": id}) | {"data": {"text": text}, "predictions": stored}


def prediction_record(id: int, label: str) -> dict[str, Any]:
    return {"task": id, "result": [region(label)], "score": 0.5, "model_version": "v"}


def write(path: Path, records: list[Any]) -> str:
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def label_of(prediction: StoredPrediction | None) -> str | None:
    return prediction.result[0]["value"]["choices"][0] if prediction and prediction.result else None


def test_lookup_by_id_in_any_order(tmp_path: Path) -> None:
    numbers = list(range(3000))
    random.Random(0).shuffle(numbers)
    with PredictionFile(
        write(tmp_path / "p.jsonl", [prediction_record(i, f"x{i}") for i in numbers]), CONFIG
    ) as predictions:
        assert all(label_of(predictions.lookup(task(i, "hello"))) == f"x{i}" for i in range(3000))
        assert predictions.lookup(task(3000, "hello")) is None


def test_lookup_by_content_without_ids(tmp_path: Path) -> None:
    records = [task_record(None, "one", ("a", "v")), task_record(None, "two", ("b", "v"))]
    with PredictionFile(write(tmp_path / "p.jsonl", records), CONFIG) as predictions:
        assert [label_of(predictions.lookup(task(7, text))) for text in ("two", "one", "three")] == ["b", "a", None]


def test_equal_id_with_other_content_is_no_match(tmp_path: Path) -> None:
    records = [task_record(1, "other", ("a", "v")), task_record(2, "mine", ("b", "v"))]
    with PredictionFile(write(tmp_path / "p.jsonl", records), CONFIG) as predictions:
        assert label_of(predictions.lookup(task(1, "mine"))) == "b"
        assert predictions.lookup(task(2, "yours")) is None


def test_equal_content_is_distinguished_by_id(tmp_path: Path) -> None:
    records = [task_record(1, "ok", ("a", "v")), task_record(2, "ok", ("b", "v"))]
    with PredictionFile(write(tmp_path / "p.jsonl", records), CONFIG) as predictions:
        assert label_of(predictions.lookup(task(2, "ok"))) == "b"
        assert label_of(predictions.lookup(task(1, "ok"))) == "a"


def test_last_prediction_or_requested_version_is_returned(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", [task_record(1, "x", ("a", "old"), ("b", "new")), task_record(2, "y", ("b", "new"))]
    )
    with PredictionFile(path, CONFIG) as predictions:
        assert label_of(predictions.lookup(task(1, "x"))) == "b"
    with PredictionFile(path, CONFIG, "old") as predictions:
        assert label_of(predictions.lookup(task(1, "x"))) == "a"
        assert predictions.lookup(task(2, "y")) == StoredPrediction((), "no prediction of this version")


def test_records_of_other_versions_are_skipped(tmp_path: Path) -> None:
    records = [
        prediction_record(1, "a") | {"model_version": "old"},
        prediction_record(1, "b"),
        prediction_record(2, "a") | {"model_version": "old"},
    ]
    with PredictionFile(write(tmp_path / "p.jsonl", records), CONFIG, "v") as predictions:
        assert label_of(predictions.lookup(task(1, "x"))) == "b"
        assert predictions.lookup(task(2, "y")) is None
        assert list(predictions.warnings()) == []


def test_failed_records_are_returned_as_failures(tmp_path: Path) -> None:
    failed = {"task": 1, "result": [], "error": {"stage": "fetch", "reason": "no file"}}
    with PredictionFile(write(tmp_path / "p.jsonl", [failed, task_record(2, "y")]), CONFIG) as predictions:
        assert predictions.lookup(task(1, "x")) == StoredPrediction((), "no file", stage="fetch")
        assert predictions.lookup(task(2, "y")) == StoredPrediction((), "no prediction")


def test_mixed_versions_give_a_warning(tmp_path: Path) -> None:
    """Tasks that failed keep their older prediction, so a file may mix versions."""
    mixed = [
        task_record(1, "x", ("a", "old"), ("b", "new")),
        task_record(2, "y", ("b", "new")),
        task_record(3, "z", ("a", "old")),
    ]
    with PredictionFile(write(tmp_path / "p.jsonl", mixed), CONFIG) as predictions:
        assert [label_of(predictions.lookup(task(n, text))) for n, text in ((1, "x"), (2, "y"))] == ["b", "b"]
        assert list(predictions.warnings()) == []
        predictions.lookup(task(3, "z"))
        [note] = predictions.warnings()
    assert "predictions of 2 versions, the last one of each task: new (2), old (1)" in note


def test_unreadable_records_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(prediction_record(1, "a")) + '\nnonsense\n{"task": 2, "res')
    with PredictionFile(str(path), CONFIG) as predictions:
        assert predictions.lookup(task(2, "x")) is None
        assert predictions.truncated
        nonsense, truncated = predictions.warnings()
    assert nonsense.startswith(f"1 record could not be read: {path}, line 2: not JSON")
    assert truncated == f"1 record could not be read: {path}, line 3: {path} ends in the middle of a task."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"id": 1, "data": {"text": "x"}}', "there is no prediction"),
        ('{"id": 1, "data": {"text": "x"}, "predictions": [12]}', "only the ids of predictions"),
        ("a,b\n1,2\n", "is a table"),
    ],
)
def test_file_without_predictions_is_rejected(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=sentence), PredictionFile(str(path), CONFIG) as predictions:
        predictions.lookup(task(1, "x"))
