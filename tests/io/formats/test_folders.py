"""Class-named folders, written and read: torchvision is the oracle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsml_cli.io.formats.folders import class_name, flatten_name
from lsml_cli.io.formats.image_set import escape_part
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers.cli import run_in_process
from tests.helpers.convert import convert
from tests.helpers.regions import SHAPES_CONFIG, make_box, write_image, write_json

CONFIG = """<View><Image name="img" value="$image"/>
  <Choices name="kind" toName="img" choice="multiple"><Choice value="cat"/><Choice value="dog"/></Choices></View>"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(CONFIG)
    return tmp_path


def read(*args: str, code: int = 0) -> dict[str, list[str]]:
    """Return the labels of each image, by its value in the task; None for a task without an annotation."""
    run = run_in_process("convert", *args)
    assert run.returncode == code, run.stderr
    tasks = [json.loads(line) for line in run.stdout.split("\n") if line]
    return {
        task["data"]["image"]: [
            label
            for annotation in task.get("annotations", [])
            for region in annotation["result"]
            for label in region["value"]["choices"]
        ]
        for task in tasks
    }


def make_task(image: str, *labels: str, **fields: Any) -> dict[str, Any]:
    region = {"id": "c", "from_name": "kind", "to_name": "img", "type": "choices", "value": {"choices": list(labels)}}
    return {"data": {"image": image}, "annotations": [{"result": [region] if labels else []}], **fields}


def write_tasks(*tasks: dict[str, Any], images: bool = True) -> None:
    for task in tasks if images else ():
        write_image(Path(task["data"]["image"]), (8, 8))
    write_json(Path("tasks.json"), list(tasks))


def files(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if not path.is_dir()}


# ---- out


def test_torchvision_reads_the_same(work):
    datasets = pytest.importorskip("torchvision.datasets")
    write_tasks(make_task("a/1.jpg", "cat"), make_task("b/1.jpg", "cat"), make_task("2.jpg", "dog"))
    convert("tasks.json", "--to", "folders", "-o", "out", "--holdout", "0")
    dataset = datasets.ImageFolder("out")
    assert dataset.classes == ["cat", "dog"]
    names = {(str(Path(path).relative_to("out")), dataset.classes[label]) for path, label in dataset.samples}
    assert names == {("cat/a__1.jpg", "cat"), ("cat/b__1.jpg", "cat"), ("dog/2.jpg", "dog")}
    assert Path("out/cat/b__1.jpg").samefile("b/1.jpg")


def test_images_are_copied(work):
    write_tasks(make_task("1.jpg", "cat"))
    convert("tasks.json", "--to", "folders", "-o", "out", "--holdout", "0", "--images", "copy")
    assert not Path("out/cat/1.jpg").samefile("1.jpg")
    assert Path("out/cat/1.jpg").read_bytes() == Path("1.jpg").read_bytes()


def test_sides_have_folders(work):
    tasks = [make_task(f"{i}.jpg", "cat" if i % 2 else "dog") for i in range(30)]
    write_tasks(*tasks)
    for i in range(30):
        write_image(Path(f"{i}.jpg"), (8 + i, 8))
    convert("tasks.json", "--to", "folders", "-o", "out", "-c", "config.xml")
    sides = {name.partition("/")[0] for name in files("out")}
    assert (sides, len(files("out"))) == ({"train", "val"}, 30)
    labels = read("out", "--from", "folders")
    assert sorted(labels.values()) == [["cat"]] * 15 + [["dog"]] * 15


def test_several_labels_are_several_folders(work):
    write_tasks(make_task("1.jpg", "cat", "dog"))
    said = convert("tasks.json", "--to", "folders", "-o", "out", "--holdout", "0")
    assert files("out") == {"cat/1.jpg", "dog/1.jpg"}
    assert "1 task, 1 written, 2 regions" in said


