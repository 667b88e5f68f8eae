"""Time grows with the bytes of an input, memory does not, and one record may have only so many bytes."""

from __future__ import annotations

import gzip
import io
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import InputError
from lsml_cli.inference import record_codec
from lsml_cli.inference.record_codec import BulkCodec, OutputRecord
from lsml_cli.io import csv_records, json_records
from lsml_cli.io.byte_streams import GzipStream, read_head
from lsml_cli.io.csv_records import read_rows
from lsml_cli.io.image_paths import read_paths
from lsml_cli.io.json_records import CHUNK, MAX_TASK_BYTES, Record, read_lines, split_objects
from lsml_cli.io.source import RecordSource
from lsml_cli.io.text_lines import read_texts
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from tests.helpers import models
from tests.helpers.cli import run_in_process
from tests.helpers.predict_runs import FLAKY, make_task, predict, predicted_choice
from tests.helpers.records import parse_bodies, read_records

FORMATS = ["array", "lines", "stream", "csv", "paths", "texts"]
MAX_CPU_SECONDS = 20  # where time that grows with the square of the bytes would be minutes


class Pieces(io.RawIOBase):
    """Bytes that arrive a few at a time."""

    def __init__(self, content: bytes, piece_bytes: int) -> None:
        self._content = memoryview(content)
        self._piece_bytes = piece_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        size = min(self._piece_bytes, len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size


class CountingPattern:
    """A pattern that counts the bytes it might look at."""

    def __init__(self, pattern) -> None:
        self._pattern = pattern
        self.scanned = 0

    def finditer(self, buffer, start):
        self.scanned += len(buffer) - start
        return self._pattern.finditer(buffer, start)

    def match(self, buffer, start):
        self.scanned += len(buffer) - start
        return self._pattern.match(buffer, start)


def count_scans(monkeypatch, *names: str) -> list[CountingPattern]:
    patterns = [CountingPattern(getattr(json_records, name)) for name in names]
    for name, pattern in zip(names, patterns, strict=True):
        monkeypatch.setattr(json_records, name, pattern)
    return patterns


def read(source_format: str, stream: io.BufferedReader[Any], max_bytes: int = MAX_TASK_BYTES) -> Iterator[Record]:
    def end_reason(default: str = "") -> str:
        return default

    if source_format == "lines":
        return read_lines(stream, end_reason, max_bytes)
    if source_format == "csv":
        return read_rows(stream, end_reason, None, (), max_bytes)
    if source_format == "texts":
        return read_texts(stream, end_reason, "text", lambda: None, max_bytes)
    if source_format == "paths":
        return read_paths(stream, end_reason, "image", b"\n", max_bytes)
    return split_objects(stream, end_reason, in_array=source_format == "array", max_bytes=max_bytes)


def write_text(source_format: str, *texts: str) -> bytes:
    """Return an input with a task for each text."""
    tasks = [json.dumps({"text": text}) for text in texts]
    if source_format == "csv":
        return "\n".join(["text", *(f'"{text}"' for text in texts), ""]).encode()
    if source_format in ("paths", "texts"):
        return "".join(f"{text}\n" for text in texts).encode()
    separator = "," if source_format == "array" else "\n"
    content = separator.join(tasks)
    return (f"[{content}]" if source_format == "array" else f"{content}\n").encode()


@pytest.mark.parametrize("source_format", FORMATS)
def test_large_record_in_small_pieces_takes_linear_time(source_format):
    text = ("a long text, " * 100 + "} ") * 12_000
    stream = io.BufferedReader(Pieces(write_text(source_format, "a", text, "b"), 1_000), CHUNK)
    begin = time.process_time()
    assert [len(record.body) > len(text) for record in read(source_format, stream)] == [False, True, False]
    assert time.process_time() - begin < MAX_CPU_SECONDS


BACKSLASHES = "\\" * 200_000


@pytest.mark.parametrize(
    "element",
    [
        json.dumps({"text": "a" * 400_000}),
        json.dumps({"text": BACKSLASHES, "a": "}"}),
        json.dumps({f"key {n}": {"a": [{}, {"b": "}"}]} for n in range(20_000)}),
        '{"a": {}BLANK, "b": {"c": 1}BLANK}'.replace("BLANK", " \n" * 100_000),
        '{"a": [{"b": 1}BLANK], "c": 1}'.replace("BLANK", " " * 400_000),
        '{"a": {}, BLANK"b": "}BLANK"}'.replace("BLANK", " " * 200_000),
    ],
    ids=["string", "backslashes", "objects", "blank after objects", "blank in list", "blank in string"],
)
@pytest.mark.parametrize("in_array", [True, False])
@pytest.mark.parametrize("max_bytes", [1_000, MAX_TASK_BYTES])
def test_large_object_is_scanned_once(monkeypatch, element, in_array, max_bytes):
    monkeypatch.setattr(json_records, "CHUNK", 1_000)
    [pattern] = count_scans(monkeypatch, "_END_IN_ARRAY" if in_array else "_END_IN_STREAM")
    small = ['{"x": 1}', '{"y": {}}']
    content = (",".join([small[0], element, small[1]]) if in_array else "".join([small[0], element, small[1]])).encode()
    stream = io.BufferedReader(Pieces(b"[%b]" % content if in_array else content, 4_096), 4_096)
    first, second, third = read("array" if in_array else "stream", stream, max_bytes)
    assert [first.body, third.body] == [part.encode() for part in small]
    assert second.body == (element.encode() if max_bytes > len(element) else b"")
    assert bool(second.body) or f"{len(element):,} bytes" in second.problem
    assert pattern.scanned < 4 * len(content)


def test_large_non_object_is_scanned_once(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, "CHUNK", 1_000)
    patterns = count_scans(monkeypatch, "_TOKEN", "_IN_STRING")
    element = json.dumps([[1, "[", {"a": "b"}]] * 5_000 + ["\\" * 50_000])
    path = tmp_path / "tasks.json"
    path.write_text(f'[{{"a": 1}}, {element}, {{"b": 2}}]')
    assert [record.problem for record in read_records(path)] == ["", "expected a task, an object, found a list", ""]
    assert sum(pattern.scanned for pattern in patterns) < 4 * len(element)


@pytest.mark.parametrize("max_bytes", [20_000, MAX_TASK_BYTES])
@pytest.mark.parametrize("row", ['a","b\n', '"a\n', 'a,"b\n', 'a","b\n"', '""",a\n'])
def test_rows_with_truncated_quotes_take_linear_time(monkeypatch, row, max_bytes):
    """A row of the first kind is inside of quotes at its end, whether or not it was at its beginning."""
    read_lines = 0
    next_line = csv_records._RewindableLines.__next__

    def count(lines):
        nonlocal read_lines
        read_lines += 1
        return next_line(lines)

    monkeypatch.setattr(csv_records._RewindableLines, "__next__", count)
    content = ("x,y\n" + row * 5_000 + "c,d\n").encode()
    records = list(read("csv", io.BufferedReader(Pieces(content, CHUNK)), max_bytes))
    assert len(records) >= 1_000
    assert read_lines < 5 * content.count(b"\n")


def test_row_that_ends_behind_those_that_did_not_is_read():
    """What an early row does not reach within the limit, a later one does."""
    filler = [f'{n}","b' for n in range(60)]
    content = "\n".join(["x,y", *filler, 'end",c', "c,d", ""]).encode()
    *unclosed, long_row, last = read("csv", io.BufferedReader(Pieces(content, CHUNK)), 2_000)
    assert len(unclosed) > 10
    assert all("not closed within 2,000 bytes" in record.problem for record in unclosed)
    assert long_row.location == f"line {len(unclosed) + 2}"
    assert long_row.problem == f"this row has {62 - len(unclosed)} fields, the header has 2"
    assert (last.location, json.loads(last.body)) == ("line 63", {"data": {"x": "c", "y": "d"}})


def test_tiny_gzip_members_are_read_together():
    content = write_text("array", "a" * 5_000, "b")
    members = b"".join(gzip.compress(bytes([byte]), 1) for byte in content)
    stream = GzipStream(Pieces(members + gzip.compress(b"") * 1_000 + bytes(100_000), CHUNK))
    sizes = []
    buffer = bytearray(CHUNK)
    while size := stream.readinto(buffer):
        sizes.append(size)
    assert sum(sizes) == len(content)
    assert len(sizes) <= len(members) / 50_000
    assert not stream.truncation_reason


class EndlessSpace(io.RawIOBase):
    """White space without an end; fails when much more than a task is read of it."""

    def __init__(self) -> None:
        self._read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        buffer[:] = b" " * len(buffer)
        self._read_bytes += len(buffer)
        assert self._read_bytes < 2 * MAX_TASK_BYTES
        return len(buffer)


def test_blank_beginning_is_read_up_to_limit():
    assert MAX_TASK_BYTES < len(read_head(EndlessSpace(), b"", lambda head: False)) <= MAX_TASK_BYTES + CHUNK


@pytest.mark.parametrize("options", [{}, {"paths_key": "image"}, {"texts_key": "text"}])
def test_gzipped_space_is_rejected_in_bounded_memory(tmp_path, options):
    path = tmp_path / "tasks.json.gz"
    path.write_bytes(gzip.compress(b" " * (10 << 20), 1) * 100)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="begins with more than 33,554,432 bytes of white space"):
            RecordSource(str(path), **options)
        assert tracemalloc.get_traced_memory()[1] < 5 * MAX_TASK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("source_format", ["array", "lines", "stream", "csv"])
