"""JSON Lines of texts with spans, written and read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsml_cli.io.foreign_formats import find_format
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from tests.helpers.cli import run_in_process
from tests.helpers.convert import convert, read
from tests.helpers.text_spans import (
    SPANS_CONFIG,
    make_span,
    make_text_task,
    spans_of,
    text_tasks,
    write_tasks,
)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(SPANS_CONFIG)
    return tmp_path


def to_lines(*tasks: dict[str, Any], options: tuple[str, ...] = ("-c", "config.xml")) -> list[dict[str, Any]]:
    write_tasks(Path("tasks.json"), list(tasks))
    convert("tasks.json", "--to", "spans-jsonl", "-o", "out", *options)
    return [json.loads(line) for line in Path("out/spans.jsonl").read_bytes().splitlines()]


def test_everything_is_written(work):
    """Spans that overlap, several labels, white space at the ends, the other data; offsets in code points."""
    task = make_text_task("😀 Anna Lee", (2, 10, "PER", "ORG"), (1, 6, "PER"), id=7)
    task["data"]["source"] = {"page": 3}
    (line,) = to_lines(task)
    assert line == {
        "text": "😀 Anna Lee",
        "spans": [
            {"start": 1, "end": 6, "label": "PER", "control": "ner"},
            {"start": 2, "end": 10, "label": "PER", "control": "ner"},
            {"start": 2, "end": 10, "label": "ORG", "control": "ner"},
        ],
        "id": 7,
        "meta": {"source": {"page": 3}},
    }


def test_predictions_have_scores(work):
    text = "Anna Bob"
    result = [make_span(text, 0, 4, score=0.9), make_span(text, 5, 8, score=0.2)]
    write_tasks(Path("tasks.json"), [{"data": {"text": text}, "predictions": [{"result": result, "score": 0.55}]}])
    convert("tasks.json", "--to", "spans-jsonl", "-o", "out", "--what", "predictions")
    (line,) = map(json.loads, Path("out/spans.jsonl").read_text().splitlines())
    assert [span["score"] for span in line["spans"]] == [0.9, 0.2]
    (task,) = read("out", "--what", "predictions", "--from", "spans-jsonl")
    assert [region["score"] for region in task["predictions"][0]["result"]] == [0.9, 0.2]
    (task,) = read("out")  # recognised
    assert not any("score" in region for region in task["annotations"][0]["result"])


def test_each_text_of_a_task_is_a_line(work):
    Path("two.xml").write_text("""<View><Text name="q" value="$question"/><Text name="a" value="$answer"/>
      <Labels name="ner" toName="q"><Label value="PER"/></Labels>
      <Labels name="other" toName="a"><Label value="PER"/></Labels></View>""")
    region = make_span("Anna?", 0, 4)
    data = {"question": "Anna?", "answer": "Bob."}
    task = {"id": 1, "data": data, "annotations": [{"id": 1, "result": [region | {"to_name": "q"}]}]}
    question, answer = to_lines(task, options=("-c", "two.xml"))
    assert (question["text"], len(question["spans"]), question["meta"]) == ("Anna?", 1, {"answer": "Bob."})
    assert (answer["text"], answer["spans"]) == ("Bob.", [])
    convert("tasks.json", "--to", "spans-jsonl", "-o", "one", "-c", "two.xml", "--data-key", "answer")
    assert len(Path("one/spans.jsonl").read_text().splitlines()) == 1


TWO_CONTROLS = """<View><Text name="text" value="$text"/>
  <Labels name="ner" toName="text"><Label value="PER"/></Labels>
  <Labels name="role" toName="text"><Label value="PER"/><Label value="Boss"/></Labels></View>"""


@pytest.mark.parametrize("options", [("-c", "two.xml"), ()])
def test_spans_go_to_the_controls_that_they_name(work, options):
    Path("two.xml").write_text(TWO_CONTROLS)
    task = make_text_task("Anna Lee", (0, 4, "PER"))
    task["annotations"][0]["result"].append(make_span("Anna Lee", 0, 8, "PER", "Boss", from_name="role"))
    to_lines(task, options=("-c", "two.xml"))
    convert("out", "-o", "back.json", "--label-config-out", "made.xml", *options)
    (back,) = json.loads(Path("back.json").read_text())
    found = [(region["from_name"], *region["value"]["labels"]) for region in back["annotations"][0]["result"]]
    assert found == [("ner", "PER"), ("role", "PER"), ("role", "Boss")]
    made = LabelConfig.load(Path("made.xml"))
    assert {name: len(control.labels) for name, control in made.controls.items()} == {"ner": 1, "role": 2}


@pytest.mark.parametrize("name", ["text", '"><x', "label", "a b"])
def test_odd_names_of_controls(work, name):
    spans = [{"start": 0, "end": 1, "label": "x", "control": name}]
    Path("data.jsonl").write_text(json.dumps({"text": "a", "spans": spans}) + "\n")
    (task,) = read("data.jsonl")
    assert spans_of(task) == [(0, 1, "x")]


def test_too_many_controls_are_refused(work):
    spans = [{"start": 0, "end": 1, "label": "x", "control": str(i)} for i in range(101)]
    Path("data.jsonl").write_text(json.dumps({"text": "a", "spans": spans}) + "\n")
    said = convert("data.jsonl", "--from", "spans-jsonl", "-o", "tasks.json", code=1)
    assert "names more than 100 controls" in said


def test_what_is_made_is_accepted(work, shared_data):
    """By the rules of Label Studio's import, with the label config that is made for it."""
    convert(shared_data / "wnut17" / "dev.json", "--to", "spans-jsonl", "-o", "out")
    convert("out", "-o", "tasks.json", "--what", "predictions", "--label-config-out", "made.xml")
    config = LabelConfig.load(Path("made.xml"))
    for task in json.loads(Path("tasks.json").read_text()):
        assert config.check(Prediction.from_json(task["predictions"][0]), task["data"]) is None


