"""Control characters in data are shown escaped, on every way to a terminal."""

from __future__ import annotations

import ast
import json
import logging
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

import lsml_cli
from lsml_cli.commands.completion import complete_models
from lsml_cli.commands.console.tables import Column, print_table
from lsml_cli.server.job_record import TrainingJobConfig, new_job
from lsml_cli.server.job_store import JobStore
from lsml_cli.server.log_setup import PrintableFormatter
from lsml_cli.terminal import escape_controls
from tests.helpers.cli import run_in_process

# Window title, colour, cursor, C1, DEL, right-to-left override, zero width, line separator, markup of Rich.
EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\x7f\u202e\u200b\u2028\r\n[red]gone[/]"
XML_EVIL = "\x9b2J\x7f\u202e\u200b[red]"  # XML takes no C0
FILE_EVIL = "\x1b[31m\x9b2J\u202e[red]"
LABEL_CONFIG = f"""<View>
  <Text name="text" value="$text"/>
  <Choices name="topic{XML_EVIL}" toName="text" choice="single">
    <Choice value="good{XML_EVIL}"/><Choice value="bad"/>
  </Choices>
</View>"""
MODEL_SOURCE = f"""
from typing import ClassVar
from lsml_cli import Model, Parameter

class Evil(Model):
    supported_controls: ClassVar = {{"Choices": ("Text",)}}
    params: ClassVar = {{"mode": Parameter({EVIL!r}, help={EVIL!r})}}

    def encode(self, task, binding, media):
        return task.data["text"]

    def forward(self, inputs, binding):
        return inputs

    def decode(self, output, task, binding):
        raise RuntimeError(output + {EVIL!r})
"""