def test_tasks_behind_much_white_space_are_read(tmp_path, source_format):
    path = tmp_path / "tasks.json"
    blank = b" \n" * 300_000
    path.write_bytes(blank + write_text(source_format, "a", "b"))
    begin = time.process_time()
    records = read_records(path)
    assert time.process_time() - begin < MAX_CPU_SECONDS
    assert [json.loads(record.body) for record in records] == [
        {"data": {"text": text}} if source_format == "csv" else {"text": text} for text in "ab"
    ]
    first_line = 300_002 if source_format == "csv" else 300_001
    assert records[0].location in (f"line {first_line}", f"byte {len(blank):,}", f"byte {len(blank) + 1:,}")


@pytest.mark.parametrize("in_array", [True, False])
def test_white_space_between_tasks_takes_no_memory(tmp_path, in_array):
    path = tmp_path / "tasks.json.gz"
    first, second = (b'[{"a": 1}', b',{"b": 2}]') if in_array else (b'{"a":\n1}', b'{"b": 2}')
    blank = gzip.compress(b"\n" * (10 << 20), 1) * 4
    path.write_bytes(gzip.compress(first) + blank + gzip.compress(second))
    tracemalloc.start()
    try:
        assert parse_bodies(read_records(path)) == [{"a": 1}, {"b": 2}]
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("source_format", FORMATS)
def test_oversized_record_fails_only_itself(tmp_path, monkeypatch, source_format):
    monkeypatch.setattr(json_records, "CHUNK", 4_096)
    large = "some text } { " * 20_000
    if source_format not in ("csv", "paths", "texts"):
        large = 'a "quoted" }, { brace and \\ ' * 20_000
    stream = io.BufferedReader(Pieces(write_text(source_format, "1", large, "3"), 4_096), 4_096)
    first, second, third = read(source_format, stream, 50_000)
    assert all(record.body and not record.problem for record in (first, third))
    assert [record.index for record in (first, second, third)] == [0, 1, 2]
    assert second.body == b""
    assert "50,000 is the most that lsml takes: split it, or keep media in files" in second.problem
    size = int(second.problem.split()[3].replace(",", ""))
    overhead = {"csv": 3, "paths": 0, "texts": 0}.get(source_format, len(json.dumps({"text": large})) - len(large))
    assert abs(size - len(large) - overhead) <= 2


