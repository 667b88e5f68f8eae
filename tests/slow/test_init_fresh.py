"""Projects of `lsml init` in an environment with only what their Dockerfile installs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.serve_process import free_port, send_request, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of this checkout, built as the README of a project describes."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True)
    assert len(list(folder.glob("lsml-*.whl"))) == 1
    return folder


@pytest.fixture(scope="module")
def clean_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with only pip."""
    folder = tmp_path_factory.mktemp("clean_venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


def run_in_venv(clean_venv: Path, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell command that must succeed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "LSML_"))}
    env["PATH"] = f"{clean_venv / 'bin'}:{env['PATH']}"
    run = subprocess.run(["bash", "-ec", command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
    return run


def install_commands(dockerfile: str) -> list[str]:
    """Return the pip commands of the RUN lines."""
    joined = dockerfile.replace("\\\n", " ")
    return [line.removeprefix("RUN ") for line in joined.splitlines() if line.startswith("RUN pip ")]


@pytest.mark.parametrize(("name", "options"), [("moods", []), ("mails", ["--model", "text-classifier"])])
def test_readme_commands_work_in_a_fresh_environment(
    name: str, options: list[str], wheels: Path, clean_venv: Path, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "lsml_cli", "init", name, *options], cwd=tmp_path, check=True)
    folder = tmp_path / name
    (install,) = install_commands((folder / "Dockerfile").read_text())
    run_in_venv(clean_venv, install.replace("/tmp/wheels", str(wheels)), folder)
    run_in_venv(clean_venv, "pip install -qq --disable-pip-version-check pytest", folder)

    (block,) = re.findall(r"^```sh\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = block.splitlines()
    assert len(commands) == 5
    served = next(command for command in commands if " serve " in command)
    for command in commands:
        if command != served:
            run_in_venv(clean_venv, command, folder)
    assert "<html" in (folder / "report.html").read_text()

    port = free_port()
    program, *arguments = shlex.split(served.replace("9090", str(port)))
    with subprocess.Popen([clean_venv / "bin" / program, *arguments], cwd=folder, stderr=subprocess.DEVNULL) as server:
        try:
            status = wait_until("the server answers", lambda: read_health(f"http://127.0.0.1:{port}/health"))
        finally:
            server.terminate()
    assert status["model_version"].startswith(f"{name}@2")


def read_health(url: str) -> dict[str, str] | None:
    try:
        status, health = send_request("GET", url)
    except OSError:
        return None
    return dict(health) if status == 200 else None


def test_compose_and_workflow_files_match_their_schemas(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "lsml_cli", "init", "moods"], cwd=tmp_path, check=True)
    for schema, file in (
        ("vendor.compose-spec", "compose.yml"),
        ("vendor.github-workflows", ".github/workflows/retrain.yml"),
    ):
        path = str(tmp_path / "moods" / file)
        check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path]
        run = subprocess.run(check, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    assert not list((tmp_path / "moods" / "tests").glob("*.jinja"))
