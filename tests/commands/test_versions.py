"""`lsml versions` from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import UnknownModel
from lsml_cli.registry import promotion, version_writer, versions
from tests.helpers.cli import Lsml, run_in_process

METRICS = {"mood": {"count": 20, "accuracy": 0.9, "macro_f1": 0.85, "classes": []}}
COUNTS = {"train": 1080, "holdout": 20}


def write(root: Path, *, promote: bool = True, **facts: Any) -> versions.Version:
    facts = {"metrics": METRICS, "counts": COUNTS} | facts
    with version_writer.open_version_writer(root) as draft:
        (draft.folder / "weights.bin").write_bytes(b"w")
        version = draft.commit(family="a:B", label_config="<View/>", state={}, params={"C": 1}, **facts)
    if promote:
        promotion.promote(root, version.version)
    return version


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four versions: a plain one, one that is broken, a refitted one that is promoted, one that missed a gate."""
    root = tmp_path / "models" / "news"
    first = write(root)
    broken = write(root)
    write(root, refit=True, parent=first.version)
    gate = {"name": "mood.accuracy", "control": "mood", "metric": "accuracy", "label": None, "at_least": 0.95}
    write(root, promote=False, gates=[gate | {"measured": 0.9, "passed": False}], metrics={})
    (broken.folder / "model.json").write_text('{"format": 1, ')
    return root


def listed(lsml: Lsml, root: Path, *more: str, code: int = 0) -> list[dict[str, Any]]:
    run = lsml("versions", root, "--json", *more)
    assert run.returncode == code, run.stderr
    found: list[dict[str, Any]] = json.loads(run.stdout)
    return found


def test_lists_versions_oldest_first(lsml: Lsml, root: Path) -> None:
    run = lsml("versions", root)
    assert (run.returncode, run.stderr) == (0, "")
    first, broken, promoted, _ = sorted(path.name for path in root.iterdir() if path.is_dir())
    heading, *rows = [line.split(maxsplit=6) for line in run.stdout.splitlines()]
    assert heading == ["version", "promoted", "created", "tasks", "accuracy", "macro", "F1  remarks"]
    created = versions.read(root / first).created
    assert rows[0] == [first, "-", created, "1,080", "0.9000", "0.8500", "-"]
    assert rows[1][:6] == [broken, "-", "-", "-", "-", "-"]
    assert rows[1][6].startswith("damaged: model.json is damaged (")
    assert rows[2][:4] == [promoted, "yes", versions.read(root / promoted).created, "1,100"]
    assert rows[2][6] == f"continues from {first}; refit on all tasks after the measurement"
    assert rows[3][3:] == ["1,080", "-", "-", "gate missed: mood.accuracy"]


@pytest.mark.parametrize(
    ("pairs", "heading", "cells"),
    [
        ((("map", 0.41), ("map50", 0.625)), ["mAP", "mAP50"], ["0.4100", "0.6250"]),
        ((("cer", 0.08), ("exact", None)), ["CER", "exact"], ["0.0800", "-"]),
    ],
)
def test_lists_headline_metrics_of_regions_and_texts(
    lsml: Lsml, tmp_path: Path, pairs: tuple[tuple[str, float | None], ...], heading: list[str], cells: list[str]
) -> None:
    write(tmp_path / "m", metrics={"box": {"count": 9, "precision": 0.5, "recall": 0.5, **dict(pairs), "classes": []}})
    run = lsml("versions", tmp_path / "m")
    shown, row = (line.split() for line in run.stdout.splitlines())
    assert shown[4:] == [*heading, "remarks"]
    assert row[4:] == [*cells, "-"]


def test_metrics_of_several_controls_are_named(lsml: Lsml, tmp_path: Path) -> None:
    write(tmp_path / "m", metrics=METRICS | {"box": {"map": 0.4, "map50": 0.6}})
    heading, row = lsml("versions", tmp_path / "m").stdout.splitlines()
    assert re.split(r"\s{2,}", heading)[4:-1] == ["mood accuracy", "mood macro F1", "box mAP", "box mAP50"]
    assert row.split()[4:-1] == ["0.9000", "0.8500", "0.4000", "0.6000"]


