"""`image-classifier` as people use it: fitted and asked through the command, on small pictures made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image, ImageDraw

from lsml_cli import check_model
from lsml_cli.models.image_classifier.preprocessing import Preprocessing
from tests.conftest import Lsml

CONFIG = """<View><Image name="picture" value="$image"/>
  <Choices name="shape" toName="picture"><Choice value="Disc" alias="disc"/><Choice value="bars"/></Choices></View>"""
SMALL = ["--with", "weights=none", "--with", "image_size=32"]


def draw(path: Path, shape: str, random: Random) -> None:
    picture = Image.new("RGB", (48, 40), tuple(random.randrange(0, 90) for _ in range(3)))
    pen = ImageDraw.Draw(picture)
    ink = tuple(random.randrange(150, 256) for _ in range(3))
    x, y = random.randrange(6, 16), random.randrange(4, 12)
    if shape == "disc":
        pen.ellipse((x, y, x + 24, y + 24), fill=ink)
    else:
        for offset in range(0, 24, 6):
            pen.rectangle((x + offset, y, x + offset + 2, y + 24), fill=ink)
    picture.save(path)


def annotated(number: int, shape: str) -> dict[str, Any]:
    value = {"choices": [shape]}
    result = [{"from_name": "shape", "to_name": "picture", "type": "choices", "value": value}]
    return {"id": number, "data": {"image": f"{number}.png"}, "annotations": [{"id": number, "result": result}]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.xml, annotated.json (80 pictures), tasks.json (all of them again)."""
    folder = tmp_path_factory.mktemp("shapes")
    random = Random(0)
    tasks = []
    for number in range(80):
        shape = ("disc", "bars")[number % 2]
        draw(folder / f"{number}.png", shape, random)
        tasks.append(annotated(number, shape))
    (folder / "config.xml").write_text(CONFIG)
    (folder / "annotated.json").write_text(json.dumps(tasks))
    (folder / "tasks.json").write_text(json.dumps([{"id": each["id"], "data": each["data"]} for each in tasks]))
    return folder


Fit = Callable[..., Any]


@pytest.fixture(scope="module")
def fit(lsml: Lsml, work: Path) -> Fit:
    def run(output: str, *options: str) -> Any:
        return lsml(
            *("fit", work / "annotated.json", "--model", "image-classifier", "-c", work / "config.xml"),
            *("-o", work / output, *SMALL, *options),
            timeout=170,
        )

    return run


@pytest.fixture(scope="module")
def model(fit: Fit, work: Path) -> Path:
    run = fit("head")
    assert run.returncode == 0, run.stderr
    return work / "head"


def predictions(path: Path) -> list[str | None]:
    found = []
    for task in json.loads(path.read_text()):
        result = task["predictions"][0]["result"] if task["predictions"] else None
        found.append(result[0]["value"]["choices"][0] if result else None)
    return found


def test_a_head_on_frozen_features_learns_and_predicts(lsml: Lsml, model: Path, work: Path) -> None:
    run = lsml("predict", work / "tasks.json", "--model", model, "-o", work / "out.json")
    assert run.returncode == 0, run.stderr
    right = [found == ("disc", "bars")[number % 2] for number, found in enumerate(predictions(work / "out.json"))]
    assert sum(right) / len(right) > 0.9  # most of them it has learned from; the alias is what stands there
    listed = json.loads(lsml("versions", model, "--json").stdout)
    assert listed[0]["metrics"]["shape"]["accuracy"] > 0.5


def test_the_same_seed_gives_the_same_bytes(fit: Fit, model: Path, work: Path) -> None:
    assert fit("again").returncode == 0
    first, second = (next((work / name).glob("*/weights.safetensors")).read_bytes() for name in ("head", "again"))
    assert first == second


def test_every_layer_is_trained_and_the_best_epoch_kept(fit: Fit, work: Path) -> None:
    run = fit("full", "--with", "strategy=full", "--with", "epochs=3", "--with", "lr=0.01", "--with", "batch_size=16")
    assert run.returncode == 0, run.stderr
    assert "Epoch 3 of 3: loss" in run.stderr
    assert "is kept." in run.stderr
    on = fit("on", "--from", str(work / "full"), "--with", "strategy=full", "--with", "epochs=1")
    assert on.returncode == 0, on.stderr