def test_images_without_a_label_are_left_out(work):
    write_tasks(make_task("1.jpg", "cat"), make_task("2.jpg"), {"data": {"image": "3.jpg"}, "annotations": []})
    said = convert("tasks.json", "--to", "folders", "-o", "out", "--holdout", "0")
    assert files("out") == {"cat/1.jpg"}
    assert "1 task is left out: no label." in said
    assert "1 task is left out: no annotation." in said


def test_boxes_and_other_controls_name_no_folder(work):
    task = make_task("1.jpg", "cat")
    result = task["annotations"][0]["result"]
    result += [{**result[0], "from_name": "light", "value": {"choices": ["Dark"]}}, make_box(1, 1, 2, 2)]
    write_tasks(task)
    said = convert("tasks.json", "--to", "folders", "-o", "out", "--holdout", "0")
    assert files("out") == {"cat/1.jpg"}
    assert "1 region is left out: a choice of another control." in said
    assert "1 region is left out: not a choice for an image." in said


def test_config_has_to_name_one_control(work):
    write_tasks(make_task("1.jpg", "cat"))
    Path("two.xml").write_text(CONFIG.replace("</View>", CONFIG[CONFIG.index("<Choices") :].replace("kind", "k2")))
    for config, sentence in (("two.xml", "several <Choices>"), ("boxes.xml", "Folders are named by <Choices>")):
        Path("boxes.xml").write_text(SHAPES_CONFIG.partition("<Choices")[0] + "</View>")
        said = convert("tasks.json", "--to", "folders", "-o", "out", "-c", config, code=2)
        assert sentence in said
        assert not Path("out").exists()


@pytest.mark.parametrize(
    "label", ["..", ".", "../../x", "/etc", "News/Sport", ".hidden", "-rf", "a\nb", "~", "größe ü"]
)
def test_labels_stay_in_the_folder_and_come_back(work, label):
    write_tasks(make_task("1.jpg", label))
    convert("tasks.json", "--to", "folders", "-o", "out/deep" if Path("out").is_dir() else "out", "--holdout", "0")
    (name,) = files("out")
    assert name.count("/") == 1
    assert name.endswith("/1.jpg")
    assert read("out", "--from", "folders") == {f"out/{name}": [label]}


def test_missing_image_costs_its_task(work):
    write_tasks(make_task("1.jpg", "cat"))
    write_json(Path("tasks.json"), [make_task("gone.jpg", "cat"), make_task("1.jpg", "cat")])
    said = convert("tasks.json", "--to", "folders", "-o", "out", "--holdout", "0", code=3)
    assert "2 tasks, 1 written" in said
    assert files("out") == {"cat/1.jpg"}


@given(st.lists(st.text("a/_1.%é", min_size=1, max_size=6), unique=True, max_size=30))
def test_different_images_have_different_flat_names(values):
    names = {flatten_name(f"{value}.jpg") for value in values}
    assert len(names) == len(values)
    assert not any("/" in name or name.startswith(".") for name in names)


def test_long_names_are_shortened():
    names = {flatten_name(f"{'x' * 150}/{'y' * 150}/{i}.jpg") for i in range(3)}
    assert len(names) == 3
    assert all(len(name) < 255 and name.endswith(".jpg") for name in names)


@given(st.text(min_size=1, max_size=20))
def test_classes_come_back_from_names_of_folders(label):
    folder = escape_part(label)
    assert class_name(folder) == label
    assert "/" not in folder


# ---- in


def test_folder_names_are_labels(work):
    for name in ("pets/dog/1.jpg", "pets/cat/1.jpg", "pets/cat/more/2.PNG", "pets/3.jpg"):
        write_image(Path(name), (8, 8)) if not name.endswith("PNG") else Path(name).parent.mkdir()
    Path("pets/cat/more/2.PNG").write_bytes(Path("pets/cat/1.jpg").read_bytes())
    for hidden in ("pets/cat/.thumbs/x.jpg", "pets/.git/x.jpg", "pets/.DS_Store/a.jpg"):
        write_image(Path(hidden), (8, 8))
    Path("pets/cat/notes.txt").write_text("x")
    labels = read("pets", "--from", "folders", "--label-config-out", "made.xml")
    assert labels == {
        "pets/3.jpg": [],
        "pets/cat/1.jpg": ["cat"],
        "pets/cat/more/2.PNG": ["cat"],
        "pets/dog/1.jpg": ["dog"],
    }
    control = LabelConfig.load(Path("made.xml")).only("Choices")
    assert [label.name for label in control.labels] == ["cat", "dog"]
    assert "1 file is no image by name" in convert("pets", "--from", "folders", "-o", "tasks.json")


