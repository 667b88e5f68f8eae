from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lsml_cli.errors import LsmlError, ModelError, OutputError, UnknownModel, UsageError
from lsml_cli.registry import promotion, version_writer, versions
from lsml_cli.registry.durable_files import raise_write_error


def write(root: Path, weights: bytes = b"w", *, promote: bool = True) -> versions.Version:
    with version_writer.open_version_writer(root) as writer:
        (writer.folder / "weights.bin").write_bytes(weights)
        version = writer.commit(family="a:B", label_config="<View/>", state={"classes": ["a"]}, params={"C": 1})
    if promote:
        promotion.promote(root, version.version)
    return version


def hidden(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.name.startswith(".")]


def test_read_returns_what_was_written(tmp_path: Path) -> None:
    written = write(tmp_path / "models" / "news")
    root = tmp_path / "models" / "news"
    assert versions.resolve(str(root)) == written.folder
    assert versions.resolve(f"{root}@{written.version}") == written.folder
    assert versions.resolve(str(written.folder)) == written.folder
    assert versions.read(written.folder) == written
    assert (written.name, written.state, written.files) == ("news", {"classes": ["a"]}, {"weights.bin": 1})
    assert not hidden(root)


def test_folder_means_the_promoted_version(tmp_path: Path) -> None:
    first, second, third = write(tmp_path), write(tmp_path), write(tmp_path, promote=False)
    assert versions.list_versions(tmp_path) == [first.version, second.version, third.version]
    assert versions.resolve(str(tmp_path)) == second.folder
    promotion.promote(tmp_path, first.version)
    assert versions.current_version(tmp_path) == first.version


def test_versions_of_one_second_are_numbered_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_795_210_215.0)
    names = [write(tmp_path).version for _ in range(11)]
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(1_795_210_215))
    assert names == [moment, *(f"{moment}-{number}" for number in range(2, 12))]
    assert versions.list_versions(tmp_path) == names


def test_digest_depends_on_the_content(tmp_path: Path) -> None:
    one, two, other = write(tmp_path), write(tmp_path), write(tmp_path, b"x")
    assert one.digest == two.digest != other.digest


def test_interrupted_writer_leaves_no_file(tmp_path: Path) -> None:
    def interrupted() -> None:
        with version_writer.open_version_writer(tmp_path) as writer:
            (writer.folder / "weights.bin").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_failed_writer_removes_folders_it_created(tmp_path: Path) -> None:
    root = tmp_path / "models" / "news"

    def fill_the_disk() -> None:
        with version_writer.open_version_writer(root) as writer:
            (writer.folder / "weights.bin").write_bytes(b"half")
            raise_write_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), root)

    with pytest.raises(OutputError, match=r"models/news: the disk is full"):
        fill_the_disk()
    assert list(tmp_path.iterdir()) == []
    write(root)
    with pytest.raises(KeyboardInterrupt), version_writer.open_version_writer(root):
        raise KeyboardInterrupt
    assert len(versions.list_versions(root)) == 1


def test_version_folder_is_no_root_for_versions(tmp_path: Path) -> None:
    version = write(tmp_path)
    version_writer.require_version_root(tmp_path)
    version_writer.require_version_root(tmp_path / "new")
    for what in ("lacks", "gone"):
        damage(version, what)
        with pytest.raises(UsageError, match="is one version of a model") as caught:
            version_writer.require_version_root(version.folder)
        assert caught.value.hint == f"Name the folder above, where the versions live: --output {tmp_path}"


def test_remains_of_killed_run_are_removed_at_once(tmp_path: Path) -> None:
    remains = tmp_path / ".unfinished-1-a"
    remains.mkdir()
    (remains / "model.json").write_text("{}")
    assert versions.list_versions(tmp_path) == []
    write(tmp_path)
    assert hidden(tmp_path) == []
    remains.mkdir()
    promotion.prune(tmp_path, keep=1)
    assert hidden(tmp_path) == []


