"""Fixtures for every suite. `lsml` runs the command as a process: what is promised is tested from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "support-tickets"
SHARED_DATA = ROOT.parent / "shared" / "data"


class Lsml(Protocol):
    def __call__(
        self,
        *args: str | Path,
        input: str | None = None,
        timeout: float = 120,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> CompletedProcess[str]: ...


def run_lsml(
    *args: str | Path,
    input: str | None = None,
    timeout: float = 120,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> CompletedProcess[str]:
    """Run `lsml ARGS` to its end.

    input    what arrives on its stdin, which is empty otherwise
    timeout  seconds
    env      variables on top of this process's own
    cwd      the folder it runs in
    """
    # A fixed width, and no variable of the person running the tests that would change what is printed.
    own = {name: value for name, value in os.environ.items() if not name.startswith("LSML_")}
    own |= {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, "-m", "lsml_cli", *map(str, args)],
        input="" if input is None else input,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        env=own | (env or {}),
        cwd=cwd,
        check=False,
    )


@pytest.fixture(scope="session")
def lsml() -> Lsml:
    """`lsml("predict", path, "--model", model)` -> the finished process, its stdout and stderr as text."""
    return run_lsml


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real exports and media, which are too large for the project itself."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the data in ../shared/data, which is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def sms_model(lsml: Lsml, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text classifier fitted on 4,000 real messages (ham, spam). Do not write into it."""
    return fit_model(
        lsml,
        shared_data / "exports" / "sms-spam-annotated.json",
        shared_data / "exports" / "sms-spam.xml",
        tmp_path_factory.mktemp("models") / "sms",
    )


@pytest.fixture(scope="session")
def ticket_model(lsml: Lsml, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text classifier fitted on the shipped example. Do not write into it."""
    return fit_model(
        lsml,
        EXAMPLE / "annotated.json",
        EXAMPLE / "label_config.xml",
        tmp_path_factory.mktemp("models") / "tickets",
    )


def fit_model(lsml: Lsml, export: Path, config: Path, output: Path) -> Path:
    run = lsml("fit", export, "--model", "text-classifier", "--label-config", config, "--output", output)
    assert run.returncode == 0, run.stderr
    return output
