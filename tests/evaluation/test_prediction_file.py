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


def stored(id: int | None, text: str, *predictions: tuple[str, str]) -> dict[str, Any]:
    """A whole task with predictions (label, version)."""
    made = [{"result": [region(label)], "score": 0.5, "model_version": version} for label, version in predictions]
    return ({} if id is None else {"id": id}) | {"data": {"text": text}, "predictions": made}


def short(id: int, label: str) -> dict[str, Any]:
    return {"task": id, "result": [region(label)], "score": 0.5, "model_version": "v"}


def write(path: Path, records: list[Any]) -> str:
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def label(answer: StoredPrediction | None) -> str | None:
    return answer.result[0]["value"]["choices"][0] if answer and answer.result else None


def test_any_order_by_id(tmp_path: Path) -> None:
    numbers = list(range(3000))
    random.Random(0).shuffle(numbers)
    with PredictionFile(write(tmp_path / "p.jsonl", [short(i, f"x{i}") for i in numbers]), CONFIG) as found:
        assert all(label(found.lookup(task(i, "hello"))) == f"x{i}" for i in range(3000))
        assert found.lookup(task(3000, "hello")) is None


def test_tasks_without_ids_meet_by_what_they_show(tmp_path: Path) -> None:
    records = [stored(None, "one", ("a", "v")), stored(None, "two", ("b", "v"))]
    with PredictionFile(write(tmp_path / "p.jsonl", records), CONFIG) as found:
        assert [label(found.lookup(task(7, text))) for text in ("two", "one", "three")] == ["b", "a", None]


def test_an_id_of_another_project_is_no_match(tmp_path: Path) -> None:
    records = [stored(1, "other", ("a", "v")), stored(2, "mine", ("b", "v"))]
    with PredictionFile(write(tmp_path / "p.jsonl", records), CONFIG) as found:
        assert label(found.lookup(task(1, "mine"))) == "b"
        assert found.lookup(task(2, "yours")) is None


def test_equal_texts_are_told_apart_by_id(tmp_path: Path) -> None:
    records = [stored(1, "ok", ("a", "v")), stored(2, "ok", ("b", "v"))]
    with PredictionFile(write(tmp_path / "p.jsonl", records), CONFIG) as found:
        assert label(found.lookup(task(2, "ok"))) == "b"
        assert label(found.lookup(task(1, "ok"))) == "a"


def test_the_last_prediction_counts_or_the_one_of_a_version(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [stored(1, "x", ("a", "old"), ("b", "new")), stored(2, "y", ("b", "new"))])
    with PredictionFile(path, CONFIG) as found:
        assert label(found.lookup(task(1, "x"))) == "b"
    with PredictionFile(path, CONFIG, "old") as found:
        assert label(found.lookup(task(1, "x"))) == "a"
        assert found.lookup(task(2, "y")) == StoredPrediction((), "no prediction of this version")


def test_records_of_another_version_are_passed_over(tmp_path: Path) -> None:
    records = [short(1, "a") | {"model_version": "old"}, short(1, "b"), short(2, "a") | {"model_version": "old"}]
    with PredictionFile(write(tmp_path / "p.jsonl", records), CONFIG, "v") as found:
        assert label(found.lookup(task(1, "x"))) == "b"
        assert found.lookup(task(2, "y")) is None
        assert list(found.warnings()) == []


def test_failures_are_answers(tmp_path: Path) -> None:
    failed = {"task": 1, "result": [], "error": {"stage": "fetch", "reason": "no file"}}
    with PredictionFile(write(tmp_path / "p.jsonl", [failed, stored(2, "y")]), CONFIG) as found:
        assert found.lookup(task(1, "x")) == StoredPrediction((), "no file")
        assert found.lookup(task(2, "y")) == StoredPrediction((), "no prediction")


def test_versions_that_are_mixed_are_told_of(tmp_path: Path) -> None:
    """A task that failed keeps the older prediction that it came with; not so where each has the newer one."""
    mixed = [stored(1, "x", ("a", "old"), ("b", "new")), stored(2, "y", ("b", "new")), stored(3, "z", ("a", "old"))]
    with PredictionFile(write(tmp_path / "p.jsonl", mixed), CONFIG) as found:
        assert [label(found.lookup(task(n, text))) for n, text in ((1, "x"), (2, "y"))] == ["b", "b"]
        assert list(found.warnings()) == []
        found.lookup(task(3, "z"))
        [note] = found.warnings()
    assert "predictions of 2 versions, the last one of each task: new (2), old (1)" in note


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(short(1, "a")) + '\nnonsense\n{"task": 2, "res')
    with PredictionFile(str(path), CONFIG) as found:
        assert found.lookup(task(2, "x")) is None
        assert found.truncated
        assert "2 records of" in next(found.warnings())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"id": 1, "data": {"text": "x"}}', "there is no prediction"),
        ('{"id": 1, "data": {"text": "x"}, "predictions": [12]}', "only the ids of predictions"),
        ("a,b\n1,2\n", "is a table"),
    ],
)
def test_what_holds_no_predictions_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=sentence), PredictionFile(str(path), CONFIG) as found:
        found.lookup(task(1, "x"))
