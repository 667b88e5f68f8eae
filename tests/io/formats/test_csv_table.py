"""CSV and TSV, written and read: Label Studio's own exports and Python's csv are the oracles."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsml_cli.io.formats.label_column import split_labels
from lsml_cli.io.task_reader import read_tasks
from lsml_cli.schema.annotations import select_annotated_tasks
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import UnreadableRecord
from tests.helpers.cli import run_in_process
from tests.helpers.convert import convert, read
from tests.helpers.regions import write_json

CONFIG = """<View><Text name="text" value="$text"/>
  <Choices name="topic" toName="text" choice="multiple"><Choice value="A" alias="a-alias"/><Choice value="B"/></Choices>
  <Rating name="stars" toName="text"/><TextArea name="note" toName="text"/></View>"""
LABELS = ("spam", "ham", "größe 😀", "a; b", "[1]", '{"x": 1}')


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(CONFIG)
    return tmp_path


def read_csv(path: Path | str, delimiter: str = ",") -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def choices_of(task: dict[str, Any]) -> list[list[str]]:
    return [region["value"]["choices"] for entry in task.get("annotations", []) for region in entry["result"]]


def make_region(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "from_name": name, "to_name": "text", "type": kind, "value": value}


# ---- out


@pytest.mark.parametrize(
    "name",
    ["image-choices", "image-ocr", "image-rectanglelabels", "text-choices", "text-choices-multi", "text-ner"],
)
def test_columns_and_cells_are_those_of_label_studio(tmp_path, shared_data, name):
    """The same bytes, but for the order of the annotations of one task."""
    folder = shared_data / "exports"
    convert(folder / f"{name}-json.json", "--to", "csv", "--annotation", "all", "-o", tmp_path / "out")
    mine, theirs = ((path).read_bytes() for path in (tmp_path / "out" / "tasks.csv", folder / f"{name}.csv"))
    assert sorted(mine.splitlines()) == sorted(theirs.splitlines())
    assert mine.splitlines()[0] == theirs.splitlines()[0]


def test_tsv_has_tabs(work):
    write_json(Path("tasks.json"), [{"id": 1, "data": {"text": "a\tb"}, "annotations": [{"id": 2, "result": []}]}])
    convert("tasks.json", "--to", "tsv", "-o", "out")
    (row,) = read_csv("out/tasks.tsv", "\t")
    assert (row["text"], row["id"]) == ("a\tb", "1")
    assert [path.name for path in Path("out").iterdir()] == ["tasks.tsv"]


def test_formulas_stay_what_they_are(work):
    """They are the user's data: Label Studio changes nothing either, and a reader gets back what was annotated."""
    texts = ["=1+1", "+1", "-1", "@x", "\t=1"]
    write_json(Path("tasks.json"), [{"data": {"text": text}, "annotations": [{"result": []}]} for text in texts])
    convert("tasks.json", "--to", "csv", "-o", "out")
    assert [row["text"] for row in read_csv("out/tasks.csv")] == texts


@pytest.mark.parametrize(("policy", "ids"), [("first", ["1"]), ("last", ["2"]), ("all", ["1", "2"])])
def test_annotators_have_a_row_each(work, policy, ids):
    annotations: list[dict[str, Any]] = [
        {"id": id, "completed_by": {"id": 7, "email": "a@b.c"}, "result": []} for id in (1, 2)
    ]
    write_json(Path("tasks.json"), [{"id": 5, "data": {"text": "x"}, "annotations": annotations}])
    convert("tasks.json", "--to", "csv", "-o", "out", "--annotation", policy)
    rows = read_csv("out/tasks.csv")
    assert [row["annotation_id"] for row in rows] == ids
    assert {row["annotator"] for row in rows} == {"a@b.c"}


