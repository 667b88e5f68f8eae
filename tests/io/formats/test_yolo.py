"""YOLO, written and read: supervision's reader and the SDK's converter, where it is right, are the oracles."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
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
    rotated_boxes,
    sizes,
    write_image,
    write_json,
)

POSE_CONFIG = """<View><Image name="img" value="$image"/>
  <RectangleLabels name="box" toName="img"><Label value="Person"/></RectangleLabels>
  <KeyPointLabels name="keypoint" toName="img"><Label value="nose"/><Label value="eye"/></KeyPointLabels></View>"""
OBB_CONFIG = """<View><Image name="img" value="$image"/>
  <RectangleLabels name="box" toName="img"><Label value="Car"/><Label value="Person"/></RectangleLabels></View>"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(SHAPES_CONFIG)
    return tmp_path


def regions_of(task: dict[str, Any]) -> list[dict[str, Any]]:
    return task["annotations"][0]["result"]


def to_yolo(*tasks: dict[str, Any], options: tuple[str, ...] = ()) -> str:
    write_json(Path("tasks.json"), list(tasks))
    return convert("tasks.json", "--to", "yolo", "-o", "out", "-c", "config.xml", "--holdout", "0", *options)


def lines(name: str = "a", side: str = "train") -> list[list[float]]:
    text = Path(f"out/labels/{side}/{name}.txt").read_text()
    return [list(map(float, line.split())) for line in text.splitlines()]


def settings_of(folder: str = "out") -> dict[str, Any]:
    return yaml.safe_load(Path(folder, "data.yaml").read_text())


def test_boxes_are_centre_and_size_and_classes_are_labels_of_shapes(work):
    to_yolo(make_task(make_box(10, 20, 30, 40, ["Person"])))
    assert lines() == [[1, 0.25, 0.4, 0.3, 0.4]]
    assert settings_of() == {
        "task": "detect",
        "train": "images/train",
        "val": "images/train",
        "names": {0: "Car", 1: "Person"},
    }


def test_image_without_regions_has_an_empty_file(work):
    to_yolo(make_task(), {"id": 2, "data": {"image": "b.jpg"}, "annotations": []})
    assert {path.name: path.read_text() for path in Path("out/labels/train").iterdir()} == {"a.txt": ""}


def test_equal_names_are_distinct_files(work):
    for name in ("a/1.jpg", "b/1.jpg", "1.png"):
        write_image(Path(name))
    tasks = [
        make_task(make_box(i, 1, 5, 5), image=name, id=i) for i, name in enumerate(("a/1.jpg", "b/1.jpg", "1.png"))
    ]
    to_yolo(*tasks, options=("--images", "copy"))
    labels = {path.stem for path in Path("out/labels/train").iterdir()}
    images = {path.stem for path in Path("out/images/train").iterdir()}
    assert len(labels) == 3
    assert labels == images


@pytest.mark.parametrize("policy", ["last", "all"])
def test_several_annotators(work, policy):
    task = make_task()
    task["annotations"] = [{"id": i, "result": [make_box(10 * i, 10, 10, 10)]} for i in (1, 2)]
    to_yolo(task, options=("--annotation", policy))
    assert len(list(Path("out/labels/train").iterdir())) == (1 if policy == "last" else 2)
    assert lines() == [[0, 0.25 if policy == "last" else 0.15, 0.15, 0.1, 0.1]]


def test_rotated_boxes_are_corners_in_pixels_or_their_hull(work):
    box = make_box(50, 50, 100 * 60 / 640, 100 * 60 / 480, rotation=90)
    to_yolo(make_task(box), options=("--variant", "obb"))
    corners = [(320, 240), (320, 300), (260, 300), (260, 240)]
    assert lines() == [[0, *(pytest.approx(share) for x, y in corners for share in (x / 640, y / 480))]]
    Path("out").rename("obb")
    to_yolo(make_task(box))
    assert lines() == [[0, *map(pytest.approx, (290 / 640, 270 / 480, 60 / 640, 60 / 480))]]


def test_variant_follows_the_label_config(work):
    Path("config.xml").write_text("""<View><Image name="img" value="$image"/>
      <PolygonLabels name="poly" toName="img"><Label value="Car"/></PolygonLabels></View>""")
    to_yolo(make_task(make_polygon([(0, 0), (50, 0), (0, 50)])))
    assert lines() == [[0, 0, 0, 0.5, 0, 0, 0.5]]
    assert settings_of()["task"] == "segment"