def test_json_list(lsml: Lsml, root: Path) -> None:
    first, broken, promoted, missed = listed(lsml, root)
    assert [each["promoted"] for each in (first, broken, promoted, missed)] == [False, False, True, False]
    assert (first["metrics"], first["trained_on"], first["params"]) == (METRICS, 1080, {"C": 1})
    assert (promoted["refit"], promoted["parent"], promoted["trained_on"]) == (True, first["version"], 1100)
    assert missed["missed"] == ["mood.accuracy"]
    assert not any(each["torn"] for each in (first, promoted, missed))
    assert (first["damage"], set(broken)) == (None, {"version", "promoted", "damage"})


def test_terminal_gets_a_table(root: Path) -> None:
    import pty

    master, slave = pty.openpty()
    env = os.environ | {"COLUMNS": "140", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-m", "lsml_cli", "versions", root], stdout=slave, env=env)
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 4096):
            shown += piece
    except OSError:  # how a terminal says that nobody writes any more
        pass
    os.close(master)
    assert process.wait() == 0
    assert "─" in shown.decode()
    for name in versions.list_versions(root):
        assert name in shown.decode()


def test_listing_imports_no_code_of_a_version(lsml: Lsml, root: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("open('was-here', 'w')\n")
    for name in versions.list_versions(root):
        path = root / name / "model.json"
        if not (text := path.read_text()).startswith('{"format": 1, '):
            path.write_text(json.dumps(json.loads(text) | {"family": f"{tmp_path}/evil.py:Evil"}))
    for more in ([], ["--json"], ["--promote", versions.list_versions(root)[0]]):
        assert lsml("versions", root, *more, cwd=tmp_path).returncode == 0
    assert listed(lsml, root)[0]["family"] == "evil.py:Evil"
    assert not (tmp_path / "was-here").exists()


def test_promotes_older_and_newer_versions(lsml: Lsml, root: Path) -> None:
    names = versions.list_versions(root)
    promoted = versions.current_version(root)
    run = lsml("versions", root, "--promote", names[0])
    assert run.returncode == 0
    assert run.stderr == f"lsml: {root} now means {names[0]}, instead of {promoted}.\n"
    assert versions.current_version(root) == names[0]
    assert lsml("versions", root, "--promote", names[-1], "--quiet").stderr == ""
    assert versions.current_version(root) == names[-1]


def test_rejects_promotion_of_unknown_or_damaged_version(lsml: Lsml, root: Path) -> None:
    first, broken, promoted, _ = sorted(path.name for path in root.iterdir() if path.is_dir())
    unknown = lsml("versions", root, "--promote", first[:-1])
    assert unknown.returncode == 2
    said, _, known = unknown.stderr.partition("\n      It has: ")
    assert said.endswith(f"has no version '{first[:-1]}'.")
    assert first in known.rstrip(".\n").split(", ")  # which of them is the closest depends on the second they began in
    damaged = lsml("versions", root, "--promote", broken)
    assert damaged.returncode == 1
    assert "model.json is damaged" in damaged.stderr
    assert versions.current_version(root) == promoted
    assert unknown.stdout == damaged.stdout == ""


def test_prune_keeps_newest_and_promoted(lsml: Lsml, root: Path) -> None:
    first, broken, promoted, missed = sorted(path.name for path in root.iterdir() if path.is_dir())
    assert "No version was removed." in lsml("versions", root, "--prune", "3").stderr
    promotion.promote(root, first)
    run = lsml("versions", root, "--prune", "1")
    assert run.returncode == 0
    assert f"Removed 2 versions: {broken}, {promoted}." in run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()[1:]] == [first, missed]
    assert sorted(path.name for path in root.iterdir()) == [first, missed, "current"]
    both = listed(lsml, root, "--promote", missed, "--prune", "1")
    assert [each["version"] for each in both] == [missed]
    assert lsml("versions", root, "--prune", "0").returncode == 2


def test_prune_does_not_count_damaged_versions(lsml: Lsml, root: Path) -> None:
    first, broken, promoted, missed = sorted(path.name for path in root.iterdir() if path.is_dir())
    (root / missed / "weights.bin").unlink()
    listed(lsml, root, "--prune", "2")
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [first, broken, promoted, missed]


