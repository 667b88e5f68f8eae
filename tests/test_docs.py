"""The documentation and the code say the same: commands, options, sessions, examples, links."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main

from lsml_cli.cli import app
from lsml_cli.registry.model_location import BUILT_IN
from tests.helpers.cli import ROOT
from tests.helpers.guides import read_examples
from tests.helpers.serve_process import ServerFactory

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml

MAX_README_BYTES = 8 << 10
README = (ROOT / "README.md").read_text("utf-8")
DOCS = ROOT / "docs"
OWN_MODEL = (DOCS / "guides" / "own-model.md").read_text("utf-8")
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
TEXT_CONFIG = (
    '<View><Text name="t" value="$text"/><Choices name="c" toName="t">'
    '<Choice value="loud"/><Choice value="quiet"/></Choices></View>'
)


def options_of(command: Any) -> list[str]:
    """Every spelling of every option but --help: "-o", "--output", "--quiet", ..."""
    params = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
    return [spelling for param in params for spelling in (*param.opts, *param.secondary_opts) if spelling != "--help"]


OPTIONS = [(name, option) for name, command in COMMANDS.items() for option in options_of(command)]


def names_option(text: str, option: str) -> bool:
    """Whether the option stands in the text on its own: --on is not named by --on-error."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


@cache
def print_help(command: str) -> str:
    words = [sys.executable, "-m", "lsml_cli", *command.split(), "--help"]
    return subprocess.run(words, capture_output=True, check=True).stdout.decode()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning as an error: broken links, links to missing headings, pages in no menu."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_readme_is_one_page() -> None:
    assert len(README.encode()) <= MAX_README_BYTES


def test_relative_links_of_files_outside_the_site_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text("utf-8"))
        assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == [], name


def test_site_names_every_command_and_option(site: Path) -> None:
    reference = re.sub(r"<[^>]+>", " ", (site / "reference" / "cli" / "index.html").read_text("utf-8"))
    sections = re.split(r"\n\s*lsml (\w+)\s", reference)
    for command, option in OPTIONS:
        assert names_option(reference, option), f"{option} of lsml {command}"
    assert set(COMMANDS) <= set(sections)


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loading = re.compile(r'<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)="(https?://[^"]+)')
    for page in site.rglob("*.html"):
        assert not loading.findall(page.read_text("utf-8")), page


def test_help_lists_every_command() -> None:
    assert "predict" in COMMANDS
    assert not [name for name in COMMANDS if not re.search(rf"\b{re.escape(name)}\b", print_help(""))]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str) -> None:
    text = print_help(command)
    assert not [option for name, option in OPTIONS if name == command and not names_option(text, option)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_guide_is_about_the_command(command: str) -> None:
    headings = "\n".join(re.findall(r"^#+ .*$", "\n".join(PAGES.values()), re.MULTILINE))
    assert re.search(rf"\blsml {command}\b", headings)


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_guides_explain_every_option(command: str, option: str) -> None:
    assert any(names_option(text, option) for text in PAGES.values()), f"{option} of `lsml {command}`"


@pytest.mark.parametrize("model", BUILT_IN)
def test_every_built_in_model_is_named(model: str) -> None:
    (option,) = [param for param in COMMANDS["fit"].params if "--model" in param.opts]
    assert model in option.help
    assert f"`{model}`" in README
    assert f"`{model}`" in PAGES["models/index.md"]
    assert f"models/{model}.md" in PAGES


def test_option_names_are_distinct() -> None:
    assert names_option("use `--on-error skip`, -o FILE", "--on-error")
    assert names_option("use `--on-error skip`, -o FILE", "-o")
    assert not names_option("use --on-error", "--on")
    assert not names_option("use --on-error", "-o")


def fenced(text: str, language: str) -> list[str]:
    """The code blocks of a text in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_chance(text: str) -> str:
    """Output without what differs from run to run: when, and how fast."""
    return re.sub(r"in [\d.]+ s \([\d,]+/s\)", "in TIME", re.sub(r"\d{8}T\d{6}", "VERSION", text))


def test_sessions_are_only_where_they_are_tested() -> None:
    assert not [name for name, text in PAGES.items() if fenced(text, "console")]


def test_readme_session_output_is_real(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    [session] = fenced(README, "console")
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert len(commands) >= 3
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command, shown in commands:
        run = subprocess.run(
            ["bash", "-c", f"{command} 2>&1"], cwd=tmp_path, env=os.environ | {"PATH": path}, stdout=-1, check=True
        )
        assert without_chance(run.stdout.decode()) == without_chance(shown)


def test_model_of_the_guide_runs(lsml: Lsml, tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(fenced(OWN_MODEL, "python")[0])
    (tmp_path / "config.xml").write_text(TEXT_CONFIG)
    command = ("predict", "-", "--model", "shouting.py:Shouting", "--label-config", "config.xml")
    run = lsml(*command, input='{"text": "HELLO"}\n{"text": "hello"}\n', cwd=tmp_path)
    labels = [json.loads(line)["predictions"][0]["result"][0]["value"]["choices"] for line in run.stdout.splitlines()]
    assert labels == [["loud"], ["quiet"]]


def test_model_of_the_guide_answers_the_context_of_an_editor(tmp_path: Path) -> None:
    blocks = read_examples("guides/own-model.md", "## Suggestions while somebody draws")
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