def unsafe_characters(text: str) -> set[str]:
    return {
        character
        for character in text
        if character != "\n" and unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything that data can say holds control characters."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "config.xml").write_text(LABEL_CONFIG, "utf-8")
    (folder / "model.py").write_text(MODEL_SOURCE, "utf-8")
    choices = [f"good{XML_EVIL}", "bad"] * 20 + [f"unknown{EVIL}"]
    tasks = [
        {
            "id": number,
            "data": {"text": f"{EVIL} number {number} {choice}"},
            "annotations": [
                {
                    "id": number,
                    "result": [
                        {
                            "from_name": f"topic{XML_EVIL}",
                            "to_name": "text",
                            "type": "choices",
                            "value": {"choices": [choice]},
                        }
                    ],
                }
            ],
        }
        for number, choice in enumerate(choices, 1)
    ]
    for name in ("tasks.json", f"tasks{FILE_EVIL}.json"):
        (folder / name).write_text(json.dumps(tasks), "utf-8")
    (folder / f"broken{FILE_EVIL}.json").write_text(json.dumps([{"id": 1, "data": EVIL}, {EVIL: 1}, EVIL]), "utf-8")
    (folder / "map.json").write_text(json.dumps({EVIL: EVIL}), "utf-8")
    (folder / "unknown.toml").write_text(f"[predict]\n{json.dumps(EVIL)} = {json.dumps(EVIL)}\n", "utf-8")
    value = json.dumps(EVIL).replace("\x7f", "\\u007f")
    (folder / "value.toml").write_text(f'[predict]\nmodel = "text-classifier"\nmodel-version = {value}\n', "utf-8")
    (folder / "choice.toml").write_text(f"[predict]\nshape = {value}\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def versions(planted: Path) -> Path:
    """Two versions: one is measured, the other one's folder and metadata were planted."""
    folder = planted / "models"
    run = run_in_process(
        *("fit", planted / "tasks.json", "-m", "text-classifier", "-c", planted / "config.xml", "-o", folder),
        cwd=planted.parent,
    )
    assert not unsafe_characters(run.stdout + run.stderr)
    assert run.returncode == 0, run.stderr
    version = folder / (folder / "current").read_text().strip()
    evil = folder / f"v{FILE_EVIL}"
    shutil.copytree(version, evil)
    metadata = json.loads((evil / "model.json").read_text())
    (evil / "model.json").write_text(json.dumps(metadata | {"parent": EVIL, "created": EVIL}))
    broken = folder / f"w{FILE_EVIL}"
    broken.mkdir()
    (broken / "model.json").write_text(json.dumps({EVIL: EVIL}))
    return folder


COMMANDS = {
    "predict": "predict TASKS -m MODEL -c CONFIG -o OUT",
    "predict to stdout": "predict BROKEN -m MODEL -c CONFIG --on-error fail -o OUT",
    "predict an evil file": "predict BROKEN -m MODEL -c CONFIG -o OUT",
    "predict nothing": "predict NOWHERE -m MODEL -c CONFIG -o OUT",
    "check": "predict TASKS -m MODEL -c CONFIG --check",
    "check of a broken file": "predict BROKEN -m MODEL -c CONFIG --check",
    "label map": "predict TASKS -m VERSIONS --label-map MAP -o OUT",
    "dry run": "fit TASKS -m text-classifier -c CONFIG --dry-run",
    "fit broken": "fit BROKEN -m text-classifier -c CONFIG -o NEW",
    "evaluate": "evaluate TASKS -m VERSIONS",
    "evaluate a model that fails": "evaluate TASKS -m MODEL -c CONFIG",
    "evaluate a gate": "evaluate TASKS -m VERSIONS --fail-under EVIL",
    "rank": "rank BROKEN -o OUT",
    "versions": "versions VERSIONS",
    "promote": "versions VERSIONS --promote EVIL",
    "parameters": "models MODEL",
    "unknown model": "models EVIL",
    "jobs": "jobs JOBS",
    "no jobs": "jobs NOWHERE",
    "settings": "predict TASKS -c CONFIG --config VALUE --show-settings",
    "unknown setting": "predict TASKS -c CONFIG --config UNKNOWN",
    "setting of a wrong value": "predict TASKS -m MODEL -c CONFIG --config CHOICE",
    "usage error of the command line": "predict TASKS -m MODEL --shape EVIL",
    "no such option": "predict --EVIL",
    "init": "init NOWHERE",
    "push": "push BROKEN --project 1",
    "doctor": "doctor EVIL",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_prints_control_characters(
    name: str, planted: Path, versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "TASKS": planted / f"tasks{FILE_EVIL}.json",
        "BROKEN": planted / f"broken{FILE_EVIL}.json",
        "NOWHERE": tmp_path / f"nowhere{EVIL}",
        "MODEL": f"{planted / 'model.py'}:Evil",
        "VERSIONS": versions,
        "CONFIG": planted / "config.xml",
        "MAP": planted / "map.json",
        "OUT": tmp_path / f"out{FILE_EVIL}.json",
        "NEW": tmp_path / f"new{FILE_EVIL}",
        "VALUE": planted / "value.toml",
        "UNKNOWN": planted / "unknown.toml",
        "CHOICE": planted / "choice.toml",
        "JOBS": make_jobs(tmp_path) if name == "jobs" else "",
        "EVIL": EVIL,
    }
    words = [str(values.get(word, word.replace("EVIL", EVIL))) for word in COMMANDS[name].split()]
    environment = {"LABEL_STUDIO_API_KEY": EVIL, "LABEL_STUDIO_URL": f"http://127.0.0.1:9/{EVIL}"}
    run = run_in_process(*words, env=environment, cwd=tmp_path)
    assert run.stdout or run.stderr
    assert not unsafe_characters(run.stdout + run.stderr), run.stdout + run.stderr
    assert "bug in lsml" not in run.stderr


def make_jobs(folder: Path) -> Path:
    """Return a versions folder with a failed job, and one whose file is damaged."""
    store = JobStore(folder)
    config = TrainingJobConfig(model=EVIL, label_studio_url="http://127.0.0.1:9")
    job = new_job(1, EVIL, config)
    store.create(job)
    store.update(job, state="failed", reason=EVIL, version=EVIL, progress=EVIL)
    damaged = new_job(2, EVIL, config)
    store.create(damaged)
    next(folder.rglob(f"{damaged.id}.json")).write_text(json.dumps({EVIL: EVIL}))
    return folder


def test_predict_streams_escape_nothing_in_data(planted: Path, tmp_path: Path) -> None:
    """Output for programs holds the task as it was."""
    run = run_in_process(
        *("predict", planted / "tasks.json", "-m", f"{planted / 'model.py'}:Evil", "-c", planted / "config.xml"),
        cwd=tmp_path,
    )
    first = json.loads(run.stdout.split("\n")[0])
    assert first["data"]["text"].startswith(EVIL)


@pytest.mark.parametrize("columns", ["200", "40"])
def test_table_shows_markup_and_controls_literally_on_a_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")  # no bold headings
    monkeypatch.setenv("COLUMNS", columns)
    print_table((Column("name"), Column(EVIL, "text")), [("[bold]x[/]", "[red]y[/]")])
    printed = capsys.readouterr().out
    assert "[bold]x[/]" in printed
    assert "[red]y[/]" in printed
    assert not unsafe_characters(printed)


def test_log_of_the_server_is_one_escaped_line() -> None:
    record = logging.LogRecord("lsml.serve", logging.WARNING, "f", 1, "%s failed", (EVIL,), None)
    line = PrintableFormatter("lsml: %(message)s").format(record)
    assert not unsafe_characters(line)
    assert "\n" not in line
    assert "\\u001b]0;owned" in line


def test_completion_leaves_out_names_that_a_terminal_would_obey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", f"evil{FILE_EVIL}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "current").write_text("1")
    monkeypatch.chdir(tmp_path)
    assert "good" in complete_models("")
    assert not any("evil" in name for name in complete_models(""))


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "größer 日本語 עברית",
        "می\u200cخواهم",  # noqa: RUF001
        "क्\u200dष",
        "👩\u200d👩\u200d👧",
        "NBSP\u00a0here",
        "C:\\new\\table",
    ],
)
def test_text_of_every_script_is_left_as_it_is(text: str) -> None:
    assert escape_controls(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "da\u200dta",
        "pay\u202elanif.exe",
        "a\u2066b",
        "x\ufeff",
        "\udcff",
        "\x9b2J",
        "a\u3164",
        "a\U000e0041",
        "a\u00ad",
    ],
)
def test_text_that_deceives_is_escaped_as_in_json(text: str) -> None:
    escaped = escape_controls(text)
    assert not unsafe_characters(escaped)
    assert escaped.isprintable()
    assert json.loads(f'"{escaped}"') == text if "\\U" not in escaped else escaped == "a\\U000e0041"


