"""What people see while a command runs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lsml_cli.commands.console import progress
from lsml_cli.commands.console.progress import Console, format_progress, format_rate
from lsml_cli.progress import Estimate, format_duration


class Clock:
    """A clock that stands still until it is set forward."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, console: Console, seconds: int) -> None:
        """Let the time go by; every second the console looks whether anything is to be shown."""
        for _ in range(seconds):
            self.now += 1
            console.refresh()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress, "TICK_SECONDS", 3600)  # only the test looks at the clock
    return Clock()


def test_progress_lines_without_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The clock runs from the start; the rate and what is left do not count the time in which the model loads."""
    with Console(clock=clock) as console:
        console.start_phase("loading model")
        clock.advance(console, 12)
        console.start_phase("predicting", done=0)
        for second in range(1, 91):
            clock.advance(console, 1)
            console.progress(100 * second, second // 20, second / 180)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "lsml: [0:10] loading model",
        "lsml: [0:40] predicting 15%, 2,700 tasks, 100/s, 1 failed, 3 min left",
        "lsml: [1:10] predicting 31%, 5,700 tasks, 100/s (now 100), 2 failed, 2 min left",
        "lsml: [1:40] predicting 48%, 8,700 tasks, 100/s (now 100), 4 failed, 92 s left",
    ]


def test_short_phases_print_no_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(clock=clock) as console:
        for name in ("loading model", "choosing precision", "loading model", "predicting"):
            console.start_phase(name)
            clock.advance(console, 7)
        console.progress(5, 0, 1.0)
    assert capsys.readouterr().err == ""


def test_each_long_phase_is_named_once_until_half_a_minute_later(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console(clock=clock) as console:
        console.start_phase("loading model")
        clock.advance(console, 45)
        console.start_phase("choosing precision and batch size")
        clock.advance(console, 15)
    assert capsys.readouterr().err.splitlines() == [
        "lsml: [0:10] loading model",
        "lsml: [0:40] loading model",
        "lsml: [0:55] choosing precision and batch size",
    ]


HUGE = Estimate(123_456_789, 12_345_678, 0.4567, 123_456.7, 98_765.4, 36 * 3600)
USUAL = Estimate(12_345, 3, 0.4567, 410.2, 395.1, 720)
SHOWN = {
    (USUAL, 120): ("[0:42] predicting  45%", " 12,345 tasks, 410/s (now 395), 3 failed, 12 min left"),
    (USUAL, 80): ("predicting  45%", " 12,345 tasks, 410/s (now 395), 3 failed, 12 min left"),
    (USUAL, 60): ("45%, 12,345 tasks, 410/s (now 395), 3 failed, 12 min left", ""),
    (HUGE, 80): ("45%, 123,456,789 tasks, 123,457/s (now 98,765), 12,345,678 failed, 36 h left", ""),
    (HUGE, 60): ("45%, 123,456,789 tasks, 12,345,678 failed, 36 h left", ""),
    (HUGE, 20): ("", ""),
}


@pytest.mark.parametrize(("estimate", "columns"), SHOWN)
def test_bar_leaves_parts_out_instead_of_cutting_them(estimate: Estimate, columns: int) -> None:
    left, right = format_progress("predicting", "tasks", 42, estimate, columns, with_bar=True)
    assert (left, right) == SHOWN[estimate, columns]
    assert len(left) + len(right) <= columns


@pytest.mark.parametrize("columns", range(30, 140))
@pytest.mark.parametrize("with_bar", [True, False])
def test_progress_fits_any_width(columns: int, with_bar: bool) -> None:
    for estimate in (HUGE, USUAL, Estimate(5), Estimate(1_000_000, 0, 0.02, 0.001), None):
        left, right = format_progress("extracting features", "images", 4_000, estimate, columns, with_bar=with_bar)
        assert len(left) + len(right) <= columns
        if estimate is not None and columns > 60:
            assert f"{estimate.done:,} images" in left + right


def test_progress_without_total_or_rate() -> None:
    assert format_progress("pulling", "tasks", 5, Estimate(1, 0), 80) == ("[0:05] pulling: 1 task", "")
    assert format_progress("loading model", "tasks", 3_725, None, 80, with_bar=True) == (
        "[1:02:05] loading model",
        "",
    )


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (1_234.5, "1,234/s"),
        (12.3, "12/s"),
        (2.46, "2.5/s"),
        (1, "1/s"),
        (0.2, "12/min"),
        (0.02, "1.2/min"),
        (0.001, "3.6/h"),
        (0, "0/s"),
    ],
)
def test_rate_keeps_two_digits(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (99, "99 s"), (100, "2 min"), (7_500, "2 h 5 min"), (400_000, "5 days")]
)
def test_duration_is_no_more_exact_than_the_estimate(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("columns", [60, 80])
def test_bar_on_terminal_fits_and_makes_room_for_notes(
    columns: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with Console(clock=clock) as console:
        console.start_phase("loading model")
        clock.advance(console, 3)
        console.start_phase("predicting")
        for second in range(1, 51):
            clock.advance(console, 1)
            console.progress(1_000 * second, second, second / 100)
        console.note("Something happened.")
        clock.advance(console, 1)
    drawn = terminal.getvalue().replace("\n", "\r").split("\r")
    assert all(len(line) < columns for line in drawn)
    assert "[0:02] loading model" in [line.rstrip() for line in drawn]
    assert any("50,000 tasks" in line and "50 failed" in line and "49 s left" in line for line in drawn)
    assert any("1,000/s (now 1,000)" in line for line in drawn) == (columns == 80)
    assert "lsml: Something happened." in drawn
    assert drawn[-1].strip() == ""


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


@pytest.mark.parametrize("words", ["--help", "predict --help", "fit -h"])
def test_help_into_closed_pipe_is_no_failure(words: str) -> None:
    command = [sys.executable, "-m", "lsml_cli", *words.split()]
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")


def test_help_onto_full_disk_says_so() -> None:
    command = [sys.executable, "-m", "lsml_cli", "predict", "--help"]
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert run.returncode == 1
    assert run.stderr.startswith("lsml: No space is left on a disk that lsml writes to.\n")


def test_usage_error_into_closed_pipe_is_a_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([sys.executable, "-m", "lsml_cli", "predict"], stderr=writer, check=False, timeout=60)
    os.close(writer)
    assert run.returncode != 0


def test_quiet_prints_errors_only(capsys):
    with Console(quiet=True) as shown:
        shown.note("hello")
        shown.start_phase("predicting")
        shown.progress(1, 0, 0.5)
    assert capsys.readouterr() == ("", "")
