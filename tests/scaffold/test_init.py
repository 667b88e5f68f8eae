"""`lsml init`: the folder that it writes, and that folder as `--model FOLDER`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lsml_cli import scaffold
from lsml_cli.errors import ModelError
from lsml_cli.evaluation.evaluate import measurable_controls
from lsml_cli.evaluation.gates import parse_gates
from lsml_cli.registry.model_location import BUILT_IN
from lsml_cli.registry.project_file import read_project_file
from lsml_cli.registry.resolve import find_model
from lsml_cli.scaffold.rendering import TemplateValues, render
from lsml_cli.scaffold.samples import UNLABELED_PER_CLASS
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers.cli import ROOT, Lsml, run_in_process
from tests.helpers.generated_projects import run_generated_tests
from tests.helpers.serve_process import ServerFactory

BACKENDS = ROOT / "tests" / "helpers" / "backends"
TEMPLATES = ROOT / "lsml_cli" / "scaffold" / "templates"
OPTIONS: dict[str, list[str | Path]] = {
    "moods": [],
    "mails": ["--model", "text-classifier"],
    "rooms": ["--model", "image-classifier"],
    "old": ["--script", BACKENDS / "v1_text.py"],
}
COMMON_FILES = {
    *("README.md", "model.toml", "requirements.txt", "Dockerfile", "compose.yml", ".dockerignore", ".gitignore"),
    *("label_config.xml", "annotated.json", "tasks.json", "retrain", ".github/workflows/retrain.yml"),
    "tests/test_round_trip.py",
}
RULES_SCRIPT = """
from label_studio_ml.model import LabelStudioMLBase
from tools.rules import LABEL


class Rules(LabelStudioMLBase):
    def predict(self, tasks, **kwargs):
        region = {"from_name": "kind", "to_name": "t", "type": "choices", "value": {"choices": [LABEL]}}
        return [{"result": [region]} for _ in tasks]
