"""`lsml convert`, whatever the format: what is left of a run, options, errors of single tasks."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import pytest

from lsml_cli.io.formats.image_set import confine_name
from lsml_cli.io.formats.registry import FORMATS, WRITABLE
from lsml_cli.io.task_reader import read_tasks
from lsml_cli.schema.tasks import UnreadableRecord
from tests.helpers.cli import run_in_process
from tests.helpers.regions import SHAPES_CONFIG, make_box, make_task, write_image, write_json


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(SHAPES_CONFIG)
    write_json(Path("tasks.json"), [make_task(make_box(1, 1, 5, 5)), make_task(image="b.jpg", id=2)])
    return tmp_path


def names(folder: str = ".") -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_failed_task_costs_itself(work):
    before = names()
    run = run_in_process(
        *("convert", "tasks.json", "--to", "coco", "-o", "out", "--errors", "errors.jsonl", "--summary", "s.json")
    )
    assert run.returncode == 3
    assert "2 tasks, 1 written, 1 region -> out" in run.stderr
    assert "no region says how large the image is" in run.stderr
    (line,) = map(json.loads, Path("errors.jsonl").read_text().splitlines())
    assert (line["id"], line["index"], line["stage"]) == (2, 1, "write")
    summary = json.loads(Path("s.json").read_text())
    assert (summary["tasks"], summary["written"], summary["failed"]) == (2, 1, 1)
    assert names() - before == {"out", "errors.jsonl", "s.json"}


@pytest.mark.parametrize("output_format", ["coco", "yolo", "voc", "folders"])
def test_texts_are_refused_as_images_before_the_first_task(work, output_format):
    write_json(
        Path("texts.json"),
        [{"id": n, "data": {"text": "a"}, "annotations": [{"id": n, "result": []}]} for n in range(30)],
    )
    run = run_in_process("convert", "texts.json", "--to", output_format, "-o", "out")
    assert run.returncode == 2
    assert "is about images, and no value of the first 5 tasks is known to be one." in run.stderr
    assert "Name the label config with --label-config" in run.stderr
    assert "failed" not in run.stderr
    assert not Path("out").exists()


def test_first_task_without_image_costs_itself(work):
    write_json(
        Path("tasks.json"),
        [{"id": 9, "data": {}, "annotations": [{"id": 1, "result": []}]}, make_task(make_box(1, 1, 5, 5))],
    )
    run = run_in_process("convert", "tasks.json", "--to", "coco", "-o", "out", "--errors", "errors.jsonl")
    assert (run.returncode, "2 tasks, 1 written, 1 region" in run.stderr) == (3, True), run.stderr
    (line,) = map(json.loads, Path("errors.jsonl").read_text().splitlines())
    assert (line["id"], line["index"], line["place"]) == (9, 0, "byte 1")


def test_errors_go_to_standard_output(work):
    run = run_in_process("convert", "tasks.json", "--to", "coco", "-o", "out", "--errors", "-")
    assert (run.returncode, json.loads(run.stdout)["id"]) == (3, 2)


def test_folder_with_files_is_not_touched(work):
    Path("out").mkdir()
    run = run_in_process("convert", "tasks.json", "--to", "json-min", "-o", "out")
    assert run.returncode == 0, run.stderr
    before = Path("out/tasks.json").read_bytes()
    run = run_in_process("convert", "tasks.json", "--to", "coco", "-o", "out")
    assert (run.returncode, "The folder out is not empty." in run.stderr) == (2, True)
    assert (names("out"), Path("out/tasks.json").read_bytes()) == ({"tasks.json"}, before)


def test_broken_input_leaves_nothing(work):
    Path("tasks.json").write_text("")
    before = names()
    assert run_in_process("convert", "tasks.json", "--to", "coco", "-o", "out").returncode == 1
    assert names() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--to", "cocoa", "-o", "out"), "--to 'cocoa' is no format that lsml knows."),
        (("--from", "x"), "--from 'x' is no format"),
        ((), "To which format?"),
        (("--to", "coco"), "A data set is a folder."),
        (("--to", "coco", "-o", "tasks.json"), "tasks.json is the input and --output at once."),
        (("--to", "coco", "-o", "config.xml"), "config.xml is a file, and a folder is to be made."),
        (("--to", "coco", "-o", "no/out"), "There is no folder"),
        (("--to", "json-min", "-o", "out", "--images", "copy"), "--images says nothing"),
    ],
)
def test_wrong_usage(work, words, sentence):
    before = names()
    run = run_in_process("convert", "tasks.json", *words)
    assert (run.returncode, sentence in run.stderr) == (2, True), run.stderr
    assert names() == before


def test_images_are_linked_or_copied_and_the_same_one_is_stored_once(work):
    write_image(Path("a.jpg"))
    write_image(Path("b.jpg"))
    write_json(Path("tasks.json"), [make_task(image=name, id=i) for i, name in enumerate(("a.jpg", "b.jpg", "a.jpg"))])
    for mode, is_same in (("link", True), ("copy", False)):
        run = run_in_process("convert", "tasks.json", "--to", "coco", "-o", mode, "--images", mode)
        assert run.returncode == 0, run.stderr
        assert names(f"{mode}/images") == {"a.jpg", "b.jpg"}
        assert Path(f"{mode}/images/a.jpg").samefile("a.jpg") == is_same


def test_images_outside_of_the_folder_are_not_copied(work):
    (work / "inner").mkdir()
    write_image(work / "secret.jpg")
    (work / "inner" / "link.jpg").symlink_to(work / "secret.jpg")
    names_of_images = ("../secret.jpg", str(work / "secret.jpg"), "link.jpg")
    write_json(Path("inner/tasks.json"), [make_task(make_box(1, 1, 5, 5), image=name) for name in names_of_images])
    for mode in ("link", "copy"):
        run = run_in_process("convert", "inner/tasks.json", "--to", "coco", "-o", mode, "--images", mode)
        assert (run.returncode, "3 tasks, 0 written" in run.stderr) == (3, True), run.stderr
        assert names(mode) == {"annotations.json"}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("a/1.jpg", "a/1.jpg"),
        ("/data/upload/7/d3b1-img0.png", "7/d3b1-img0.png"),
        ("/data/local-files/?d=coco/images/1.jpg", "coco/images/1.jpg"),
        ("größe ü.jpg", "größe ü.jpg"),
    ],
)
def test_plain_names_of_images_stay(value, name):
    assert confine_name(value) == name


@pytest.mark.parametrize(
    "value",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "a/../b.jpg",
        "~/x.jpg",
        ".ssh/id.jpg",
        "a\nb.jpg",
        "a\0b",
        "a\x1b[31m",
    ],
)
def test_odd_names_of_images_are_confined(value):
    name = confine_name(value)
    parts = name.split("/")
    assert not {"", ".", ".."} & set(parts)
    assert not any(part.startswith((".", "~", "-")) for part in parts)
    assert name.isprintable()
    assert name != value


def test_different_images_have_different_names():
    values = ["a/1.jpg", "a/../a/1.jpg", "/a/1.jpg", "https://x/a/1.jpg", "https://y/a/1.jpg", "https://x/a/1.jpg?v=2"]
    values += ["a%2F1.jpg", "a//1.jpg", "s3://x/a/1.jpg", "a/" + 300 * "x" + "1.jpg", "a/" + 300 * "x" + "2.jpg"]
    assert len({confine_name(value) for value in values}) == len(values)


def test_json_min_is_read_as_exported(work):
    """What is written comes back in, with the label config that it needs."""
    choice = {"id": "c", "from_name": "light", "to_name": "img", "type": "choices", "value": {"choices": ["Dark"]}}
    write_json(Path("tasks.json"), [make_task(make_box(1, 2, 5, 6, ["Car", "Person"]), choice)])
    run = run_in_process("convert", "tasks.json", "--to", "json-min", "-o", "min")
    assert run.returncode == 0, run.stderr
    (row,) = json.loads(Path("min/tasks.json").read_text())
    assert row["light"] == "Dark"
    run = run_in_process("convert", "min/tasks.json", "--to", "json-min", "-o", "again", "-c", "config.xml")
    assert run.returncode == 0, run.stderr
    (again,) = json.loads(Path("again/tasks.json").read_text())
    assert again["box"][0]["x"] == 1
    assert again["light"] == "Dark"
    run = run_in_process("convert", "min/tasks.json", "--to", "coco", "-o", "coco", "-c", "config.xml")
    assert len(json.loads(Path("coco/annotations.json").read_text())["annotations"]) == 2
    run = run_in_process("convert", "min/tasks.json", "--to", "coco", "-o", "none")
    assert (run.returncode, "says nothing without --label-config" in run.stderr) == (3, True)


@pytest.mark.parametrize("name", ["image-choices", "image-rectanglelabels", "text-choices-multi", "text-ner"])
def test_json_min_is_that_of_label_studio(tmp_path, shared_data, name):
    folder = shared_data / "exports"
    export = str(folder / f"{name}-json.json")
    run = run_in_process("convert", export, "--to", "json-min", "--annotation", "all", "-o", str(tmp_path / "out"))
    assert run.returncode == 0, run.stderr
    mine, theirs = (
        json.loads(path.read_text()) for path in (tmp_path / "out" / "tasks.json", folder / f"{name}-json_min.json")
    )
    assert mine == theirs


def test_json_min_keeps_data_of_the_names_of_its_own_keys(work):
    """A control without a result counts, too: its key would be read as one."""
    data = {"image": "a.jpg", "id": "z9", "annotator": "x", "light": "from the data"}
    write_json(Path("tasks.json"), [{"id": 5, "data": data, "annotations": [{"id": 6, "result": []}]}])
    run = run_in_process("convert", "tasks.json", "--to", "json-min", "-o", "min", "-c", "config.xml")
    assert run.returncode == 0, run.stderr
    (task,) = read_tasks("min/tasks.json", controls=["box", "poly", "light"])
    assert not isinstance(task, UnreadableRecord)
    assert (task.id, task.data) == (5, data)


def test_prediction_records_without_tasks_are_refused(work):
    Path("records.jsonl").write_text('{"task": 1, "result": [], "score": null, "model_version": "m"}\n')
    run = run_in_process("convert", "records.jsonl", "--to", "coco", "-o", "out", "--what", "predictions")
    assert (run.returncode, "it is a prediction without its task" in run.stderr) == (3, True)


def test_every_format_is_complete():
    """A format that is written or read names its class; a module is found for each."""
    installed = {name: entry for name, entry in FORMATS.items() if all(map(find_spec, entry.required_modules))}
    for name, entry in installed.items():
        assert entry.reader or entry.writer, name
        for location in filter(None, (entry.reader, entry.writer)):
            module, _, class_name = location.partition(":")
            assert hasattr(importlib.import_module(f"lsml_cli.io.formats.{module}"), class_name)
    assert "coco" in WRITABLE


@pytest.mark.parametrize("name", ["coco", "yolo"])
def test_memory_does_not_grow_with_the_tasks(work, name):
    peaks = []
    for count in (600, 1800):
        tasks = write_json(Path("many.json"), [make_task(make_box(1, 1, 5, 5), image=f"{i}.jpg") for i in range(count)])
        tracemalloc.start()
        run = run_in_process("convert", tasks, "--to", name, "-o", f"out{count}", "-c", "config.xml")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert run.returncode == 0, run.stderr
    assert peaks[1] - peaks[0] < 600_000, peaks  # bytes; as objects the tasks would have 2,000,000


def test_interrupt_leaves_nothing(work):
    """Ctrl-C while images are read from a pipe that gives none."""
    os.mkfifo("slow.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-m", "lsml_cli", "convert", "slow.jsonl", "--to", "coco", "-o", "out"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stderr=subprocess.PIPE,
    )
    with Path("slow.jsonl").open("w") as pipe:
        for i in range(300):
            pipe.write(json.dumps(make_task(make_box(1, 1, 5, 5), image=f"{i}.jpg")) + "\n")
        pipe.flush()
        deadline = time.monotonic() + 60
        while not list(Path().glob(".out-*.new")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(Path().glob(".out-*.new"))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"nothing was written" in said
    assert not list(Path().glob("*out*"))