def test_data_beside_a_control_of_the_same_name_is_kept(work):
    """Also where that control has no result in the row, and beside the columns of the annotation."""
    topic = make_region("topic", "choices", {"choices": ["B"]})
    data = {"text": "x", "topic": "from the data", "id": "z9", "lead_time": 3}
    tasks = [{"id": i, "data": data, "annotations": [{"id": i, "result": [topic][:i]}]} for i in (0, 1)]
    write_json(Path("tasks.json"), tasks)
    convert("tasks.json", "--to", "csv", "-o", "out")
    rows = read_csv("out/tasks.csv")
    assert [(row["topic"], row["_data_topic"], row["id"]) for row in rows] == [
        ("", "from the data", "0"),
        ("B", "from the data", "1"),
    ]
    (first, _) = read_tasks("out/tasks.csv", controls=["topic"])
    assert not isinstance(first, UnreadableRecord)
    assert first.data == {"text": "x", "topic": "from the data", "id": "z9", "lead_time": "3"}


def test_predictions_have_scores(work):
    write_json(
        Path("tasks.json"),
        [
            {
                "id": 3,
                "data": {"text": "x"},
                "predictions": [
                    {
                        "result": [make_region("topic", "choices", {"choices": ["B"]})],
                        "score": 0.5,
                        "model_version": "m",
                    }
                ],
            }
        ],
    )
    convert("tasks.json", "--to", "csv", "-o", "out", "--what", "predictions")
    assert read_csv("out/tasks.csv") == [{"id": "3", "text": "x", "topic": "B", "score": "0.5", "model_version": "m"}]
    options = ("--label-column", "topic", "--score-column", "score", "--what", "predictions")
    (task,) = read("out/tasks.csv", "--from", "csv", *options)
    assert task["predictions"][0]["score"] == 0.5
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["B"]}


def test_what_is_no_unicode_costs_its_task(work):
    Path("tasks.jsonl").write_text('{"data": {"text": "a"}, "annotations": [{"result": []}]}\n{"data": 5}\n')
    said = convert("tasks.jsonl", "--to", "csv", "-o", "out", code=3)
    assert "2 tasks, 1 written" in said


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["[1]", '{"a": 1}', '"', "\r\n"]
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            texts,
            st.lists(st.sampled_from(["a-alias", "B"]), max_size=2, unique=True),
            st.none() | st.lists(texts, min_size=1, max_size=3),
            st.none() | st.integers(1, 5),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["csv", "tsv"]),
)
def test_annotations_come_back(tmp_path_factory, entries, format):
    """Label Studio -> CSV -> the reader of exports: the same data, the same values."""
    folder = tmp_path_factory.mktemp("csv")
    config = LabelConfig.parse(CONFIG)
    tasks = []
    for i, (text, topics, notes, stars) in enumerate(entries, 1):
        result = [make_region("topic", "choices", {"choices": topics})] if topics else []
        result += [make_region("note", "textarea", {"text": notes})] if notes is not None else []
        result += [make_region("stars", "rating", {"rating": stars})] if stars is not None else []
        tasks.append({"id": i, "data": {"text": text}, "annotations": [{"id": 100 + i, "result": result}]})
    write_json(folder / "tasks.json", tasks)
    convert(folder / "tasks.json", "--to", format, "-o", folder / "out")
    rows = list(read_tasks(str(folder / "out" / f"tasks.{format}"), controls=config.controls))
    assert not any(isinstance(row, UnreadableRecord) for row in rows), rows
    selected, _ = select_annotated_tasks(rows, config, allow_empty=True)  # type: ignore[arg-type]
    assert [(example.task.id, example.task.data) for example in selected] == [
        (task["id"], task["data"]) for task in tasks
    ]
    for (_, annotation), task in zip(selected, tasks, strict=True):
        values = {region["from_name"]: region["value"] for region in annotation.result}
        assert values == {region["from_name"]: region["value"] for region in task["annotations"][0]["result"]}  # type: ignore[index]


# ---- in


