"""Masks as PNG, written and read: numpy, pycocotools and the SDK's code of brushes are the oracles."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lsml_cli.io.formats.masks import decode_png, encode_png
from lsml_cli.schema.shapes import draw_mask, parse_shape
from tests.helpers.cli import run_in_process
from tests.helpers.convert import convert
from tests.helpers.regions import (
    boxes,
    make_box,
    make_polygon,
    make_region,
    make_task,
    polygons,
    write_image,
    write_json,
)

CONFIG = """<View><Image name="img" value="$image"/>
  <BrushLabels name="brush" toName="img"><Label value="Car"/><Label value="Person"/></BrushLabels>
  <RectangleLabels name="box" toName="img"><Label value="Car"/><Label value="Person"/></RectangleLabels>
  <PolygonLabels name="poly" toName="img"><Label value="Car"/><Label value="Person"/></PolygonLabels></View>"""
SIZE = (40, 30)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(CONFIG)
    return tmp_path


def read(path: str | Path, *options: str | Path) -> list[dict[str, Any]]:
    run = run_in_process("convert", path, "--from", "masks", *options)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def make_brush(mask: np.ndarray, label: str, **fields: Any) -> dict[str, Any]:
    """A brush stroke as Label Studio's SDK encodes it."""
    from label_studio_sdk.converter import brush

    rle = brush.mask2rle((mask * 255).astype(np.uint8))
    return make_region("brush", {"format": "rle", "rle": rle}, [label], size=mask.shape[::-1], **fields)


def decode_brush(region: dict[str, Any]) -> np.ndarray:
    from label_studio_sdk.converter import brush

    height, width = region["original_height"], region["original_width"]
    return brush.decode_rle(region["value"]["rle"]).reshape(height, width, 4)[:, :, 3] > 0


def to_masks(*tasks: dict[str, Any], options: tuple[str, ...] = ()) -> str:
    write_json(Path("tasks.json"), list(tasks))
    return convert("tasks.json", "--to", "masks", "-o", "out", "-c", "config.xml", *options)


def picture(folder: str = "semantic") -> np.ndarray:
    return np.asarray(Image.open(f"out/{folder}/a.png"))


def disc(x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.uint8)


def test_pixels_are_numbers_of_classes_and_of_regions(work):
    first, second = disc(10, 10, 6), disc(14, 10, 5)
    to_masks(
        make_task(make_brush(first, "Person", id="1"), make_brush(second, "Car", id="2")),
        options=("--variant", "instance"),
    )
    expected = np.where(second, 1, np.where(first, 2, 0))
    assert (picture() == expected).all()
    assert (picture("instance") == np.where(second, 2, np.where(first, 1, 0))).all()
    assert Path("out/classes.txt").read_text() == "Car\nPerson\n"


def test_semantic_is_the_default(work):
    to_masks(make_task(make_brush(disc(10, 10, 6), "Car")))
    assert {path.name for path in Path("out").iterdir()} == {"classes.txt", "semantic"}


def test_boxes_cover_the_pixels_whose_middle_they_hold(work):
    to_masks(make_task(make_box(25, 50, 50, 20, ["Person"], size=SIZE)))
    expected = np.zeros(SIZE[::-1], np.uint8)
    expected[15:21, 10:30] = 2
    assert (picture() == expected).all()


def test_image_without_regions_is_background_of_its_upright_size(work):
    write_image(Path("a.jpg"), (30, 20), orientation=6)
    to_masks(make_task())
    assert (picture().shape, picture().max()) == ((30, 20), 0)


@settings(max_examples=40, deadline=None)
@given(boxes() | polygons())
def test_shapes_are_drawn_like_pycocotools_draws_them(region):
    """Up to pixels on the outline, which each rounds in its own way."""
    from pycocotools import mask as oracle

    width, height = 64, 48
    shape = parse_shape(region)
    assert shape is not None
    drawn = draw_mask(shape, (width, height))
    points = [value for x, y in shape.outline() for value in (x * width / 100, y * height / 100)]
    encoded = oracle.frPyObjects([points], height, width)[0]
    outline = sum(
        np.hypot(x2 - x1, y2 - y1)
        for (x1, y1), (x2, y2) in zip(
            zip(points[::2], points[1::2], strict=True),
            zip(points[2::2] + points[:1], points[3::2] + points[1:2], strict=True),
            strict=True,
        )
    )
    assert abs(int(drawn.sum()) - int(oracle.area(encoded))) <= outline + 4


masks = st.lists(
    st.tuples(st.integers(0, 39), st.integers(0, 29), st.integers(1, 9), st.sampled_from(["Car", "Person"])), max_size=4
)


