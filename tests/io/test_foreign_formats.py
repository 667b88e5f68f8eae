"""Data sets of other formats given as tasks are recognised by name, with what to do instead."""

from __future__ import annotations

import contextlib
import gzip
import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import InputError, LsmlError, UsageError
from lsml_cli.io.foreign_formats import find_dataset
from lsml_cli.io.image_folder import ImageFolderSource
from lsml_cli.io.source import RecordSource
from tests.helpers import models
from tests.helpers.cli import run_in_process
from tests.helpers.predict_runs import predict

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 4, "height": 3}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}
COCO: dict[str, Any] = {
    "info": {"year": 2026},
    "images": [IMAGE],
    "annotations": [BOX],
    "categories": [{"id": 1, "name": "car"}],
}
YOLO = "0 0.15 0.25 0.2 0.3\n12 0.655 0.4025 .3 4e-1\n"
VOC = '<?xml version="1.0"?>\n<!-- by hand -->\n<annotation><filename>a.jpg</filename><object/></annotation>\n'
DATA_YAML = "# made by us, in a hurry\ntrain: images/train\nval: images/val\nnames:\n  0: car\n"


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.IMAGE_CONFIG)
    return tmp_path


def write(path: str, content: str = "") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)


def error_of(path: str) -> LsmlError:
    with pytest.raises(LsmlError) as raised:
        RecordSource(path)
    return raised.value


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(COCO),
        json.dumps(COCO, indent=2),
        json.dumps({key: COCO[key] for key in reversed(COCO)}),
        json.dumps(COCO | {"images": [IMAGE] * 20_000}),
        json.dumps({"annotations": [BOX] * 20_000} | COCO, indent=1),
        json.dumps(COCO | {"images": [], "annotations": [], "categories": []}),
    ],
    ids=["one line", "indented", "reversed", "many images", "many annotations", "empty"],
)
def test_coco_file_is_recognized(work, content):
    write("set/images/a.jpg")
    write("set/instances.json", content)
    Path("set/instances.json.gz").write_bytes(gzip.compress(content.encode()))
    for path in ("set/instances.json", "set/instances.json.gz"):
        error = error_of(path)
        assert isinstance(error, UsageError)
        assert error.message == (
            f"{path} is a COCO file of images, annotations and categories, and lsml reads tasks of Label Studio."
        )
        assert error.hint == (
            "To predict its images: lsml predict set/images. "
            f"To make tasks of it: lsml convert {path} --from coco -o tasks.json"
        )


@pytest.mark.parametrize(
    "items",
    [
        [{"data": {"image": "a.jpg"}, "annotations": [], "images": [], "categories": []}],
        [{"images": [IMAGE], "text": "a"}],
        [{"images": [IMAGE], "annotations": [BOX]}] * 2,
        [{"id": 1, "annotations": [{"id": 1, "result": []}], "images": [], "data": {}}],
        [{"images": ["a.jpg"], "annotations": [1], "categories": ["x"]}],
    ],
)
def test_items_with_keys_of_coco_are_tasks(work, items):
    write("tasks.jsonl", "".join(f"{json.dumps(item)}\n" for item in items))
    with RecordSource("tasks.jsonl") as source:
        assert len(list(source)) == len(items)


@pytest.mark.parametrize(
    ("path", "content", "sentence"),
    [
        ("set/labels/a.txt", YOLO, "holds labels of a YOLO data set"),
        ("set/labels/outline.txt", "3 0.1 0.2 0.3 0.4 0.5 0.6 0.1 0.9", "holds labels of a YOLO data set"),
        ("set/classes.txt", "car\nbus\n", "holds the class names of a YOLO data set"),
        ("set/data.yaml", DATA_YAML, "describes a YOLO data set"),
        ("set/data.yaml", "names: ['a', 'b']\nnc: 2\ntrain: ../train/images\n", "describes a YOLO data set"),
        ("set/Annotations/a.xml", VOC, "holds annotations in Pascal VOC's XML"),
    ],
)
def test_file_of_data_set_is_recognized(work, path, content, sentence):
    write("set/labels/b.txt")
    write("set/images/a.jpg")
    write(path, content)
    error = error_of(path)
    assert isinstance(error, UsageError)
    assert f"{path} {sentence}" in str(error)
    assert error.hint is not None
    assert "lsml predict set/images." in error.hint
    assert f"lsml convert set --from {'yolo' if 'YOLO' in sentence else 'voc'} -o tasks.json" in error.hint