def test_folders_without_versions_are_rejected(lsml: Lsml, root: Path, tmp_path: Path) -> None:
    for place, code, sentence in (
        (root.parent / "nwes", 2, f"There is no folder {root.parent / 'nwes'}.\n      Models nearby: {root}."),
        (tmp_path / "x" / "y", 2, "Name a folder `lsml fit` wrote."),
        (tmp_path, 1, "holds no trained model.\n      Train one: lsml fit EXPORT --model text-classifier --lab"),
        (root / versions.list_versions(root)[0], 2, "is one version of a model."),
    ):
        for more in ([], ["--json"], ["--promote", "x"], ["--prune", "1"]):
            run = lsml("versions", place, *more)
            assert (run.returncode, run.stdout) == (code, "")
            assert sentence in run.stderr


def test_project_stands_for_its_versions(root: Path, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('model = "text-classifier"\nversions = "models/news"\n')
    run = run_in_process("versions", ".", "--json", cwd=tmp_path)
    assert len(json.loads(run.stdout)) == 4, run.stderr
    (tmp_path / "model.toml").write_text('model = "text-classifier"\nversions = "models/other"\n')
    run = run_in_process("versions", ".", cwd=tmp_path)
    assert run.returncode == 1
    assert "has no trained version yet.\n      Train one: lsml fit EXPORT --model . --output models/other" in run.stderr


def test_damage_of_promoted_version_is_reported(lsml: Lsml, root: Path) -> None:
    (root / "current").unlink()
    run = lsml("versions", root)
    assert run.returncode == 0
    newest = versions.list_versions(root)[-1]
    assert f"None of them is promoted: lsml versions {root} --promote {newest}" in run.stderr
    (root / "current").write_bytes(b"\xff\xfe")
    assert lsml("versions", root).returncode == 0
    promotion.promote(root, newest)
    (root / newest / "weights.bin").write_bytes(b"")
    assert f"The promoted version {newest} is damaged: weights.bin" in lsml("versions", root).stderr


@pytest.mark.parametrize(
    "change",
    [
        {"counts": {"train": "many"}},
        {"metrics": {"mood": 3}},
        {"files": {"weights.bin": "big"}},
        {"gates": [1]},
        {"params": []},
        {"parent": 7},
        {"refit": "yes"},
        {"label_config": None},
        {"version": []},
    ],
)
def test_any_model_json_can_be_listed(lsml: Lsml, root: Path, change: dict[str, Any]) -> None:
    name = versions.list_versions(root)[0]
    path = root / name / "model.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    assert listed(lsml, root)[0]["version"] == name
    run = lsml("versions", root)
    assert run.returncode == 0
    assert len(run.stdout.splitlines()) == 5


def test_concurrent_promotion_and_pruning(tmp_path: Path) -> None:
    """Whoever reads `current` finds a whole version, however many promote and prune at the same moment."""
    root = tmp_path / "m"
    for _ in range(12):
        write(root)
    done = threading.Event()
    trouble: list[str] = []

    def read() -> None:
        while not done.is_set():
            name = versions.current_version(root)
            try:
                versions.read(versions.resolve(str(root)))
            except Exception as error:
                # Another version may have been promoted, replaced and pruned while this one was read.
                if versions.current_version(root) == name and str(name) in str(error):
                    trouble.append(f"{type(error).__name__}: {error}")

    def promote(turn: int) -> None:
        while not done.is_set():
            names = versions.list_versions(root)
            with suppress(UnknownModel):  # pruned in between
                promotion.promote(root, names[turn % len(names)])

    def prune() -> None:
        while not done.is_set():
            for _ in range(3):
                write(root, promote=False)
            promotion.prune(root, 3)

    threads = [threading.Thread(target=read), threading.Thread(target=prune)]
    threads += [threading.Thread(target=promote, args=(turn,)) for turn in (0, 1)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    done.set()
    for thread in threads:
        thread.join()
    assert not trouble
    assert versions.current_version(root) in versions.list_versions(root)
