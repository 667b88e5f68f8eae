"""Models that are trained once for all tests of this folder; and a real Label Studio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cli import Lsml, run_lsml
from tests.helpers.label_studio_server import (
    LabelStudio,
    label_studio,
    label_studio_program,
    serve,
)
from tests.openmmlab import shapes, writing

__all__ = ["LabelStudio", "label_studio", "label_studio_program", "serve"]


@pytest.fixture(scope="session")
def lsml() -> Lsml:
    """Run `lsml` as a process: mmengine keeps a registry and a log for the whole process."""
    return run_lsml


@pytest.fixture(scope="session")
def trained_detector(lsml: Lsml, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with annotated shapes and a detector trained on them; read only."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write_dataset(folder, 120)
    run = shapes.fit_detector(lsml, folder, "--summary", "fit.json")
    assert run.returncode == 0, run.stderr
    (folder / "messages.txt").write_text(run.stderr)
    return folder


@pytest.fixture(scope="session")
def detector_metrics(trained_detector: Path) -> dict[str, Any]:
    """Return the metrics of its `lsml fit`."""
    return json.loads((trained_detector / "fit.json").read_bytes())["metrics"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return annotated.json (512 images of numbers), config.xml and small.py (a recognizer); read only."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "annotated.json").write_text(json.dumps(writing.write_digit_images(folder / "pictures", 512)))
    (folder / "config.xml").write_text(writing.BOX_CONFIG)
    (folder / "small.py").write_text(writing.SMALL_RECOGNIZER_CONFIG)
    return folder


@pytest.fixture(scope="session")
def trained_recognizer(digits: Path, lsml: Lsml, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with a recognizer trained on the numbers; read only."""
    output = tmp_path_factory.mktemp("models") / "numbers"
    run = lsml(
        *("fit", digits / "annotated.json", "--model", "ocr", "--with", "det=none", "-c", digits / "config.xml"),
        *("--document-root", digits, "-o", output, "--with", "epochs=16"),
        *("--with", f"recog_config={digits / 'small.py'}"),
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return output
