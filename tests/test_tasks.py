"""What becomes of the bytes of one task."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsml_cli.records import Record
from lsml_cli.tasks import Task, Unreadable, parse_task, read_tasks

json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=6,
)


def record(value: object) -> Record:
    return Record(0, "line 1", orjson.dumps(value))


@given(data=st.dictionaries(st.text("abc"), json_value), rest=st.dictionaries(st.text("xyz"), json_value))
def test_a_whole_task_keeps_everything(data, rest):
    raw = rest | {"id": 7, "data": data, "project": 3}
    task = parse_task(record(raw))
    assert (task.id, task.data, task.raw, task.project) == (7, data, raw, "3")


@given(item=st.dictionaries(st.text("abc"), json_value))
def test_a_bare_item_is_nothing_but_data(item):
    task = parse_task(record(item | {"id": 5}))
    assert (task.id, task.data) == (None, item | {"id": 5})
    assert parse_task(record(item | {"id": 5}), id_column="id").id == 5


def test_json_min_is_told_from_a_bare_item():
    row = {"text": "a", "id": 3, "mood": "good", "annotator": 1, "annotation_id": 4, "created_at": "", "lead_time": 2.0}
    task = parse_task(record(row), frozenset({"mood"}))
    assert (task.id, task.data) == (3, {"text": "a"})


@pytest.mark.parametrize("wrong", ["7", 7.5, True, None, [7]])
def test_an_id_is_a_whole_number_or_none(wrong):
    assert parse_task(record({"id": wrong, "data": {}})).id is None


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"[1]", "expected a task, an object, found a list"),
        (b"null", "expected a task, an object, found null"),
        (b"1.5", "expected a task, an object, found a number (1.5)"),
        (b'{"data": null}', '"data" is null, expected an object'),
        (b'{"data": {}', "not JSON: "),
    ],
)
def test_what_is_no_task_says_why(body, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        parse_task(Record(0, "line 1", body))


def test_reading_goes_on_behind_something_unreadable(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n{oops\n" + json.dumps({"id": 2, "data": {"text": "b"}}) + "\n")
    first, second, third = read_tasks(str(path))
    assert isinstance(first, Task)
    assert isinstance(second, Unreadable)
    assert (second.index, second.place) == (1, "line 2")
    assert isinstance(third, Task)
    assert (third.index, third.id) == (2, 2)
