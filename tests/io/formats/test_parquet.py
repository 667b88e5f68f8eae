"""Parquet, written and read: pyarrow and pandas are the oracles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsml_cli.schema.label_config import LabelConfig
from tests.helpers.cli import run_in_process
from tests.helpers.convert import convert, read
from tests.helpers.models import TEXT_CONFIG
from tests.helpers.regions import make_box, write_json

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CONFIG = """<View><Text name="text" value="$text"/>
  <Choices name="topic" toName="text" {}><Choice value="A"/><Choice value="B; C"/></Choices>
  <Rating name="stars" toName="text"/><TextArea name="note" toName="text"/></View>"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(CONFIG.format('choice="multiple"'))
    Path("single.xml").write_text(CONFIG.format(""))
    return tmp_path


def make_region(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "from_name": name, "to_name": "text", "type": kind, "value": value}


def make_task(text: Any, *regions: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "data": {"text": text, **data},
        "annotations": [{"id": 2, "completed_by": 3, "result": [*regions]}],
    }


def topic(*labels: str) -> dict[str, Any]:
    return make_region("topic", "choices", {"choices": list(labels)})


def to_table(*tasks: dict[str, Any], options: tuple[str, ...] = ()) -> Any:
    write_json(Path("tasks.json"), list(tasks))
    convert("tasks.json", "--to", "parquet", "-o", "out", *options)
    assert [path.name for path in Path("out").iterdir()] == ["tasks.parquet"]
    return pq.read_table("out/tasks.parquet")


def test_columns_have_types(work):
    note, stars = make_region("note", "textarea", {"text": ["é\n"]}), make_region("stars", "rating", {"rating": 4})
    table = to_table(
        make_task("x", topic("A"), note, stars, n=1, share=1, tags=["a"], meta={"k": 1}),
        make_task("y", n=2, share=0.5, tags=[], meta={"other": [1]}),
    )
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "text": "string",
        "n": "int64",
        "share": "double",
        "tags": "list<element: string>",
        "meta": "string",
        "annotator": "string",
        "annotation_id": "int64",
        "created_at": "string",
        "updated_at": "string",
        "lead_time": "double",
        "id": "int64",
        "topic": "string",
        "note": "string",
        "stars": "int64",
    }
    first, second = table.to_pylist()
    assert (first["topic"], first["note"], first["stars"], first["meta"]) == ("A", "é\n", 4, '{"k":1}')
    assert (second["topic"], second["note"], second["stars"]) == (None, None, None)


@pytest.mark.parametrize(
    ("options", "labels", "expected"),
    [
        ((), (["A"], []), ["A", None]),
        (("-c", "single.xml"), (["A"], []), ["A", None]),
        (("-c", "config.xml"), (["A"], []), [["A"], []]),
        ((), (["A", "B; C"], ["A"]), [["A", "B; C"], ["A"]]),
    ],
)
def test_choices_are_lists_where_several_are_allowed(work, options, labels, expected):
    table = to_table(*(make_task("x", *([topic(*chosen)] if chosen else [])) for chosen in labels), options=options)
    assert table.column("topic").to_pylist() == expected


def test_regions_are_structs(work):
    table = to_table(
        {"data": {"image": "a.jpg"}, "annotations": [{"result": [make_box(1, 2, 3, 4), make_box(1.5, 2, 3, 4)]}]},
        {"data": {"image": "b.jpg"}, "annotations": [{"result": []}]},
    )
    first, second = table.column("box").to_pylist()
    assert [(box["x"], box["rectanglelabels"], box["original_width"]) for box in first] == [
        (1.0, ["Car"], 640),
        (1.5, ["Car"], 640),
    ]
    assert second == []


def test_values_without_a_common_type_are_json(work):
    values = [1, "x", None, [1], True, 2**70, [], "é"]
    table = to_table(*(make_task("x", odd=value) for value in values))
    assert table.column("odd").to_pylist()[:5] == ["1", "x", None, "[1]", "true"]