def test_keypoints_belong_to_their_box(work):
    Path("config.xml").write_text(POSE_CONFIG)
    box = make_box(10, 10, 40, 40, ["Person"], id="box")
    far = make_box(60, 60, 20, 20, ["Person"], id="far")
    nose = make_region("keypoint", {"x": 90, "y": 20, "width": 1}, ["nose"], id="n", parentID="box")
    eye = make_region("keypoint", {"x": 65, "y": 65, "width": 1}, ["eye"], id="e")
    lost = make_region("keypoint", {"x": 99, "y": 99, "width": 1}, ["eye"], id="l")
    said = to_yolo(make_task(box, far, nose, eye, lost))
    assert lines() == [[0, 0.3, 0.3, 0.4, 0.4, 0.9, 0.2, 2, 0, 0, 0], [0, 0.7, 0.7, 0.2, 0.2, 0, 0, 0, 0.65, 0.65, 2]]
    assert (settings_of()["kpt_shape"], settings_of()["kpt_names"]) == ([2, 3], {0: ["nose", "eye"]})
    assert "1 region is left out: a keypoint that belongs to no box." in said


def test_masks_are_left_out(work):
    to_yolo(make_task(make_region("brush", {"format": "rle", "rle": [1, 2, 3]}, ["Car"])))
    assert lines() == []


def test_split_is_that_of_fit(work, lsml):
    """The tasks below images/val are those that `lsml fit` holds out."""
    from lsml_cli.io.task_reader import read_tasks
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.training.splits import split_tasks

    names = [f"{i}.jpg" for i in range(40)]
    tasks = write_json(Path("tasks.json"), [make_task(make_box(1, 1, 5, 5), image=name) for name in names])
    convert("tasks.json", "--to", "yolo", "-o", "out", "-c", "config.xml", "--seed", "3")
    split = split_tasks(read_tasks(str(tasks)), LabelConfig.load(Path("config.xml")), holdout=0.2, seed=3)
    held_out = {Path(str(task.data["image"])).stem for task, _ in split.held_out}
    assert {path.stem for path in Path("out/labels/val").iterdir()} == held_out
    assert 2 < len(held_out) < 20
    assert settings_of()["val"] == "images/val"
    convert("tasks.json", "--to", "yolo", "-o", "bare", "--seed", "3")  # without a label config: by the image
    assert {path.stem for path in Path("bare/labels/val").iterdir()} == held_out