def test_splits_are_no_classes(work):
    for name in ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpg"):
        write_image(Path("pets", name), (8, 8))
    assert list(read("pets", "--from", "folders").values()) == [["cat"], ["dog"], ["cat"]]
    assert "pets is read as a whole: train, val." in convert("pets", "--from", "folders", "-o", "tasks.json")
    assert read("pets/val", "--from", "folders") == {"pets/val/cat/2.jpg": ["cat"]}
    write_image(Path("pets/bird/3.jpg"), (8, 8))
    assert set(map(str, read("pets", "--from", "folders").values())) == {"['train']", "['val']", "['bird']"}


def test_links_in_a_circle_end(work):
    write_image(Path("pets/cat/1.jpg"), (8, 8))
    Path("pets/cat/again").symlink_to(Path("pets").absolute())
    assert read("pets", "--from", "folders") == {"pets/cat/1.jpg": ["cat"]}


def test_name_that_is_no_text_costs_itself(work):
    write_image(Path("pets/cat/1.jpg"), (8, 8))
    Path(os.fsdecode(b"pets/cat/\xff.jpg")).write_bytes(b"")
    assert read("pets", "--from", "folders", code=3) == {"pets/cat/1.jpg": ["cat"]}


@pytest.mark.parametrize(
    ("path", "code", "sentence"),
    [
        ("tasks.json", 2, "tasks.json is no folder."),
        ("empty", 1, "There is no image below empty."),
        ("flat", 1, "flat has no class-named folders"),
        ("gone", 2, "There is no file or folder gone."),
    ],
)
def test_what_is_no_data_set(work, path, code, sentence):
    write_tasks()
    Path("empty/cat").mkdir(parents=True)
    write_image(Path("flat/1.jpg"), (8, 8))
    assert sentence in convert(path, "--from", "folders", "-o", "out.json", code=code)


def test_given_config_is_checked(work):
    write_image(Path("pets/bird/1.jpg"), (8, 8))
    said = convert("pets", "--from", "folders", "-c", "config.xml", "-o", "out.json", code=1)
    assert 'pets has classes that <Choices name="kind"> lacks: bird.' in said


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a/1.jpg", "b/1.jpg", "c.png", "ü x.jpg"]), st.sampled_from(["cat", "b/c", "é"]))
)
def test_round_trip(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("folders")
    for name in labels:
        write_image(folder / name, (8, 8))
    write_json(folder / "tasks.json", [make_task(name, label) for name, label in labels.items()])
    convert(folder / "tasks.json", "--to", "folders", "-o", folder / "out", "--holdout", "0")
    if labels:
        back = read(str(folder / "out"), "--from", "folders")
        assert {Path(value).name: label for value, (label,) in back.items()} == {
            flatten_name(name): label for name, label in labels.items()
        }


def test_real_images_come_back(work, shared_data):
    """Folders -> tasks -> folders: the same images in the same classes."""
    root = shared_data / "ants-bees"
    convert(root, "--from", "folders", "-o", "tasks.json", "--label-config-out", "made.xml")
    convert("tasks.json", "--to", "folders", "-o", "out", "-c", "made.xml", "--map", f"{root}={root}", "--holdout", "0")
    counts = {folder.name: len(list(folder.iterdir())) for folder in Path("out").iterdir()}
    assert counts == {folder.name: len(list(folder.iterdir())) for folder in root.iterdir() if folder.is_dir()}
