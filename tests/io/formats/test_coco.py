"""COCO, written and read: pycocotools is the oracle."""

from __future__ import annotations

import contextlib
import io
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
    SIZE,
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


def load(path: Path | str) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def to_coco(*tasks: dict[str, Any], options: tuple[str, ...] = ("-c", "config.xml")) -> Any:
    write_json(Path("tasks.json"), list(tasks))
    convert("tasks.json", "--to", "coco", "-o", "out", *options)
    return load("out/annotations.json")


def regions_of(task: dict[str, Any]) -> list[dict[str, Any]]:
    return task["annotations"][0]["result"]


def test_boxes_are_in_pixels_and_classes_are_labels_of_shapes(work):
    coco = to_coco(make_task(make_box(10, 20, 30, 40, ["Person"])))
    assert [category["name"] for category in coco.dataset["categories"]] == ["Car", "Person"]
    (annotation,) = coco.dataset["annotations"]
    assert annotation["bbox"] == [64, 96, 192, 192]
    assert annotation["area"] == 192 * 192
    assert coco.cats[annotation["category_id"]]["name"] == "Person"
    assert coco.dataset["images"] == [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}]


def test_choices_are_no_classes_and_count_as_left_out(work):
    choice = {"id": "c", "from_name": "light", "to_name": "img", "type": "choices", "value": {"choices": ["Dark"]}}
    write_json(Path("tasks.json"), [make_task(make_box(1, 1, 5, 5), choice)])
    said = convert("tasks.json", "--to", "coco", "-o", "out")
    assert [category["name"] for category in load("out/annotations.json").dataset["categories"]] == ["Car"]
    assert "1 region is left out: not a shape on an image." in said


def test_rotated_box_is_turned_in_pixels(work):
    """A quarter turn of a square in pixels: in percent it would be no square, and lie elsewhere."""
    box = make_box(50, 50, 100 * 60 / 640, 100 * 60 / 480, rotation=90)
    (annotation,) = to_coco(make_task(box)).dataset["annotations"]
    assert annotation["bbox"] == pytest.approx([320 - 60, 240, 60, 60])
    assert annotation["area"] == pytest.approx(3600)
    assert annotation["segmentation"] == [pytest.approx([320, 240, 320, 300, 260, 300, 260, 240])]


def test_several_labels_are_several_annotations(work):
    coco = to_coco(make_task(make_box(1, 1, 5, 5, ["Car", "Person"])))
    assert [coco.cats[annotation["category_id"]]["name"] for annotation in coco.dataset["annotations"]] == [
        "Car",
        "Person",
    ]


def test_shape_and_labels_of_two_controls_are_one_region(work):
    config = """<View><Image name="img" value="$image"/><Polygon name="poly" toName="img"/>
      <Labels name="label" toName="img"><Label value="Text"/></Labels></View>"""
    Path("config.xml").write_text(config)
    points = {"points": [[0, 0], [50, 0], [0, 50]], "closed": True}
    common = {"id": "a", "to_name": "img", "original_width": 200, "original_height": 100}
    shape = {**common, "from_name": "poly", "type": "polygon", "value": points}
    label = {**common, "from_name": "label", "type": "labels", "value": {**points, "labels": ["Text"]}}
    (annotation,) = to_coco(make_task(shape, label)).dataset["annotations"]
    assert annotation["segmentation"] == [[0, 0, 100, 0, 0, 50]]
    assert annotation["area"] == 2500


def test_equal_names_in_two_folders_are_two_files(work):
    write_image(Path("a/1.jpg"), (30, 20))
    write_image(Path("b/1.jpg"), (50, 40))
    tasks = [make_task(image="a/1.jpg"), make_task(image="b/1.jpg", id=2)]
    coco = to_coco(*tasks, options=("--images", "copy"))
    assert [(image["file_name"], image["width"]) for image in coco.dataset["images"]] == [
        ("a/1.jpg", 30),
        ("b/1.jpg", 50),
    ]
    assert Path("out/images/b/1.jpg").read_bytes() == Path("b/1.jpg").read_bytes()


def test_image_without_regions_is_an_image(work):
    """With its size from the upright image: EXIF turns it, as a browser does for the annotator."""
    write_image(Path("a.jpg"), (30, 20), orientation=6)
    coco = to_coco(make_task())
    assert coco.dataset["images"] == [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 30}]
    assert coco.dataset["annotations"] == []