@pytest.mark.parametrize(
    "entry",
    [
        {"text": "Anna Lee", "spans": [{"start": 0, "end": 4, "label": "PER"}]},
        {"text": "Anna Lee", "spans": [{"start": 0, "end": 4, "label": "PER", "text": "Anna", "token_start": 0}]},
        {"text": "Anna Lee", "label": [[0, 4, "PER"]]},
        {"text": "Anna Lee", "entities": [[0, 4, "PER"]]},
        {"text": "Anna Lee", "entities": [{"id": 3, "label": "PER", "start_offset": 0, "end_offset": 4}]},
    ],
)
def test_spellings_of_spans(work, entry):
    Path("data.jsonl").write_text(json.dumps({"text": "no one", next(iter(entry.keys() - {"text"})): []}) + "\n")
    with Path("data.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    assert find_format("data.jsonl") == "spans-jsonl"
    empty, task = read("data.jsonl")
    assert (task["data"], spans_of(task)) == ({"text": "Anna Lee"}, [(0, 4, "PER")])
    assert spans_of(empty) == []
    Path("data.json").write_text(json.dumps([entry]))
    (task,) = read("data.json", "--from", "spans-jsonl")
    assert spans_of(task) == [(0, 4, "PER")]


@pytest.mark.parametrize(
    "entry",
    [
        {"data": {"text": "a"}, "annotations": []},
        {"text": "a", "label": ["x"]},
        {"text": "a", "label": []},
        {"text": "Anna", "annotation_id": 1, "label": [{"start": 0, "end": 4, "text": "Anna", "labels": ["PER"]}]},
        {"text": "a", "spans": [{"start": 0, "end": 1, "label": "x"}], "annotations": [1]},
    ],
)
def test_tasks_are_not_taken_for_spans(work, entry):
    Path("data.jsonl").write_text(json.dumps(entry) + "\n")
    assert find_format("data.jsonl") is None


def test_other_fields_become_data(work):
    Path("data.jsonl").write_text('{"id": 5, "body": "Anna", "meta": {"page": 3}, "spans": [[0, 4, "PER"]]}\n')
    (task,) = read("data.jsonl", "--from", "spans-jsonl", "--data-key", "body")
    assert task["data"] == {"id": 5, "body": "Anna", "page": 3}


def test_text_without_spans_is_not_labelled(work):
    Path("data.jsonl").write_text('{"text": "a"}\n{"text": "b", "spans": [[0, 1, "PER"]]}\n')
    unlabelled, labelled = read("data.jsonl", "--from", "spans-jsonl")
    assert "annotations" not in unlabelled
    assert spans_of(labelled) == [(0, 1, "PER")]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"text": "a", "spans": [[0, 2, "PER"]]}, "a span is at 0..2, and the text has 1 characters"),
        ({"text": "a", "spans": [[-1, 1, "PER"]]}, "a span is at -1..1"),
        ({"text": "a", "spans": [[1, 1, "PER"]]}, "a span is at 1..1"),
        ({"text": "a", "spans": [[0.5, 1, "PER"]]}, "no start and end that are whole numbers"),
        ({"text": "a", "spans": [[True, 1, "PER"]]}, "no start and end that are whole numbers"),
        ({"text": "a", "spans": [{"start": 0, "end": 1}]}, "a span has no label"),
        ({"text": "a", "spans": [{"start": 0, "end": 1, "label": 5}]}, "a span has no label"),
        ({"text": "a", "spans": ["PER"]}, 'a span is "PER", and neither an object nor [start, end, label]'),
        ({"text": "😀 ok", "spans": [{"start": 3, "end": 5, "text": "ok", "label": "x"}]}, "in which an emoji is one"),
        ({"spans": []}, 'it has no "text"'),
        ({"text": "a\0", "spans": []}, "a NUL character"),
        ({"text": "a", "spans": [{"start": 0, "end": 1, "label": "PER", "score": 7}]}, "a score is 7.0"),
    ],
)
def test_bad_line_costs_itself(work, entry, reason):
    good = json.dumps({"text": "Anna", "spans": [[0, 4, "PER"]]})
    Path("data.jsonl").write_text(f"{good}\n{json.dumps(entry)}\n{good}\n")
    args = ("convert", "data.jsonl", "--from", "spans-jsonl", "-o", "tasks.json", "--what", "predictions")
    run = run_in_process(*args)
    assert run.returncode == 3
    assert reason in run.stderr
    assert "line 2" in run.stderr
    assert len(json.loads(Path("tasks.json").read_text())) == 2


