"""Data sets as input of `lsml predict`, `fit` and `evaluate`: the same readers as in `lsml convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import models, trainable_models
from tests.helpers.cli import run_in_process
from tests.helpers.regions import write_image, write_json

MEAN_BOX = f"{trainable_models.__file__}:MeanBox"
SHADES = f"{trainable_models.__file__}:Shades"
BRIGHTNESS = f"{models.__file__}:Brightness"
CONFIG = """<View><Image name="photo" value="$image"/>
  <RectangleLabels name="box" toName="photo"><Label value="Car"/><Label value="Tree"/></RectangleLabels></View>"""
COUNT = 12
CASES = [
    ("coco", "coco"),
    ("coco", "coco/instances.json"),
    ("yolo", "yolo"),
    ("yolo", "yolo/data.yaml"),
    ("voc", "voc"),
]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with the same cars in three formats: a box of 20 x 10 pixels in images of 100 x 50."""
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(CONFIG)
    for i in range(COUNT):
        for folder in ("coco/images", "yolo/images", "voc/JPEGImages"):
            write_image(Path(f"{folder}/{i}.jpg"), (100, 50), shade=i)
    write_json(
        Path("coco/instances.json"),
        {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 50} for i in range(COUNT)],
            "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 5, 20, 10]} for i in range(COUNT)],
            "categories": [{"id": 1, "name": "Car"}],
        },
    )
    Path("yolo/labels").mkdir()
    Path("yolo/data.yaml").write_text("train: images\nval: images\nnames: [Car]\n")
    Path("voc/Annotations").mkdir()
    box = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>15</ymax></bndbox>"
    for i in range(COUNT):
        Path(f"yolo/labels/{i}.txt").write_text("0 0.2 0.2 0.2 0.2\n")
        size = "<size><width>100</width><height>50</height></size>"
        Path(f"voc/Annotations/{i}.xml").write_text(
            f"<annotation><filename>{i}.jpg</filename>{size}<object><name>Car</name>{box}</object></annotation>"
        )
    return tmp_path


def run(*args: str, code: int = 0) -> Any:
    finished = run_in_process(*args)
    assert finished.returncode == code, finished.stderr
    return finished


@pytest.mark.parametrize(("name", "path"), CASES)
@pytest.mark.parametrize("is_named", [True, False])
def test_fit_and_evaluate(work, name, path, is_named):
    """The label config is made for the data set; with the version it is the same one later."""
    named = ("--from", name) if is_named else ()
    run("fit", path, *named, "--model", MEAN_BOX, "-o", "model", "--summary", "fit.json")
    summary = json.loads(Path("fit.json").read_text())
    assert summary["metrics"]["label"]["map50"] == 1.0
    version = f"{MEAN_BOX}@model"
    run("evaluate", path, *named, "--model", version, "--include-trained", "--json", "all.json")
    assert json.loads(Path("all.json").read_text())["tasks"] == COUNT


def test_given_config_decides(work):
    run("fit", "coco", "--model", MEAN_BOX, "-c", "config.xml", "-o", "model")
    (task,) = json.loads(
        "["
        + ",".join(
            run("predict", "coco/instances.json", "--model", f"{MEAN_BOX}@model", "--limit", "1").stdout.splitlines()
        )
        + "]"
    )
    (region,) = task["predictions"][0]["result"]
    assert (region["from_name"], region["to_name"], region["value"]["rectanglelabels"]) == ("box", "photo", ["Car"])
    assert task["data"] == {"image": "coco/images/0.jpg"}
    assert "annotations" not in task


def test_config_without_a_class_is_refused(work):
    Path("config.xml").write_text(CONFIG.replace("Car", "Boat"))
    said = run("fit", "coco", "--model", MEAN_BOX, "-c", "config.xml", "-o", "model", code=1).stderr
    assert 'COCO has classes that <RectangleLabels name="box"> lacks: Car.' in said
    assert not Path("model").exists()


@pytest.mark.parametrize(("name", "path"), CASES)
def test_predict_needs_images_alone(work, name, path):
    """The labels of the data set need not fit the label config of the model; the key is that of its image."""
    Path("config.xml").write_text(models.IMAGE_CONFIG)
    for i in range(COUNT):
        for folder in ("coco/images", "yolo/images", "voc/JPEGImages"):
            Path(f"{folder}/{i}.jpg").write_bytes(b"P5\n2 2\n255\n" + bytes([200] * 4))
    if name == "yolo":  # whose boxes are shares of a size, which these have
        for i in range(COUNT):
            Path(f"yolo/labels/{i}.txt").write_text("")
    words = ("--from", name, "--model", BRIGHTNESS, "-c", "config.xml", "-o", "out.jsonl")
    run("predict", path, *words)
    records = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(records) == COUNT
    assert {record["predictions"][0]["result"][0]["value"]["choices"][0] for record in records} == {"bright"}
    assert {len(record["data"]) for record in records} == {1}


