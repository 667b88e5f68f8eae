"""The help of the commands: every option in a panel, readable at 80 columns, examples that can be typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from lsml_cli.cli import app
from lsml_cli.commands.help import EXCEPTIONS, PANELS, SYNONYMS
from tests.helpers.cli import Lsml, run_in_process
from tests.helpers.guides import find_mistake, split_commands

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
WIDTH = 80  # columns


def print_help(*command: str) -> str:
    run = run_in_process(*command, "--help", env={"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH)})
    assert run.returncode == 0, run.stderr
    return run.stdout


def example_commands(command: str) -> list[list[str]]:
    """Return the words of each `lsml` command among the examples."""
    lines = print_help(command).partition("Examples:")[2].splitlines()
    return list(split_commands("\n".join(line.strip().removeprefix("$ ") for line in lines)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_a_panel(command: str) -> None:
    text = print_help(command)
    assert "─ Options ─" not in text
    assert "<bool>" not in text
    titles = re.findall(r"╭─ (\w+) ─", text)
    known = [title for title in PANELS if title in titles]
    assert titles == (["Arguments"] if "Arguments" in titles else []) + known


def test_options_of_lsml_itself_are_shown_like_those_of_commands() -> None:
    text = print_help()
    assert "<bool>" not in text
    assert re.findall(r"╭─ (\w+) ─", text) == ["Settings", "Commands"]
    assert max(map(len, text.splitlines())) <= WIDTH


def test_panels_name_no_option_that_is_gone() -> None:
    options = {name: {opt for param in command.params for opt in param.opts} for name, command in COMMANDS.items()}
    every_option = set().union(*options.values(), {"--help"})
    assert {option for panel in PANELS.values() for option in panel} <= every_option
    assert all(option in options[command] for command, option in EXCEPTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal(command: str) -> None:
    text = print_help(command)
    assert max(map(len, text.splitlines())) <= WIDTH
    examples = filter(str.strip, text.partition("Examples:")[2].splitlines())
    assert all(line.startswith((" $ ", "     ")) for line in examples)  # else one was too long, and wrapped


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_can_be_typed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no lsml.toml lies
    examples = example_commands(command)
    assert any(words[1] == command for words in examples)
    assert [(words, find_mistake(words)) for words in examples if find_mistake(words) is not None] == []


@pytest.mark.parametrize(("word", "command"), [("train", "fit"), ("annotate", "predict"), ("upload", "push")])
def test_word_of_other_programs_names_the_command(lsml: Lsml, word: str, command: str) -> None:
    run = lsml(word, "x.json")
    assert run.returncode == 2
    assert f"No such command '{word}'. Did you mean '{command}'?" in run.stderr


def test_synonyms_lead_to_commands() -> None:
    assert set(SYNONYMS.values()) <= set(COMMANDS)
    assert not set(SYNONYMS) & set(COMMANDS)


@pytest.mark.parametrize("command", [("predict", "x.json"), ("evaluate", "x.json"), ("serve",)])
def test_missing_model_names_those_that_there_are(lsml: Lsml, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "models" / "news").mkdir(parents=True)
    (tmp_path / "models" / "news" / "current").write_text("x")
    run = lsml(*command, cwd=tmp_path)
    assert run.returncode == 2
    assert "Name it with --model: models/news, image-classifier, object-detector" in run.stderr