def write_table(*rows: tuple[str, ...], path: str = "data.csv", delimiter: str = ",") -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def test_labels_become_annotations_and_a_config(work):
    write_table(("text", "label", "n"), ("Free =1+1,\nnow", "spam", "1"), ("", "ham", "2"), ("see you", "", "3"))
    tasks = read("data.csv", "--from", "csv", "--label-column", "label", "--label-config-out", "made.xml")
    assert [task["data"] for task in tasks] == [
        {"text": "Free =1+1,\nnow", "n": "1"},
        {"text": "", "n": "2"},
        {"text": "see you", "n": "3"},
    ]
    assert [choices_of(task) for task in tasks] == [[["spam"]], [["ham"]], []]
    assert "annotations" not in tasks[2]
    control = LabelConfig.load(Path("made.xml")).only("Choices")
    assert [label.name for label in control.labels] == ["ham", "spam"]
    assert control.is_single_choice


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("spam", ["spam"]),
        (" spam ", ["spam"]),
        ("a; b;a", ["a", "b"]),
        ('["a; b", "c"]', ["a; b", "c"]),
        ('{"choices": ["a", "b"]}', ["a", "b"]),
        ("[]", []),
        ("", None),
        (";", None),
        (None, None),
        ("[not json", ["[not json"]),
        (3, ["3"]),
        (["x"], ["x"]),
    ],
)
def test_cells_of_labels(cell, labels):
    assert split_labels(cell) == labels


def test_known_label_is_not_split():
    assert split_labels("a; b", {"a; b": None}) == ["a; b"]
    with pytest.raises(ValueError, match="neither a text nor a list"):
        split_labels("[1]")


def test_several_labels_need_a_multiple_choice(work):
    write_table(("text", "label"), ("x", "A;B"), ("y", "[]"))
    one, none = read("data.csv", "--from", "csv", "--label-column", "label", "--label-config-out", "made.xml")
    assert (choices_of(one), none["annotations"]) == ([["A", "B"]], [{"result": []}])
    assert not LabelConfig.load(Path("made.xml")).only("Choices").is_single_choice
    Path("single.xml").write_text(CONFIG.replace(' choice="multiple"', ""))
    run = run_in_process("convert", "data.csv", "--from", "csv", "--label-column", "label", "-c", "single.xml")
    assert (run.returncode, len(run.stdout.splitlines())) == (3, 1)
    assert "the row has 2 labels" in run.stderr


def test_given_config_names_its_labels(work):
    """By value or by alias; a control of the column's name is meant where several fit."""
    write_table(("text", "topic"), ("x", "A"), ("y", "a-alias"), ("z", "B"))
    two = CONFIG.replace("</View>", '<Choices name="other" toName="text"><Choice value="B"/></Choices></View>')
    Path("config.xml").write_text(two)
    tasks = read("data.csv", "--from", "csv", "--label-column", "topic", "-c", "config.xml")
    assert [choices_of(task) for task in tasks] == [[["a-alias"]], [["a-alias"]], [["B"]]]
    write_table(("text", "topic"), ("x", "Tree"))
    said = convert("data.csv", "--from", "csv", "--label-column", "topic", "-c", "config.xml", code=1)
    assert 'data.csv has classes that <Choices name="topic"> lacks: Tree.' in said


def test_bad_rows_cost_themselves(work):
    Path("data.csv").write_text('text,label,score\na,x,0.5\nb,y\nc,x,2\nd,[1],1\ne,y,\n"f\n')
    options = ("--label-column", "label", "--what", "predictions", "--score-column", "score")
    run = run_in_process("convert", "data.csv", "--from", "csv", *options)
    assert run.returncode == 3
    assert [json.loads(line)["data"]["text"] for line in run.stdout.splitlines()] == ["a", "e"]
    for sentence in ("2 fields, the header has 3", "the score is '2'", "neither a text", "never closed"):
        assert sentence in run.stderr


