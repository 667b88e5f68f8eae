"""Label Studio's own exports to COCO, YOLO, VOC and CoNLL, against `lsml convert` on its JSON export: all differences.

equal                      boxes that are not rotated, polygons, names of classes
COCO: rotated boxes        turned in percent, so they lie elsewhere unless the image is square
YOLO: rotated boxes        written as if they were not rotated
VOC: pixels                counted from 0 instead of 1; no file for an image without objects
CoNLL: header              no blank line after it
CoNLL: tokens              a Chinese text is one token with the tag of its first span, so that all others are lost
"""

from __future__ import annotations

import io
import json
import re
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.cli import run_in_process
from tests.helpers.regions import make_box, make_polygon

if TYPE_CHECKING:
    from tests.helpers.label_studio_server import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = """<View><Image name="img" value="$image"/>
  <RectangleLabels name="box" toName="img"><Label value="Car"/><Label value="Person"/></RectangleLabels>
  <PolygonLabels name="poly" toName="img"><Label value="Car"/><Label value="Person"/></PolygonLabels></View>"""
UPRIGHT = [make_box(10, 20, 30, 40, ["Person"], id="a"), make_box(60.5, 5.25, 20, 10, ["Car"], id="b")]
ROTATED = make_box(50, 50, 20, 10, ["Car"], rotation=30.0, id="c")
POLYGON = make_polygon([(0, 0), (50, 0), (0, 50)], ["Car"], id="d")


@pytest.fixture(scope="module")
def project(label_studio: LabelStudio) -> int:
    project = label_studio.create_project("formats", CONFIG)
    results = [UPRIGHT, [ROTATED], [POLYGON], []]
    tasks = [
        {"data": {"image": f"http://127.0.0.1:9/{i}.jpg"}, "annotations": [{"result": result}]}
        for i, result in enumerate(results)
    ]
    label_studio.import_tasks(project, tasks)
    return project


