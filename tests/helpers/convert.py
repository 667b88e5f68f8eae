"""Run `lsml convert`, for the tests of its formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.cli import run_in_process


def convert(*args: str | Path, code: int = 0) -> str:
    """Run `lsml convert ARGS` and return what it says."""
    run = run_in_process("convert", *args)
    assert run.returncode == code, run.stderr
    return run.stderr


def read(*args: str | Path, code: int = 0) -> list[dict[str, Any]]:
    """Run `lsml convert ARGS` and return the tasks that it writes."""
    run = run_in_process("convert", *args)
    assert run.returncode == code, run.stderr
    return [json.loads(line) for line in run.stdout.split("\n") if line]
