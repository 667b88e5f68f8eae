"""Parse records into tasks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsml_cli.io.json_records import Record
from lsml_cli.io.task_reader import parse_task, read_tasks
from lsml_cli.schema.predictions import Failure, task_record
from lsml_cli.schema.tasks import Task, UnreadableRecord

json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=6,
)


def record(value: object) -> Record:
    return Record(0, "line 1", orjson.dumps(value))


@given(data=st.dictionaries(st.text("abc"), json_value), rest=st.dictionaries(st.text("xyz"), json_value))
def test_whole_task_keeps_all_fields(data, rest):
    raw = rest | {"id": 7, "data": data, "project": 3}
    task = parse_task(record(raw))
    assert (task.id, task.data, task.raw, task.project) == (7, data, raw, "3")


@given(item=st.dictionaries(st.text("abc"), json_value))
def test_bare_item_becomes_data(item):
    task = parse_task(record(item | {"id": 5}))
    assert (task.id, task.data) == (None, item | {"id": 5})
    assert parse_task(record(item | {"id": 5}), id_column="id").id == 5


@pytest.mark.parametrize("item", [{"k": 17}, {"k": "17"}, {"data": {"k": "17"}}, {"id": None, "data": {"k": 17}}])
def test_id_column_is_read_from_json_and_csv(item):
    task = parse_task(record(item), id_column="k")
    assert (task.id, task.data["k"]) == (17, item.get("data", item)["k"])
    assert "data" not in item or task.raw["id"] == 17
    assert parse_task(record({"id": 3, "data": {}}), id_column="k").id == 3


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ({"text": "a"}, 'this item has no "k", which --id-column names'),
        ({"data": {"text": "a"}}, 'this item has no "k", which --id-column names'),
        ({"k": "x7"}, "the id under \"k\" is 'x7', expected a whole number"),
        ({"k": None}, 'the id under "k" is null, expected a whole number'),
        ({"k": 1.5}, 'the id under "k" is a number (1.5), expected a whole number'),
    ],
)
def test_item_without_id_column_is_rejected(item, sentence):
    with pytest.raises(ValueError, match="id") as caught:
        parse_task(record(item), id_column="k")
    assert str(caught.value) == sentence


def test_json_min_row_is_recognized():
    row = {"text": "a", "id": 3, "mood": "good", "annotator": 1, "annotation_id": 4, "created_at": "", "lead_time": 2.0}
    task = parse_task(record(row), frozenset({"mood"}))
    assert (task.id, task.data) == (3, {"text": "a"})
    assert parse_task(record(row | {"other": "9"}), id_column="other").id == 9


def test_row_data_may_be_named_data_or_like_a_control():
    row = {"data": "a", "_data_mood": "b", "_data_x": "c", "id": "3", "mood": "good", "annotator": "1"}
    task = parse_task(record(row | {"annotation_id": "4"}), frozenset({"mood"}))
    assert (task.id, task.data) == (3, {"data": "a", "mood": "b", "_data_x": "c"})
    assert task_record(task, Failure("read", ""), [], False) == {"id": 3, "data": task.data, "predictions": []}


@pytest.mark.parametrize("export", ["text-choices", "text-choices-multi", "text-ner", "image-ocr", "image-choices"])
def test_all_export_formats_give_the_same_tasks(shared_data, export):
    controls = {"choice", "sentiment", "topic", "stars", "note", "label", "bbox", "poly", "transcription"}
    exports = [
        [
            (task.id, task.data)
            for task in read_tasks(str(shared_data / "exports" / name), controls=controls)
            if isinstance(task, Task)
        ]
        for name in (f"{export}-json.json", f"{export}.csv", f"{export}-json_min.json")
        if (shared_data / "exports" / name).exists()
    ]
    whole, *rows = [dict((id, data) for id, data in tasks) for tasks in exports]
    assert rows
    for row_data in rows:
        assert row_data == {id: data for id, data in whole.items() if id in row_data}


@pytest.mark.parametrize("wrong", ["7", 7.5, True, None, [7]])
def test_other_ids_are_none(wrong):
    assert parse_task(record({"id": wrong, "data": {}})).id is None


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"[1]", "expected a task, an object, found a list"),
        (b"null", "expected a task, an object, found null"),
        (b"1.5", "expected a task, an object, found a number (1.5)"),
        (b'{"data": null}', '"data" is null, expected an object'),
        (b'{"data": {}', "not JSON: "),
        (b'{"a": [1, NaN]}', "NaN and Infinity are no JSON numbers"),
        (b'{"\xc3\xbc": -Infinity}', "NaN and Infinity are no JSON numbers"),
        (b'{"text": "NaN", "b": oops}', "not JSON: unexpected character"),
    ],
)
def test_invalid_task_is_explained(body, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        parse_task(Record(0, "line 1", body))


def test_reading_continues_after_unreadable_record(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n{oops\n" + json.dumps({"id": 2, "data": {"text": "b"}}) + "\n")
    first, second, third = read_tasks(str(path))
    assert isinstance(first, Task)
    assert isinstance(second, UnreadableRecord)
    assert (second.index, second.location) == (1, "line 2")
    assert isinstance(third, Task)
    assert (third.index, third.id) == (2, 2)


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        (b'{"text": "a"}\n{"text": ', True),
        (b'{"text": "a"}\n[1]\n', False),
        (b'[{"text": "a"}, {"text": "', True),
        (b'[{"text": "a"}', True),
        (b'[{"text": "a"}] [', True),
        (b'[{"text": "a"}, 7]', False),
        (gzip.compress(b"text,more\n" + b"a,b\n" * 99, mtime=0)[:-9], True),
        (b"text,more\na,b\nc\n", False),
        (gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], True),
    ],
)
def test_truncated_input_is_recognized(tmp_path: Path, text: bytes, truncated: bool) -> None:
    path = tmp_path / "tasks"
    path.write_bytes(text)
    *tasks, last = read_tasks(str(path))
    assert isinstance(last, UnreadableRecord)
    assert last.truncated is truncated
    assert not any(isinstance(task, UnreadableRecord) for task in tasks)
