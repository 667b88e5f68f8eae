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


def choices(tasks: list[Task], which: AnnotationPolicy = "last", empty: bool = False) -> list[str]:
    found, _ = select_annotated_tasks(tasks, CONFIG, which, allow_empty=empty)
    return [each["value"]["choices"][0] for example in found for each in example.annotation.result]


@pytest.mark.parametrize(
    ("which", "expected"),
    [("last", ["c"]), ("first", ["a"]), ("all", ["a", "b", "c"])],
)
def test_which_of_several_counts(which: AnnotationPolicy, expected: list[str]) -> None:
    several = [annotation(1, "a"), annotation(2, "b"), annotation(3, "c"), annotation(4, "d", cancelled=True)]
    assert choices([task(*several)], which) == expected
    assert choices([task(*reversed(several))], which) == expected


def test_ground_truth_goes_before_what_is_newer() -> None:
    several = [annotation(1, "a", truth=True), annotation(2, "b", truth=True), annotation(3, "c")]
    assert choices([task(*several)]) == ["b"]
    assert choices([task(*several)], "first") == ["a"]
    assert choices([task(*several)], "all") == ["a", "b", "c"]


def test_without_ids_the_order_of_the_list_counts() -> None:
    assert choices([task(annotation(None, "a"), annotation(None, "b"))]) == ["b"]


def test_a_cancelled_ground_truth_never_counts() -> None:
    assert choices([task(annotation(1, "a"), annotation(2, "b", truth=True, cancelled=True))]) == ["a"]


def test_old_exports_have_completions() -> None:
    assert choices([task(annotation(1, "a"), key="completions")]) == ["a"]


def test_what_does_not_count_is_counted_by_reason() -> None:
    tasks = [
        task(),
        task(annotation(1, cancelled=True)),
        task(annotation(1)),
        task(annotation(1), annotation(2, "x", cancelled=True)),
        task(key="nothing"),
    ]
    found, reasons = select_annotated_tasks(tasks, CONFIG)
    assert not found
    assert reasons == {"no annotation": 2, "skipped": 1, "empty result": 2}


def test_an_empty_annotation_counts_where_nothing_is_an_answer() -> None:
    found, reasons = select_annotated_tasks([task(annotation(1))], CONFIG, allow_empty=True)
    assert len(found) == 1
    assert not reasons


@pytest.mark.parametrize("broken", [None, {}, [None], [{"result": None}], [{"id": 1, "result": [None]}], "x"])
def test_broken_annotations_are_none(broken: Any) -> None:
    raw = {"id": 1, "data": {}, "annotations": broken}
    assert select_annotated_tasks([Task(0, 1, {}, raw)], CONFIG)[0] == []


def read(path: Path) -> list[Task]:
    tasks = list(read_tasks(str(path), controls=frozenset(CONFIG.controls)))
    assert all(isinstance(each, Task) for each in tasks)
    return tasks  # type: ignore[return-value]


@pytest.mark.parametrize("ending", ["-json.json", "-json_min.json", ".csv"])
def test_exports_of_one_project_say_the_same(shared_data: Path, ending: str) -> None:
    for which, expected in {"last": [17, 18], "all": [17, 18, 18]}.items():
        found, _ = select_annotated_tasks(read(shared_data / "exports" / f"text-choices{ending}"), CONFIG, which)  # type: ignore[arg-type]
        assert [task.id for task, _ in found] == expected
        assert {each["value"]["choices"][0] for each in found[0].annotation.result} == {"Positive"}
        assert found[-1].annotation.result[0]["value"] == {"choices": ["Positive"]}


@pytest.mark.parametrize("ending", ["-json.json", "-json_min.json", ".csv"])
def test_values_of_all_kinds_come_back(shared_data: Path, ending: str) -> None:
    found, reasons = select_annotated_tasks(read(shared_data / "exports" / f"text-choices-multi{ending}"), CONFIG)
    assert not reasons
    by_control = {each["from_name"]: each["value"] for each in found[0].annotation.result}
    assert by_control == {
        "topic": {"choices": ["a-alias", "B"]},
        "stars": {"rating": 4},
        "note": {"text": ["line one", "two"]},
    }
    assert [each["value"] for each in found[1].annotation.result] == [{"choices": ["B"]}]


def test_spans_come_back_from_json_min_and_the_empty_row_is_empty(shared_data: Path) -> None:
    found, reasons = select_annotated_tasks(read(shared_data / "exports" / "text-ner-json_min.json"), CONFIG)
    assert [each["value"]["labels"] for each in found[0].annotation.result] == [["PER"], ["ORG"]]
    assert reasons == {"empty result": 1}