"""
MAIL_CONFIG = (
    '<View><Text name="t" value="$text"/><Choices name="kind" toName="t">'
    '<Choice value="ham"/><Choice value="spam"/></Choices></View>'
)


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "more"), [("moods", {"model.py", "tests/test_model.py"}), ("mails", set())])
def test_init_writes_files_without_network_access(lsml: Lsml, tmp_path: Path, name: str, more: set[str]) -> None:
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    run = lsml("init", name, *OPTIONS[name], cwd=tmp_path, env=offline)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / name
    assert list_files(folder) == COMMON_FILES | more
    contents = "".join((folder / path).read_text().replace("${{", "") for path in list_files(folder))
    assert "{{" not in contents
    assert "{%" not in contents
    assert "Next: cd" in run.stderr
    assert (folder / "retrain").stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["moods", "mails", "old", pytest.param("rooms", marks=pytest.mark.slow)])
def test_folder_is_a_model_before_and_after_training(lsml: Lsml, tmp_path: Path, name: str) -> None:
    assert run_in_process("init", tmp_path / name, *OPTIONS[name]).returncode == 0
    untrained = find_model(str(tmp_path / name))
    assert (untrained.version, untrained.name) == (None, name)
    options = ("--model", name, "-c", f"{name}/label_config.xml", "-o", f"{name}/models/{name}")
    for _ in range(2):  # from scratch, then with a promoted version
        run = lsml("fit", f"{name}/annotated.json", *options, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    run = lsml("predict", f"{name}/tasks.json", "--model", name, "-o", "out.json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written) == 2 * UNLABELED_PER_CLASS
    promoted = (tmp_path / name / "models" / name / "current").read_text().strip()
    assert {task["predictions"][0]["model_version"] for task in written} == {f"{name}@{promoted}"}
    run = lsml("evaluate", f"{name}/annotated.json", "--model", name, "--held-out", cwd=tmp_path)
    assert "accuracy 1.0000" in run.stdout, run.stderr


def test_folder_is_served(tmp_path: Path) -> None:
    assert run_in_process("init", tmp_path / "moods").returncode == 0
    config = (tmp_path / "moods" / "label_config.xml").read_text()
    factory = ServerFactory(tmp_path)
    try:
        server = factory(tmp_path / "moods")
        answer = server.request_ok("POST", "/setup", {"project": "1.1", "schema": config})
        assert answer["model_version"].startswith("moods@")
        answer = server.request_ok("POST", "/predict", {"tasks": [{"id": 1, "data": {"text": "It was great"}}]})
        assert answer["results"][0]["result"]
    finally:
        factory.close()


def test_script_is_copied_with_imported_siblings_and_config(lsml: Lsml, tmp_path: Path) -> None:
    backend = tmp_path / "backend"
    shutil.copytree(BACKENDS / "v1_folder", backend)
    (backend / "unrelated.py").write_text("raise RuntimeError")
    (backend / "label_config.xml").write_text(MAIL_CONFIG)
    run = run_in_process("init", tmp_path / "rules", "--script", f"{backend}/model.py:Rules")
    assert run.returncode == 0, run.stderr
    copied = list_files(tmp_path / "rules")
    assert copied >= {"model.py", "rules.py", "shades.py", "config.json", "label_config.xml"}
    assert not copied & {"unrelated.py", "_wsgi.py", "annotated.json"}
    shutil.rmtree(backend)
    command = ("predict", "-", "--model", "rules", "-c", "rules/label_config.xml")
    run = lsml(*command, input='{"text": "win a prize"}\n{"text": "hello"}', cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    predicted = [
        json.loads(line)["predictions"][0]["result"][0]["value"]["choices"] for line in run.stdout.splitlines()
    ]
    assert predicted == [["spam"], ["ham"]]


@pytest.fixture
def backend(tmp_path: Path) -> Path:
    """The folder of a script that imports a package, which imports a sibling file, which imports another package."""
    folder = tmp_path / "backend"
    for name, content in {
        "model.py": RULES_SCRIPT,
        "tools/__init__.py": "",
        "tools/rules.py": "from words import LABEL",
        "words.py": "from lists.spam import LABEL",
        "lists/spam.py": "from . import ham\nLABEL = 'spam'",  # without an __init__.py
        "lists/ham.py": "",
        "unrelated.py": "raise RuntimeError",
        "requirements.txt": "regex==2024.1\n",
        "label_config.xml": MAIL_CONFIG,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_script_is_copied_with_nested_imports_and_requirements(lsml: Lsml, tmp_path: Path, backend: Path) -> None:
    run = run_in_process("init", tmp_path / "rules", "--script", backend / "model.py")
    assert run.returncode == 0, run.stderr
    copied = list_files(tmp_path / "rules")
    assert copied >= {"model.py", "tools/__init__.py", "tools/rules.py", "words.py", "lists/spam.py", "lists/ham.py"}
    assert "unrelated.py" not in copied
    requirements = (tmp_path / "rules" / "requirements.txt").read_text().splitlines()
    assert (requirements[0][0], requirements[1:]) == ("#", ["regex==2024.1"])
    shutil.rmtree(backend)
    command = ("predict", "-", "--model", "rules", "-c", "rules/label_config.xml")
    run = lsml(*command, input='{"text": "hello"}', cwd=tmp_path)
    assert run.returncode == 0, run.stderr


def test_script_can_be_wrapped_in_its_own_folder_repeatedly(lsml: Lsml, backend: Path) -> None:
    before = {name: (backend / name).read_text() for name in list_files(backend) if name != "requirements.txt"}
    for _ in range(2):
        run = lsml("init", ".", "--script", "model.py", "--force", cwd=backend)
        assert run.returncode == 0, run.stderr
    assert {name: (backend / name).read_text() for name in before} == before
    assert (backend / "requirements.txt").read_text().splitlines()[1:] == ["regex==2024.1"]
    run = lsml("predict", "-", "--model", ".", "-c", "label_config.xml", input='{"text": "hello"}', cwd=backend)
    assert run.returncode == 0, run.stderr


def test_unreadable_script_fails_before_anything_is_written(tmp_path: Path, backend: Path) -> None:
    (backend / "model.py").write_text("class Rules(:")
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "README.md").write_text("mine")
    run = run_in_process("init", tmp_path / "rules", "--force", "--script", f"{backend / 'model.py'}:Rules")
    assert (run.returncode, "this is no Python" in run.stderr) == (1, True), run.stderr
    assert list_files(tmp_path / "rules") == {"README.md"}
    assert (tmp_path / "rules" / "README.md").read_text() == "mine"


def test_generated_tests_are_skipped_without_annotated_tasks(tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(MAIL_CONFIG)
    run = run_in_process("init", tmp_path / "mails", "--model", "text-classifier", "-c", tmp_path / "config.xml")
    assert run.returncode == 0, run.stderr
    output = run_generated_tests(tmp_path / "mails")
    assert output.endswith("1 skipped")
    assert "there is no annotated.json to learn from yet" in output
    assert "lsml fit" not in run.stderr
    assert "export annotated tasks" in run.stderr


def test_generated_tests_are_skipped_where_the_toolkit_is_missing(tmp_path: Path) -> None:
    """An environment with only the core, in which no module of the toolkits is found."""
    kinds = {name: kind for name, kind in scaffold.PROJECT_KINDS.items() if kind.required_modules}
    assert set(kinds) == {"image-classifier", "object-detector", "ocr"}
    for name in kinds:
        scaffold.write_project(scaffold.ProjectOptions(tmp_path / name, name))
    missing = {module for kind in kinds.values() for module in kind.required_modules}
    (tmp_path / "conftest.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        f"u.find_spec = lambda name, *rest: None if name in {missing} else find(name, *rest)\n"
    )
    output = run_generated_tests(*(tmp_path / name for name in kinds))
    assert output.endswith("3 skipped")
    for kind in kinds.values():
        assert f"the model needs {', '.join(kind.required_modules)}, which README.md installs" in output


@pytest.mark.parametrize(
    ("args", "message"),
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
def test_wrong_usage_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep me")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    run = run_in_process("init", *args)
    assert (run.returncode, message in run.stderr) == (2, True), run.stderr
    assert list_files(tmp_path) == {"full/mine", "file"}


def test_force_overwrites_and_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "moods").mkdir()
    (tmp_path / "moods" / "mine").write_text("keep me")
    assert run_in_process("init", tmp_path / "moods", "--force").returncode == 0
    assert (tmp_path / "moods" / "mine").read_text() == "keep me"
    assert (tmp_path / "moods" / "model.py").is_file()


def test_interactive_asks_for_name_and_kind(tmp_path: Path) -> None:
    run = run_in_process("init", "--interactive", input="mails\ntext-classifier\n", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "Name of the project" in run.stderr
    assert "What kind of model? own, script, text-classifier" in run.stderr
    project = read_project_file(tmp_path / "mails")
    assert project is not None
    assert project.model == "text-classifier"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "lsml init moods; `lsml init -i` asks for it"),
        (["-i"], "stdin ended without an answer"),
        (["moods", "-i"], "stdin ended without an answer"),
    ],
)
def test_missing_name_or_answer_is_a_usage_error(tmp_path: Path, args: list[str], message: str) -> None:
    run = run_in_process("init", *args, cwd=tmp_path)
    assert (run.returncode, message in run.stderr) == (2, True), run.stderr
    assert list_files(tmp_path) == set()


def test_damaged_model_toml_is_reported(tmp_path: Path) -> None:
    for content in ("model = ", "model = 5", "versions = 'x'"):
        (tmp_path / "model.toml").write_text(content)
        with pytest.raises(ModelError, match=r"model\.toml"):
            find_model(str(tmp_path))


def test_settings_beside_the_data_may_not_name_a_folder_with_code(lsml: Lsml, tmp_path: Path) -> None:
    assert run_in_process("init", tmp_path / "moods").returncode == 0
    shutil.copytree(BACKENDS / "v1_folder", tmp_path / "backend")
    (tmp_path / "tasks.json").write_text('[{"text": "x"}]')
    for model in ("moods", "backend", "backend/model.py"):
        (tmp_path / "lsml.toml").write_text(f'[predict]\nmodel = "{model}"\nlabel-config = "moods/label_config.xml"\n')
        run = lsml("predict", "tasks.json", cwd=tmp_path)
        assert (run.returncode, "which would run " in run.stderr) == (2, True), run.stderr


def test_every_built_in_model_has_a_project_kind() -> None:
    assert set(scaffold.PROJECT_KINDS) == set(BUILT_IN)


@pytest.mark.parametrize("name", scaffold.PROJECT_KINDS)
def test_retrain_uses_the_model_and_metric_of_its_kind(tmp_path: Path, name: str) -> None:
    """It trains the model of model.toml, compares by one of its metrics, and installs what the model needs."""
    folder, kind = tmp_path / "mine", scaffold.PROJECT_KINDS[name]
    scaffold.write_project(scaffold.ProjectOptions(folder, name))
    script, workflow = (folder / path for path in ("retrain", ".github/workflows/retrain.yml"))
    settings = {line.partition(" ")[0] for line in script.read_text().splitlines()}
    assert {"FAMILY=${FAMILY:-.}", "MODEL=${MODEL:-models/mine}", f"METRIC=${{METRIC:-{kind.metric}}}"} <= settings
    assert "      FAMILY: .\n      MODEL: models/mine\n" in workflow.read_text()
    assert parse_gates([f"{kind.metric}=0.6"], *measurable_controls(LabelConfig.load(folder / "label_config.xml")))
    if name in ("text-classifier", "object-detector"):  # these can be found without their requirements
        assert dict(find_model(str(folder)).params) == dict(kind.params)
    for path in (folder / "README.md", folder / "Dockerfile", workflow):
        assert ('/install" --python python\n' in path.read_text()) == kind.needs_openmmlab, path
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("template", "file"),
    [("retrain.jinja", "retrain"), ("dot-github/workflows/retrain.yml.jinja", ".github/workflows/retrain.yml")],
)
def test_ci_example_is_rendered_from_the_templates(template: str, file: str) -> None:
    values = TemplateValues(
        name="",
        description="",
        model="text-classifier",
        class_name="",
        family="text-classifier",
        versions="models/project-$PROJECT",
        version_prefix="",
        metric="macro-f1",
        sets_model=False,
    )
    rendered = render((TEMPLATES / "common" / template).read_text(), values)
    assert (ROOT / "examples" / "ci-retrain" / file).read_text() == rendered


def test_workflow_tells_retrain_what_to_train(tmp_path: Path) -> None:
    assert run_in_process("init", tmp_path / "moods").returncode == 0
    workflow = ".github/workflows/retrain.yml"
    written = (tmp_path / "moods" / workflow).read_text().splitlines()
    example = (ROOT / "examples" / "ci-retrain" / workflow).read_text().splitlines()
    added = [line.strip() for line in written if line not in example]
    assert added == ["FAMILY: model.py:Moods", "MODEL: models/moods"]


def test_unknown_kind_names_the_closest(lsml: Lsml, tmp_path: Path) -> None:
    run = lsml("init", "boxes", "--model", "obect-detector", cwd=tmp_path)
    assert run.returncode == 2
    assert "Did you mean 'object-detector'? There is: object-detector, " in run.stderr


def test_project_has_its_label_config(lsml: Lsml, tmp_path: Path) -> None:
    assert lsml("init", "moods", cwd=tmp_path).returncode == 0
    tasks, output = tmp_path / "moods" / "tasks.json", tmp_path / "out.json"
    run = lsml("predict", tasks, "--model", "moods", "-o", output, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert all(task["predictions"][0]["result"] for task in json.loads(output.read_bytes()))
    run = lsml("fit", tmp_path / "moods" / "annotated.json", "--model", "moods", "--dry-run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    run = lsml("evaluate", tmp_path / "moods" / "annotated.json", "--model", "moods", cwd=tmp_path)
    assert (run.returncode, "accuracy" in run.stdout) == (0, True), run.stderr
    run = lsml("predict", tmp_path / "moods" / "annotated.json", "--model", "moods", "-o", "p.json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    accept = ("--accept-above", "0.1", "--annotated", "moods/annotated.json", "--predicted-by", "moods")
    run = lsml("rank", "p.json", *accept, "-o", "ranked.json", cwd=tmp_path)
    assert (run.returncode, "would be wrong" in run.stderr) == (0, True), run.stderr
    (tmp_path / "moods" / "label_config.xml").unlink()
    run = lsml("predict", tasks, "--model", "moods", "-o", output, cwd=tmp_path)
    assert (run.returncode, "moods needs a label config" in run.stderr) == (2, True)