def test_compressed_file_is_read_and_a_pipe_is_not(work):
    Path("data.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Anna", "spans": [[0, 4, "PER"]]}\n'))
    (task,) = read("data.jsonl.gz", "--from", "spans-jsonl")
    assert spans_of(task) == [(0, 4, "PER")]
    said = convert("-", "--from", "spans-jsonl", "-o", "tasks.json", code=2)
    assert "A data set is not read from standard input." in said


def test_what_is_no_json_is_refused(work):
    Path("data.csv").write_text("text,label\na,b\n")
    said = convert("data.csv", "--from", "spans-jsonl", "-o", "tasks.json", code=1)
    assert "data.csv is no JSON." in said


@settings(max_examples=60, deadline=None)
@given(st.lists(text_tasks(), min_size=1, max_size=3))
def test_round_trip(tmp_path_factory, tasks):
    """Every text and every span come back as they were."""
    folder = tmp_path_factory.mktemp("spans")
    config = folder / "config.xml"
    config.write_text(SPANS_CONFIG)
    convert(write_tasks(folder / "tasks.json", tasks), "--to", "spans-jsonl", "-o", folder / "out", "-c", config)
    back = read(folder / "out", "-c", str(config), "--from", "spans-jsonl")
    assert [(task["data"]["text"], spans_of(task)) for task in back] == [
        (task["data"]["text"], spans_of(task)) for task in tasks
    ]
    for task in back:
        for region in task["annotations"][0]["result"]:
            value = region["value"]
            assert value["text"] == task["data"]["text"][value["start"] : value["end"]]


def test_real_export_comes_back(work, shared_data):
    for name in ("text-ner-json.json", "text-ner-snapshot-json.json"):
        convert(shared_data / "exports" / name, "--to", "spans-jsonl", "-o", name)
        tasks = json.loads((shared_data / "exports" / name).read_text())
        back = read(f"{name}/spans.jsonl", "--from", "spans-jsonl")
        tasks = [task for task in tasks if task["annotations"]]
        assert [spans_of(task) for task in back] == [spans_of(task) for task in tasks]
        assert any(map(spans_of, back))