def test_a_picture_that_cannot_be_read_costs_one_example(fit: Fit, work: Path) -> None:
    path = work / "7.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    try:
        run = fit("torn")
    finally:
        path.write_bytes(whole)
    assert run.returncode == 0, run.stderr
    assert "Not learned from task 7: the PNG picture is truncated" in run.stderr or "held-out" in run.stderr


def test_ten_broken_pictures_are_ten_failures(lsml: Lsml, model: Path, work: Path, tmp_path: Path) -> None:
    good = (work / "0.png").read_bytes()
    broken = [
        b"",
        good[:20],
        good[:100],
        good[: len(good) // 2],
        b"<!DOCTYPE html><html><body>Please log in</body></html>",
        b"%PDF-1.4",
        b'{"error": "not found"}',
        b"PK\x03\x04 zipped",
        good[:16] + b"\xff\xff\xff\x00\xff\xff\xff\x00" + good[24:],
        bytes(200),
    ]
    contents = [good, *(each for content in broken for each in (content, good))]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    tasks = [{"id": number, "data": {"image": f"{number}.png"}} for number in range(len(contents))]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    errors = tmp_path / "errors.jsonl"
    predict = ("predict", tmp_path / "tasks.json", "--model", model, "-o", tmp_path / "out.json", "--errors", errors)
    run = lsml(*predict)
    assert run.returncode == 3
    assert [each is None for each in predictions(tmp_path / "out.json")] == [n % 2 == 1 for n in range(len(contents))]
    named = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [each["id"] for each in named] == list(range(1, 21, 2))
    assert all(each["reason"] for each in named)
    for number in range(1, 21, 2):
        (tmp_path / f"{number}.png").write_bytes(good)
    assert lsml(*predict, "--retry-failed", errors).returncode == 0
    assert len(set(predictions(tmp_path / "out.json"))) == 1


@pytest.mark.parametrize("options", [["--workers", "3"], ["--device", "cpu,cpu"], ["--fetch-concurrency", "1"]])
def test_neither_threads_nor_replicas_change_a_byte(
    lsml: Lsml, model: Path, work: Path, tmp_path: Path, options: list[str]
) -> None:
    for name, more in (("one.json", []), ("other.json", options)):
        run = lsml(
            "predict", work / "tasks.json", "--model", model, "-o", tmp_path / name, "--precision", "fp32", *more
        )
        assert run.returncode == 0, run.stderr
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "other.json").read_bytes()


def test_what_is_found_by_trying_is_said_once(lsml: Lsml, model: Path, work: Path, tmp_path: Path) -> None:
    predict = ("predict", work / "tasks.json", "--model", model, "--batch-size", "auto")
    run = lsml(*predict, "-o", tmp_path / "out.json")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("Precision ") == 1
    assert "pictures at a time" in run.stderr
    few = lsml(*predict, "--limit", "10", "-o", tmp_path / "few.json")
    assert few.returncode == 0, few.stderr
    assert "Precision" not in few.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--with", "arch=resnet19"], "resnet18"),
        (["--with", "strategy=both"], "strategy must be head or full"),
        (["--with", "weights=nowhere.pth"], "nowhere.pth"),
        (["--with", "precision=int4"], "precision must be auto, fp32, bf16 or fp16"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(fit: Fit, options: list[str], sentence: str) -> None:
    run = fit("nothing", *options)
    assert run.returncode in (1, 2)
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


def test_preprocessing_is_torchvisions_own() -> None:
    import numpy as np
    import torchvision

    preset = torchvision.models.get_model_weights("resnet18").DEFAULT.transforms()
    ours = Preprocessing.of(preset)
    random = np.random.default_rng(0)
    for height, width in [(300, 400), (401, 299), (256, 256), (257, 1000), (64, 80)]:
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        content = _png(picture)
        wanted = preset(picture).permute(1, 2, 0).numpy()
        found = (ours.pixels(content).astype(np.float32) / 255 - ours.mean) / ours.std
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def _png(picture: Image.Image) -> bytes:
    import io

    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_it_keeps_the_contract(model: Path, work: Path) -> None:
    tasks = json.loads((work / "tasks.json").read_text())[:8]
    check_model(str(model), label_config=CONFIG, tasks=tasks, media_root=work)
