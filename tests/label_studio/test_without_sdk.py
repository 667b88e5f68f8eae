"""Without label-studio-sdk, commands that talk to Label Studio say what to install, and all others work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import EXAMPLE, Lsml
from tests.helpers.serve_process import ServerFactory, send_request
from tests.helpers.stub_http import KEY

SENTENCE = "Talking to Label Studio needs the package label-studio-sdk.\n      pip install 'lsml[studio]'"


@pytest.mark.parametrize(
    "command",
    [
        ["pull", "--project", "3"],
        ["push", "-", "--project", "3"],
        ["serve", "--model", "text-classifier", "--versions", "served"],
        ["worker", "--jobs", "redis://127.0.0.1:9/0"],
    ],
    ids=lambda command: command[0],
)
def test_missing_sdk_names_install_command(
    lsml: Lsml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "label_studio_sdk", None)
    env = {"LABEL_STUDIO_URL": "http://127.0.0.1:9", "LABEL_STUDIO_API_KEY": KEY}
    run = lsml(*command, cwd=tmp_path, env=env)
    assert run.returncode == 1, run.stderr
    assert SENTENCE in run.stderr
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def without_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every process that is started find an SDK that cannot be imported."""
    package = tmp_path / "path" / "label_studio_sdk"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the SDK was imported')")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


@pytest.mark.usefixtures("without_sdk")
def test_files_are_predicted_and_fitted_and_models_served(lsml_process: Lsml, tmp_path: Path) -> None:
    model = tmp_path / "model"
    options = ("--model", "text-classifier", "-c", EXAMPLE / "label_config.xml")
    fitted = lsml_process("fit", EXAMPLE / "annotated.json", *options, "-o", model, "-q")
    assert fitted.returncode == 0, fitted.stderr
    predicted = lsml_process("predict", EXAMPLE / "tasks.json", "--model", model, "-o", tmp_path / "p.json")
    assert predicted.returncode == 0, predicted.stderr
    assert json.loads((tmp_path / "p.json").read_bytes())[0]["predictions"]
    folder = tmp_path / "serve"
    folder.mkdir()
    factory = ServerFactory(folder)
    try:
        server = factory("--model", model, "--label-studio-url", "http://127.0.0.1:9")
        assert send_request("GET", f"{server.root}/health")[1]["status"] == "UP"
    finally:
        factory.close()
    assert (
        "the SDK was imported"
        in lsml_process(
            "pull", "--project", "3", "--label-studio-url", "http://127.0.0.1:9", env={"LABEL_STUDIO_API_KEY": KEY}
        ).stderr
    )
