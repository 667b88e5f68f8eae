"""Stored tasks with regions on images, as Label Studio exports them; strategies of hypothesis for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

SIZE = (640, 480)  # pixels of an image whose size does not matter
SHAPES_CONFIG = """<View><Image name="img" value="$image"/>
  <RectangleLabels name="box" toName="img"><Label value="Car"/><Label value="Person"/></RectangleLabels>
  <PolygonLabels name="poly" toName="img"><Label value="Car"/><Label value="Person"/></PolygonLabels>
  <Choices name="light" toName="img"><Choice value="Dark"/><Choice value="Bright"/></Choices></View>"""
CLASSES = ("Car", "Person")


def make_region(kind: str, value: dict[str, Any], labels: list[str], size=SIZE, **fields: Any) -> dict[str, Any]:
    """Return a region of a control such as <RectangleLabels>; `kind` is "rectangle"."""
    region_type = f"{kind}labels"
    return {
        "id": fields.pop("id", f"r{abs(hash(str(value))) % 10**8}"),
        "from_name": fields.pop("from_name", {"rectangle": "box", "polygon": "poly"}.get(kind, kind)),
        "to_name": "img",
        "type": region_type,
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "value": {**value, region_type: labels},
        **fields,
    }


def make_box(x, y, width, height, labels=("Car",), rotation=0.0, **fields: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
    return make_region("rectangle", value, list(labels), **fields)


def make_polygon(points, labels=("Car",), **fields: Any) -> dict[str, Any]:
    return make_region("polygon", {"points": [list(point) for point in points], "closed": True}, list(labels), **fields)


def make_task(*regions: dict[str, Any], image: str = "a.jpg", id: int = 1, **fields: Any) -> dict[str, Any]:
    """Return an annotated task."""
    return {"id": id, "data": {"image": image}, "annotations": [{"id": 10 * id, "result": list(regions)}], **fields}


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_image(path: Path, size: tuple[int, int] = SIZE, orientation: int | None = None, shade: int = 120) -> Path:
    """Write a JPEG of one colour; `size` is that of the stored pixels, which EXIF's orientation may turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size, (90, shade, 60)).save(path, exif=exif)
    return path


# ---- hypothesis

percents = st.floats(0, 100, allow_nan=False).map(lambda number: round(number, 4))


@st.composite
def boxes(draw: st.DrawFn) -> dict[str, Any]:
    """A box that is not rotated, at least 1 % wide and high."""
    x, y = (draw(st.integers(0, 98_0000)) / 10_000 for _ in range(2))
    width, height = (draw(st.integers(10_000, int((100 - start) * 10_000))) / 10_000 for start in (x, y))
    return make_box(x, y, width, height, [draw(st.sampled_from(CLASSES))])


@st.composite
def polygons(draw: st.DrawFn) -> dict[str, Any]:
    """A polygon of 3 to 8 points that is at least 1 % wide and high."""
    points = draw(st.lists(st.tuples(percents, percents), min_size=3, max_size=8, unique=True))
    spans = [max(axis) - min(axis) for axis in zip(*points, strict=True)]
    if min(spans) < 1:
        points = [(0.0, 0.0), (50.0, 0.0), *points]
        points = [*points, (0.0, 50.0)]
    return make_polygon(points, [draw(st.sampled_from(CLASSES))])


sizes = st.tuples(st.integers(100, 4000), st.integers(100, 4000))


@st.composite
def rotated_boxes(draw: st.DrawFn) -> dict[str, Any]:
    """A rotated box that lies in an image of 640 x 480 pixels: at most 150 pixels from its middle."""
    width, height = (draw(st.integers(20, 150)) for _ in range(2))
    x, y = draw(st.integers(200, 400)), draw(st.integers(220, 260))
    angle = draw(st.integers(1, 359))
    box = (100 * x / 640, 100 * y / 480, 100 * width / 640, 100 * height / 480)
    return make_box(*box, [draw(st.sampled_from(CLASSES))], rotation=float(angle))
