"""What people see while a command runs, where stderr is no terminal."""

from __future__ import annotations

from lsml_cli.commands import console
from lsml_cli.commands.console import Console


def test_a_plain_line_every_now_and_then(monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
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


def test_quiet_is_quiet(capsys):
    with Console(quiet=True) as shown:
        shown.note("hello")
        shown.progress(1, 0, 0.5)
    assert capsys.readouterr() == ("", "")
