"""A script for label_studio_ml 1.0 predicts the same with the SDK installed as without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "helpers" / "backends" / "v1_text.py"
SDK = ("label-studio-ml==1.0.9", "redis", "rq", "setuptools<81")  # it needs redis and rq without declaring it


@pytest.fixture(scope="module")
def with_sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with lsml and the SDK."""
    folder = tmp_path_factory.mktemp("with-sdk") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*install, "--editable", str(ROOT), *SDK, f"scikit-learn=={version('scikit-learn')}"], check=True)
    return python


def test_installed_sdk_is_used_and_gives_equal_predictions(with_sdk: Path, shared_data: Path, tmp_path: Path) -> None:
    code = "import label_studio_ml; print(label_studio_ml.__version__)"
    run = subprocess.run([with_sdk, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "1.0.9"
    exports = shared_data / "exports"
    predictions = {}
    for name, python in (("without", Path(sys.executable)), ("with", with_sdk)):
        folder = tmp_path / name / "sms"
        folder.mkdir(parents=True)
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        for command in (
            ["fit", exports / "sms-spam-annotated.json", "--model", SCRIPT, "-c", exports / "sms-spam.xml", "-o", "m"],
            [
                *("predict", exports / "sms-spam-all-tasks.json", "--model", f"{SCRIPT}:SimpleTextClassifier@m"),
                *("--batch-size", "512", "--shape", "predictions", "-o", "out.jsonl"),
            ],
        ):
            run = subprocess.run(
                [python, "-m", "lsml_cli", *map(str, command)],
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, run.stderr
        lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
        predictions[name] = [(line["task"], line["result"], line["score"]) for line in lines]
    assert len(predictions["with"]) == 5574
    assert predictions["with"] == predictions["without"]