def test_every_unsafe_character_of_unicode_is_escaped() -> None:
    kept = {chr(code) for code in range(0x110000) if escape_controls(chr(code)) == chr(code)}
    visible_format = set(map(chr, (*range(0x600, 0x606), 0x6DD, 0x890, 0x891, 0x8E2)))  # Arabic signs, which show
    assert not {character for character in kept if unsafe_characters(character)} - visible_format


# Where something may print, and why.
PRINTERS = {
    "terminal.py": "the printer for stderr",
    "commands/console/stdout.py": "the printer for stdout",
    "commands/console/table_layout.py": "asks rich how wide characters are",
    "commands/console/tables.py": "asks whether stdout is a terminal",
    "commands/console/progress.py": "the bar",
    "server/log_setup.py": "the printer of logs",
    "io/reserved_stdout.py": "lends the descriptor of stdout to records",
    "cli.py": "opens streams that are closed",
    "models/openmmlab/train_worker.py": "speaks JSON to the process that started it",
}


def test_nothing_prints_beside_the_printers() -> None:
    root = Path(lsml_cli.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if name.startswith("scaffold/templates/") or name in PRINTERS:
            continue
        if places := list(prints(ast.parse(path.read_text("utf-8")))):
            found[name] = places
    assert found == {}


def prints(tree: ast.AST) -> Iterator[str]:
    """Yield every use of something that writes to a terminal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "typer.echo", "typer.secho", "click.echo", "tqdm", "logging.basicConfig"} or (
                called.startswith("traceback.print_")
            ):
                yield f"line {node.lineno}: {called}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {
            "sys.stderr",
            "sys.__stderr__",
            "sys.__stdout__",
        }:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {"rich", "tqdm"}:
            yield f"line {node.lineno}: from {node.module}"
