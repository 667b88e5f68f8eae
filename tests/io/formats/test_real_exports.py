"""Exports of a real Label Studio, to every format of images and back; and the data sets that it exports itself."""

from __future__ import annotations

import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.schema.shapes import parse_shape, to_pixels
from tests.helpers.convert import convert, read
from tests.helpers.regions import write_image

BOXES_CONFIG = """<View><Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image"><Label value="Airplane"/><Label value="Car"/></RectangleLabels></View>"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outlines(result: list[dict[str, Any]]) -> list[tuple[list[str], list[tuple[float, float]]]]:
    """Labels and corners in pixels of each shape, those of a tool and of <Labels> as one."""
    labels: dict[str, list[str]] = {}
    shapes: dict[str, list[tuple[float, float]]] = {}
    for region in result:
        key = "labels" if region["type"] == "labels" else region["type"]
        if key.endswith("labels"):
            labels.setdefault(region["id"], []).extend(region["value"][key])
        shape = parse_shape(region)
        if shape is not None:
            size = region["original_width"], region["original_height"]
            shapes.setdefault(region["id"], to_pixels(shape.outline(), size))
    return [(labels[id], points) for id, points in shapes.items() if id in labels]


def assert_same(first: list[Any], second: list[Any], pixels: float) -> None:
    assert len(first) == len(second)
    for (labels, points), (other_labels, other_points) in zip(first, second, strict=True):
        assert labels == other_labels
        assert len(points) == len(other_points)
        for point, other in zip(sorted(points), sorted(other_points), strict=True):
            assert math.dist(point, other) <= pixels


@pytest.mark.parametrize(
    ("name", "options", "pixels"),
    [("coco", (), 0.01), ("yolo", ("--variant", "seg", "--holdout", "0"), 0.01), ("voc", (), 0.05)],
)
def test_polygons_of_receipts_come_back(work, shared_data, name, options, pixels):
    """Shapes of <Rectangle> and <Polygon> with separate <Labels>; transcriptions, which are none, are left out."""
    export, config = shared_data / "exports" / "receipts-annotated.json", shared_data / "exports" / "receipts.xml"
    places = ("--document-root", shared_data, "--images", "copy")
    convert(export, "--to", name, "-o", "out", "-c", config, *options, *places)
    tasks = json.loads(export.read_text())
    expected = {Path(task["data"]["ocr"].rpartition("/")[2]).name: task["annotations"][0]["result"] for task in tasks}
    back = read("out", "-c", config)
    assert len(back) == len(tasks)
    assert sum(len(result) for result in expected.values()) > 100
    for task in back:
        result = task["annotations"][0]["result"]
        assert {region["from_name"] for region in result} <= {"label", "bbox", "poly"}
        assert_same(outlines(expected[Path(task["data"]["ocr"]).name]), outlines(result), pixels)


def test_rotated_boxes_come_back_from_obb(work, shared_data):
    export = shared_data / "exports" / "image-rectanglelabels-json.json"
    tasks = json.loads(export.read_text())
    for task in tasks:
        write_image(Path("media", task["data"]["image"].removeprefix("/data/upload/")), (120, 80))
    Path("config.xml").write_text(BOXES_CONFIG)
    words = ("-c", "config.xml", "--variant", "obb", "--holdout", "0", "--upload-root", "media", "--images", "copy")
    convert(export, "--to", "yolo", "-o", "out", *words)
    back = {
        Path(task["data"]["image"]).name: task["annotations"][0]["result"] for task in read("out", "-c", "config.xml")
    }
    assert len(back) == 2
    for task in tasks:
        original = task["annotations"][0]["result"]
        assert_same(outlines(original), outlines(back[Path(task["data"]["image"]).name]), 0.01)
    rotated = [region for task in tasks for region in task["annotations"][0]["result"] if region["value"]["rotation"]]
    assert rotated


@pytest.fixture
def exported(work, shared_data):
    """Label Studio's own YOLO and VOC of two images, and the same export by `lsml convert`: one box is rotated."""
    folder = shared_data / "exports"
    for name in ("yolo_with_images", "voc"):
        with zipfile.ZipFile(folder / f"image-rectanglelabels-{name}.zip") as archive:
            archive.extractall(name)
    Path("config.xml").write_text(BOXES_CONFIG)
    for name in ("yolo", "voc"):
        media = ("--map", "/data/upload/7/=yolo_with_images/images", "--holdout", "0")
        convert(
            folder / "image-rectanglelabels-json.json", "--to", name, "-o", name.upper(), "-c", "config.xml", *media
        )


def test_yolo_of_label_studio_agrees_but_for_rotated_boxes(exported):
    """It writes a rotated box as if it were not rotated; lsml writes the upright box around it."""
    theirs = {path.name: path.read_text().splitlines() for path in Path("yolo_with_images/labels").iterdir()}
    mine = {path.name: path.read_text().splitlines() for path in Path("YOLO/labels/train").iterdir()}
    assert theirs.keys() == mine.keys()
    assert mine["62282517-img1.txt"] == theirs["62282517-img1.txt"] == []
    (upright, rotated), (their_upright, their_rotated) = (
        [list(map(float, line.split())) for line in lines["d3b1ecc7-img0.txt"]] for lines in (mine, theirs)
    )
    assert upright == pytest.approx(their_upright, abs=1e-5)
    assert their_rotated == [1, 0.655, 0.4025, 0.3, 0.4]
    assert rotated[3:] > their_rotated[3:]
    assert sum(len(task["annotations"][0]["result"]) for task in read("yolo_with_images", "-c", "config.xml")) == 2


def test_voc_of_label_studio_counts_from_zero(exported):
    """VOC counts from 1, and has a file for an image without objects; Label Studio's has neither."""
    theirs, mine = (Path(f"{name}/Annotations/d3b1ecc7-img0.xml").read_text() for name in ("voc", "VOC"))
    values = [re.findall(r"<(xmin|ymin|xmax|ymax)>(\d+)<", text)[:4] for text in (theirs, mine)]
    assert values[0] == [("xmin", "6"), ("ymin", "8"), ("xmax", "30"), ("ymax", "32")]
    assert values[1] == [("xmin", "7"), ("ymin", "9"), ("xmax", "30"), ("ymax", "32")]
    assert not Path("voc/Annotations/62282517-img1.xml").exists()
    assert Path("VOC/Annotations/62282517-img1.xml").exists()