def test_types_agree_across_groups_of_rows(work):
    """The first thousand rows do not decide."""
    tasks = [make_task("x", n=i) for i in range(1_500)] + [make_task("x", n=0.5, late=[{"a": 1}])]
    table = to_table(*tasks)
    assert str(table.schema.field("n").type) == "double"
    assert table.column("n").to_pylist()[-2:] == [1499.0, 0.5]
    assert table.column("late").to_pylist()[-2:] == [None, '[{"a":1}]']
    assert pq.ParquetFile("out/tasks.parquet").num_row_groups == 2


def test_pandas_reads_the_same(work):
    pandas = pytest.importorskip("pandas")
    to_table(make_task("größe 😀", topic("A")), make_task("", topic("B; C")))
    frame = pandas.read_parquet("out/tasks.parquet")
    assert frame["text"].tolist() == ["größe 😀", ""]
    assert frame["topic"].tolist() == ["A", "B; C"]


def test_nothing_to_write_is_an_empty_table(work):
    assert to_table({"data": {"text": "x"}, "annotations": []}).num_rows == 0


def test_predictions_have_scores(work):
    prediction = {"result": [topic("A")], "score": 0.5, "model_version": "m"}
    task = {"id": 1, "data": {"text": "x"}, "predictions": [prediction]}
    (row,) = to_table(task, options=("--what", "predictions")).to_pylist()
    assert row == {"id": 1, "text": "x", "topic": "A", "score": 0.5, "model_version": "m"}
    options = ("--label-column", "topic", "--score-column", "score", "--what", "predictions")
    (back,) = read("out/tasks.parquet", "--from", "parquet", *options)
    assert (back["predictions"][0]["score"], back["predictions"][0]["result"][0]["value"]) == (0.5, {"choices": ["A"]})


# ---- in


def write_table(path: str = "data.parquet", metadata: Any = None, **columns: Any) -> None:
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, row_group_size=2)


def choices_of(task: dict[str, Any]) -> list[list[str]] | None:
    if "annotations" not in task:
        return None
    return [region["value"]["choices"] for entry in task["annotations"] for region in entry["result"]]


def test_labels_become_annotations(work):
    write_table(text=["a", "", "c"], label=["x", None, "y"], n=[1.5, float("nan"), None])
    options = ("--from", "parquet", "--label-column", "label", "--label-config-out", "made.xml")
    tasks = read("data.parquet", *options)
    assert [task["data"] for task in tasks] == [
        {"text": "a", "n": 1.5},
        {"text": "", "n": None},
        {"text": "c", "n": None},
    ]
    assert [choices_of(task) for task in tasks] == [[["x"]], None, [["y"]]]
    assert LabelConfig.load(Path("made.xml")).only("Choices").is_single_choice


def test_lists_of_labels_are_several_choices(work):
    write_table(text=["a", "b", "c"], label=[["x", "y; z"], [], None])
    tasks = read("data.parquet", "--from", "parquet", "--label-column", "label")
    assert [choices_of(task) for task in tasks] == [[["x", "y; z"]], [], None]


def test_class_labels_of_datasets_have_names(work):
    feature = {"_type": "ClassLabel", "names": ["neg", "pos"]}
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature, "text": {"_type": "Value"}}}})}
    write_table(metadata=metadata, text=["a", "b", "c"], label=[1, 0, -1])
    tasks = read("data.parquet", "--from", "parquet", "--label-column", "label")
    assert [choices_of(task) for task in tasks] == [[["pos"]], [["neg"]], None]


def test_columns_of_bytes_are_left_out(work):
    write_table(text=["a"], image=[{"bytes": b"x", "path": "a.jpg"}], label=["x"])
    run = run_in_process("convert", "data.parquet", "--from", "parquet", "--label-column", "label")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["data"] == {"text": "a"}
    assert "Columns of bytes are left out, since a task points to files: image." in run.stderr