@pytest.mark.parametrize("source_format", ["array", "lines", "stream"])
def test_limit_of_record_is_exact(source_format):
    fits = "a" * (300_000 - len('{"text": ""}') - (source_format == "lines"))  # a line's end belongs to it
    content = write_text(source_format, fits, f"{fits}a", "b")
    for piece_bytes in (100, CHUNK):
        records = list(read(source_format, io.BufferedReader(Pieces(content, piece_bytes), CHUNK), 300_000))
        assert [bool(record.body) for record in records] == [True, False, True]
        assert "300,001 bytes" in records[1].problem


def test_row_over_many_lines_is_limited(tmp_path):
    texts = ["text\n" * lines for lines in (1, 2_000, 2)]
    rows = "\n".join(f'{n},"{text}"' for n, text in enumerate(texts))
    path = tmp_path / "tasks.csv"
    path.write_text(f"id,text\n{rows}\n")
    with RecordSource(str(path), max_record_bytes=20_000) as source:
        records = list(source)
    assert [json.loads(record.body)["data"]["id"] for record in records if record.body] == ["0", "2"]
    assert "not closed within 20,000 bytes" in records[1].problem


# --- what lsml wrote itself


@pytest.fixture
def large_output(tmp_path, monkeypatch) -> list[str]:
    """A finished output whose first record is larger than a task may be; the second task failed."""
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    Path("outage").touch()
    small = json.dumps(make_task(2, do="fail while there is an outage"))
    task = json.dumps(make_task(1, padding=""))
    Path("tasks.jsonl").write_text(task.replace('""', f'"{"x" * (MAX_TASK_BYTES - len(task) - 1)}"') + f"\n{small}\n")
    options = ["--model", FLAKY, "--label-config", "config.xml", "--with", f"outage={Path('outage').absolute()}"]
    arguments = ["predict", "tasks.jsonl", *options, "-o", "out.jsonl", "--errors", "errors.jsonl"]
    assert run_in_process(*arguments).returncode == 3
    with Path("out.jsonl").open("rb") as file:
        assert len(file.readline()) > MAX_TASK_BYTES
    return arguments