@settings(max_examples=25, deadline=None)
@given(masks)
def test_round_trip_of_instances(tmp_path_factory, drawn):
    """What is visible of each region comes back, pixel by pixel."""
    folder = tmp_path_factory.mktemp("masks")
    (folder / "config.xml").write_text(CONFIG)
    write_image(folder / "a.jpg", SIZE)
    discs = [disc(x, y, radius).astype(bool) for x, y, radius, _ in drawn]
    regions = [
        make_brush(mask.astype(np.uint8), entry[3], id=f"r{i}")
        for i, (mask, entry) in enumerate(zip(discs, drawn, strict=True))
    ]
    tasks = write_json(folder / "tasks.json", [make_task(*regions)])
    words = ("--variant", "instance", "--images", "copy")
    convert(tasks, "--to", "masks", "-o", folder / "out", "-c", folder / "config.xml", *words)
    (task,) = read(folder / "out", "-c", folder / "config.xml")
    visible = [mask & ~np.any([np.zeros_like(mask), *discs[i + 1 :]], axis=0) for i, mask in enumerate(discs)]
    expected = [(entry[3], mask) for entry, mask in zip(drawn, visible, strict=True) if mask.any()]
    back = task["annotations"][0]["result"]
    assert [region["value"]["brushlabels"] for region in back] == [[label] for label, _ in expected]
    for region, (_, mask) in zip(back, expected, strict=True):
        assert (decode_brush(region) == mask).all()


@given(st.sampled_from([1, 255, 256, 65_535]))
def test_png_holds_as_many_numbers_as_needed(highest):
    numbers = np.array([[0, highest], [1, 0]], np.uint16)
    content = encode_png(numbers)
    assert (decode_png(content) == numbers).all()
    assert Image.open(io.BytesIO(content)).mode == ("L" if highest < 256 else "I;16")


def test_palette_is_read_by_its_places(work):
    numbers = np.array([[0, 1], [1, 0]], np.uint8)
    picture = Image.fromarray(numbers).convert("P")
    picture.putdata(numbers.ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0])
    for name in ("out/semantic", "out/images"):
        Path(name).mkdir(parents=True)
    picture.save("out/semantic/a.png")
    write_image(Path("out/images/a.jpeg"), (2, 2))
    Path("out/classes.txt").write_text("Car\n")
    (task,) = read("out")
    assert task["data"] == {"image": "out/images/a.jpeg"}
    (region,) = task["annotations"][0]["result"]
    assert decode_brush(region).tolist() == numbers.astype(bool).tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no picture", "the mask is no PNG that can be read"),
        (encode_png(np.full((2, 2), 7, np.uint16)), "there is no class 7 in classes.txt"),
    ],
)
def test_bad_mask_costs_its_image(work, content, reason):
    Path("out/semantic").mkdir(parents=True)
    Path("out/classes.txt").write_text("Car\n")
    Path("out/semantic/a.png").write_bytes(content)
    Path("out/semantic/b.png").write_bytes(encode_png(np.zeros((2, 2), np.uint16)))
    run = run_in_process("convert", "out", "--from", "masks", "-o", "tasks.json")
    assert (run.returncode, reason in run.stderr) == (3, True), run.stderr
    assert len(json.loads(Path("tasks.json").read_text())) == 1


def test_masks_in_coco_are_those_of_brushes(work):
    from pycocotools.coco import COCO

    write_json(Path("tasks.json"), [make_task(make_brush(disc(10, 10, 6), "Person"))])
    convert("tasks.json", "--to", "coco", "-o", "coco", "-c", "config.xml")
    content = json.loads(Path("coco/annotations.json").read_text())
    (annotation,) = content["annotations"]
    mask = disc(10, 10, 6)
    assert (annotation["area"], annotation["bbox"]) == (mask.sum(), [4, 4, 13, 13])
    coco = COCO("coco/annotations.json")
    from pycocotools import mask as oracle

    assert oracle.area(coco.annToRLE(annotation)) == mask.sum()
    run = run_in_process("convert", "coco", "-c", "config.xml")
    (region,) = json.loads(run.stdout)["annotations"][0]["result"]
    assert region["type"] == "brushlabels"
    assert (decode_brush(region) == mask.astype(bool)).all()


def test_polygons_and_brushes_are_drawn_in_order(work):
    to_masks(
        make_task(
            make_polygon([(0, 0), (100, 0), (100, 100), (0, 100)], ["Car"], size=SIZE),
            make_brush(disc(10, 10, 6), "Person"),
        )
    )
    assert (picture() == np.where(disc(10, 10, 6), 2, 1)).all()
