"""Select annotations from exports in all formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lsml_cli.io.task_reader import read_tasks
from lsml_cli.schema.annotations import AnnotationPolicy, select_annotated_tasks
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task

CONFIG = LabelConfig.parse("""
    <View>
      <Text name="text" value="$text"/>
      <Choices name="sentiment" toName="text"><Choice value="Positive"/><Choice value="Negative"/></Choices>
      <Choices name="topic" toName="text" choice="multiple">
        <Choice value="A" alias="a-alias"/><Choice value="B"/>
      </Choices>
      <TextArea name="note" toName="text"/>
      <Rating name="stars" toName="text"/>
      <Labels name="label" toName="text"><Label value="PER"/><Label value="ORG"/></Labels>
    </View>
""")


def region(choice: str) -> dict[str, Any]:
    return {"from_name": "sentiment", "to_name": "text", "type": "choices", "value": {"choices": [choice]}}


def annotation(id: int | None, *choices: str, truth: bool = False, cancelled: bool = False) -> dict[str, Any]:
    result = [region(choice) for choice in choices]
    return {"id": id, "result": result, "ground_truth": truth, "was_cancelled": cancelled}


def task(*annotations: dict[str, Any], key: str = "annotations") -> Task:
    raw = {"id": 1, "data": {"text": "hello"}, key: list(annotations)}
    return Task(0, 1, raw["data"], raw)  # type: ignore[arg-type]


def choices(tasks: list[Task], policy: AnnotationPolicy = "last", allow_empty: bool = False) -> list[str]:
    selected, _ = select_annotated_tasks(tasks, CONFIG, policy, allow_empty=allow_empty)
    return [region["value"]["choices"][0] for example in selected for region in example.annotation.result]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("last", ["c"]), ("first", ["a"]), ("all", ["a", "b", "c"])],
)
def test_policy_selects_among_several(policy: AnnotationPolicy, expected: list[str]) -> None:
    several = [annotation(1, "a"), annotation(2, "b"), annotation(3, "c"), annotation(4, "d", cancelled=True)]
    assert choices([task(*several)], policy) == expected
    assert choices([task(*reversed(several))], policy) == expected


def test_ground_truth_precedes_newer_annotations() -> None:
    several = [annotation(1, "a", truth=True), annotation(2, "b", truth=True), annotation(3, "c")]
    assert choices([task(*several)]) == ["b"]
    assert choices([task(*several)], "first") == ["a"]
    assert choices([task(*several)], "all") == ["a", "b", "c"]


def test_order_without_ids_is_list_order() -> None:
    assert choices([task(annotation(None, "a"), annotation(None, "b"))]) == ["b"]


def test_cancelled_ground_truth_is_skipped() -> None:
    assert choices([task(annotation(1, "a"), annotation(2, "b", truth=True, cancelled=True))]) == ["a"]


def test_completions_of_old_exports_are_read() -> None:
    assert choices([task(annotation(1, "a"), key="completions")]) == ["a"]


def test_skipped_tasks_are_counted_by_reason() -> None:
    tasks = [
        task(),
        task(annotation(1, cancelled=True)),
        task(annotation(1)),
        task(annotation(1), annotation(2, "x", cancelled=True)),
        task(key="nothing"),
    ]
    selected, reasons = select_annotated_tasks(tasks, CONFIG)
    assert not selected
    assert reasons == {"no annotation": 2, "skipped": 1, "empty result": 2}


def test_allow_empty_selects_empty_annotations() -> None:
    selected, reasons = select_annotated_tasks([task(annotation(1))], CONFIG, allow_empty=True)
    assert len(selected) == 1
    assert not reasons


@pytest.mark.parametrize("broken", [None, {}, [None], [{"result": None}], [{"id": 1, "result": [None]}], "x"])
def test_broken_annotations_are_ignored(broken: Any) -> None:
    raw = {"id": 1, "data": {}, "annotations": broken}
    assert select_annotated_tasks([Task(0, 1, {}, raw)], CONFIG)[0] == []


def read(path: Path) -> list[Task]:
    tasks = list(read_tasks(str(path), controls=frozenset(CONFIG.controls)))
    assert all(isinstance(task, Task) for task in tasks)
    return tasks  # type: ignore[return-value]


@pytest.mark.parametrize("ending", ["-json.json", "-json_min.json", ".csv"])
def test_all_export_formats_give_the_same_annotations(shared_data: Path, ending: str) -> None:
    for policy, expected in {"last": [17, 18], "all": [17, 18, 18]}.items():
        selected, _ = select_annotated_tasks(read(shared_data / "exports" / f"text-choices{ending}"), CONFIG, policy)  # type: ignore[arg-type]
        assert [task.id for task, _ in selected] == expected
        assert {region["value"]["choices"][0] for region in selected[0].annotation.result} == {"Positive"}
        assert selected[-1].annotation.result[0]["value"] == {"choices": ["Positive"]}


@pytest.mark.parametrize("ending", ["-json.json", "-json_min.json", ".csv"])
def test_all_value_types_are_rebuilt_from_rows(shared_data: Path, ending: str) -> None:
    selected, reasons = select_annotated_tasks(read(shared_data / "exports" / f"text-choices-multi{ending}"), CONFIG)
    assert not reasons
    by_control = {region["from_name"]: region["value"] for region in selected[0].annotation.result}
    assert by_control == {
        "topic": {"choices": ["a-alias", "B"]},
        "stars": {"rating": 4},
        "note": {"text": ["line one", "two"]},
    }
    assert [region["value"] for region in selected[1].annotation.result] == [{"choices": ["B"]}]


def test_json_min_spans_and_empty_row(shared_data: Path) -> None:
    selected, reasons = select_annotated_tasks(read(shared_data / "exports" / "text-ner-json_min.json"), CONFIG)
    assert [region["value"]["labels"] for region in selected[0].annotation.result] == [["PER"], ["ORG"]]
    assert reasons == {"empty result": 1}
