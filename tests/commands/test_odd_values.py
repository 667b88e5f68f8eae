"""Values that no sensible program writes cost one task, or are one sentence: never a crash, never a lost run."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.schema.shapes import parse_shape
from lsml_cli.schema.tasks import parse_regions
from tests.helpers.cli import run_in_process

CONFIG = """
<View>
  <Text name="text" value="$text"/>
  <Choices name="topic" toName="text"><Choice value="A"/><Choice value="B"/></Choices>
  <Choices name="tags" toName="text" choice="multiple"><Choice value="A"/><Choice value="B"/></Choices>
  <Image name="image" value="$image"/>
  <PolygonLabels name="area" toName="image"><Label value="A"/></PolygonLabels>
  <TextArea name="note" toName="text"/>
</View>
"""
TASKS = 12
ODD = 3  # position of the task that is changed


def make_task(n: int) -> dict[str, Any]:
    label = "AB"[n % 2]
    result: list[dict[str, Any]] = [
        {"id": "a", "from_name": "topic", "to_name": "text", "type": "choices", "value": {"choices": [label]}},
        {"id": "b", "from_name": "tags", "to_name": "text", "type": "choices", "value": {"choices": [label]}},
        {
            "id": "c",
            "from_name": "area",
            "to_name": "image",
            "type": "polygonlabels",
            "original_width": 100,
            "original_height": 50,
            "value": {"points": [[1, 1], [50, 1], [1, 50]], "polygonlabels": ["A"]},
        },
        {"id": "d", "from_name": "note", "to_name": "text", "type": "textarea", "value": {"text": ["x"]}},
    ]
    predicted: list[dict[str, Any]] = [{**region, "score": 0.7} for region in copy.deepcopy(result)]
    return {
        "id": n + 1,
        "data": {"text": f"word{label} {n}", "image": f"{n}.jpg"},
        "annotations": [{"id": n + 1, "result": result}, {"id": n + 100, "result": copy.deepcopy(result)}],
        "predictions": [{"result": predicted, "score": 0.7, "model_version": "m@1"}],
    }


def write_tasks(tasks: list[dict[str, Any]]) -> None:
    Path("tasks.json").write_text(json.dumps(tasks))
    predictions = []
    for task in tasks:
        stored = task.get("predictions")
        if isinstance(stored, list) and stored and isinstance(stored[0], dict):
            predictions.append({"task": task.get("id"), **stored[0]})
    Path("predictions.jsonl").write_text("\n".join(map(json.dumps, predictions)))


FIT = ["fit", "tasks.json", "-m", "text-classifier", "-c", "config.xml", "-o", "model"]
EVALUATE = ["evaluate", "tasks.json", "--predictions", "predictions.jsonl", "-c", "config.xml", "--report", "r.html"]
RANK = ["rank", "predictions.jsonl", "-o", "ranked.jsonl", "--by"]
ACCEPT = ["--accept-above", "0.4", "--annotated", "tasks.json", "-c", "config.xml"]
PREDICT = ["predict", "tasks.json", "-m", "text-classifier", "-c", "config.xml"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with tasks and a trained model."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        Path("config.xml").write_text(CONFIG)
        write_tasks([make_task(n) for n in range(TASKS)])
        run(*FIT)
    return folder


def run(*args: str, exit_codes: tuple[int, ...] = (0, 3)) -> Any:
    process = run_in_process(*args)
    assert "bug in lsml" not in process.stderr, process.stderr
    assert process.returncode in exit_codes, process.stderr
    return process


@pytest.mark.parametrize(
    "odd", [{"from_name": {}}, {"from_name": ["topic"]}, {"id": {}}, {"to_name": []}, {"type": {}}, {"value": [1]}]
)
def test_region_with_odd_field_costs_one_task(work, odd):
    tasks = [make_task(n) for n in range(TASKS)]
    for stored in (*tasks[ODD]["annotations"], *tasks[ODD]["predictions"]):
        stored["result"][0] |= odd
    write_tasks(tasks)
    run(*FIT)
    assert f"on {TASKS} annotated tasks" in run(*EVALUATE).stderr
    for by in ("least-confident", "entropy"):
        run(*RANK, by, *ACCEPT)
        assert len(Path("ranked.jsonl").read_text().splitlines()) == TASKS
    run(*PREDICT, "--check")


def test_result_of_odd_items_is_not_taken_for_an_empty_answer():
    assert parse_regions([5, {"from_name": {}, "value": 1}, {"id": 7, "from_name": "topic"}]) == [
        {},
        {"value": 1},
        {"from_name": "topic"},
    ]
    assert parse_regions({"result": []}) == []


@pytest.mark.parametrize("score", [1e-320, 5e-324, 1e-15, 0, 1e400, 10**400])
@pytest.mark.parametrize("by", ["entropy", "margin", "score"])
def test_any_score_can_be_ranked(work, score, by):
    tasks = [make_task(n) for n in range(TASKS)]
    write_tasks(tasks)
    text = Path("predictions.jsonl").read_text().splitlines()
    text[ODD] = text[ODD].replace("0.7", str(score).replace("inf", "1e400"))
    Path("predictions.jsonl").write_text("\n".join(text))
    process = run(*RANK, by)
    written = Path("ranked.jsonl").read_text().splitlines()
    if score == 1e400:  # not usable JSON: costs the record, which is named
        assert (process.returncode, len(written)) == (3, TASKS - 1)
    else:
        assert len(written) == TASKS
        assert (written[0] == text[ODD]) is (score <= 1)


@pytest.mark.parametrize("task_id", [2**63, 2**64, -(2**70), 10**400])
def test_id_beyond_64_bits_costs_one_task(work, task_id):
    tasks = [make_task(n) for n in range(TASKS)]
    for stored in (tasks[ODD], *tasks[ODD]["annotations"], *tasks[ODD]["predictions"]):
        stored["id"] = task_id
    write_tasks(tasks)
    run(*FIT)
    assert f"on {TASKS - 1} annotated tasks" in run(*EVALUATE).stderr
    run(*RANK, "entropy", *ACCEPT)


@pytest.mark.parametrize("option", ["--batch-size", "--limit", "--workers", "--max-failures", "--seed", "--examples"])
@pytest.mark.parametrize("number", [2**64, 10**30])
def test_number_beyond_64_bits_is_one_sentence(work, option, number):
    write_tasks([make_task(n) for n in range(TASKS)])
    for command in (PREDICT, FIT, EVALUATE, [*RANK, "margin"]):
        process = run(*command, option, str(number), exit_codes=(2,))
        assert "No such option" in process.stderr or option in process.stderr
    Path("lsml.toml").write_text(f"[predict]\nbatch-size = {number}\n")
    assert "--batch-size" in run(*PREDICT, "--config", "lsml.toml", exit_codes=(2,)).stderr


def test_batch_size_of_ten_thousand_digits_is_one_sentence(work):
    write_tasks([make_task(n) for n in range(TASKS)])
    assert "--batch-size" in run(*PREDICT, "--batch-size", "1" * 10_000, exit_codes=(2,)).stderr


CLASSES: list[Any] = [[5, "B"], [None, "B"], [[], "B"], ["A", {}], ["A", "A"], [], 5]
CONTROLS: list[Any] = [5, [], None]
SCORERS: list[Any] = [-1, 2**40, True, None]
FIRSTS: list[Any] = [1, -1, None, []]
DAMAGES: list[tuple[str, Any]] = [
    *[("classes", value) for value in CLASSES],
    *[("control", value) for value in CONTROLS],
    *[("scorer", value) for value in SCORERS],
    *[("first", value) for value in FIRSTS],
    ("multi", 5),
]


@pytest.mark.parametrize(("key", "value"), DAMAGES)
def test_damaged_head_of_version_is_one_sentence(work, trained, key, value):
    shutil.copytree(trained, work, dirs_exist_ok=True)
    path = Path("model") / Path("model/current").read_text().strip() / "model.json"
    content = json.loads(path.read_bytes())
    content["state"]["heads"][0][key] = value
    path.write_text(json.dumps(content))
    process = run("predict", "tasks.json", "-m", "model", "-o", "out.json", exit_codes=(1,))
    assert "is damaged" in process.stderr
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    "points",
    [
        [[0, 0], [1e308, 0], [0, 1e308]],
        [[-1e12, 5], [1e12, 5], [0, 90]],
        [[0, 0], [900, 900], [0, 5]] * 1_000,
    ],
    ids=["largest floats", "far outside", "endless outline"],
)
def test_shape_that_no_memory_holds_is_no_shape(work, points):
    # Drawn pixel by pixel, the first ones ended the process by a signal.
    region = make_task(0)["annotations"][0]["result"][2]
    assert parse_shape(region) is not None
    region["value"]["points"] = points
    assert parse_shape(region) is None
    box: dict[str, Any] = {"value": {"x": 0, "y": 0, "width": 1e300, "height": 5, "rotation": 30}}
    assert parse_shape(box) is None
    assert parse_shape({"value": {"x": 90, "y": 90, "width": 20, "height": 20, "rotation": 30}}) is not None


def test_image_size_that_no_mask_can_have_is_ignored():
    region: dict[str, Any] = {"original_width": 30_000, "original_height": 30_000, "value": {"rle": [0, 0, 125, 0]}}
    assert parse_shape(region) is None
    assert parse_shape(region | {"original_height": 300}) is not None


# ---- random changes

VALUES: list[Any] = [
    *(None, True, 0, -1, 1.5, 1e-320, 1e308, 2**63, -(2**70), 10**400),
    *("", "A", "\0", "😀", "-1", "x" * 3_000),
    *([], {}, [[]], [{}], {"": None}, [None], ["A", {}], [["a", "b"]] * 3, [[1e308, 1e308], [-1e308, 1], [0, 0]]),
]


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def change_at_random(task: dict[str, Any], random_: random.Random) -> None:
    """Replace, remove or double one value anywhere in a task."""
    places: list[tuple[Any, Any]] = []
    stack: list[Any] = [task]
    while stack:
        container = stack.pop()
        for key in container if isinstance(container, dict) else range(len(container)):
            places.append((container, key))
            if isinstance(container[key], dict | list):
                stack.append(container[key])
    container, key = random_.choice(places)
    action = random_.random()
    if action < 0.8:
        value = nested(random_.choice((50, 255, 480))) if random_.random() < 0.05 else random_.choice(VALUES)
        container[key] = copy.deepcopy(value)
    elif isinstance(container, dict):
        del container[key]
    else:
        container.insert(key, copy.deepcopy(container[key]))


@pytest.mark.parametrize("seed", range(5))
def test_no_change_of_an_export_crashes_a_command(work, seed):
    random_ = random.Random(seed)
    tasks = [make_task(n) for n in range(TASKS)]
    for _ in range(random_.choice((1, 3, 8))):
        change_at_random(random_.choice(tasks[1:]), random_)
    write_tasks(tasks)
    for command in (EVALUATE, [*RANK, "entropy", *ACCEPT], [*PREDICT, "--check"], FIT):
        run(*command, exit_codes=(0, 1, 3))