def test_tasks_without_annotation_are_left_out(work):
    unlabelled = {"id": 2, "data": {"image": "b.jpg"}, "annotations": []}
    skipped = {"id": 3, "data": {"image": "b.jpg"}, "annotations": [{"id": 1, "was_cancelled": True, "result": []}]}
    coco = to_coco(make_task(make_box(1, 1, 5, 5)), unlabelled, skipped)
    assert len(coco.imgs) == 1


@pytest.mark.parametrize(("policy", "images"), [("first", [1]), ("last", [2]), ("all", [1, 2])])
def test_annotation_chooses_among_annotators(work, policy, images):
    task = make_task()
    task["annotations"] = [
        {"id": 1, "completed_by": 7, "result": [make_box(10, 10, 10, 10)]},
        {"id": 2, "completed_by": 8, "result": [make_box(20, 20, 20, 20)]},
    ]
    coco = to_coco(task, options=("--annotation", policy))
    assert [round(annotation["bbox"][0] / 64) for annotation in coco.dataset["annotations"]] == images
    assert len(coco.imgs) == len(images)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_predictions_are_results_that_pycocotools_loads(work):
    regions = [make_box(10, 10, 10, 10, score=0.9), make_box(30, 30, 10, 10, ["Person"], score=0.3)]
    polygon = make_polygon([(0, 0), (10, 0), (0, 10)], score=0.8)
    predictions = [{"result": [*regions, polygon], "score": 0.6, "model_version": "m"}]
    tasks = [{"data": {"image": f"{i}.jpg"}, "predictions": predictions} for i in range(3)]
    write_json(Path("tasks.json"), [*tasks, {"data": {"image": "x.jpg"}, "predictions": []}])
    said = convert("tasks.json", "--to", "coco", "-o", "out", "--what", "predictions", "--threshold", "0.5")
    assert "1 task is left out: no prediction." in said
    coco = load("out/annotations.json")
    with contextlib.redirect_stdout(io.StringIO()):
        results = coco.loadRes("out/results.json")
    assert [result["score"] for result in results.dataset["annotations"]] == [0.9, 0.8] * 3
    assert {result["image_id"] for result in results.dataset["annotations"]} == {1, 2, 3}
    assert results.annToMask(results.dataset["annotations"][1]).sum() == pytest.approx(64 * 48 / 2, rel=0.05)


def test_predictions_are_read_with_their_scores(work):
    predictions = [{"result": [make_box(10, 10, 10, 10, score=0.9)], "score": 0.9, "model_version": "m"}]
    write_json(Path("tasks.json"), [{"data": {"image": "a.jpg"}, "predictions": predictions}])
    convert("tasks.json", "--to", "coco", "-o", "out", "--what", "predictions")
    (task,) = read("out", "--what", "predictions")
    (prediction,) = task["predictions"]
    assert (prediction["score"], prediction["result"][0]["score"]) == (0.9, 0.9)
    assert "annotations" not in task


POSE_CONFIG = """<View><Image name="img" value="$image"/>
  <RectangleLabels name="box" toName="img"><Label value="Person"/></RectangleLabels>
  <KeyPointLabels name="keypoint" toName="img"><Label value="nose"/><Label value="eye"/></KeyPointLabels></View>"""


def keypoint(x: float, y: float, label: str, **fields: Any) -> dict[str, Any]:
    return make_region("keypoint", {"x": x, "y": y, "width": 1}, [label], **fields)