def test_unfinished_version_of_a_running_process_stays(tmp_path: Path) -> None:
    with version_writer.open_version_writer(tmp_path) as writer:
        os.utime(writer.folder, (0, 0))  # a training of several days
        write(tmp_path)
        promotion.prune(tmp_path, keep=1)
        assert hidden(tmp_path) == [writer.folder]
        writer.clear()
        assert hidden(tmp_path) == [writer.folder]
    assert hidden(tmp_path) == []


def test_link_among_the_remains_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("precious")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ".unfinished-1-a").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "root")
    assert (tmp_path / "elsewhere" / "file").exists()


def test_folder_can_be_moved(tmp_path: Path) -> None:
    write(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new" / "news")
    shutil.rmtree(tmp_path / "old")
    assert versions.read(versions.resolve(str(tmp_path / "new" / "news"))).name == "old"


def test_version_folder_has_the_default_permissions(tmp_path: Path) -> None:
    version = write(tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    assert version.folder.stat().st_mode & 0o777 == 0o777 & ~umask


def damage(version: versions.Version, what: str) -> None:
    """Damage a version in one of the ways that the tests name."""
    path = version.folder / "model.json"
    content = json.loads(path.read_bytes())
    if what == "gone":
        path.unlink()
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif what == "list":
        path.write_text("[]")
    elif what == "newer":
        path.write_text(json.dumps(content | {"format": versions.FORMAT + 1}))
    elif what == "lacks":
        del content["state"]
        path.write_text(json.dumps(content))
    elif what == "wrong":
        path.write_text(json.dumps(content | {"state": "x"}))
    elif what == "empty":
        path.write_text("{}")
    elif what == "outside":
        path.write_text(json.dumps(content | {"files": {"../news.bin": 1}}))
    elif what == "weights replaced":
        (version.folder / "weights.bin").unlink()
        (version.folder / "weights.bin").mkdir()
    elif what == "weights gone":
        (version.folder / "weights.bin").unlink()
    elif what == "weights flipped":
        (version.folder / "weights.bin").write_bytes(b"v")
    elif what == "weights cut":
        (version.folder / "weights.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("gone", "is not a trained model: it has no model.json"),
        ("truncated", "model.json is damaged ("),
        ("list", "model.json is damaged (no JSON object)"),
        ("newer", "was written by a newer lsml"),
        ("lacks", 'model.json is damaged (it lacks "state").'),
        ("empty", 'model.json is damaged (it lacks "name", "version", "family", "label_config", "state", "params", '),
        ("outside", """model.json is damaged (its "files" name '../news.bin')."""),
        ("weights replaced", "weights.bin is damaged (it is no file)."),
        ("wrong", 'its "state" is not what it should be'),
        ("weights gone", "weights.bin is missing."),
        ("weights cut", "it has 0 bytes instead of 1"),
    ],
)
def test_damaged_version_is_refused_naming_the_file(tmp_path: Path, what: str, sentence: str) -> None:
    version = write(tmp_path)
    damage(version, what)
    with pytest.raises(ModelError) as caught:
        versions.read(versions.resolve(str(tmp_path)))
    assert sentence in caught.value.message
    assert str(version.folder) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("what", ["weights gone", "weights flipped"])
def test_damaged_version_is_not_promoted(tmp_path: Path, what: str) -> None:
    good, bad = write(tmp_path), write(tmp_path, promote=False)
    damage(bad, what)
    with pytest.raises(ModelError, match=r"weights\.bin is "):
        promotion.promote(tmp_path, bad.version)
    assert versions.current_version(tmp_path) == good.version


def test_verify_detects_changed_content(tmp_path: Path) -> None:
    version = write(tmp_path)
    versions.verify(version)
    damage(version, "weights flipped")
    versions.verify(replace(version, digests={}))  # as format 1 has it
    with pytest.raises(ModelError) as caught:
        versions.verify(versions.read(version.folder))
    assert caught.value.message == f"{version.folder / 'weights.bin'} is damaged: its content is not what was written."
    (version.folder / "weights.bin").unlink()
    (version.folder / "weights.bin").mkdir()
    with pytest.raises(ModelError, match=r"weights\.bin cannot be read: Is a directory"):
        versions.verify(version)


def test_family_is_stored_without_a_folder(tmp_path: Path) -> None:
    assert versions.strip_folder("/home/ann/shouting.py:Shouting") == "shouting.py:Shouting"
    assert versions.strip_folder("C:\\ann\\shouting.py:Shouting") == "shouting.py:Shouting"
    for name in ("package.module:Class", "text-classifier", "shouting.py:Shouting"):
        assert versions.strip_folder(name) == name
    version = write(tmp_path)
    path = version.folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"family": "/home/ann/shouting.py:Shouting"}))
    assert versions.read(version.folder).family == "shouting.py:Shouting"