def test_damaged_group_of_rows_costs_itself(work):
    write_table(text=[f"{i} {'x' * 50}" for i in range(6)], label=["A", "B"] * 3)
    content = bytearray(Path("data.parquet").read_bytes())
    offset = pq.ParquetFile("data.parquet").metadata.row_group(1).column(0).dictionary_page_offset
    content[offset : offset + 20] = bytes(20)
    Path("data.parquet").write_bytes(content)
    run = run_in_process("convert", "data.parquet", "--from", "parquet", "--label-column", "label")
    assert run.returncode == 3
    assert [json.loads(line)["data"]["text"][0] for line in run.stdout.splitlines()] == ["0", "1", "4", "5"]
    assert "rows 3 to 4 cannot be read" in run.stderr


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text,label\na,b\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet(work, content):
    Path("data.parquet").write_bytes(content)
    said = convert("data.parquet", "--from", "parquet", "--label-column", "label", "-o", "tasks.json", code=1)
    assert "is no Parquet that can be read" in said


def test_missing_package_is_named(work, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write_json(Path("tasks.json"), [make_task("x")])
    said = convert("tasks.json", "--to", "parquet", "-o", "out", code=2)
    assert "Parquet needs the package pyarrow." in said
    assert "lsml[parquet]" in said


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(texts, st.lists(st.sampled_from(["A", "B; C"]), unique=True), st.integers(-(2**63), 2**63 - 1)),
        min_size=1,
        max_size=6,
    ).filter(lambda entries: any(labels for _, labels, _ in entries))
)
def test_round_trip(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("parquet")
    write_json(
        folder / "tasks.json",
        [
            {"data": {"text": text, "n": number}, "annotations": [{"result": [topic(*labels)] if labels else []}]}
            for text, labels, number in entries
        ],
    )
    (folder / "config.xml").write_text(CONFIG.format('choice="multiple"'))
    config = ("-c", folder / "config.xml")
    convert(folder / "tasks.json", "--to", "parquet", "-o", folder / "out", *config)
    options = ("--from", "parquet", "--label-column", "topic")
    tasks = read(folder / "out" / "tasks.parquet", *options, *config)
    assert [(task["data"]["text"], task["data"]["n"]) for task in tasks] == [(text, n) for text, _, n in entries]
    assert [choices_of(task) for task in tasks] == [[labels] if labels else [] for _, labels, _ in entries]


def test_rows_are_predicted_as_tasks(work):
    write_table(text=["a", "bb", "ccc"], label=["x", None, "y"], n=[1, 2, 3])
    Path("model.py").write_text(
        "from lsml_cli import Model, Prediction\n"
        "class Length(Model):\n"
        "    def forward(self, inputs, binding):\n"
        "        return [len(task.data['text']) / 10 for task in inputs]\n"
        "    def decode(self, output, task, binding):\n"
        "        control = binding.config.only('Choices')\n"
        "        return Prediction.of([control.region(task, {'choices': ['short']}, score=output)], self.version)\n"
    )
    Path("config.xml").write_text(TEXT_CONFIG)
    run = run_in_process("predict", "data.parquet", "--from", "parquet", "-m", "model.py", "-c", "config.xml")
    assert run.returncode == 0, run.stderr
    tasks = [json.loads(line) for line in run.stdout.splitlines()]
    assert [task["data"] for task in tasks] == [
        {"text": "a", "label": "x", "n": 1},
        {"text": "bb", "label": None, "n": 2},
        {"text": "ccc", "label": "y", "n": 3},
    ]
    assert [task["predictions"][0]["score"] for task in tasks] == [0.1, 0.2, 0.3]
    assert "annotations" not in tasks[0]
    refused = run_in_process("predict", "none.parquet", "--from", "parquet", "-m", "model.py", "-c", "config.xml")
    assert (refused.returncode, refused.stdout) == (2, "")