def test_keypoints_belong_to_their_box(work):
    Path("config.xml").write_text(POSE_CONFIG)
    box = make_box(10, 10, 40, 40, ["Person"], id="box")
    far = make_box(60, 60, 20, 20, ["Person"], id="far")
    points = [keypoint(90, 20, "nose", id="n", parentID="box"), keypoint(65, 65, "eye", id="e")]
    coco = to_coco(make_task(box, far, *points, keypoint(99, 99, "eye", id="l")))
    assert coco.dataset["categories"] == [{"id": 1, "name": "Person", "keypoints": ["nose", "eye"], "skeleton": []}]
    first, second = coco.dataset["annotations"]
    assert (first["keypoints"], first["num_keypoints"]) == ([576, 96, 2, 0, 0, 0], 1)
    assert (second["keypoints"], second["num_keypoints"]) == ([0, 0, 0, 416, 312, 2], 1)
    (task,) = read("out", "-c", "config.xml")
    back = regions_of(task)
    assert [region["type"] for region in back] == ["rectanglelabels", "keypointlabels"] * 2
    assert [back[1]["parentID"], back[3]["parentID"]] == [back[0]["id"], back[2]["id"]]
    assert (back[1]["value"]["keypointlabels"], back[1]["value"]["x"], back[1]["value"]["y"]) == (["nose"], 90, 20)
    made = run_in_process("convert", "out", "-o", "made.json", "--label-config-out", "-")
    assert "<KeyPointLabels" in made.stdout
    assert '<Label value="eye"/>' in made.stdout


def test_keypoints_alone_are_one_object_as_the_sdk_has_it(work):
    """In the order of `model_index`."""
    from label_studio_sdk.converter.keypoints import process_keypoints_for_coco

    config = """<View><Image name="img" value="$image"/><KeyPointLabels name="keypoint" toName="img">
      <Label value="nose" model_index="1"/><Label value="eye" model_index="0"/></KeyPointLabels></View>"""
    Path("config.xml").write_text(config)
    regions = [keypoint(25, 50, "nose", id="1"), keypoint(50, 75, "eye", id="2")]
    coco = to_coco(make_task(*regions))
    (annotation,) = coco.dataset["annotations"]
    values = [{**region["value"], "original_width": 640, "original_height": 480} for region in regions]
    theirs = process_keypoints_for_coco(values, ["eye", "nose"], 1, 1, {"eye": 1})
    assert {key: annotation[key] for key in theirs} == theirs
    assert coco.dataset["categories"][0]["name"] == "default"


def test_keypoints_without_a_label_config_are_left_out(work):
    write_json(Path("tasks.json"), [make_task(keypoint(25, 50, "nose"))])
    assert "whose place in the list of keypoints only the label config tells" in convert(
        "tasks.json", "--to", "coco", "-o", "out"
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(boxes() | polygons(), max_size=5), sizes)
def test_round_trip(tmp_path_factory, regions, size):
    """The same regions come back, to the thousandth of a pixel."""
    folder = tmp_path_factory.mktemp("coco")
    config = folder / "config.xml"
    config.write_text(SHAPES_CONFIG)
    sized = [
        {**region, "id": f"r{i}", "original_width": size[0], "original_height": size[1]}
        for i, region in enumerate(regions)
    ]
    write_image(folder / "a.jpg", size) if not regions else None
    tasks = write_json(folder / "tasks.json", [make_task(*sized)])
    convert(str(tasks), "--to", "coco", "-o", str(folder / "out"), "-c", str(config))
    (task,) = read(str(folder / "out"), "-c", str(config))
    for region, back in zip(regions, regions_of(task), strict=True):
        assert (back["type"], back["from_name"]) == (region["type"], region["from_name"])
        assert back["value"][back["type"]] == region["value"][region["type"]]
        assert (back["original_width"], back["original_height"]) == size
        for key in ("x", "y", "width", "height") if back["type"] == "rectanglelabels" else ():
            assert math.isclose(back["value"][key], region["value"][key], abs_tol=0.2 / min(size))
        pairs = zip(back["value"].get("points", []), region["value"].get("points", []), strict=True)
        assert all(math.dist(*pair) < 0.3 / min(size) for pair in pairs)


def test_real_annotations_come_back(work, shared_data):
    """Every box of COCO itself: read, written, and compared with what pycocotools reads."""
    convert(str(shared_data / "coco128" / "instances.json"), "-o", "tasks.json", "--label-config-out", "made.xml")
    images = f"{shared_data}/coco128/images/"
    convert("tasks.json", "--to", "coco", "-o", "out", "-c", "made.xml", "--map", f"{images}={images}")
    mine, theirs = load("out/annotations.json"), load(shared_data / "coco128" / "instances.json")
    assert len(mine.imgs) == len(theirs.imgs) == 128
    for image_id, image in zip(sorted(theirs.imgs), mine.dataset["images"], strict=True):
        annotations = theirs.imgToAnns[image_id]
        written = mine.imgToAnns[image["id"]]
        assert Path(theirs.imgs[image_id]["file_name"]).stem in image["file_name"]
        for annotation, other in zip(annotations, written, strict=True):
            assert other["bbox"] == pytest.approx(annotation["bbox"], abs=0.002)
            assert mine.cats[other["category_id"]]["name"] == theirs.cats[annotation["category_id"]]["name"]


BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}
IMAGE = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}
CATEGORIES = [{"id": 1, "name": "Car"}]


def write_coco(**lists: Any) -> None:
    write_json(Path("coco/instances.json"), {"images": [IMAGE], "annotations": [BOX], "categories": CATEGORIES} | lists)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (BOX | {"bbox": [1, 2, 3]}, "annotation 1: bbox is [1, 2, 3], not a list of 4 numbers"),
        (BOX | {"category_id": 9}, "annotation 1: there is no category 9"),
        (BOX | {"bbox": [200, 0, 10, 10]}, "annotation 1: the box is empty, or outside of the image"),
        ({"id": 1, "image_id": 1, "category_id": 1}, 'annotation 1: there is no "bbox"'),
    ],
)
def test_bad_annotation_costs_its_image(work, annotation, reason):
    write_coco(images=[IMAGE, IMAGE | {"id": 2}], annotations=[annotation, BOX | {"id": 2, "image_id": 2}])
    run = run_in_process("convert", "coco", "-o", "tasks.json")
    assert run.returncode == 3
    assert f"image 1 (a.jpg): {reason}" in run.stderr
    assert len(json.loads(Path("tasks.json").read_text())) == 1


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "x/../../a.jpg"])
def test_file_names_cannot_leave_the_data_set(work, name):
    write_coco(images=[IMAGE | {"file_name": name}])
    run = run_in_process("convert", "coco", "--from", "coco", "-o", "tasks.json")
    assert run.returncode == 3
    assert "leads out of the data set" in run.stderr


def test_annotations_of_no_image_are_reported(work):
    write_coco(annotations=[BOX, BOX | {"id": 2, "image_id": 77}])
    assert "1 annotation belongs to no image" in convert("coco", "-o", "tasks.json")


def test_truncated_file_is_refused(work):
    write_coco()
    path = Path("coco/instances.json")
    path.write_text(path.read_text()[:-20])
    assert "ends in the middle" in convert(str(path), "--from", "coco", "-o", "tasks.json", code=1)


def test_given_config_is_checked(work):
    write_coco(categories=[{"id": 1, "name": "Tree"}])
    said = convert("coco", "-c", "config.xml", "-o", "tasks.json", code=1)
    assert 'COCO has classes that <RectangleLabels name="box"> lacks: Tree.' in said
    Path("text.xml").write_text('<View><Text name="t" value="$text"/></View>')
    said = convert("coco", "-c", "text.xml", "-o", "tasks.json", code=1)
    assert "COCO needs a <RectangleLabels> about an <Image>, and the label config has none" in said


def test_separate_labels_get_two_results_with_one_id(work):
    write_coco()
    Path("config.xml").write_text("""<View><Image name="img" value="$pic"/><Rectangle name="box" toName="img"/>
      <Labels name="label" toName="img"><Label value="Car"/></Labels></View>""")
    (task,) = read("coco", "-c", "config.xml")
    shape, label = regions_of(task)
    assert (shape["type"], label["type"], label["value"]["labels"]) == ("rectangle", "labels", ["Car"])
    assert shape["id"] == label["id"]
    assert task["data"] == {"pic": "coco/a.jpg"}


def test_images_are_found_beside_the_annotations(work):
    write_coco()
    write_image(Path("coco/images/a.jpg"))
    (task,) = read("coco")
    assert task["data"] == {"image": "coco/images/a.jpg"}
    convert("coco", "-o", "coco/tasks.json")
    assert json.loads(Path("coco/tasks.json").read_text())[0]["data"] == {"image": "images/a.jpg"}
    (task,) = read("coco", "--media-prefix", "/data/local-files/?d=my photos/")
    assert task["data"] == {"image": "/data/local-files/?d=my photos/images/a.jpg"}


def test_size_is_that_of_regions(work):
    coco = to_coco(make_task(make_box(1, 1, 5, 5)))
    assert (coco.dataset["images"][0]["width"], coco.dataset["images"][0]["height"]) == SIZE
