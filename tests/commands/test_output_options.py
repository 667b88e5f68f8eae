"""Every option that names a file to write: what already has that name is written to, or refused, but never replaced.

"-" is standard output for each of them.

Options are found by asking the command line; one that is listed neither as an output nor as an input fails a test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from lsml_cli.cli import app
from tests.helpers.cli import run_in_process
from tests.helpers.evaluation_data import TEXT_CONFIG, exported_task, prediction_record, write_records
from tests.helpers.stub_http import KEY
from tests.helpers.studio_project import StubProject, run_stub_project

# The command line of each command that writes files, without the option in question.
COMMANDS = {
    "predict": ["tasks.json", "-m", "text-classifier", "-c", "config.xml", "--output", "usual.jsonl"],
    "fit": ["annotated.json", "-m", "text-classifier", "-c", "config.xml", "--output", "versions"],
    "evaluate": ["annotated.json", "--predictions", "predictions.jsonl", "-c", "config.xml"],
    "rank": ["predictions.jsonl", "--accept-above", "0.5", "--output", "usual.jsonl"],
    "show": ["predictions.jsonl"],
    "convert": ["coco.json", "--output", "usual.jsonl"],
    "pull": ["--project", "3", "--output", "usual.jsonl"],
    "push": ["mixed.jsonl", "--project", "3"],
}
# (command, option) -> the suffix of its files
OUTPUTS = {
    ("predict", "--output"): ".jsonl",
    ("predict", "--errors"): ".jsonl",
    ("predict", "--report"): ".html",
    ("predict", "--summary"): ".json",
    ("fit", "--summary"): ".json",
    ("fit", "--report"): ".html",
    ("evaluate", "--json"): ".json",
    ("evaluate", "--report"): ".html",
    ("rank", "--output"): ".jsonl",
    ("rank", "--accepted"): ".jsonl",
    ("rank", "--summary"): ".json",
    ("show", "--output"): ".html",
    ("convert", "--output"): ".jsonl",
    ("convert", "--label-config-out"): ".xml",
    ("convert", "--errors"): ".jsonl",
    ("convert", "--summary"): ".json",
    ("pull", "--output"): ".jsonl",
    ("pull", "--label-config-out"): ".xml",
    ("pull", "--summary"): ".json",
    ("push", "--errors"): ".jsonl",
    ("push", "--summary"): ".json",
}
INPUTS = {
    "--label-config",
    "--label-map",
    "--config",
    "--holdout",
    "--predictions",
    "--compare",
    "--annotated",
    "--script",
    "--tasks",
}


@pytest.fixture(scope="module")
def project() -> Iterator[StubProject]:
    with run_stub_project() as running:
        running.add_tasks(3)
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the input files of every command; of each kind, some record fails."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "config.xml").write_text(TEXT_CONFIG)
    moods = ["good", "bad"] * 8
    write_records(folder / "annotated.json", [exported_task(i, mood) for i, mood in enumerate(moods)])
    write_records(folder / "tasks.json", [{"id": 1, "data": {"text": "a good one"}}, {"id": 2, "data": {"text": 5}}])
    scored = [prediction_record(i, mood, 0.6 if i % 3 else 0.4) for i, mood in enumerate(moods)]
    write_records(folder / "predictions.jsonl", scored)
    value = {"id": "r", "from_name": "kind", "to_name": "text", "type": "choices"}
    results = [[{**value, "value": {"choices": [choice]}}] for choice in ("ham", "no such label")]
    pushed = [{"task": 1, "result": result, "score": 0.5, "model_version": "v1"} for result in results]
    write_records(folder / "mixed.jsonl", pushed)
    images = [{"id": i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(("a.jpg", "../b.jpg"))]
    coco = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    (folder / "coco.json").write_text(json.dumps(coco))
    return folder


@pytest.fixture
def place(data: Path, project: StubProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder of a run: with the inputs, and with a Label Studio to talk to."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    monkeypatch.setenv("LABEL_STUDIO_URL", project.url)
    monkeypatch.chdir(tmp_path)
    project.predictions.clear()
    return tmp_path


def run(command: str, option: str, target: str) -> tuple[int, str]:
    """Run a command with its output going to `target`; return its exit code and what it said."""
    args = COMMANDS[command]
    if option in args:
        args = [target if i and args[i - 1] == option else arg for i, arg in enumerate(args)]
    else:
        args = [*args, option, target]
    finished = run_in_process(command, *args)
    assert "Traceback" not in finished.stderr
    assert "bug in lsml" not in finished.stderr
    return finished.returncode, finished.stderr


def without_numbers(content: str) -> str:
    """Leave out times, durations and names of versions, which differ between two runs."""
    return re.sub(r"[0-9]+([.T-][0-9]+)*(e-[0-9]+)?", "0", content)


def run_to_stdout(command: str, *options: str) -> tuple[int, str, str]:
    """Run a command with options on top of its own; return its exit code, and what went to stdout and stderr."""
    finished = run_in_process(command, *COMMANDS[command], *options)
    assert "Traceback" not in finished.stderr
    return finished.returncode, finished.stdout, finished.stderr


each_output = pytest.mark.parametrize(("command", "option"), OUTPUTS)


def test_every_option_that_names_a_file_is_known_to_be_read_or_written() -> None:
    group = typer.main.get_command(app)
    options = {
        (name, max(param.opts, key=len))
        for name, command in group.commands.items()  # type: ignore[attr-defined]
        for param in command.params
        if "FILE" in (param.metavar or "") and param.param_type_name == "option"
    }
    assert {(name, option) for name, option in options if option not in INPUTS} == set(OUTPUTS)


@each_output
def test_file_and_links_to_it_are_written(place: Path, command: str, option: str) -> None:
    suffix = OUTPUTS[command, option]
    code, said = run(command, option, f"new{suffix}")
    assert code in (0, 3), said
    content = (place / f"new{suffix}").read_text()
    assert content
    if suffix == ".json":
        assert json.loads(content)
    elif suffix == ".jsonl":
        assert all(json.loads(line) for line in content.splitlines())
    shutil.copyfile(place / f"new{suffix}", place / f"old{suffix}")
    with (place / f"old{suffix}").open("a") as old:
        old.write(" ")  # some commands do not write over what is not theirs
    for name in ("old", "missing"):
        link = place / f"link to {name}{suffix}"
        link.symlink_to(f"{name}{suffix}")
        again, said = run(command, option, link.name)
        assert again == code, said
        assert link.is_symlink()
        assert without_numbers((place / f"{name}{suffix}").read_text()) == without_numbers(content)
    left = {path.name for path in place.iterdir() if path.name.startswith((".", "new", "old", "link", "missing"))}
    expected = {"new", "old", "link to old", "link to missing", "missing"}
    assert left == {f"{name}{suffix}" for name in expected}


@each_output
def test_devices_are_written_to_and_stay(place: Path, command: str, option: str) -> None:
    expected, _ = run(command, option, f"new{OUTPUTS[command, option]}")
    before = Path("/dev/null").stat()
    assert run(command, option, "/dev/null")[0] == expected
    assert os.path.samestat(before, Path("/dev/null").stat())
    code, said = run(command, option, "/dev/full")
    assert code == 1, said
    assert said.count("/dev/full") == 1, said
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@each_output
def test_pipe_receives_everything_and_stays(place: Path, command: str, option: str) -> None:
    usual = f"new{OUTPUTS[command, option]}"
    expected, _ = run(command, option, usual)
    os.mkfifo("pipe")
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_text()))
    reader.start()
    code, said = run(command, option, "pipe")
    if code not in (0, 3):  # it was perhaps never opened, and the reader would wait for ever
        os.close(os.open("pipe", os.O_RDWR | os.O_NONBLOCK))
    reader.join(10)
    assert code == expected, said
    assert without_numbers(received[0]) == without_numbers(Path(usual).read_text())
    assert Path("pipe").is_fifo()


@each_output
def test_dash_is_standard_output(place: Path, command: str, option: str) -> None:
    usual = f"new{OUTPUTS[command, option]}"
    expected, _ = run(command, option, usual)
    code, out, said = run_to_stdout(command, option, "-")
    assert code == expected, said
    assert without_numbers(out) == without_numbers(Path(usual).read_text())
    assert not Path("-").exists()
    assert "-> -" not in said
    assert " -." not in said


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("predict", ("--errors", "--summary")),
        ("predict", ("--output", "--errors")),
        ("fit", ("--summary", "--report")),
        ("evaluate", ("--json", "--report")),
        ("rank", ("--accepted", "--summary")),
        ("convert", ("--errors", "--label-config-out")),
        ("pull", ("--output", "--label-config-out")),
        ("push", ("--errors", "--summary")),
    ],
)
def test_standard_output_takes_one_of_them(place: Path, command: str, options: tuple[str, str]) -> None:
    before = sorted(place.rglob("*"))
    code, out, said = run_to_stdout(command, options[0], "-", options[1], "-")
    assert (code, out) == (2, "")
    assert said.startswith(f"lsml: {options[0]} and {options[1]} both go to standard output."), said
    assert sorted(place.rglob("*")) == before


def test_summary_on_standard_output_replaces_what_is_printed_there(place: Path) -> None:
    code, out, _ = run_to_stdout("fit", "--dry-run", "--summary", "-")
    assert (code, json.loads(out)["train"] > 0) == (0, True)
    code, out, _ = run_to_stdout("predict", "--check", "--output", "-", "--summary", "-")
    assert (code, json.loads(out)["tasks"]) == (3, 2)
    run_to_stdout("fit", "--summary", "-")
    code, out, _ = run_to_stdout("fit", "--skip-unchanged", "--summary", "-")
    assert (code, json.loads(out)["unchanged"]) == (0, True)


@each_output
def test_folder_is_refused_before_anything_is_done(place: Path, command: str, option: str) -> None:
    folder = place / f"folder{OUTPUTS[command, option]}"
    folder.mkdir()
    before = sorted(place.rglob("*"))
    code, said = run(command, option, folder.name)
    assert code == 2, said
    assert "is a folder" in said
    assert sorted(place.rglob("*")) == before
