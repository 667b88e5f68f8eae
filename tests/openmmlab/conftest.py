"""Models that were really trained, once for all tests of this folder; and a real Label Studio."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.register_assert_rewrite("serving", "browsing", "labelling")

import shapes  # noqa: E402
from labelling import LabelStudio, label_studio, label_studio_program, label_studio_template, serve  # noqa: E402

__all__ = ["LabelStudio", "label_studio", "label_studio_program", "label_studio_template", "serve"]


@pytest.fixture(scope="session")
def learned(lsml, tmp_path_factory) -> Path:
    """A folder with annotated shapes and the detector that has learned them. Do not write into it."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write(folder, 120)
    run = shapes.fit(lsml, folder, "--summary", "fit.json")
    assert run.returncode == 0, run.stderr
    (folder / "said.txt").write_text(run.stderr)
    return folder


@pytest.fixture(scope="session")
def metrics(learned) -> dict:
    """What its fit has measured."""
    return json.loads((learned / "fit.json").read_bytes())["metrics"]
