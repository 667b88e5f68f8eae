"""Read CSV and TSV: one record per row, whatever the quotes are like."""

from __future__ import annotations

import csv
import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsml_cli.io import csv_records
from lsml_cli.io.task_reader import read_tasks
from lsml_cli.schema.tasks import Task, UnreadableRecord
from tests.helpers.records import REUSES_FILE, parse_bodies, read_records


def test_quoted_word_is_csv_header(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text('"text"\n"a"\n\n"b"\n')
    assert parse_bodies(read_records(path)) == [{"data": {"text": "a"}}, {"data": {"text": "b"}}]


def test_csv_quotes_line_breaks_and_id_column(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text('id,text\n7,"one, ""two""\nthree"\n8,\n', encoding="utf-8-sig")
    assert parse_bodies(read_records(path)) == [
        {"data": {"id": "7", "text": 'one, "two"\nthree'}},
        {"data": {"id": "8", "text": ""}},
    ]
    tasks = list(read_tasks(str(path), id_column="id"))
    assert [task.id for task in tasks if isinstance(task, Task)] == [7, 8]


@given(
    rows=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text("ab,;\t\"'\n ")), min_size=1),
    delimiter=st.sampled_from(",;\t"),
)
@settings(max_examples=80, **REUSES_FILE)
def test_csv_round_trip(tmp_path, rows, delimiter):
    path = tmp_path / "tasks.txt"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "note"), *rows])
    assert [(task["data"]["text"], task["data"]["note"]) for task in parse_bodies(read_records(path))] == rows


def test_bad_csv_rows_fail_only_themselves(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_bytes(b"id\ttext\n1\tgood\n2\n3\tl\xe4tin\nx\tgood\n")
    records = read_records(path, id_column="id")
    assert [record.location for record in records] == ["line 2", "line 3", "line 4", "line 5"]
    assert [record.problem for record in records] == [
        "",
        "this row has 1 fields, the header has 2",
        "this row is not UTF-8 text: convert the file first, for example with iconv",
        "",
    ]
    *_, last = read_tasks(str(path), id_column="id")
    assert isinstance(last, UnreadableRecord)
    assert last.reason == "the id under \"id\" is 'x', expected a whole number"


UNDOUBLED = "this row is not CSV: a quote inside of a quoted field has to be doubled"
NEVER_CLOSED = "a quote that is opened here is never closed"


@pytest.mark.parametrize(
    ("rows", "expected_records"),
    [
        ('2,"he said "hi" to me"\n3,c\n', [(2, UNDOUBLED), (3, "3")]),
        ('2,"never closed\n3,c\n4,d\n', [(2, NEVER_CLOSED), (3, "3"), (4, "4")]),
        ('2,"never closed\n3,c\n4,"d"\n5,"e\nf"\n', [(2, UNDOUBLED), (3, "3"), (4, "4"), (5, "5")]),
        ('2,"one\n3,"two\n4,d', [(2, UNDOUBLED), (3, NEVER_CLOSED), (4, "4")]),
        ('2,b\n\n3,"c', [(2, "2"), (4, NEVER_CLOSED)]),
        ("2,b\0\n3,c\rd\n4,e", [(2, "2"), (3, "this row is not CSV: a carriage return stands"), (4, "4")]),
    ],
)
def test_invalid_csv_quoting_fails_one_row(tmp_path, rows, expected_records):
    path = tmp_path / "tasks.csv"
    path.write_bytes(f"id,text\n{rows}".encode())
    records = read_records(path)
    assert [record.index for record in records] == list(range(len(expected_records)))
    assert not any(record.truncated for record in records)
    assert [record.location for record in records] == [f"line {line}" for line, _ in expected_records]
    for record, (_, expected) in zip(records, expected_records, strict=True):
        assert (
            record.problem.startswith(expected) if record.problem else json.loads(record.body)["data"]["id"] == expected
        )


def test_unclosed_quote_is_reread_in_flat_memory(tmp_path, monkeypatch):
    path = tmp_path / "tasks.csv"
    large = f'2,"{"b" * 30_000}"\n'
    path.write_text('id,text\n0,"open\n1,a\n' + large + "".join(f"{n},text {n}\n" for n in range(3, 3_000)))
    max_held_bytes = 0
    start_row = csv_records._RewindableLines.start_row

    def watch(lines):
        nonlocal max_held_bytes
        max_held_bytes = max(max_held_bytes, sum(map(len, [*lines.row_lines, *lines._pending])))
        start_row(lines)

    monkeypatch.setattr(csv_records._RewindableLines, "start_row", watch)
    records = read_records(path, max_record_bytes=20_000)
    assert len(records) == 3_000
    assert [record.index for record in records if record.problem] == [0, 2]
    assert [record.location for record in records] == [f"line {n + 2}" for n in range(3_000)]
    assert "30,005 bytes" in records[2].problem
    assert max_held_bytes < 20_100
    path.write_text('id,text\n0,"open\n' + "".join(f"{n},text {n}\n" for n in range(1, 3_000)))
    assert [record.problem for record in read_records(path, max_record_bytes=20_000) if record.problem] == [
        "a quote that is opened here is not closed within 20,000 bytes, the limit of a row"
    ]


@pytest.mark.parametrize("cut", [3_000, 3_003, 3_008])
def test_truncated_csv_drops_last_row(tmp_path, cut):
    content = b"id,text\n" + b"".join(b'%d,"a\nb %d c"\n' % (n, n) for n in range(1_000))
    path = tmp_path / "tasks.csv.gz"
    compressor = zlib.compressobj(wbits=31)
    path.write_bytes(compressor.compress(content[:cut]) + compressor.flush(zlib.Z_SYNC_FLUSH))
    *records, last = read_records(path)
    assert "the gzip data is cut off" in last.problem
    assert last.truncated
    for n, record in enumerate(records):
        if not record.problem:
            assert json.loads(record.body) == {"data": {"id": f"{n}", "text": f"a\nb {n} c"}}
    assert len(records) > 100


def test_export_rows_stay_flat(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text('"annotation_id","annotator","data","id"\n6,"1","b",17\n')
    assert parse_bodies(read_records(path)) == [{"annotation_id": "6", "annotator": "1", "data": "b", "id": "17"}]