def test_hint_about_coco_file_can_be_followed(work):
    write("set/images/a.jpg")
    write("set/instances.json", json.dumps(COCO))
    hint = error_of("set/instances.json").hint or ""
    run = run_in_process("convert", *shlex.split(hint.partition("lsml convert ")[2]))
    assert run.returncode == 0, run.stderr


def test_coco_results_are_recognized(work):
    write("results.json", json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "score": 0.5}]))
    error = error_of("results.json")
    assert "results.json holds results in COCO's format" in error.message
    assert "lsml convert COCO_FILE --from coco --what predictions" in (error.hint or "")


def test_label_config_as_tasks_is_recognized(work):
    error = error_of("config.xml")
    assert (error.message, error.hint) == (
        "config.xml is a label config, not a file of tasks.",
        "Name it with --label-config.",
    )


@pytest.mark.parametrize(
    "content",
    ["0 1 2 3 4\n", "0 0.1 0.2 0.3 0.4\nand a text\n", "<html><annotation/></html>", "names: a\nval us: b\n"],
)
def test_similar_text_is_not_recognized(work, content):
    write("file.txt", content)
    assert isinstance(error_of("file.txt"), InputError)


@pytest.mark.parametrize(
    "content",
    [
        "0 0.1 " + "9" * 50_000 + " x\n",
        "0 " + "0.1 " * 10_000 + "x\n",
        "<?a?>" * 10_000 + "<b>",
        "<!--" * 10_000,
        "names" + "\n" * 60_000,
        "a" + "\t" * 60_000 + "b\n",
        '{"images": ' + "[" * 60_000,
        '{"images": [], ' + '"a": [],' * 10_000 + "\n}",
    ],
)
def test_recognition_takes_linear_time(work, content):
    write("file.txt", content)
    begin = time.process_time()
    with contextlib.suppress(LsmlError), RecordSource("file.txt") as source:
        list(source)
    assert time.process_time() - begin < 1


def test_table_with_names_and_train_is_read(work):
    write("tasks.csv", 'text,label\n"names: a\ntrain: b",c\n')
    with RecordSource("tasks.csv") as source:
        assert len(list(source)) == 1


@pytest.mark.parametrize(
    ("files", "dataset"),
    [
        ({"classes.txt": "car\n", "labels/a.txt": ""}, "YOLO"),
        ({"labels/train/a.txt": YOLO}, "YOLO"),
        ({"a.txt": YOLO}, "YOLO"),
        ({"data.yaml": DATA_YAML}, "YOLO"),
        ({"Annotations/a.xml": VOC}, "Pascal VOC"),
        ({"a.xml": VOC}, "Pascal VOC"),
        ({"a.txt": "a caption", "b.xml": "<html/>", "data.yaml": "a: b"}, None),
    ],
)
def test_folder_of_data_set_is_recognized(work, files, dataset):
    for path, content in files.items():
        write(f"set/{path}", content)
    assert find_dataset("set") == dataset
    with pytest.raises(UsageError, match=f"set is a {dataset} data set, and lsml" if dataset else "set is a folder"):
        RecordSource("set")
    with pytest.raises(LsmlError, match=f"set is a {dataset} data set, and lsml" if dataset else "There is no image"):
        ImageFolderSource("set", "image")
    write("set/images/a.jpg")
    with ImageFolderSource("set", "image") as source:
        note = f"set is a {dataset} data set: its images are read, its annotations are not."
        assert (note in source.notes) == (dataset is not None)
        assert len(list(source)) == 1


def test_piped_data_set_is_refused(work, lsml):
    piped = predict(lsml, "-", input=json.dumps(COCO, indent=1), model=f"{models.__file__}:Brightness")
    assert (piped.returncode, piped.stdout) == (2, "")
    assert "standard input is a COCO file" in piped.stderr
    assert "lsml predict FOLDER." in piped.stderr
