"""Pascal VOC, written and read; supervision's reader is the oracle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.cli import run_in_process
from tests.helpers.convert import convert, read
from tests.helpers.regions import (
    SHAPES_CONFIG,
    boxes,
    make_box,
    make_polygon,
    make_region,
    make_task,
    polygons,
    sizes,
    write_image,
    write_json,
)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(SHAPES_CONFIG)
    return tmp_path


def regions_of(task: dict[str, Any]) -> list[dict[str, Any]]:
    return task["annotations"][0]["result"]


def to_voc(*tasks: dict[str, Any], options: tuple[str, ...] = ("--holdout", "0")) -> str:
    write_json(Path("tasks.json"), list(tasks))
    return convert("tasks.json", "--to", "voc", "-o", "out", "-c", "config.xml", *options)


def load(images: str = "out/JPEGImages") -> Any:
    import supervision

    return supervision.DetectionDataset.from_pascal_voc(images, "out/Annotations")


def test_file_of_an_image(work):
    to_voc(make_task(make_box(10, 20, 30, 40, ["Person"])))
    assert Path("out/Annotations/a.xml").read_text() == (
        "<annotation>\n"
        "  <folder>JPEGImages</folder>\n"
        "  <filename>a.jpg</filename>\n"
        "  <source><database>lsml</database></source>\n"
        "  <size><width>640</width><height>480</height><depth>3</depth></size>\n"
        "  <segmented>0</segmented>\n"
        "  <object><name>Person</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        "<bndbox><xmin>65</xmin><ymin>97</ymin><xmax>256</xmax><ymax>288</ymax></bndbox></object>\n"
        "</annotation>\n"
    )
    assert Path("out/ImageSets/Main/trainval.txt").read_text() == "a\n"


def test_image_without_regions_has_a_file_and_its_upright_size(work):
    write_image(Path("a.jpg"), (30, 20), orientation=8)
    to_voc(make_task(), {"id": 2, "data": {"image": "b.jpg"}, "annotations": []})
    text = Path("out/Annotations/a.xml").read_text()
    assert "<width>20</width><height>30</height>" in text
    assert "<object>" not in text
    assert len(list(Path("out/Annotations").iterdir())) == 1


def test_several_labels_and_names_that_xml_escapes(work):
    Path("config.xml").write_text(
        """<View><Image name="img" value="$image"/><RectangleLabels name="box" toName="img">
        <Label value="A &amp; B"/><Label value="&lt;c&gt;"/></RectangleLabels></View>"""
    )
    to_voc(make_task(make_box(1, 1, 5, 5, ["A & B", "<c>"])))
    text = Path("out/Annotations/a.xml").read_text()
    assert ("<name>A &amp; B</name>" in text, "<name>&lt;c&gt;</name>" in text) == (True, True)


def test_masks_and_keypoints_are_left_out(work):
    brush = make_region("brush", {"format": "rle", "rle": [1, 2, 3]}, ["Car"])
    point = make_region("keypoint", {"x": 1, "y": 1, "width": 1}, ["Car"])
    labels = '<Label value="Car"/>'
    controls = f'<BrushLabels name="brush" toName="img">{labels}</BrushLabels>'
    controls += f'<KeyPointLabels name="keypoint" toName="img">{labels}</KeyPointLabels>'
    config = SHAPES_CONFIG.replace("</View>", f"{controls}</View>")
    Path("config.xml").write_text(config)
    said = to_voc(make_task(brush, point))
    assert "a brush mask, and VOC has boxes and polygons" in said
    assert "a keypoint, and VOC has boxes and polygons" in said


def test_equal_names_are_distinct_files(work):
    for name in ("a/1.jpg", "b/1.jpg", "1.png"):
        write_image(Path(name))
    to_voc(
        *(make_task(image=name) for name in ("a/1.jpg", "b/1.jpg", "1.png")),
        options=("--images", "link", "--holdout", "0"),
    )
    stems = {path.stem for path in Path("out/Annotations").iterdir()}
    assert len(stems) == 3
    assert stems == {path.stem for path in Path("out/JPEGImages").iterdir()}
    for path in Path("out/Annotations").iterdir():
        assert f"<filename>{path.stem}." in path.read_text()


def test_split_has_lists_of_names(work):
    to_voc(*(make_task(make_box(1, 1, 5, 5), image=f"{i}.jpg") for i in range(30)), options=())
    train, val, both = (
        Path(f"out/ImageSets/Main/{name}.txt").read_text().split() for name in ("train", "val", "trainval")
    )
    assert set(train) | set(val) == set(both) == {str(i) for i in range(30)}
    assert not set(train) & set(val)
    assert 1 < len(val) < 15


def test_supervision_reads_the_same(work, shared_data):
    export, config = shared_data / "exports" / "coco128-annotated.json", shared_data / "exports" / "coco128.xml"
    options = ("-c", config, "--document-root", shared_data, "--images", "link")
    convert(export, "--to", "voc", "-o", "out", *options)
    dataset = load()
    expected = {
        Path(task["data"]["image"].rpartition("=")[2]).name: regions_of(task) for task in json.loads(export.read_text())
    }
    assert len(dataset) == len(expected)
    for path, _, detections in dataset:
        regions = expected[Path(path).name]
        assert [dataset.classes[i] for i in detections.class_id] == [r["value"]["rectanglelabels"][0] for r in regions]
        for box, region in zip(detections.xyxy, regions, strict=True):
            value, width, height = region["value"], region["original_width"], region["original_height"]
            left, top = value["x"] * width / 100, value["y"] * height / 100
            right, bottom = left + value["width"] * width / 100, top + value["height"] * height / 100
            assert box.tolist() == pytest.approx([left, top, right, bottom], abs=0.51)
    back = read("out", "-c", config)  # recognised by its content
    assert len(back) == len(expected)
    for task in back:
        path = task["data"]["image"]
        assert Path(path).is_file()
        for region, original in zip(regions_of(task), expected[Path(path).name], strict=True):
            for key, side in (("x", "width"), ("y", "height"), ("width", "width"), ("height", "height")):
                half = 100 / original[f"original_{side}"]
                assert region["value"][key] == pytest.approx(original["value"][key], abs=1.01 * half)


@settings(max_examples=25, deadline=None)
@given(st.lists(boxes() | polygons(), max_size=4), sizes)
def test_round_trip(tmp_path_factory, regions, size):
    """Boxes come back to half a pixel at each edge, polygons to a hundredth."""
    folder = tmp_path_factory.mktemp("voc")
    (folder / "config.xml").write_text(SHAPES_CONFIG)
    write_image(folder / "a.jpg", size)
    sized = [
        {**region, "id": f"r{i}", "original_width": size[0], "original_height": size[1]}
        for i, region in enumerate(regions)
    ]
    tasks = write_json(folder / "tasks.json", [make_task(*sized)])
    convert(tasks, "--to", "voc", "-o", folder / "out", "-c", folder / "config.xml")
    (task,) = read(folder / "out", "-c", folder / "config.xml")
    for region, back in zip(regions, regions_of(task), strict=True):
        assert (back["type"], back["from_name"]) == (region["type"], region["from_name"])
        assert back["value"][back["type"]] == region["value"][region["type"]]
        assert (back["original_width"], back["original_height"]) == size
        for key, side in (("x", 0), ("y", 1), ("width", 0), ("height", 1)):
            if key in region["value"]:
                pixels = 1.01 if key in ("width", "height") else 0.51
                assert math.isclose(back["value"][key], region["value"][key], abs_tol=pixels * 100 / size[side])
        for first, second in zip(back["value"].get("points", []), region["value"].get("points", []), strict=True):
            assert math.dist(first, second) < 2 / min(size)


OBJECT = "<object><name>Car</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>10</ymax></bndbox></object>"
SIZE = "<size><width>100</width><height>50</height></size>"


def write_voc(content: str, name: str = "a") -> None:
    path = Path(f"set/Annotations/{name}.xml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_box_of_whole_image(work):
    write_voc(f"<annotation><filename>a.jpg</filename>{SIZE}{OBJECT.replace('10', '50')}</annotation>")
    (task,) = read("set")
    assert regions_of(task)[0]["value"] == {
        "x": 0,
        "y": 0,
        "width": 50,
        "height": 100,
        "rotation": 0,
        "rectanglelabels": ["Car"],
    }
    assert task["data"]["image"] == "set/JPEGImages/a.jpg"


def test_polygon_is_read(work):
    polygon = "<polygon><x1>1</x1><y1>1</y1><x2>51</x2><y2>1</y2><x3>1</x3><y3>26</y3></polygon></object>"
    write_voc(f"<annotation><filename>a.jpg</filename>{SIZE}{OBJECT.replace('</object>', polygon)}</annotation>")
    (task,) = read("set")
    assert regions_of(task)[0]["value"]["points"] == [[0, 0], [50, 0], [0, 50]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><filename>b.jpg</filename>", "it is no XML that can be read"),
        (f"<annotation>{SIZE}{OBJECT}</annotation>", "it has no <filename>"),
        (f"<annotation><filename>../b.jpg</filename>{SIZE}{OBJECT}</annotation>", "leads out of the data set"),
        (f"<annotation><filename>b.jpg</filename>{OBJECT}</annotation>", "object 1: "),
        (f"<annotation><filename>b.jpg</filename>{SIZE}<object/></annotation>", "object 1: it has no <name>"),
        (
            f"<annotation><filename>b.jpg</filename>{SIZE}{OBJECT.replace('<xmin>1', '<xmin>one')}</annotation>",
            "object 1: <xmin> is 'one', not a number of pixels",
        ),
        ("<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation>&x;</annotation>", "it is no XML"),
    ],
)
def test_bad_file_costs_its_image(work, content, reason):
    write_voc(f"<annotation><filename>a.jpg</filename>{SIZE}{OBJECT}</annotation>")
    write_voc(content, "b")
    run = run_in_process("convert", "set", "--from", "voc", "-o", "tasks.json")
    assert (run.returncode, reason in run.stderr) == (3, True), run.stderr
    assert len(json.loads(Path("tasks.json").read_text())) == 1


def test_rotated_box_is_the_box_around_it(work):
    to_voc(make_task(make_box(50, 50, 100 * 60 / 640, 100 * 60 / 480, rotation=90)))
    text = Path("out/Annotations/a.xml").read_text()
    assert "<xmin>261</xmin><ymin>241</ymin><xmax>320</xmax><ymax>300</ymax>" in text


def test_export_of_label_studio_is_read(work, shared_data):
    """Its own export counts from 0, which VOC does not: its boxes come back one pixel larger."""
    import zipfile

    with zipfile.ZipFile(shared_data / "exports" / "image-rectanglelabels-voc.zip") as archive:
        archive.extractall("set")
    (task,) = read("set")
    assert task["data"] == {"image": "set/images/d3b1ecc7-img0.png"}
    first = regions_of(task)[0]
    assert (first["value"]["rectanglelabels"], first["original_width"]) == (["Airplane"], 120)


def test_polygon_has_its_points_beside_its_box(work):
    to_voc(make_task(make_polygon([(0, 0), (50, 0), (0, 50)])))
    text = Path("out/Annotations/a.xml").read_text()
    assert "<polygon><x1>1.0</x1><y1>1.0</y1><x2>321.0</x2><y2>1.0</y2><x3>1.0</x3><y3>241.0</y3></polygon>" in text
