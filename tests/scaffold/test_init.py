"""`lsml init`: a folder that runs at once, and what `--model FOLDER` means."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lsml_cli import scaffold
from lsml_cli.errors import ModelError
from lsml_cli.evaluation.evaluate import measurable_controls
from lsml_cli.evaluation.gates import parse_gates
from lsml_cli.registry.project_file import read_project_file
from lsml_cli.registry.resolve import BUILT_IN, find_model
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers.cli import ROOT, Lsml
from tests.helpers.serve_process import ServerFactory

BACKENDS = ROOT / "tests" / "helpers" / "backends"
KINDS: dict[str, list[str | Path]] = {
    "moods": [],
    "mails": ["--model", "text-classifier"],
    "rooms": ["--model", "image-classifier"],
    "old": ["--script", BACKENDS / "v1_text.py"],
}
COMMON = {
    *("README.md", "model.toml", "requirements.txt", "Dockerfile", "compose.yml", ".dockerignore", ".gitignore"),
    *("label_config.xml", "annotated.json", "tasks.json", "retrain", ".github/workflows/retrain.yml"),
    "tests/test_round_trip.py",
}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "more"), [("moods", {"model.py", "tests/test_model.py"}), ("mails", set())])
def test_what_is_written_needs_nothing_and_nobody(lsml: Lsml, tmp_path: Path, name: str, more: set[str]) -> None:
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    run = lsml("init", name, *KINDS[name], cwd=tmp_path, env=nowhere)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / name
    assert files(folder) == COMMON | more
    assert "MyModel" not in "".join((folder / path).read_text() for path in files(folder))
    assert "Next: cd" in run.stderr
    assert (folder / "retrain").stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["moods", "mails", "old", pytest.param("rooms", marks=pytest.mark.slow)])
def test_the_folder_is_a_model_before_and_after_training(lsml: Lsml, tmp_path: Path, name: str) -> None:
    assert lsml("init", name, *KINDS[name], cwd=tmp_path).returncode == 0
    fresh = find_model(str(tmp_path / name))
    assert (fresh.version, fresh.name) == (None, name)
    fit = (
        "fit",
        f"{name}/annotated.json",
        "--model",
        name,
        "-c",
        f"{name}/label_config.xml",
        "-o",
        f"{name}/models/{name}",
    )
    for _ in range(2):  # afresh, and then like the version in use
        run = lsml(*fit, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    run = lsml("predict", f"{name}/tasks.json", "--model", name, "-o", "out.json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written) == 2 * scaffold.samples.UNLABELED_PER_CLASS
    promoted = (tmp_path / name / "models" / name / "current").read_text().strip()
    assert {task["predictions"][0]["model_version"] for task in written} == {f"{name}@{promoted}"}
    run = lsml("evaluate", f"{name}/annotated.json", "--model", name, "--held-out", cwd=tmp_path)
    assert "accuracy 1.0000" in run.stdout, run.stderr


def test_the_folder_is_served(lsml: Lsml, tmp_path: Path) -> None:
    assert lsml("init", "moods", cwd=tmp_path).returncode == 0
    config = (tmp_path / "moods" / "label_config.xml").read_text()
    serve = ServerFactory(tmp_path)
    try:
        server = serve(tmp_path / "moods")
        answer = server.request_ok("POST", "/setup", {"project": "1.1", "schema": config})
        assert answer["model_version"].startswith("moods@")
    finally:
        serve.close()


def test_a_script_comes_with_what_it_imports(lsml: Lsml, tmp_path: Path) -> None:
    backend = tmp_path / "backend"
    shutil.copytree(BACKENDS / "v1_folder", backend)
    (backend / "nobody.py").write_text("raise RuntimeError")
    (backend / "label_config.xml").write_text(
        '<View><Text name="t" value="$text"/><Choices name="kind" toName="t">'
        '<Choice value="ham"/><Choice value="spam"/></Choices></View>'
    )
    run = lsml("init", "rules", "--script", f"{backend}/model.py:Rules", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    copied = files(tmp_path / "rules")
    assert copied >= {"model.py", "rules.py", "shades.py", "config.json", "label_config.xml"}
    assert not copied & {"nobody.py", "_wsgi.py", "annotated.json"}
    shutil.rmtree(backend)
    command = ("predict", "-", "--model", "rules", "-c", "rules/label_config.xml")
    run = lsml(*command, input='{"text": "win a prize"}\n{"text": "hello"}', cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    answers = [json.loads(line)["predictions"][0]["result"][0]["value"]["choices"] for line in run.stdout.splitlines()]
    assert answers == [["spam"], ["ham"]]


RULES = """
from label_studio_ml.model import LabelStudioMLBase
from tools.rules import LABEL