def load(folder: Path | str, **options: Any) -> Any:
    import supervision

    return supervision.DetectionDataset.from_yolo(
        f"{folder}/images/train", f"{folder}/labels/train", f"{folder}/data.yaml", **options
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_supervision_reads_the_same(work, shared_data):
    export, config = shared_data / "exports" / "coco128-annotated.json", shared_data / "exports" / "coco128.xml"
    options = ("-c", str(config), "--document-root", str(shared_data), "--images", "link", "--holdout", "0")
    convert(export, "--to", "yolo", "-o", "out", *options)
    dataset = load("out")
    tasks = json.loads(export.read_text())
    assert len(dataset) == len(tasks)
    expected = {Path(task["data"]["image"].rpartition("=")[2]).name: regions_of(task) for task in tasks}
    for path, _, detections in dataset:
        regions = expected[Path(path).name]
        assert [dataset.classes[i] for i in detections.class_id] == [r["value"]["rectanglelabels"][0] for r in regions]
        for box, region in zip(detections.xyxy, regions, strict=True):
            value, width, height = region["value"], region["original_width"], region["original_height"]
            left, top = value["x"] * width / 100, value["y"] * height / 100
            right, bottom = left + value["width"] * width / 100, top + value["height"] * height / 100
            assert box.tolist() == pytest.approx([left, top, right, bottom], abs=0.05)
    back = read("out", "--from", "yolo", "-c", str(config))
    assert len(back) == len(tasks)
    for task in back:
        for region, original in zip(regions_of(task), expected[Path(task["data"]["image"]).name], strict=True):
            for key in ("x", "y", "width", "height"):
                assert region["value"][key] == pytest.approx(original["value"][key], abs=0.01)


def convert_with_sdk(tasks: Path, config: str, folder: Path, **options: Any) -> None:
    from label_studio_sdk.converter.converter import Converter

    Converter(config, str(folder), download_resources=False).convert_to_yolo(
        str(tasks), str(folder), is_dir=False, **options
    )


@pytest.mark.filterwarnings("ignore")
def test_sdk_writes_the_same_boxes(work):
    """It is right about boxes that are not rotated, one label each, one annotator, without choices in its classes."""
    write_image(Path("a.jpg"))
    config = SHAPES_CONFIG.replace(
        '<Choices name="light" toName="img"><Choice value="Dark"/><Choice value="Bright"/></Choices>', ""
    )
    Path("config.xml").write_text(config)
    to_yolo(make_task(make_box(10, 20, 30, 40, ["Person"]), make_box(1, 2, 3, 4)))
    convert_with_sdk(Path("tasks.json"), config, work / "sdk")
    theirs = [list(map(float, line.split())) for line in Path("sdk/labels/a.txt").read_text().splitlines()]
    assert [pytest.approx(line, abs=1e-5) for line in lines()] == theirs
    assert Path("sdk/classes.txt").read_text().split() == list(settings_of()["names"].values())


def round_trip(folder: Path, config: str, regions: list[dict[str, Any]], size, *options: str) -> list[dict[str, Any]]:
    (folder / "config.xml").write_text(config)
    write_image(folder / "a.jpg", size)
    sized = [
        {**region, "id": f"r{i}", "original_width": size[0], "original_height": size[1]}
        for i, region in enumerate(regions)
    ]
    tasks = write_json(folder / "tasks.json", [make_task(*sized)])
    words: tuple[str | Path, ...] = ("-c", folder / "config.xml", "--images", "copy", *options)
    convert(tasks, "--to", "yolo", "-o", folder / "out", "--holdout", "0", *words)
    (task,) = read(folder / "out", "-c", folder / "config.xml")
    return regions_of(task)


few = settings(max_examples=25, deadline=None)


@few
@given(st.lists(boxes(), max_size=4), sizes)
def test_round_trip_of_boxes(tmp_path_factory, regions, size):
    folder = tmp_path_factory.mktemp("yolo")
    for region, back in zip(regions, round_trip(folder, SHAPES_CONFIG, regions, size), strict=True):
        assert back["value"]["rectanglelabels"] == region["value"]["rectanglelabels"]
        assert (back["original_width"], back["original_height"]) == size
        for key in ("x", "y", "width", "height"):
            assert math.isclose(back["value"][key], region["value"][key], abs_tol=2e-4)


@few
@given(st.lists(polygons(), max_size=4), sizes)
def test_round_trip_of_polygons(tmp_path_factory, regions, size):
    folder = tmp_path_factory.mktemp("yolo")
    returned = round_trip(folder, SHAPES_CONFIG, regions, size, "--variant", "seg")
    for region, back in zip(regions, returned, strict=True):
        assert back["value"]["polygonlabels"] == region["value"]["polygonlabels"]
        pairs = zip(back["value"]["points"], region["value"]["points"], strict=True)
        assert all(math.dist(*pair) < 2e-4 for pair in pairs)


@few
@given(st.lists(rotated_boxes(), max_size=4))
def test_round_trip_of_rotated_boxes(tmp_path_factory, regions):
    """The corners come back; which of them is the first may differ."""
    from lsml_cli.schema.shapes import parse_shape

    folder = tmp_path_factory.mktemp("yolo")
    returned = round_trip(folder, OBB_CONFIG, regions, (640, 480), "--variant", "obb")
    for region, back in zip(regions, returned, strict=True):
        shapes = [parse_shape(stored) for stored in (region, back)]
        first, second = (sorted(shape.outline()) for shape in shapes if shape is not None)
        assert all(math.dist(*pair) < 2e-3 for pair in zip(first, second, strict=True))


def test_round_trip_of_keypoints(tmp_path):
    box = make_box(10, 10, 40, 40, ["Person"])
    nose = make_region("keypoint", {"x": 30.5, "y": 20.25, "width": 1}, ["nose"], parentID="r0")
    back = round_trip(tmp_path, POSE_CONFIG, [box, nose], (640, 480))
    assert [region["type"] for region in back] == ["rectanglelabels", "keypointlabels"]
    assert back[1]["parentID"] == back[0]["id"]
    assert (back[1]["value"]["x"], back[1]["value"]["y"]) == pytest.approx((30.5, 20.25))
    assert back[1]["value"]["keypointlabels"] == ["nose"]


def write_yolo(label: str, image: str = "a.jpg") -> None:
    write_image(Path("set/images") / image, (200, 100))
    Path("set/labels").mkdir()
    Path("set/labels/a.txt").write_text(label)
    Path("set/classes.txt").write_text("Car\nPerson\n")


def test_export_of_label_studio_is_read(work):
    """images, labels and classes.txt, as its own export has them; an image without a file has no objects."""
    write_yolo("1 0.5 0.5 0.2 0.4\n")
    write_image(Path("set/images/b.jpg"))
    first, second = read("set")
    assert first["data"] == {"image": "set/images/a.jpg"}
    (region,) = regions_of(first)
    assert region["value"] == {
        "x": 40,
        "y": 30,
        "width": 20,
        "height": 40,
        "rotation": 0,
        "rectanglelabels": ["Person"],
    }
    assert (second["data"], regions_of(second)) == ({"image": "set/images/b.jpg"}, [])


def test_size_is_that_of_the_upright_image(work):
    write_yolo("")
    write_image(Path("set/images/a.jpg"), (200, 100), orientation=6)
    Path("set/labels/a.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    (task,) = read("set")
    assert (regions_of(task)[0]["original_width"], regions_of(task)[0]["original_height"]) == (100, 200)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("0 0.5 0.5 0.2\n", "line 1: it has 3 numbers after its class, and 4 are expected"),
        ("7 0.5 0.5 0.2 0.2\n", "line 1: there is no class 7"),
        ("0 0.5 0.5 0.2 0.2\na text\n", "line 2: it is no line of numbers"),
        ("0 0.5 0.5 nan 0.2\n", "line 1: it is no line of a class"),
        ("0 5 5 0.2 0.2\n", "line 1: the box is empty, or outside of the image"),
    ],
)
def test_bad_line_costs_its_image(work, content, reason):
    write_yolo(content)
    write_image(Path("set/images/b.jpg"))
    run = run_in_process("convert", "set", "--from", "yolo", "-o", "tasks.json")
    assert (run.returncode, reason in run.stderr) == (3, True), run.stderr
    assert len(json.loads(Path("tasks.json").read_text())) == 1