def test_resumed_run_gives_the_same_bytes(work):
    run("fit", "coco", "--model", MEAN_BOX, "-o", "model")
    words = ("coco", "--from", "coco", "--model", f"{MEAN_BOX}@model", "--batch-size", "2")
    run("predict", *words, "-o", "whole.json")
    Path("coco/images/9.jpg").rename("gone")
    run("predict", *words, "-o", "out.json", "--on-error", "fail", code=1)
    Path("gone").rename("coco/images/9.jpg")
    run("predict", *words, "-o", "out.json", "--resume")
    assert Path("out.json").read_bytes() == Path("whole.json").read_bytes()


def test_images_outside_are_not_read(work):
    write_image(Path("secret.jpg"))
    content = json.loads(Path("coco/instances.json").read_text())
    content["images"][0]["file_name"] = "../secret.jpg"
    Path("coco/images/1.jpg").unlink()
    Path("coco/images/1.jpg").symlink_to(work / "secret.jpg")
    write_json(Path("coco/instances.json"), content)
    run("fit", "coco/instances.json", "--model", MEAN_BOX, "-o", "model", "--holdout", "0", code=1)
    Path("coco/images/1.jpg").unlink()
    write_image(Path("coco/images/1.jpg"), (100, 50))
    said = run("fit", "coco/instances.json", "--model", MEAN_BOX, "-o", "model", code=3).stderr
    assert "leads out of the data set" in said


@pytest.mark.parametrize(
    ("name", "path"), [("csv", "mails.csv"), ("tsv", "mails.csv"), ("parquet", "out/tasks.parquet")]
)
def test_table_with_a_column_of_labels(work, name, path):
    """The classifier of texts learns the column, and is measured with it."""
    rows = [f"{'cheap pills' if i % 2 else 'see you'} at {i},{'spam' if i % 2 else 'ham'}" for i in range(60)]
    Path("mails.csv").write_text("\n".join(["text,kind", *rows, "unlabelled,"]))
    if name == "parquet":
        pytest.importorskip("pyarrow")
        run(
            "convert",
            "mails.csv",
            "--from",
            "csv",
            "--label-column",
            "kind",
            "-o",
            "t.json",
            "--label-config-out",
            "c.xml",
        )
        xml = Path("c.xml").read_text().replace('name="label"', 'name="kind"')
        Path("c.xml").write_text(xml)
        Path("t.json").write_text(Path("t.json").read_text().replace('"from_name":"label"', '"from_name":"kind"'))
        run("convert", "t.json", "--to", "parquet", "-o", "out", "-c", "c.xml")
    column = ("--from", name, "--label-column", "kind")
    run("fit", path, *column, "--model", "text-classifier", "-o", "model", "--summary", "fit.json")
    assert json.loads(Path("fit.json").read_text())["metrics"]["label"]["accuracy"] == 1.0
    run("evaluate", path, *column, "--model", "model", "--include-trained", "--json", "all.json")
    assert json.loads(Path("all.json").read_text())["tasks"] == 60
    Path("new.csv").write_text("text\ncheap pills at 99\n")
    (task,) = [json.loads(line) for line in run("predict", "new.csv", "--model", "model").stdout.splitlines()]
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["spam"]}


def test_folders_of_classes(work):
    for i in range(40):
        folder = Path("photos", "train" if i % 2 else "val", "dark" if i % 4 < 2 else "bright")
        folder.mkdir(parents=True, exist_ok=True)
        shade = (20 if i % 4 < 2 else 200) + i
        (folder / f"{i}.pgm").write_bytes(b"P5\n2 2\n255\n" + bytes([shade] * 4))
    run("fit", "photos", "--from", "folders", "--model", SHADES, "-o", "model", "--summary", "fit.json")
    assert json.loads(Path("fit.json").read_text())["metrics"]["label"]["accuracy"] == 1.0
    version = f"{SHADES}@model"
    words = ("--include-trained", "--json", "all.json")
    run("evaluate", "photos/val", "--from", "folders", "--model", version, *words)
    assert json.loads(Path("all.json").read_text())["tasks"] == 20


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("fit", "coco", "--from", "cocoa", "--model", MEAN_BOX, "-o", "m"), "--from 'cocoa' is no format"),
        (("evaluate", "coco", "--from", "cocoa", "--model", MEAN_BOX), "--from 'cocoa' is no format"),
        (("fit", "coco", "--label-column", "x", "--model", MEAN_BOX, "-o", "m"), "--label-column is about tables."),
        (
            ("predict", "coco", "--from", "cocoa", "--model", MEAN_BOX, "-c", "config.xml"),
            "--from 'cocoa' is no format",
        ),
        (("fit", "-", "--from", "coco", "--model", MEAN_BOX, "-o", "m"), "is not read from standard input"),
        (("fit", "nothing", "--from", "coco", "--model", MEAN_BOX, "-o", "m"), "There is no file or folder nothing."),
        (
            ("predict", "coco", "--from", "coco", "--model", MEAN_BOX, "-c", "config.xml", "--shape", "predictions"),
            "Tasks of a data set have no ids",
        ),
    ],
)
def test_wrong_usage(work, words, sentence):
    assert sentence in run(*words, code=2).stderr