def test_image_paths_begin_at_the_tasks(work):
    Path("photos").mkdir()
    write_table(("file", "label"), ("a/1.jpg", "cat"), ("https://x/2.jpg", "dog"), path="photos/data.csv")
    tasks = read("photos/data.csv", "--from", "csv", "--label-column", "label", "--label-config-out", "made.xml")
    assert [task["data"] for task in tasks] == [{"file": "photos/a/1.jpg"}, {"file": "https://x/2.jpg"}]
    assert [obj.tag for obj in LabelConfig.load(Path("made.xml")).objects.values()] == ["Image"]
    write_table(("file", "label"), ("../1.jpg", "cat"), path="photos/data.csv")
    said = convert("photos/data.csv", "--from", "csv", "--label-column", "label", "-o", "tasks.json", code=3)
    assert "leads out of the data set" in said


@pytest.mark.parametrize("delimiter", ["\t", ";", ","])
def test_delimiter_is_seen_in_the_header(work, delimiter):
    write_table(("text", "label"), ("x", "A"), delimiter=delimiter)
    for format in ("csv", "tsv"):
        (task,) = read("data.csv", "--from", format, "--label-column", "label")
        assert (task["data"], choices_of(task)) == ({"text": "x"}, [["A"]])


@pytest.mark.parametrize(
    ("header", "options", "sentence"),
    [
        ("text,label", ("--from", "csv"), "Which column has the labels?"),
        ("text,label", ("--from", "csv", "--label-column", "lable"), "There is no column lable."),
        ("text,label", ("--label-column", "label"), "--label-column is about tables."),
        ("text,label", ("--from", "coco", "--label-column", "label"), "--label-column is about tables."),
        ("text,label", ("--from", "csv", "--label-column", "label", "--score-column", "text"), "about predictions"),
        ("title,body,label", ("--from", "csv", "--label-column", "label"), "Which column has the text or image?"),
        ("title,label", ("--from", "csv", "--label-column", "label", "-c", "config.xml"), "has no column text"),
        ("annotator,annotation_id,x", ("--from", "csv"), "An export of Label Studio is read without --from."),
    ],
)
def test_wrong_usage(work, header, options, sentence):
    write_table(tuple(header.split(",")), tuple("B" for _ in header.split(",")))
    said = convert("data.csv", *options, "-o", "tasks.json", code=2)
    assert sentence in said
    assert not Path("tasks.json").exists()


def test_column_without_labels_is_refused(work):
    write_table(("text", "label"), *((f"t{i}", f"l{i}") for i in range(1_002)))
    for config in ((), ("-c", "config.xml")):
        said = convert("data.csv", "--from", "csv", "--label-column", "label", *config, code=2)
        assert "more than 1,000 different labels" in said
    write_table(("text", "label"), ("a", ""))
    assert "there are no labels" in convert("data.csv", "--from", "csv", "--label-column", "label", code=2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(texts, st.lists(st.sampled_from(LABELS), max_size=3, unique=True)), min_size=1, max_size=6))
def test_labels_come_back_from_a_column(tmp_path_factory, entries):
    """Label Studio -> CSV -> tasks: the labels of the column, whatever they are spelled like."""
    folder = tmp_path_factory.mktemp("labels")
    region = {"id": "c", "from_name": "topic", "to_name": "text", "type": "choices"}
    write_json(
        folder / "tasks.json",
        [
            {
                "data": {"text": text},
                "annotations": [{"result": [{**region, "value": {"choices": labels}}] if labels else []}],
            }
            for text, labels in entries
        ],
    )
    labels_xml = "".join(f"<Choice value='{label.replace('&', '&amp;')}'/>" for label in LABELS)
    config = folder / "config.xml"
    config.write_text(
        f'<View><Text name="text" value="$text"/><Choices name="topic" toName="text" choice="multiple">{labels_xml}'
        "</Choices></View>"
    )
    convert(folder / "tasks.json", "--to", "csv", "-o", folder / "out", "-c", config)
    if not any(labels for _, labels in entries):
        return
    tasks = read(folder / "out" / "tasks.csv", "--from", "csv", "--label-column", "topic", "-c", config)
    assert [task["data"] for task in tasks] == [{"text": text} for text, _ in entries]
    assert [choices_of(task) for task in tasks] == [[labels] if labels else [] for _, labels in entries]
