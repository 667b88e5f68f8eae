"""The documentation and the code say the same: commands, options, sessions, examples, links."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main

from lsml_cli import ContractBroken, LabelConfig
from lsml_cli.cli import app
from lsml_cli.registry.model_location import BUILT_IN
from tests.helpers.cli import ROOT, run_in_process
from tests.helpers.guides import (
    find_mistake,
    read_blocks,
    read_examples,
    read_inline_code,
    read_pages,
    split_commands,
)
from tests.helpers.serve_process import ServerFactory

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml

MAX_README_BYTES = 8 << 10
MAX_COLUMNS = 80  # of a command in a page, which shows that many on a laptop
README = (ROOT / "README.md").read_text("utf-8")
DOCS = ROOT / "docs"
OWN_MODEL = (DOCS / "guides" / "own-model.md").read_text("utf-8")
PAGES_AND_README = read_pages()
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
SESSIONS = {"README.md": README} | {name: PAGES[name] for name in ("guides/formats.md", "guides/show.md")}

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
    return run_in_process(*command.split(), "--help").stdout


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


@pytest.mark.parametrize("command", COMMANDS)
def test_a_guide_leads_to_all_options(command: str) -> None:
    assert any(f"(../reference/cli.md#lsml-{command})" in text for text in PAGES.values())


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
    return [block.code for block in read_blocks(text) if block.language == language]


def without_chance(text: str) -> str:
    """Output without what differs from run to run: when, and how fast."""
    return re.sub(r"in [\d.]+ s \([\d,]+/s\)", "in TIME", re.sub(r"\d{8}T\d{6}", "VERSION", text))


# How the code blocks of each language are tested. Commands (`sh`, indented) that are no session are parsed: most need a
# Label Studio, a checkpoint or somebody's data.
LANGUAGES = {
    "": "its commands are parsed, see `test_commands_can_be_typed`",
    "sh": "the same, and bash checks the syntax",
    "console": "executed, see `test_readme_session_output_is_real`",
    "python": "executed, see `PYTHON_EXAMPLES`",
    "json": "parsed",
    "toml": "parsed",
    "xml": "parsed as a label config",
    "text": "a drawing or a pattern, and no code",
}


@pytest.mark.parametrize("page", PAGES_AND_README)
def test_commands_can_be_typed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no lsml.toml lies
    text = PAGES_AND_README[page]
    in_blocks = [words for block in read_blocks(text) for words in split_commands(block.shell)]
    in_sentences = [
        words for code in read_inline_code(text) if code.startswith("lsml ") for words in split_commands(code)
    ]
    mistakes = [(" ".join(words), find_mistake(words)) for words in in_blocks]
    mistakes += [(" ".join(words), find_mistake(words, is_complete=False)) for words in in_sentences]
    assert [mistake for mistake in mistakes if mistake[1] is not None] == []


def test_guides_have_commands_that_are_tested() -> None:
    pages = [name for name in PAGES if name.startswith(("guides/", "models/"))]
    assert [name for name in pages if not any(split_commands(block.shell) for block in read_blocks(PAGES[name]))] == []


@pytest.mark.parametrize(
    ("shell", "mistake"),
    [
        ("lsml predict tasks.json -m models/news", None),
        ("cat a | LSML_X=1 lsml predict - -m models/news | head  # --nothing", None),
        ("lsml predict TASKS --model MODEL [-o FILE] …", None),
        ("lsml predict tasks.json --modle models/news", "No such option: --modle"),
        ("cat a | lsml predict - \\\n    --model m --shpe tasks", "No such option: --shpe"),
        ("lsml predict tasks.json", "Missing option '--model'"),
        ("lsml predict tasks.json -m", "Option '-m' requires an argument"),
        ("lsml predict tasks.json -m m --shape task", "Invalid value for '--shape'"),
        ("lsml predcit tasks.json", "No such command: predcit"),
        ("lsml --versoin", "No such option: --versoin"),
        ("lsml fit a.json -m text-classifier -o m --with ngram=2", "text-classifier has no parameter ngram"),
        ("lsml fit a.json -m text-classifier -o m --with ngrams=many", "ngrams='many' is not allowed"),
    ],
)
def test_mistakes_in_commands_are_found(shell: str, mistake: str | None) -> None:
    [words] = split_commands(shell)
    assert (find_mistake(words) or "").startswith(mistake or "")
    assert (find_mistake(words) is None) == (mistake is None)


def test_mistakes_in_parts_of_commands_are_found() -> None:
    assert find_mistake(["lsml", "predict", "--resume"], is_complete=False) is None
    assert find_mistake(["lsml", "predict", "--resmue"], is_complete=False) == "No such option: --resmue"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_not_wider_than_a_page(page: str) -> None:
    lines = [line for block in read_blocks(PAGES[page]) for line in block.shell.splitlines()]
    assert [line for line in lines if len(line) > MAX_COLUMNS and not line.lstrip().startswith('"')] == []


@pytest.mark.parametrize("page", PAGES_AND_README)
def test_code_blocks_can_be_read(page: str) -> None:
    for block in read_blocks(PAGES_AND_README[page]):
        assert block.language in LANGUAGES, block
        if block.language == "json":
            json.loads(block.code)
        elif block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "xml":
            assert LabelConfig.parse(block.code).controls
        elif block.language == "sh":
            subprocess.run(["bash", "-n", "-c", block.code], check=True)


def test_sessions_are_only_where_they_are_tested() -> None:
    assert sorted(name for name, text in PAGES.items() if fenced(text, "console")) == [*SESSIONS][1:]


@pytest.mark.parametrize("page", SESSIONS)
def test_session_output_is_real(tmp_path: Path, page: str) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    [session] = fenced(SESSIONS[page], "console")
    commands = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert len(commands) >= 2
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command, shown in commands:
        run = subprocess.run(
            ["bash", "-c", f"{command} 2>&1"], cwd=tmp_path, env=os.environ | {"PATH": path}, stdout=-1, check=True
        )
        assert without_chance(run.stdout.decode()) == without_chance(shown)


PYTHON_EXAMPLES = {  # number of blocks; each is executed by one of the next tests
    "guides/own-model.md": 3,
    "guides/check.md": 1,
    "guides/backends.md": 2,
    "reference/python.md": 2,
}


def test_python_examples_are_only_where_they_are_executed() -> None:
    counts = {name: len(fenced(text, "python")) for name, text in PAGES.items()}
    assert {name: count for name, count in counts.items() if count} == PYTHON_EXAMPLES


@pytest.fixture
def example_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shouting.py").write_text(fenced(OWN_MODEL, "python")[0])
    (tmp_path / "config.xml").write_text(TEXT_CONFIG)
    texts = [f"{word} number {i}" for i in range(20) for word in ("HELLO", "hello")]
    results = [
        {"from_name": "c", "to_name": "t", "type": "choices", "value": {"choices": [label]}}
        for label in ("loud", "quiet") * 20
    ]
    tasks = [
        {"id": i, "data": {"text": text}, "annotations": [{"result": [result]}]}
        for i, (text, result) in enumerate(zip(texts, results, strict=True), 1)
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    return tmp_path


def test_model_of_the_guide_runs(lsml: Lsml, example_folder: Path) -> None:
    command = ("predict", "-", "--model", "shouting.py:Shouting", "--label-config", "config.xml")
    run = lsml(*command, input='{"text": "HELLO"}\n{"text": "hello"}\n')
    labels = [json.loads(line)["predictions"][0]["result"][0]["value"]["choices"] for line in run.stdout.splitlines()]
    assert labels == [["loud"], ["quiet"]]


def test_model_with_fit_of_the_guide_learns_spans(lsml: Lsml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.py").write_text(read_examples("guides/own-model.md", "## Train your model")["python"])
    (tmp_path / "config.xml").write_text(
        '<View><Labels name="l" toName="t"><Label value="Person"/></Labels><Text name="t" value="$text"/></View>'
    )
    region = {
        **{"id": "a", "from_name": "l", "to_name": "t", "type": "labels"},
        "value": {"start": 0, "end": 3, "text": "Ada", "labels": ["Person"]},
    }
    texts = [f"Ada wrote {number} letters" for number in range(10)]
    tasks = [
        {"id": i, "data": {"text": text}, "annotations": [{"result": [region]}]} for i, text in enumerate(texts, 1)
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    fit = ("fit", "export.json", "--model", "names.py:Names", "--label-config", "config.xml", "-o", "models/names")
    assert lsml(*fit).returncode == 0
    run = lsml("predict", "-", "--model", "names.py:Names@models/names", input='{"text": "Is Ada here?"}\n')
    [found] = json.loads(run.stdout)["predictions"][0]["result"]
    assert found["value"] == {"start": 3, "end": 6, "text": "Ada", "labels": ["Person"]}


def test_check_of_the_guide_passes_and_can_fail(example_folder: Path) -> None:
    [example] = fenced(PAGES["guides/check.md"], "python")
    broken = fenced(OWN_MODEL, "python")[0].replace("for task in inputs", "for task in inputs[:1]")
    (example_folder / "broken.py").write_text(broken)
    namespace: dict[str, Any] = {}
    exec(compile(example, "check.md", "exec"), namespace)
    namespace["test_shouting_keeps_the_contract"]()
    exec(compile(example.replace("shouting.py", "broken.py"), "check.md", "exec"), namespace)
    with pytest.raises(ContractBroken):
        namespace["test_shouting_keeps_the_contract"]()


def test_examples_of_the_python_api_run(lsml: Lsml, example_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ("fit", "tasks.json", "--model", "text-classifier", "-c", "config.xml", "-o", "models/tickets")
    assert lsml(*fit).returncode == 0
    for_version, for_untrained = fenced(PAGES["reference/python.md"], "python")
    exec(compile(for_version, "python.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40
    assert all(re.fullmatch(r"\d+ [\d.]+ \[\{'choices': \['(loud|quiet)'\]\}\]", line) for line in lines)
    exec(compile(for_untrained, "python.md", "exec"), {})
    assert capsys.readouterr().out.count("Prediction(") == 2


def test_backend_and_its_migrated_model_predict_the_same(lsml: Lsml, example_folder: Path) -> None:
    before, after = fenced(PAGES["guides/backends.md"], "python")
    scored = []
    for name, code in {"before": before, "after": after}.items():
        (example_folder / f"{name}.py").write_text(code)
        model = f"{name}.py:TextClassifier"
        assert lsml("fit", "tasks.json", "--model", model, "-c", "config.xml", "-o", f"models/{name}").returncode == 0
        run = lsml("predict", "tasks.json", "--model", f"{model}@models/{name}", "--shape", "predictions")
        records = [json.loads(line) for line in run.stdout.splitlines()]
        scored.append([(record["result"][0]["value"], record["score"]) for record in records])
    assert len(scored[0]) == 40
    assert scored[0] == scored[1]


def test_request_of_the_http_api_is_answered(tmp_path: Path) -> None:
    [command] = [block.code for block in read_blocks(PAGES["reference/http.md"]) if block.language == "sh"]
    words = shlex.split(command)
    factory = ServerFactory(tmp_path)
    try:
        answer = factory("--model", "text-classifier").request_ok("POST", "/predict", json.loads(words[-1]))
    finally:
        factory.close()
    assert words[:3] == ["curl", "-s", "localhost:9090/predict"]
    assert len(answer["results"]) == 2
    assert all(result["result"][0]["value"]["choices"] for result in answer["results"])


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