def test_output_larger_than_task_is_read_again(large_output):
    Path("outage").unlink()
    retry = run_in_process(*large_output, "--retry-failed", "errors.jsonl")
    assert retry.returncode == 0, retry.stderr
    lines = Path("out.jsonl").read_bytes().splitlines()
    assert [predicted_choice(json.loads(line)) for line in lines] == ["short", "short"]
    ranked = run_in_process("rank", "out.jsonl", "--label-config", "config.xml", "-o", "ranked.jsonl")
    assert ranked.returncode == 0, ranked.stderr
    assert len(Path("ranked.jsonl").read_bytes().splitlines()) == 2


def test_error_file_without_lines_is_rejected_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    Path("tasks.json").write_text(json.dumps([make_task(1)]))
    Path("out.json").write_text("[]")
    Path("errors.gz").write_bytes(gzip.compress(b" " * (10 << 20), 1) * 20)
    tracemalloc.start()
    try:
        run = predict(run_in_process, "tasks.json", "-o", "out.json", "--retry-failed", "errors.gz")
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_TASK_BYTES
    finally:
        tracemalloc.stop()
    assert (run.returncode, "errors.gz, line 1 is no line of an error file." in run.stderr) == (1, True)


@pytest.mark.parametrize("shape", ["tasks", "predictions"])
def test_prediction_too_large_to_be_read_again_fails_its_task(monkeypatch, shape):
    config = LabelConfig.parse(models.TEXT_CONFIG)
    codec = BulkCodec(config, "model", None, shape, False, False)
    record = Record(0, "line 1", json.dumps(make_task(1)).encode())
    task, _ = codec.read(record)
    assert task is not None
    prediction = Prediction.of((config.only("Choices").region(task, {"choices": ["long"]}),), "model")
    body = codec.write(record, task, prediction)
    assert isinstance(body, bytes)
    monkeypatch.setattr(record_codec, "MAX_OUTPUT_RECORD_BYTES", len(body) - 1)
    result = codec.write(record, task, prediction)
    assert isinstance(result, OutputRecord)
    assert result.failure is not None
    assert f"{len(body) - 1} is the most that lsml reads again" in result.failure.reason
    assert len(result.body) < len(body)