class Rules(LabelStudioMLBase):
    def predict(self, tasks, **kwargs):
        region = {"from_name": "kind", "to_name": "t", "type": "choices", "value": {"choices": [LABEL]}}
        return [{"result": [region]} for _ in tasks]
"""
KINDS_OF_MAIL = (
    '<View><Text name="t" value="$text"/><Choices name="kind" toName="t">'
    '<Choice value="ham"/><Choice value="spam"/></Choices></View>'
)


@pytest.fixture
def backend(tmp_path: Path) -> Path:
    """A script that imports a package, which imports a file beside the script, which imports another package."""
    folder = tmp_path / "backend"
    for name, content in {
        "model.py": RULES,
        "tools/__init__.py": "",
        "tools/rules.py": "from words import LABEL",
        "words.py": "from lists.spam import LABEL",
        "lists/spam.py": "from . import ham\nLABEL = 'spam'",  # without an __init__.py
        "lists/ham.py": "",
        "nobody.py": "raise RuntimeError",
        "requirements.txt": "regex==2024.1\n",
        "label_config.xml": KINDS_OF_MAIL,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_a_script_comes_with_what_its_packages_import_and_need(lsml: Lsml, tmp_path: Path, backend: Path) -> None:
    run = lsml("init", "rules", "--script", backend / "model.py", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    copied = files(tmp_path / "rules")
    assert copied >= {"model.py", "tools/__init__.py", "tools/rules.py", "words.py", "lists/spam.py", "lists/ham.py"}
    assert "nobody.py" not in copied
    needs = (tmp_path / "rules" / "requirements.txt").read_text().splitlines()
    assert (needs[0][0], needs[1:]) == ("#", ["regex==2024.1"])
    shutil.rmtree(backend)
    command = ("predict", "-", "--model", "rules", "-c", "rules/label_config.xml")
    run = lsml(*command, input='{"text": "hello"}', cwd=tmp_path)
    assert run.returncode == 0, run.stderr


def test_a_script_is_wrapped_where_it_is(lsml: Lsml, tmp_path: Path, backend: Path) -> None:
    """As often as one likes."""
    before = {name: (backend / name).read_text() for name in files(backend) if name != "requirements.txt"}
    for _ in range(2):
        run = lsml("init", ".", "--script", "model.py", "--force", cwd=backend)
        assert run.returncode == 0, run.stderr
    assert {name: (backend / name).read_text() for name in before} == before
    assert (backend / "requirements.txt").read_text().splitlines()[1:] == ["regex==2024.1"]
    run = lsml("predict", "-", "--model", ".", "-c", "label_config.xml", input='{"text": "hello"}', cwd=backend)
    assert run.returncode == 0, run.stderr


def test_what_cannot_be_read_is_said_before_anything_is_written(lsml: Lsml, tmp_path: Path, backend: Path) -> None:
    (backend / "model.py").write_text("class Rules(:")
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "README.md").write_text("mine")
    run = lsml("init", "rules", "--force", "--script", f"{backend / 'model.py'}:Rules", cwd=tmp_path)
    assert (run.returncode, "this is no Python" in run.stderr) == (1, True), run.stderr
    assert files(tmp_path / "rules") == {"README.md"}
    assert (tmp_path / "rules" / "README.md").read_text() == "mine"


def test_without_samples_the_tests_wait_for_them(lsml: Lsml, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(KINDS_OF_MAIL)
    run = lsml("init", "moods", "-c", "config.xml", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests"]
    found = subprocess.run(command, cwd=tmp_path / "moods", capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert "2 skipped" in found.stdout
    assert "there is no annotated.json and no tasks.json" in found.stdout


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["Moods"], "is no good name for a project"),
        (["a b"], "is no good name for a project"),
        (["full"], "is there already, and not empty"),
        (["file"], "is a file"),
        (["new", "--model", "text-clasifier"], "There is: text-classifier"),
        (["new", "--model", "text-classifier", "--script", "x.py"], "are two kinds of project"),
        (["new", "--script", "nothing.py"], "There is no script nothing.py"),
        (["new", "-c", "nothing.xml"], "nothing.xml"),
    ],
)
def test_what_cannot_be_is_a_sentence(lsml: Lsml, tmp_path: Path, args: list[str], sentence: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep me")
    (tmp_path / "file").write_text("")
    run = lsml("init", *args, cwd=tmp_path)
    assert (run.returncode, sentence in run.stderr) == (2, True), run.stderr
    assert files(tmp_path) == {"full/mine", "file"}


def test_force_writes_over_what_is_there_and_removes_nothing(lsml: Lsml, tmp_path: Path) -> None:
    (tmp_path / "moods").mkdir()
    (tmp_path / "moods" / "mine").write_text("keep me")
    assert lsml("init", "moods", "--force", cwd=tmp_path).returncode == 0
    assert (tmp_path / "moods" / "mine").read_text() == "keep me"
    assert (tmp_path / "moods" / "model.py").is_file()


def test_who_likes_to_be_asked_is_asked(lsml: Lsml, tmp_path: Path) -> None:
    run = lsml("init", "mails", "--interactive", input="text-classifier\n", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "What kind of model? own, script, text-classifier" in run.stderr
    found = read_project_file(tmp_path / "mails")
    assert found is not None
    assert found.model == "text-classifier"


def test_a_project_that_is_damaged_is_a_sentence(tmp_path: Path) -> None:
    for content in ("model = ", "model = 5", "versions = 'x'"):
        (tmp_path / "model.toml").write_text(content)
        with pytest.raises(ModelError, match=r"model\.toml"):
            find_model(str(tmp_path))


def test_a_file_beside_the_data_may_not_name_a_folder_with_code(lsml: Lsml, tmp_path: Path) -> None:
    assert lsml("init", "moods", cwd=tmp_path).returncode == 0
    shutil.copytree(BACKENDS / "v1_folder", tmp_path / "backend")
    (tmp_path / "tasks.json").write_text('[{"text": "x"}]')
    for model in ("moods", "backend", "backend/model.py"):
        (tmp_path / "lsml.toml").write_text(f'[predict]\nmodel = "{model}"\nlabel-config = "moods/label_config.xml"\n')
        run = lsml("predict", "tasks.json", cwd=tmp_path)
        assert (run.returncode, "would run the code there" in run.stderr) == (2, True), run.stderr


def test_every_built_in_model_has_a_kind() -> None:
    assert set(scaffold.PROJECT_KINDS) == set(BUILT_IN)


@pytest.mark.parametrize("name", scaffold.PROJECT_KINDS)
def test_the_nightly_job_of_each_kind(tmp_path: Path, name: str) -> None:
    """It trains what model.toml says, judges it by a metric that its model has, and has installed what it needs."""
    folder, kind = tmp_path / "mine", scaffold.PROJECT_KINDS[name]
    scaffold.write_project(scaffold.ProjectOptions(folder, name))
    script, workflow = (folder / path for path in ("retrain", ".github/workflows/retrain.yml"))
    said = [line.partition(" ")[0] for line in script.read_text().splitlines()]
    assert {"FAMILY=${FAMILY:-.}", "MODEL=${MODEL:-models/mine}", f"METRIC=${{METRIC:-{kind.metric}}}"} <= set(said)
    assert "      FAMILY: .\n      MODEL: models/mine\n" in workflow.read_text()
    assert parse_gates([f"{kind.metric}=0.6"], *measurable_controls(LabelConfig.load(folder / "label_config.xml")))
    if name in ("text-classifier", "object-detector"):  # whose classes are read without what they need
        assert dict(find_model(str(folder)).params) == dict(kind.params)
    for path in (folder / "README.md", folder / "Dockerfile", workflow):
        assert ('/install" --python python\n' in path.read_text()) == kind.needs_openmmlab, path
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_the_example_is_what_init_writes(lsml: Lsml, tmp_path: Path) -> None:
    """examples/ci-retrain has the same two files, by links."""
    example = ROOT / "examples" / "ci-retrain"
    templates = ROOT / "lsml_cli" / "scaffold" / "templates" / "common"
    assert (example / "retrain").read_text() == (templates / "retrain").read_text()
    workflow = ".github/workflows/retrain.yml"
    assert lsml("init", "moods", cwd=tmp_path).returncode == 0
    mine, theirs = (folder / workflow for folder in (tmp_path / "moods", example))
    added = [line.strip() for line in mine.read_text().splitlines() if line not in theirs.read_text().splitlines()]
    assert added == ["FAMILY: model.py:Moods", "MODEL: models/moods"]
