"""Run the tests that `lsml init` writes into a project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_generated_tests(*folders: Path) -> str:
    """Run the tests of projects in one process, which must not fail; return the output without the time at its end."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--import-mode=importlib"]
    run = subprocess.run(
        [*command, *(folder / "tests" for folder in folders)],
        cwd=folders[0].parent,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout.rpartition(" in ")[0]
