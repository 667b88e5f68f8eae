"""Split files and pipes into records: formats, truncated and malformed input, gzip, in pieces of any size."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io import json_records
from lsml_cli.io.source import RecordSource
from tests.helpers.records import REUSES_FILE, parse_bodies, read_records

# Text with everything that could be mistaken for structure.
tricky_text = st.text(alphabet=st.sampled_from('{}[],:"\\ \n\tü€😀ab1'), max_size=12)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | tricky_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tricky_text, inner, max_size=3),
    max_leaves=8,
)
json_object = st.dictionaries(tricky_text, json_value, max_size=4)
spaces = st.sampled_from(["", " ", "\n", "\r\n  ", "\t", " " * 700])


@given(tasks=st.lists(json_object, max_size=6), space=spaces, chunk=st.integers(1, 40), ascii_only=st.booleans())
@settings(max_examples=200, **REUSES_FILE)
def test_array_is_split_into_elements(tmp_path, tasks, space, chunk, ascii_only):
    text = f"{space}[{space}" + f"{space},{space}".join(json.dumps(t, ensure_ascii=ascii_only) for t in tasks)
    path = tmp_path / "tasks.json"
    path.write_text(f"{text}{space}]{space}", encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "CHUNK", chunk)
        assert parse_bodies(read_records(path)) == tasks


@given(
    tasks=st.lists(json_object, min_size=1, max_size=6), space=spaces, chunk=st.integers(1, 40), indent=st.booleans()
)
@settings(max_examples=150, **REUSES_FILE)
def test_object_stream_is_split(tmp_path, tasks, space, chunk, indent):
    text = space.join(json.dumps(task, indent=2 if indent else None) for task in tasks)
    path = tmp_path / "tasks.json"
    path.write_text(text, encoding="utf-8", newline="")
    with path.open("rb", buffering=0) as raw, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "CHUNK", chunk)
        stream = io.BufferedReader(raw, 64)
        records = list(json_records.split_objects(stream, lambda default="": default, in_array=False))
    assert parse_bodies(records) == tasks


@given(tasks=st.lists(json_object, min_size=1, max_size=6), ending=st.sampled_from(["", "\n", "\r\n\n"]))
@settings(max_examples=80, **REUSES_FILE)
def test_json_lines_are_split(tmp_path, tasks, ending):
    path = tmp_path / "tasks.jsonl"
    path.write_bytes("\n".join(json.dumps(task) for task in tasks).encode() + ending.encode())
    assert parse_bodies(read_records(path)) == tasks


@given(tasks=st.lists(json_object, min_size=2, max_size=6), data=st.data())
@settings(max_examples=150, **REUSES_FILE)
def test_truncated_array_keeps_complete_tasks(tmp_path, tasks, data):
    text = json.dumps(tasks).encode()
    truncated = text[: data.draw(st.integers(1, len(text) - 1))]
    path = tmp_path / "tasks.json"
    path.write_bytes(truncated)
    bodies = parse_bodies(read_records(path))
    assert isinstance(bodies[-1], str)
    assert "ends" in bodies[-1]
    assert bodies[:-1] == tasks[: len(bodies) - 1]
    # Every task whose closing brace made it into the file was read.
    complete = sum(len(json.dumps(tasks[: n + 1])) - 1 <= len(truncated) for n in range(len(tasks)))
    assert len(bodies) - 1 == complete


@pytest.mark.parametrize("source_format", ["array", "lines"])
def test_gzip_is_detected_by_content_with_several_members(tmp_path, source_format):
    path = tmp_path / "tasks"
    first, second = ('[{"a":1},', '{"a":2}]') if source_format == "array" else ('{"a":1}\n', '{"a":2}\n')
    path.write_bytes(gzip.compress(first.encode()) + gzip.compress(second.encode()) + b"\0\0")
    assert parse_bodies(read_records(path)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("cut", [200, 2_000, 40_000])
def test_truncated_gzip_keeps_readable_tasks(tmp_path, cut):
    tasks = [{"id": n, "data": {"text": os.urandom(20).hex()}} for n in range(2_000)]
    path = tmp_path / "tasks.json.gz"
    path.write_bytes(gzip.compress(json.dumps(tasks).encode())[:cut])
    bodies = parse_bodies(read_records(path))
    assert bodies[:-1] == tasks[: len(bodies) - 1]
    assert "cut off" in bodies[-1]


def test_damaged_gzip_is_reported(tmp_path):
    compressed = bytearray(gzip.compress(json.dumps([{"a": os.urandom(30).hex()} for _ in range(5_000)]).encode()))
    compressed[len(compressed) // 2] ^= 0xFF
    path = tmp_path / "tasks.json.gz"
    path.write_bytes(compressed)
    assert (
        "damaged" in read_records(path)[-1].problem
    )  # what follows the flipped bit may be garbage, and fails to parse later


@pytest.mark.parametrize(
    ("text", "expected_records"),
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
def test_malformed_elements_fail_only_themselves(tmp_path, monkeypatch, chunk, text, expected_records):
    if len(text) < 1000:
        monkeypatch.setattr(json_records, "CHUNK", chunk)
    path = tmp_path / "tasks.json"
    path.write_text(text)
    records = read_records(path)
    assert len(records) == len(expected_records)
    for record, expected in zip(records, expected_records, strict=True):
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
def test_broken_first_line_fails_one_task(tmp_path, first, after):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n\n".join([first, *(json.dumps({"n": n}) for n in range(after))]))
    with RecordSource(str(path)) as source:
        assert source.format == "lines"
        assert [json.loads(record.body) for record in list(source)[1:]] == [{"n": n} for n in range(after)]


def test_pipe_delivering_byte_by_byte(monkeypatch):
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
            assert parse_bodies(list(source)) == [{"text": "one"}, {"text": "two"}]


def test_non_blocking_pipe_is_read_to_end(tmp_path, monkeypatch):
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
            assert parse_bodies(list(source)) == [{"n": 0}, {"n": 1}, {"n": 2}]


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
def test_input_without_tasks_is_rejected(tmp_path, content, sentence):
    path = tmp_path / "tasks.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_records(path)


def test_missing_file_error_lists_neighbours(tmp_path):
    (tmp_path / "tasks.json").write_text("[]")
    with pytest.raises(UsageError) as missing:
        RecordSource(str(tmp_path / "task.json"))
    assert missing.value.hint == "That folder has: tasks.json."
    with pytest.raises(UsageError, match="is a folder"):
        RecordSource(str(tmp_path))
