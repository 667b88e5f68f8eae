"""`lsml try`: the answers for single items, to read or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.cli import EXAMPLE, Lsml
from tests.helpers.models import IMAGE_CONFIG, TEXT_CONFIG

TEXT_MODEL = """\
from lsml_cli import Model, Prediction


class Length(Model):
    def forward(self, inputs, binding):
        return [len(task.data["text"]) for task in inputs]

    def decode(self, output, task, binding):
        if output == 0:
            raise ValueError("there is no text")
        control = next(iter(binding.config.controls.values()))
        regions = [control.region(task, {"choices": ["short"]}, score=1 / output)]
        return Prediction.of(regions if output < 40 else [], self.version)
"""
SPAN_CONFIG = """\
<View><Text name="t" value="$text"/><Labels name="names" toName="t"><Label value="Word"/></Labels></View>"""
SPAN_MODEL = """\
from lsml_cli import Model, Prediction


class FirstWord(Model):
    def decode(self, output, task, binding):
        text = task.data["text"]
        control = binding.config.controls["names"]
        end = text.index(" ")
        value = {"start": 0, "end": end, "text": text[:end], "labels": ["Word"]}
        return Prediction.of([control.region(task, value, score=0.5)], self.version)

    def forward(self, inputs, binding):
        return inputs
"""
IMAGE_MODEL = """\
from lsml_cli import Model, Prediction


class Width(Model):
    def media_refs(self, task, binding):
        return [task.data["image"]]

    def encode(self, task, binding, media):
        return len(media[task.data["image"]])

    def forward(self, inputs, binding):
        return inputs

    def decode(self, output, task, binding):
        control = next(iter(binding.config.controls.values()))
        label = next(iter(control.labels)).value
        return Prediction.of([control.region(task, {"choices": [label]}, score=0.25)], self.version)
"""


def write_model(folder: Path, code: str, config: str) -> list[str | Path]:
    """Write a model and a label config; return the options that name them."""
    (folder / "model.py").write_text(code)
    (folder / "config.xml").write_text(config)
    return ["--model", folder / "model.py", "--label-config", folder / "config.xml"]


def test_each_text_gets_a_row(lsml: Lsml, tmp_path: Path) -> None:
    run = lsml("try", "ab", "abcd", "x" * 50, *write_model(tmp_path, TEXT_MODEL, TEXT_CONFIG))
    assert run.returncode == 0, run.stderr
    heading, *rows = run.stdout.splitlines()
    assert heading.split() == ["item", "control", "answer", "score", "where"]
    assert [row.split()[0] for row in rows] == ["ab", "abcd", "x" * 45 + "..."]
    assert [row.split()[-2] for row in rows[:2]] == ["0.50", "0.25"]
    assert "nothing found" in rows[2]


def test_failed_item_is_told_apart_and_counts(lsml: Lsml, tmp_path: Path) -> None:
    model = write_model(tmp_path, TEXT_MODEL, TEXT_CONFIG)
    run = lsml("try", "", "abcd", *model)
    assert run.returncode == 3
    assert "failed: there is no text" in run.stdout
    first, second = map(json.loads, lsml("try", "", "abcd", "--json", *model).stdout.splitlines())
    assert first["item"] == ""
    assert first["error"]["stage"] == "decode"
    assert (second["item"], second["score"]) == ("abcd", 0.25)
    assert second["result"][0]["type"] == "choices"


def test_lines_of_standard_input_take_the_place_of_the_dash(lsml: Lsml, tmp_path: Path) -> None:
    run = lsml("try", "a", "-", "--json", *write_model(tmp_path, TEXT_MODEL, TEXT_CONFIG), input="bb\n\nccc\n")
    assert [json.loads(line)["item"] for line in run.stdout.splitlines()] == ["a", "bb", "ccc"]


def test_span_is_shown_with_its_text_and_offsets(lsml: Lsml, tmp_path: Path) -> None:
    run = lsml("try", "Ada wrote it", *write_model(tmp_path, SPAN_MODEL, SPAN_CONFIG))
    assert run.stdout.splitlines()[1].split("  ")[-1].strip() == "0-3 'Ada'"


def test_image_is_named_by_its_path(lsml: Lsml, tmp_path: Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    model = write_model(tmp_path, IMAGE_MODEL, IMAGE_CONFIG)
    run = lsml("try", "a.png", "--json", *model, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["score"] == 0.25
    missing = lsml("try", "b.png", *model, cwd=tmp_path)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "There is no file b.png" in missing.stderr


def test_control_characters_of_a_text_are_escaped(lsml: Lsml, tmp_path: Path) -> None:
    run = lsml("try", "a\x1b[2Jb", *write_model(tmp_path, TEXT_MODEL, TEXT_CONFIG))
    assert run.returncode == 0
    assert "\x1b" not in run.stdout


@pytest.mark.parametrize("arguments", [[], ["text"]])
def test_missing_arguments_are_wrong_usage(lsml: Lsml, arguments: list[str]) -> None:
    assert lsml("try", *arguments).returncode == 2


def test_trained_version_needs_no_config(lsml: Lsml, tmp_path: Path) -> None:
    options = ("-m", "text-classifier", "-c", EXAMPLE / "label_config.xml", "-o", tmp_path / "m", "-q")
    assert lsml("fit", EXAMPLE / "annotated.json", *options).returncode == 0
    run = lsml("try", "-m", tmp_path / "m", "Where is my parcel?")
    assert "Shipping" in run.stdout
