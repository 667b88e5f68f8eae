"""Atomic writes and retries, which several layers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsml_cli.errors import TransientError
from lsml_cli.runtime import OUTAGE_THRESHOLD, Retrier, write_atomically


def test_write_atomically_replaces_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_leaves_nothing_on_failure(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    with pytest.raises(OSError):  # noqa: PT011  # which one depends on the system
        write_atomically(folder, b"content")
    assert list(tmp_path.iterdir()) == [folder]


def test_write_atomically_does_not_follow_links(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "a.json.new"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(tmp_path / "a.json", b"content")
    assert victim.read_bytes() == b"precious"
    assert link.is_symlink()


def test_retrier_stops_retrying_during_an_outage() -> None:
    retrier = Retrier((0.0, 0.0))
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        raise TransientError("down")

    for _ in range(OUTAGE_THRESHOLD + 2):
        with pytest.raises(TransientError):
            retrier.call(fail)
    assert calls == 3 * OUTAGE_THRESHOLD + 2
    assert retrier.call(lambda: 1) == 1
    calls = 0
    with pytest.raises(TransientError):
        retrier.call(fail)
    assert calls == 3  # the success has ended the outage