@pytest.fixture
def work(label_studio: LabelStudio, project: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The JSON export without the empty image, whose size nothing tells, and the label config."""
    monkeypatch.chdir(tmp_path)
    tasks = [task for task in label_studio.export(project) if task["annotations"][0]["result"]]
    Path("export.json").write_text(json.dumps(tasks))
    Path("config.xml").write_text(CONFIG)
    return tmp_path


def export(server: LabelStudio, project: int, name: str) -> Path:
    """Let Label Studio export a project, and unpack that."""
    url = f"{server.url}/api/projects/{project}/export?exportType={name}"
    request = urllib.request.Request(url, headers={"Authorization": server.authorization()})
    with urllib.request.urlopen(request, timeout=300) as answer, zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
        archive.extractall(name)
    return Path(name)


def convert(name: str, *options: str) -> None:
    run = run_in_process("convert", "export.json", "--to", name, "-o", "mine", "-c", "config.xml", *options)
    assert run.returncode == 0, run.stderr


def by_image(coco: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Annotations of each image by its number, with the names of their classes."""
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found: dict[str, list[dict[str, Any]]] = {}
    for image in coco["images"]:
        number = re.findall(r"(\d)\.jpg|(\d)-[0-9a-f]+\.jpg", image["file_name"])[-1]
        found["".join(number)] = [
            annotation | {"class": names[annotation["category_id"]]}
            for annotation in coco["annotations"]
            if annotation["image_id"] == image["id"]
        ]
    return found


def test_coco(label_studio: LabelStudio, project: int, work: Path) -> None:
    theirs = by_image(json.loads(next(export(label_studio, project, "COCO").rglob("*.json")).read_text()))
    convert("coco")
    mine = by_image(json.loads(Path("mine/annotations.json").read_text()))
    for number in "02":
        for annotation, other in zip(mine[number], theirs[number], strict=True):
            assert annotation["class"] == other["class"]
            assert annotation["bbox"] == pytest.approx(other["bbox"], abs=0.01)
            assert annotation["area"] == pytest.approx(other["area"], abs=0.5)
            segments = zip(annotation["segmentation"], other["segmentation"], strict=True)
            assert all(segment == pytest.approx(their_segment, abs=0.01) for segment, their_segment in segments)
    assert mine["1"][0]["bbox"] != pytest.approx(theirs["1"][0]["bbox"], abs=1)


def test_yolo(label_studio: LabelStudio, project: int, work: Path) -> None:
    folder = export(label_studio, project, "YOLO")
    convert("yolo", "--holdout", "0")
    lines = {}
    for name, labels in (("theirs", folder / "labels"), ("mine", Path("mine/labels/train"))):
        files = {
            re.findall(r"\d", path.stem.rpartition("/")[2])[-1 if name == "theirs" else 0]: path
            for path in labels.iterdir()
        }
        lines[name] = {
            number: [list(map(float, line.split())) for line in path.read_text().splitlines()]
            for number, path in files.items()
        }
    for line, other in zip(lines["mine"]["0"], lines["theirs"]["0"], strict=True):
        assert line == pytest.approx(other, abs=1e-5)
    assert lines["theirs"]["1"] == [[0, 0.6, 0.55, 0.2, 0.1]]
    assert lines["mine"]["1"][0] != pytest.approx(lines["theirs"]["1"][0], abs=0.01)
    assert (folder / "classes.txt").read_text().split() == ["Car", "Person"]


def test_voc(label_studio: LabelStudio, project: int, work: Path) -> None:
    folder = export(label_studio, project, "VOC")
    convert("voc")
    texts = {
        name: (path / "Annotations/0.xml").read_text() for name, path in (("theirs", folder), ("mine", Path("mine")))
    }
    boxes = {name: list(map(int, re.findall(r"<[xy]m\w\w>(\d+)<", text))) for name, text in texts.items()}
    assert len(boxes["mine"]) == 8
    for position, (mine, theirs) in enumerate(zip(boxes["mine"], boxes["theirs"], strict=True)):
        assert abs(mine - theirs - (1 if position % 4 < 2 else 0)) <= 1  # pixels are cut instead of rounded


TEXT_CONFIG = """<View><Text name="text" value="$text"/>
  <Labels name="ner" toName="text"><Label value="PER"/><Label value="LOC"/></Labels></View>"""
SENTENCES = {
    "Ada Lovelace lived in London": [(0, 12, "PER"), (22, 28, "LOC")],
    "nothing here": [],
    "Ada's house": [(0, 3, "PER")],
    "艾达住在伦敦": [(0, 2, "PER"), (4, 6, "LOC")],
}


def test_conll(label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = label_studio.create_project("sentences", TEXT_CONFIG)
    tasks = []
    for text, spans in SENTENCES.items():
        result = [
            {
                "id": f"s{start}",
                "from_name": "ner",
                "to_name": "text",
                "type": "labels",
                "value": {"start": start, "end": end, "text": text[start:end], "labels": [label]},
            }
            for start, end, label in spans
        ]
        tasks.append({"data": {"text": text}, "annotations": [{"result": result}]})
    label_studio.import_tasks(project, tasks)
    Path("export.json").write_text(json.dumps(label_studio.export(project)))
    Path("config.xml").write_text(TEXT_CONFIG)
    url = f"{label_studio.url}/api/projects/{project}/export?exportType=CONLL2003"
    request = urllib.request.Request(url, headers={"Authorization": label_studio.authorization()})
    with urllib.request.urlopen(request, timeout=300) as answer:
        theirs = split_sentences(answer.read().decode())
    convert("conll")
    mine = split_sentences(Path("mine/ner.conll").read_text())
    assert mine[:3] == theirs[:3]
    assert mine[2] == [("Ada", "B-PER"), ("'s", "O"), ("house", "O")]
    assert [tag for _, tag in mine[3]] == ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC"]
    assert theirs[3] == [("艾达住在伦敦", "B-PER")]


def split_sentences(conll: str) -> list[list[tuple[str, str]]]:
    """Return the (token, tag) pairs of each sentence."""
    blocks = conll.partition("\n")[2].strip("\n").split("\n\n")
    return [[(line.split(" ")[0], line.split(" ")[-1]) for line in block.split("\n")] for block in blocks]
