"""What people see while a command runs, where stderr is no terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lsml_cli.commands.console.progress import Console


def test_progress_lines_without_terminal(monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("lsml_cli.commands.console.progress.time.monotonic", lambda: float(next(clock)))
    with Console() as shown:
        for done in range(8):
            shown.progress(done * 1_000, done // 4, done / 8)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert 1 <= len(lines) < 8
    assert lines[-1].startswith("lsml: ")
    assert "tasks" in lines[-1]
    assert "%, about" in lines[-1]


REPORTS = {
    "versions": "versions MODEL",
    "versions as JSON": "versions MODEL --json",
    "models": "models",
    "models as JSON": "models --json",
    "a dry run": "fit EXPORT -m text-classifier -c CONFIG --dry-run",
    "a check": "predict EXPORT -m MODEL --check",
    "settings": "predict EXPORT -m MODEL --show-settings",
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_handle_closed_and_full_stdout(name: str, ticket_model: Path) -> None:
    """A closed pipe ends quietly with 0, a full device says so; neither leaves Python to complain at the end."""
    example = Path(__file__).parents[2] / "examples" / "support-tickets"
    places = {"MODEL": ticket_model, "EXPORT": example / "annotated.json", "CONFIG": example / "label_config.xml"}
    command = [sys.executable, "-m", "lsml_cli", *(str(places.get(word, word)) for word in REPORTS[name].split())]
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (0, "")
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert run.returncode == 1
    assert run.stderr == "lsml: Standard output cannot be written: No space left on device.\n"


def test_quiet_prints_errors_only(capsys):
    with Console(quiet=True) as shown:
        shown.note("hello")
        shown.progress(1, 0, 0.5)
    assert capsys.readouterr() == ("", "")