def test_invalid_current_file_is_explained(tmp_path: Path) -> None:
    version = write(tmp_path)
    for content in (b"\xff\xfe\n", b"\0", b"", b"x" * 5000):
        (tmp_path / "current").write_bytes(content)
        with pytest.raises(ModelError, match="which is not there") as caught:
            versions.resolve(str(tmp_path))
        assert caught.value.hint == f"Name one of its versions: {tmp_path}@{version.version}"
    (tmp_path / "current").unlink()
    (tmp_path / "current").mkdir()
    for ask in (lambda: versions.resolve(str(tmp_path)), lambda: versions.scan_versions(tmp_path)):
        with pytest.raises(ModelError, match=r"current cannot be read: Is a directory\."):
            ask()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_missing_read_permission_is_explained(tmp_path: Path) -> None:
    version = write(tmp_path / "m")
    for path in (version.folder / "weights.bin", version.folder / "model.json", version.folder, tmp_path / "m"):
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            for name in (str(tmp_path / "m"), str(version.folder)):
                with pytest.raises(ModelError, match="Permission denied"):
                    versions.verify(versions.read(versions.resolve(name)))
        finally:
            path.chmod(mode)


def test_unresolvable_names_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no trained model"):
        versions.resolve(str(tmp_path))
    write(tmp_path / "models" / "mine")
    with pytest.raises(ModelError, match="holds no trained model") as folder_of_models:
        versions.resolve(str(tmp_path / "models"))
    mine = tmp_path / "models" / "mine"
    assert folder_of_models.value.hint == f"{mine} is a model there: --model {mine}"
    version = write(tmp_path, promote=False)
    with pytest.raises(ModelError, match="no promoted version") as unpromoted:
        versions.resolve(str(tmp_path))
    assert unpromoted.value.hint
    assert version.version in unpromoted.value.hint
    with pytest.raises(UnknownModel, match="has no version 'x'") as unknown:
        versions.resolve(f"{tmp_path}@x")
    assert unknown.value.hint == f"It has: {version.version}."
    (tmp_path / "current").write_text("../../etc\n")
    with pytest.raises(ModelError, match="which is not there"):
        versions.resolve(str(tmp_path))


def test_unwritable_root_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="is not a folder"):
            write(place)
    if os.geteuid() != 0:
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(OutputError, match="Permission denied"):
            write(tmp_path / "shut")


WRITER = """
import sys
from pathlib import Path
from lsml_cli.registry import promotion, version_writer
root = Path(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    with version_writer.open_version_writer(root) as writer:
        for part in range(3):
            (writer.folder / f"weights-{part}.bin").write_bytes(bytes([number % 256]) * 100_000)
        version = writer.commit(family="a:B", label_config="<View/>", state={"number": number % 256}, params={})
    promotion.promote(root, version.version)
"""


def test_reader_sees_only_whole_versions_while_writers_are_killed(tmp_path: Path) -> None:
    write(tmp_path)
    read_versions: list[str] = []
    problems: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                version = versions.read(versions.resolve(str(tmp_path)))
                number = version.state.get("number")
                for name in version.files:
                    content = (version.folder / name).read_bytes()
                    if number is not None and content != bytes([number]) * 100_000:
                        problems.append(f"{version.version}: {name}")
                read_versions.append(version.version)
            except LsmlError as error:
                problems.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for delay in (0.35, 0.4, 0.47, 0.55, 0.6):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
    done.set()
    reader.join()
    assert not problems
    assert len(set(read_versions)) > 1, "no writer got as far as a version"
    for name in versions.list_versions(tmp_path):
        versions.read(tmp_path / name)
