"""What the help says and what README.md says is the same: every command and every option is in both."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main

from lsml_cli.cli import app
from lsml_cli.registry.model_location import BUILT_IN
from tests.helpers.readme import read_examples
from tests.helpers.serve_process import ServerFactory

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def all_commands() -> dict[str, Any]:
    """Every registered command by name, as click knows it."""
    group = typer.main.get_command(app)
    return dict(group.commands)  # type: ignore[attr-defined]


def options_of(command: Any) -> list[str]:
    """Every spelling of every option but --help: "-o", "--output", "--quiet", ..."""
    spellings = [
        spelling
        for param in command.params
        if param.param_type_name == "option" and not param.hidden
        for spelling in (*param.opts, *param.secondary_opts)
    ]
    return [spelling for spelling in spellings if spelling != "--help"]


COMMANDS = all_commands()
OPTIONS = [(name, option) for name, command in COMMANDS.items() for option in options_of(command)]


def names_option(text: str, option: str) -> bool:
    """Whether the option stands in the text on its own: --on is not named by --on-error."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


@pytest.fixture(scope="module")
def helps(lsml: Lsml) -> dict[str, str]:
    """What `lsml --help` (under "") and `lsml COMMAND --help` print."""
    printed = {}
    for name in ("", *COMMANDS):
        run = lsml(*name.split(), "--help")
        assert run.returncode == 0, run.stderr
        printed[name] = run.stdout
    return printed


def test_help_lists_every_command(helps: dict[str, str]) -> None:
    assert "predict" in COMMANDS
    missing = [name for name in COMMANDS if not re.search(rf"\b{re.escape(name)}\b", helps[""])]
    assert not missing


def test_every_command_has_help() -> None:
    assert not [name for name, command in COMMANDS.items() if not (command.help or "").strip()]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_help_names_every_option(helps: dict[str, str], command: str, option: str) -> None:
    assert names_option(helps[command], option)


@pytest.mark.parametrize("model", BUILT_IN)
def test_every_model_that_can_be_trained_is_named(model: str) -> None:
    (option,) = [param for param in COMMANDS["fit"].params if "--model" in param.opts]
    row = README.split("## `lsml fit`")[1].split("| `-m`, `--model MODEL` |")[1].splitlines()[0]
    assert model in option.help
    assert f"`{model}`" in row


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_has_a_section_on_every_command(command: str) -> None:
    assert re.search(rf"^#+ .*\blsml {re.escape(command)}\b", README, re.MULTILINE), (
        f"README.md has no heading with `lsml {command}`"
    )


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_readme_names_every_option(command: str, option: str) -> None:
    assert names_option(README, option), f"README.md does not mention {option} of `lsml {command}`"


def test_option_names_are_distinct() -> None:
    assert names_option("use `--on-error skip`, -o FILE", "--on-error")
    assert names_option("use `--on-error skip`, -o FILE", "-o")
    assert not names_option("use --on-error", "--on")
    assert not names_option("use --on-error", "-o")


def fenced(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def without_chance(text: str) -> str:
    """Output without what differs from run to run: when, and how fast."""
    return re.sub(r"in [\d.]+ s \([\d,]+/s\)", "in TIME", re.sub(r"\d{8}T\d{6}", "VERSION", text))


def test_readme_session_output_is_real(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(Path(__file__).parents[1] / "examples")
    [session] = fenced("console")
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert len(commands) >= 3
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command, shown in commands:
        run = subprocess.run(
            ["bash", "-c", f"{command} 2>&1"], cwd=tmp_path, env=os.environ | {"PATH": path}, stdout=-1, check=True
        )
        assert without_chance(run.stdout.decode()) == without_chance(shown)


def test_readme_model_runs(lsml: Lsml, tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(fenced("python")[0])
    (tmp_path / "config.xml").write_text(
        '<View><Text name="t" value="$text"/><Choices name="c" toName="t">'
        '<Choice value="loud"/><Choice value="quiet"/></Choices></View>'
    )
    command = ("predict", "-", "--model", "shouting.py:Shouting", "--label-config", "config.xml")
    run = lsml(*command, input='{"text": "HELLO"}\n{"text": "hello"}\n', cwd=tmp_path)
    labels = [json.loads(line)["predictions"][0]["result"][0]["value"]["choices"] for line in run.stdout.splitlines()]
    assert labels == [["loud"], ["quiet"]]


def test_readme_model_answers_the_context_of_an_editor(tmp_path: Path) -> None:
    blocks = read_examples("### Suggestions while somebody draws")
    (tmp_path / "around.py").write_text(blocks["python"])
    task = {"id": 5, "data": {"image": "https://127.0.0.1/car.png"}}
    context = json.loads(blocks["json"])
    factory = ServerFactory(tmp_path)
    try:
        server = factory("--model", f"{tmp_path / 'around.py'}:Around")
        body = {"tasks": [task], "project": "3.17", "label_config": blocks["xml"]}
        drawn, opened = (
            server.request_ok("POST", "/predict", body | {"params": {"context": sent}})["results"][0]["result"]
            for sent in (context, None)
        )
    finally:
        factory.close()
    assert opened == []
    (region,) = drawn
    assert region["value"] == {
        **{"x": 43.5, "y": 92.0, "width": 10, "height": 8.0, "rotation": 0},
        "rectanglelabels": ["Car"],
    }
    assert (region["from_name"], region["original_width"], region["original_height"]) == ("box", 600, 400)