def test_label_without_an_image_fails_by_name(work):
    write_yolo("0 0.5 0.5 0.2 0.2\n", image="other.jpg")
    run = run_in_process("convert", "set", "--from", "yolo", "-o", "tasks.json")
    assert run.returncode == 3
    assert "labels/a.txt" in run.stderr


def test_links_out_of_the_data_set_are_not_followed(work):
    write_yolo("0 0.5 0.5 0.2 0.2\n")
    write_image(Path("secret.jpg"))
    Path("set/images/a.jpg").unlink()
    Path("set/images/a.jpg").symlink_to(work / "secret.jpg")
    run = run_in_process("convert", "set", "--from", "yolo", "-o", "tasks.json")
    assert (run.returncode, "lies outside of" in run.stderr) == (3, True)


@pytest.mark.parametrize("entry", ["../images", "/", "..", "images/../../x"])
def test_folders_outside_are_not_read(work, entry):
    write_yolo("0 0.5 0.5 0.2 0.2\n")
    Path("set/data.yaml").write_text(yaml.safe_dump({"names": ["Car"], "train": entry, "val": "images"}))
    if entry == "../images":  # as Roboflow writes what is images
        assert len(read("set")) == 1
    else:
        assert f"{entry}, which data.yaml names, is no folder in set" in convert("set", "-o", "tasks.json")


def test_names_with_dots_and_folders_find_their_labels(work):
    write_yolo("")
    Path("set/labels/a.txt").unlink()
    for name in ("a.b", "a", "a-1", "x/a.b", "x/a", "x.y/a"):
        write_image(Path(f"set/images/{name}.jpg"))
        path = Path(f"set/labels/{name}.txt")
        path.parent.mkdir(exist_ok=True)
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    tasks = read("set")
    assert sum(len(regions_of(task)) for task in tasks) == 7 - 1
    assert len(tasks) == 6


def test_yaml_is_data_alone(work):
    write_yolo("")
    Path("set/data.yaml").write_text(
        "names: !!python/object/apply:os.system ['touch pwned']\ntrain: images\nval: images\n"
    )
    assert "is no YAML" in convert("set", "--from", "yolo", "-o", "t.json", code=1)
    assert not Path("pwned").exists()
