"""Cutting bytes into tasks: whatever JSON says, in whatever pieces it arrives."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io import csv_records, json_records
from lsml_cli.io.json_records import Record
from lsml_cli.io.source import RecordSource
from lsml_cli.io.task_reader import read_tasks

# One file is written over and over: examples do not share anything else.
QUICK: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

# Text with everything that could be mistaken for structure.
tricky_text = st.text(alphabet=st.sampled_from('{}[],:"\\ \n\tü€😀ab1'), max_size=12)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | tricky_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tricky_text, inner, max_size=3),
    max_leaves=8,
)
json_object = st.dictionaries(tricky_text, json_value, max_size=4)
spaces = st.sampled_from(["", " ", "\n", "\r\n  ", "\t"])


def read(path: Path, **options: Any) -> list[Record]:
    with RecordSource(str(path), **options) as source:
        return list(source)


def bodies(found: list[Record]) -> list[Any]:
    assert [record.index for record in found] == list(range(len(found)))
    return [json.loads(record.body) if record.body else record.problem for record in found]


@given(tasks=st.lists(json_object, max_size=6), space=spaces, chunk=st.integers(1, 40), ascii_only=st.booleans())
@settings(max_examples=200, **QUICK)
def test_an_array_is_cut_into_its_elements(tmp_path, tasks, space, chunk, ascii_only):
    text = f"{space}[{space}" + f"{space},{space}".join(json.dumps(t, ensure_ascii=ascii_only) for t in tasks)
    path = tmp_path / "tasks.json"
    path.write_text(f"{text}{space}]{space}", encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "CHUNK", chunk)
        assert bodies(read(path)) == tasks


@given(
    tasks=st.lists(json_object, min_size=1, max_size=6), space=spaces, chunk=st.integers(1, 40), indent=st.booleans()
)
@settings(max_examples=150, **QUICK)
def test_objects_that_follow_each_other_are_cut(tmp_path, tasks, space, chunk, indent):
    text = space.join(json.dumps(task, indent=2 if indent else None) for task in tasks)
    path = tmp_path / "tasks.json"
    path.write_text(text, encoding="utf-8", newline="")
    with path.open("rb", buffering=0) as raw, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "CHUNK", chunk)
        stream = io.BufferedReader(raw, 64)
        found = list(json_records.split_objects(stream, lambda otherwise="": otherwise, in_array=False))
    assert bodies(found) == tasks


@given(tasks=st.lists(json_object, min_size=1, max_size=6), ending=st.sampled_from(["", "\n", "\r\n\n"]))
@settings(max_examples=80, **QUICK)
def test_json_lines(tmp_path, tasks, ending):
    path = tmp_path / "tasks.jsonl"
    path.write_bytes("\n".join(json.dumps(task) for task in tasks).encode() + ending.encode())
    assert bodies(read(path)) == tasks


@given(tasks=st.lists(json_object, min_size=2, max_size=6), data=st.data())
@settings(max_examples=150, **QUICK)
def test_what_stands_before_a_tear_is_read_and_the_tear_is_named(tmp_path, tasks, data):
    whole = json.dumps(tasks).encode()
    torn = whole[: data.draw(st.integers(1, len(whole) - 1))]
    path = tmp_path / "tasks.json"
    path.write_bytes(torn)
    found = bodies(read(path))
    assert isinstance(found[-1], str)
    assert "ends" in found[-1]
    assert found[:-1] == tasks[: len(found) - 1]
    # Every task whose closing brace made it into the file was read.
    complete = sum(len(json.dumps(tasks[: n + 1])) - 1 <= len(torn) for n in range(len(tasks)))
    assert len(found) - 1 == complete


@pytest.mark.parametrize("source", ["array", "lines"])
def test_gzip_is_recognised_by_content_and_may_have_several_members(tmp_path, source):
    path = tmp_path / "tasks"
    first, second = ('[{"a":1},', '{"a":2}]') if source == "array" else ('{"a":1}\n', '{"a":2}\n')
    path.write_bytes(gzip.compress(first.encode()) + gzip.compress(second.encode()) + b"\0\0")
    assert bodies(read(path)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("cut", [200, 2_000, 40_000])
def test_a_torn_gzip_gives_what_is_readable(tmp_path, cut):
    tasks = [{"id": n, "data": {"text": os.urandom(20).hex()}} for n in range(2_000)]
    path = tmp_path / "tasks.json.gz"
    path.write_bytes(gzip.compress(json.dumps(tasks).encode())[:cut])
    found = bodies(read(path))
    assert found[:-1] == tasks[: len(found) - 1]
    assert "cut off" in found[-1]


def test_a_damaged_gzip_is_named(tmp_path):
    compressed = bytearray(gzip.compress(json.dumps([{"a": os.urandom(30).hex()} for _ in range(5_000)]).encode()))
    compressed[len(compressed) // 2] ^= 0xFF
    path = tmp_path / "tasks.json.gz"
    path.write_bytes(compressed)
    assert "damaged" in read(path)[-1].problem  # what follows the flipped bit may be garbage, and fails to parse later


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"a":1}, 5, {"b":2}]', [{"a": 1}, "expected a task, an object, found the number 5", {"b": 2}]),
        ('[{"a":1}, "x}, {", {"b":2}]', [{"a": 1}, "expected a task, an object, found a string", {"b": 2}]),
        ('[[1,{"c":[]}], null , {"b":2}]', ["found a list", "found null", {"b": 2}]),
        ('[{"a":1},, {"b":2}, ]', [{"a": 1}, "found a comma", {"b": 2}]),
        ('[{"a":1}] [', [{"a": 1}, "the list of tasks is closed here, but the file goes on"]),
        ('[{"a":1},{"b":2}],', [{"a": 1}, {"b": 2}, "the list of tasks is closed here, but the file goes on"]),
        ('[{"a":1},{"b":2}],[{"c":3},{"d":4}]', [{"a": 1}, {"b": 2}, "closed here, but the file goes on"]),
        ('[{"a":1},{"b":2}],"c":{}}', [{"a": 1}, {"b": 2}, "closed here, but the file goes on"]),
        ('[{"a":{}} {"b":2}\n,{"c":3}{"d":4}]', [{"a": {}}, {"b": 2}, {"c": 3}, {"d": 4}]),
        ('[{"a":1} x, {"b":2}, {"c":3}]', [{"a": 1}, "found 'x'", {"b": 2}, {"c": 3}]),
        ('[{"a":1}},{"b":2},{"c":3}]', [None, {"b": 2}, {"c": 3}]),
        ('[{"a":1},["x], {", "\\\\", "\\"]"],{"b":2}]', [{"a": 1}, "found a list", {"b": 2}]),
        ('{"a":1}}\n{"b":2}', [None, {"b": 2}]),
        ('{"a":1} {"b":2}', [{"a": 1}, {"b": 2}]),
        ('{"a":1} {"b":2}\n{"c":3}{"d":4}\n', [{"a": 1}, {"b": 2}, {"c": 3}, {"d": 4}]),
        ('{"a": {"b":1},\n "c": {}}\n{"d": {"e":1},\n "f": {}}', [{"a": {"b": 1}, "c": {}}, {"d": {"e": 1}, "f": {}}]),
        ('{"a":\n{"b":1},\n"c":2}\n{"d":3}', [{"a": {"b": 1}, "c": 2}, {"d": 3}]),
        ('{"a":[\n{"b":1}\n]}\n{"d":3}', [{"a": [{"b": 1}]}, {"d": 3}]),
        ("[]", []),
        (" [ \n ] ", []),
        ("[" * 100_000 + "]" * 100_000, ["found a list"]),
        ('{"a":1}\n\n{"b":\n{"c":3}', [{"a": 1}, None, {"c": 3}]),
        ('{"a": 1}\n{"b": 2', [{"a": 1}, "ends in the middle of a task"]),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
def test_odd_elements_cost_only_themselves(tmp_path, monkeypatch, chunk, text, found):
    if len(text) < 1000:
        monkeypatch.setattr(json_records, "CHUNK", chunk)
    path = tmp_path / "tasks.json"
    path.write_text(text)
    actual = read(path)
    assert len(actual) == len(found)
    for record, expected in zip(actual, found, strict=True):
        if isinstance(expected, dict):
            assert json.loads(record.body) == expected
        elif expected is not None:
            assert expected in record.problem


@pytest.mark.parametrize(
    "first",
    [
        "{oops",
        '{"a": tru}',
        '{"a": NaN}',
        '{"a": 1} x',
        '{"a": 1',
        '{"a": 1,',
        '{"a": "b',
        '{"a": {"b": 1},',
        '{"id": 8, "data": ',
        '{"a": [',
        '{"a": "\\ud800"}',
    ],
)
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_broken_first_line_costs_one_task(tmp_path, first, after):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n\n".join([first, *(json.dumps({"n": n}) for n in range(after))]))
    with RecordSource(str(path)) as source:
        assert source.format == "lines"
        assert [json.loads(record.body) for record in list(source)[1:]] == [{"n": n} for n in range(after)]


def test_a_large_element_that_is_no_task_is_looked_at_once(tmp_path, monkeypatch):
    seen = 0

    class Counting:
        def __init__(self, pattern):
            self.pattern = pattern

        def finditer(self, buffer, start):
            nonlocal seen
            seen += len(buffer) - start
            return self.pattern.finditer(buffer, start)

        def match(self, buffer, start):
            nonlocal seen
            seen += len(buffer) - start
            return self.pattern.match(buffer, start)

    monkeypatch.setattr(json_records, "CHUNK", 1_000)
    monkeypatch.setattr(json_records, "_TOKEN", Counting(json_records._TOKEN))
    monkeypatch.setattr(json_records, "_IN_STRING", Counting(json_records._IN_STRING))
    element = json.dumps([[1, "[", {"a": "b"}]] * 5_000 + ["\\" * 50_000])
    path = tmp_path / "tasks.json"
    path.write_text(f'[{{"a": 1}}, {element}, {{"b": 2}}]')
    assert [record.problem for record in read(path)] == ["", "expected a task, an object, found a list", ""]
    assert seen < 4 * len(element)


@pytest.mark.parametrize("form", ["array", "lines", "stream"])
def test_a_task_that_is_too_large_is_passed_over_in_flat_memory(tmp_path, monkeypatch, form):
    monkeypatch.setattr(json_records, "MAX_TASK_BYTES", 50_000)
    monkeypatch.setattr(json_records, "CHUNK", 4_096)
    large = json.dumps({"id": 2, "data": {"text": 'a "quoted" }, { brace and \\ ' * 20_000}})
    small = [json.dumps({"id": n, "data": {"text": "}"}}) for n in (1, 3)]
    indent = json.dumps(json.loads(small[0]), indent=1)
    text = {
        "array": f"[{small[0]},{large}, {small[1]}]",
        "lines": f"{small[0]}\n{large}\n{small[1]}\n",
        "stream": f"{indent}\n{large}\n{small[1]}\n",
    }[form]
    path = tmp_path / "tasks.json"
    path.write_text(text)
    with RecordSource(str(path)) as source:
        assert source.format == form
        first, second, third = source
    assert [json.loads(first.body)["id"], json.loads(third.body)["id"]] == [1, 3]
    assert second.body == b""
    assert "50,000 is the most" in second.problem
    size = int(second.problem.split()[3].replace(",", ""))
    assert abs(size - len(large)) <= 2


def test_a_pipe_may_deliver_byte_by_byte(monkeypatch):
    reading, writing = os.pipe()
    text = b'{"text": "one"}\n{"text": "two"}\n'

    def trickle() -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            for byte in text:
                pipe.write(bytes([byte]))

    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        threading.Thread(target=trickle).start()
        with RecordSource("-") as source:
            assert source.format == "lines"
            assert bodies(list(source)) == [{"text": "one"}, {"text": "two"}]


def test_a_pipe_that_does_not_block_is_read_to_its_end(tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def hesitate() -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            for n in range(3):
                time.sleep(0.05)
                pipe.write(b'{"n": %d}\n' % n)

    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        threading.Thread(target=hesitate).start()
        with RecordSource("-") as source:
            assert bodies(list(source)) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_one_word_in_quotes_may_be_a_header(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text('"text"\n"a"\n\n"b"\n')
    assert bodies(read(path)) == [{"data": {"text": "a"}}, {"data": {"text": "b"}}]


def test_csv_with_quotes_line_breaks_and_an_id_column(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text('id,text\n7,"one, ""two""\nthree"\n8,\n', encoding="utf-8-sig")
    assert bodies(read(path)) == [
        {"data": {"id": "7", "text": 'one, "two"\nthree'}},
        {"data": {"id": "8", "text": ""}},
    ]
    assert [task.id for task in read_tasks(str(path), id_column="id")] == [7, 8]


@given(
    rows=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text("ab,;\t\"'\n ")), min_size=1),
    delimiter=st.sampled_from(",;\t"),
)
@settings(max_examples=80, **QUICK)
def test_what_the_csv_module_writes_comes_back(tmp_path, rows, delimiter):
    import csv

    path = tmp_path / "tasks.txt"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "note"), *rows])
    assert [(task["data"]["text"], task["data"]["note"]) for task in bodies(read(path))] == rows


def test_bad_csv_rows_cost_only_themselves(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_bytes(b"id\ttext\n1\tgood\n2\n3\tl\xe4tin\nx\tgood\n")
    found = read(path, id_column="id")
    assert [record.location for record in found] == ["line 2", "line 3", "line 4", "line 5"]
    assert [record.problem for record in found] == [
        "",
        "this row has 1 fields, the header has 2",
        "this row is not UTF-8 text: convert the file first, for example with iconv",
        "",
    ]
    *_, last = read_tasks(str(path), id_column="id")
    assert last.reason == "the id under \"id\" is 'x', expected a whole number"


UNDOUBLED = "this row is not CSV: a quote inside of a quoted field has to be doubled"
NEVER_CLOSED = "a quote that is opened here is never closed"


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ('2,"he said "hi" to me"\n3,c\n', [(2, UNDOUBLED), (3, "3")]),
        ('2,"never closed\n3,c\n4,d\n', [(2, NEVER_CLOSED), (3, "3"), (4, "4")]),
        ('2,"never closed\n3,c\n4,"d"\n5,"e\nf"\n', [(2, UNDOUBLED), (3, "3"), (4, "4"), (5, "5")]),
        ('2,"one\n3,"two\n4,d', [(2, UNDOUBLED), (3, NEVER_CLOSED), (4, "4")]),
        ('2,b\n\n3,"c', [(2, "2"), (4, NEVER_CLOSED)]),
        ("2,b\0\n3,c\rd\n4,e", [(2, "2"), (3, "this row is not CSV: a carriage return stands"), (4, "4")]),
    ],
)
def test_a_row_that_is_not_csv_costs_itself(tmp_path, rows, found):
    path = tmp_path / "tasks.csv"
    path.write_bytes(f"id,text\n{rows}".encode())
    actual = read(path)
    assert [record.index for record in actual] == list(range(len(found)))
    assert not any(record.truncated for record in actual)
    assert [record.location for record in actual] == [f"line {line}" for line, _ in found]
    for record, (_, expected) in zip(actual, found, strict=True):
        assert (
            record.problem.startswith(expected) if record.problem else json.loads(record.body)["data"]["id"] == expected
        )


def test_a_quote_that_is_never_closed_is_read_again_in_flat_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_records, "MAX_TASK_BYTES", 20_000)
    path = tmp_path / "tasks.csv"
    large = f'2,"{"b" * 30_000}"\n'
    path.write_text('id,text\n0,"open\n1,a\n' + large + "".join(f"{n},text {n}\n" for n in range(3, 3_000)))
    held = 0
    row_begins = csv_records._RewindableLines.start_row

    def watch(lines):
        nonlocal held
        held = max(held, sum(map(len, [*lines.row_lines, *lines._replayed])))
        row_begins(lines)

    monkeypatch.setattr(csv_records._RewindableLines, "start_row", watch)
    found = read(path)
    assert len(found) == 3_000
    assert [record.index for record in found if record.problem] == [0, 2]
    assert [record.location for record in found] == [f"line {n + 2}" for n in range(3_000)]
    assert "30,005 bytes" in found[2].problem
    assert held < 20_100
    path.write_text('id,text\n0,"open\n' + "".join(f"{n},text {n}\n" for n in range(1, 3_000)))
    assert [record.problem for record in read(path) if record.problem] == [
        "a quote that is opened here is not closed within 20,000 bytes"
    ]


@pytest.mark.parametrize("cut", [3_000, 3_003, 3_008])
def test_the_last_row_of_a_torn_csv_is_no_task(tmp_path, cut):
    content = b"id,text\n" + b"".join(b'%d,"a\nb %d c"\n' % (n, n) for n in range(1_000))
    path = tmp_path / "tasks.csv.gz"
    squeeze = zlib.compressobj(wbits=31)
    path.write_bytes(squeeze.compress(content[:cut]) + squeeze.flush(zlib.Z_SYNC_FLUSH))
    *whole, last = read(path)
    assert "the gzip data is cut off" in last.problem
    assert last.truncated
    for n, record in enumerate(whole):
        if not record.problem:
            assert json.loads(record.body) == {"data": {"id": f"{n}", "text": f"a\nb {n} c"}}
    assert len(whole) > 100


def test_rows_of_an_export_are_flat(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text('"annotation_id","annotator","data","id"\n6,"1","b",17\n')
    assert bodies(read(path)) == [{"annotation_id": "6", "annotator": "1", "data": "b", "id": "17"}]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"<html><body>", "neither JSON nor CSV: it starts with '<html><body>'"),
        ('[{"a": 1}]'.encode("utf-16"), "is UTF-16 or binary"),
        (b"12", "neither JSON nor CSV"),
        (b"12\n", "neither JSON nor CSV"),
        (b"Unauthorized", "neither JSON nor CSV"),
        (b"Unauthorized\n", "tasks.json has a header and no rows"),
        (b"null", "neither JSON nor CSV"),
        (b'"just a string"', "neither JSON nor CSV"),
        (b'"just, a string"', "tasks.json has a header and no rows"),
        (b"id,text", "tasks.json has a header and no rows"),
        (b"\nid,text\r\n\n", "tasks.json has a header and no rows"),
        (b'id,"text', "tasks.json has a header that is not CSV: a quote that is opened here is never closed"),
        (random.Random(0).randbytes(5_000), "is UTF-16 or binary"),
        (b"a,b\n" + random.Random(1).randbytes(5_000), "is UTF-16 or binary"),
        (b"[" + random.Random(2).randbytes(5_000), "is UTF-16 or binary"),
        (b"a\0,b\n1,2\n", "is UTF-16 or binary"),
        ("größe,text\n1,2\n".encode("latin-1"), "is UTF-16 or binary"),
        ('[{"a": 1}]'.encode("utf-16-le"), "is UTF-16 or binary"),
        ('[{"a": 1}]'.encode("utf-16-be"), "is UTF-16 or binary"),
    ],
)
def test_what_cannot_be_tasks_is_refused_with_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "tasks.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read(path)


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "tasks.json").write_text("[]")
    with pytest.raises(UsageError) as missing:
        RecordSource(str(tmp_path / "task.json"))
    assert missing.value.hint == "That folder has: tasks.json."
    with pytest.raises(UsageError, match="is a folder"):
        RecordSource(str(tmp_path))
