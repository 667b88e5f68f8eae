"""Output files: planted files beside them are refused, special files are written in place, .gz is compressed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import threading
from contextlib import closing, nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from lsml_cli.errors import OutputError, UsageError
from lsml_cli.io.journal import JournalEntry
from lsml_cli.io.output import open_output
from lsml_cli.io.output_target import OutputTarget
from lsml_cli.io.source import RecordSource
from lsml_cli.label_studio.push_spool import Rejections

FINGERPRINT = {"model": "m"}
PLANTED = ("o.json.part", "o.json.part.journal", "e.jsonl.part")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_batches(
    target: OutputTarget, batches: int, *, first: int = 0, resume: bool = False, finish: bool = True
) -> None:
    with closing(open_output(target, FINGERPRINT, resume=resume)) as output:
        assert output.last_entry.records == first
        for number in range(first, batches):
            records = [json.dumps({"id": number}).encode()]
            output.write(records, [b'{"index": %d}\n' % number], JournalEntry(number + 1))
        if finish:
            output.finish()


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "folder", "foreign file"])
@pytest.mark.parametrize("resume", [False, True])
def test_planted_file_is_refused_and_what_it_leads_to_unchanged(name: str, kind: str, resume: bool) -> None:
    victim = Path("victim")
    victim.write_bytes(b"export PATH\n")
    match kind:
        case "link":
            Path(name).symlink_to(victim)
        case "dangling link":
            Path(name).symlink_to("new")
        case "hard link":
            Path(name).hardlink_to(victim)
        case "pipe":
            os.mkfifo(name)
        case "folder":
            Path(name).mkdir()
        case _:
            shutil.copyfile(victim, name)
    with pytest.raises(UsageError, match=name):
        write_batches(OutputTarget("o.json", "e.jsonl"), 2, resume=resume)
    assert victim.read_bytes() == b"export PATH\n"
    assert not Path("new").exists()
    if kind == "foreign file":
        assert Path(name).read_bytes() == victim.read_bytes()


def test_link_beside_an_output_that_cannot_be_resumed_is_refused() -> None:
    Path("victim").write_bytes(b"precious")
    Path("o.json.new").symlink_to("victim")
    with pytest.raises(UsageError, match="symbolic link"):
        write_batches(OutputTarget("o.json", is_resumable=False), 1)
    assert Path("victim").read_bytes() == b"precious"


def test_errors_to_a_device_are_written_in_place() -> None:
    before = Path("/dev/null").stat()
    write_batches(OutputTarget("o.json", "/dev/null"), 3, finish=False)
    write_batches(OutputTarget("o.json", "/dev/null"), 4, first=3, resume=True)
    assert json.loads(Path("o.json").read_bytes()) == [{"id": number} for number in range(4)]
    assert os.path.samestat(before, Path("/dev/null").stat())


@pytest.mark.parametrize("output", ["o.json", "-"])
def test_errors_to_a_pipe_reach_its_reader(output: str) -> None:
    os.mkfifo("pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()))
    reader.start()
    write_batches(OutputTarget(output, "pipe"), 2)
    reader.join()
    assert received == [b'{"index": 0}\n{"index": 1}\n']
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize(
    "target", [OutputTarget("/dev/full"), OutputTarget("o.json", "/dev/full")], ids=["output", "errors"]
)
def test_full_device_is_an_error(target: OutputTarget) -> None:
    with pytest.raises(OutputError, match="The disk is full: /dev/full"):
        write_batches(target, 1)


@pytest.mark.parametrize("name", ["o.json.gz", "o.jsonl.gz"])
def test_compressed_output_resumes_with_equal_bytes(name: str) -> None:
    write_batches(OutputTarget(name, "e.jsonl.gz"), 5)
    whole = Path(name).read_bytes(), Path("e.jsonl.gz").read_bytes()
    for path in (name, "e.jsonl.gz"):
        Path(path).unlink()
    write_batches(OutputTarget(name, "e.jsonl.gz"), 2, finish=False)
    with Path(f"{name}.part").open("ab") as part:
        part.write(b"half a member")
    write_batches(OutputTarget(name, "e.jsonl.gz"), 5, first=2, resume=True)
    assert (Path(name).read_bytes(), Path("e.jsonl.gz").read_bytes()) == whole
    with RecordSource(name) as source:
        assert [json.loads(record.body) for record in source] == [{"id": number} for number in range(5)]
    assert gzip.decompress(whole[1]).count(b"\n") == 5
    unpacked = subprocess.run(["gzip", "-dc", name], capture_output=True, check=True).stdout
    assert unpacked == gzip.decompress(whole[0])


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full"])
def test_rejections_of_a_push_go_to_a_device(path: str) -> None:
    rejections = Rejections(Path(path), "predictions.json", Mock())
    with pytest.raises(OutputError) if path == "/dev/full" else nullcontext(), closing(rejections):
        rejections.add("check", "no such label", 1, 0, "record 1")
    assert Path(path).is_char_device()
