"""Atomic writes and retries, which several layers share."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from lsml_cli.errors import TransientError, UsageError
from lsml_cli.runtime import (
    OUTAGE_THRESHOLD,
    Retrier,
    error_reason,
    open_for_writing,
    require_own_file,
    write_atomically,
)


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
    victim, link = tmp_path / "victim", tmp_path / "a.json"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    write_atomically(link, b"content")
    assert victim.read_bytes() == b"precious"
    assert (link.is_symlink(), link.read_bytes()) == (False, b"content")


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe", "folder"])
def test_own_file_is_nothing_that_leads_elsewhere(tmp_path: Path, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out.json.part"
    victim.write_bytes(b"precious")
    plant(path, victim, kind)
    for action in (require_own_file, open_for_writing):
        with pytest.raises(UsageError, match=f"out.json.part is a .*{kind}"):
            action(path)
    assert victim.read_bytes() == b"precious"


def test_own_file_belongs_to_the_user_or_the_owner_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json.part"
    path.write_bytes(b"old")
    with open_for_writing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    open_for_writing(path).close()
    owner = path.stat().st_uid
    monkeypatch.setattr(Path, "stat", lambda self: SimpleNamespace(st_uid=owner + 1))  # of the folder
    with pytest.raises(UsageError, match="belongs to another user"):
        open_for_writing(path)


def plant(path: Path, victim: Path, kind: str) -> None:
    """Put something at `path` that would lead a careless writer to `victim`, or make it wait."""
    match kind:
        case "symbolic link":
            path.symlink_to(victim)
        case "hard link":
            path.hardlink_to(victim)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()


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


def test_long_reason_is_cut_in_the_middle() -> None:
    reason = error_reason(ValueError(f"begin {'x' * 40_000_000} end"))
    assert len(reason) < 5000
    assert reason.startswith("begin xx")
    assert reason.endswith("xx end")
