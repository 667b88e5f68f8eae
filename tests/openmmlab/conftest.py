"""Models that were really trained, once for all tests of this folder; and a real Label Studio."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.label_studio_server import (
    LabelStudio,
    label_studio,
    label_studio_program,
    label_studio_template,
    serve,
)
from tests.openmmlab import shapes, writing

__all__ = ["LabelStudio", "label_studio", "label_studio_program", "label_studio_template", "serve"]


@pytest.fixture(scope="session")
def learned(lsml, tmp_path_factory) -> Path:
    """A folder with annotated shapes and the detector that has learned them. Do not write into it."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write_dataset(folder, 120)
    run = shapes.fit_detector(lsml, folder, "--summary", "fit.json")
    assert run.returncode == 0, run.stderr
    (folder / "said.txt").write_text(run.stderr)
    return folder


@pytest.fixture(scope="session")
def metrics(learned) -> dict:
    """What its fit has measured."""
    return json.loads((learned / "fit.json").read_bytes())["metrics"]


@pytest.fixture(scope="session")
def numbers(tmp_path_factory) -> Path:
    """annotated.json: 512 pictures of numbers of two or three digits; config.xml. Do not write into it."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "annotated.json").write_text(json.dumps(writing.write_digit_images(folder / "pictures", 512)))
    (folder / "config.xml").write_text(writing.BOX_CONFIG)
    return folder


@pytest.fixture(scope="session")
def reader(numbers, lsml, tmp_path_factory) -> Path:
    """A version that has learned to read the numbers; minutes. Do not write into it."""
    output = tmp_path_factory.mktemp("models") / "numbers"
    run = lsml(
        *("fit", numbers / "annotated.json", "--model", "ocr", "--with", "det=none", "-c", numbers / "config.xml"),
        *("--document-root", numbers, "-o", output, "--with", "epochs=56"),
        timeout=1700,
    )
    assert run.returncode == 0, run.stderr
    return output
