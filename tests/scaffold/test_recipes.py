"""`lsml init NAME -c CONFIG`: a model that fills the controls of any label config, with tasks and tests that fit."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import lxml.html  # type: ignore[import-untyped]
import pytest
from label_studio_sdk.label_interface.interface import LabelInterface

from lsml_cli import Prediction, load_model, scaffold
from lsml_cli.scaffold.model_code import choose_class_name
from lsml_cli.scaffold.recipes import RECIPES, plan_model
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers.cli import ROOT, Lsml, run_in_process
from tests.helpers.generated_projects import run_generated_tests
from tests.helpers.recipe_configs import IMAGE, LABELS, RECIPE_CONFIGS, TEXT
from tests.helpers.serve_process import ServerFactory

FIT = """\
    def fit(self, train, validation, binding, out_dir, progress):
        (out_dir / "count.txt").write_text(str(len(train)))
        return {}

"""


def write_project(tmp_path: Path, xml: str) -> Path:
    """Write the project "parts" for a label config; return its folder."""
    (tmp_path / "config.xml").write_text(xml, "utf-8")
    scaffold.write_project(scaffold.ProjectOptions(tmp_path / "parts", "own", label_config=tmp_path / "config.xml"))
    return tmp_path / "parts"


@pytest.mark.parametrize("name", RECIPE_CONFIGS)
def test_model_fills_every_control_with_valid_regions(tmp_path: Path, name: str) -> None:
    folder, config = write_project(tmp_path, RECIPE_CONFIGS[name]), LabelConfig.parse(RECIPE_CONFIGS[name])
    tasks = json.loads((folder / "tasks.json").read_text())
    with load_model(f"{folder}/model.py:Parts", config, media=folder) as model:
        predictions = [outcome for _, outcome in model.predict(tasks)]
    assert all(isinstance(prediction, Prediction) for prediction in predictions), predictions
    oracle = LabelInterface(config.xml)
    filled = set()
    for prediction in predictions:
        assert isinstance(prediction, Prediction)
        assert config.check(prediction) is None
        stored = json.loads(json.dumps(prediction.to_json()))
        assert oracle.validate_prediction(stored, return_errors=True) == []
        filled |= {region.from_name for region in prediction.result}
    carried = {"l"} if name == "VideoRectangle with Labels" else set()  # the box holds its labels itself
    assert filled == set(config.controls) - carried
    assert len({json.dumps([dict(r.value) for r in p.result]) for p in predictions if isinstance(p, Prediction)}) > 1


def test_spans_hold_their_slice_of_the_text(tmp_path: Path) -> None:
    folder = write_project(tmp_path, RECIPE_CONFIGS["Labels over text"])
    with load_model(f"{folder}/model.py:Parts", folder / "label_config.xml") as model:
        for task, outcome in model.predict(json.loads((folder / "tasks.json").read_text())):
            assert isinstance(outcome, Prediction)
            assert outcome.result
            for region in outcome.result:
                text = task.data["text"][region.value["start"] : region.value["end"]]
                assert region.value["text"] == text


HTML_DOCUMENTS = (
    "<p>One <b>Two</b> tail Three</p><p>x</p><p>Four &amp; Five</p>",
    "\n<!DOCTYPE html>\n<html>\n<head><title>No</title><style>No</style></head>\n"
    "<body><p>One<br>Two<br/>Three</p></body></html>",
    "Top <!-- No --> After <div><div></div><div>Inner <i></i> Last</div></div> End",
    "<ul><li>One</li><li>Two <img src='No.png'> Three</li></ul><script>No</script><p>Four</p></em>",
    "<p>a < B and 1 <2 Cc</p>",
    "",
)


@pytest.mark.parametrize("name", ["HyperTextLabels", "Labels over HyperText"])
def test_spans_of_hypertext_are_located_by_xpath(tmp_path: Path, name: str) -> None:
    folder = write_project(tmp_path, RECIPE_CONFIGS[name])
    texts = []
    with load_model(f"{folder}/model.py:Parts", folder / "label_config.xml") as model:
        for task, outcome in model.predict([{"html": html} for html in HTML_DOCUMENTS]):
            assert isinstance(outcome, Prediction), outcome
            if task.data["html"]:
                body = lxml.html.document_fromstring(task.data["html"]).find("body")
            for value in (region.value for region in outcome.result):
                assert value["start"] == value["end"]
                (node,) = body.xpath(f".{value['start']}")
                assert node[value["startOffset"] : value["endOffset"]] == value["text"]
                texts.append(value["text"])
    expected = "One Two Three Four Five One Two Three Top After Inner Last End One Two Three Four Cc"
    assert texts == expected.split()


def test_taxonomy_gets_the_path_to_the_node(tmp_path: Path) -> None:
    folder = write_project(tmp_path, RECIPE_CONFIGS["Taxonomy"])
    with load_model(f"{folder}/model.py:Parts", folder / "label_config.xml") as model:
        paths = [
            outcome.result[0].value["taxonomy"]
            for _, outcome in model.predict([{"text": "x" * length} for length in (1, 60, 110, 199)])
            if isinstance(outcome, Prediction)
        ]
    assert paths == [[["Asia"]], [["Asia", "Japan"]], [["Europe"]], [["Europe", "fr"]]]


def test_every_recipe_has_a_config() -> None:
    covered = {
        filled.recipe.template
        for xml in RECIPE_CONFIGS.values()
        for filled in plan_model(LabelConfig.parse(xml)).filled
    }
    assert covered == {recipe.template for recipes in RECIPES.values() for recipe in recipes}


def test_generated_code_is_formatted(tmp_path: Path) -> None:
    for number, xml in enumerate(RECIPE_CONFIGS.values()):
        folder = tmp_path / f"p{number}"
        folder.mkdir()
        write_project(folder, xml)
    options = ("--config", str(ROOT / "pyproject.toml"), "--no-cache")
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "--ignore", "RUF012,RUF001", *options], ["format", "--diff", *options]):
        run = subprocess.run([ruff, *command, tmp_path], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_generated_code_is_type_checked(tmp_path: Path) -> None:
    from mypy import api

    files = []
    for number, xml in enumerate(RECIPE_CONFIGS.values()):
        (tmp_path / f"p{number}").mkdir()
        code = write_project(tmp_path / f"p{number}", xml) / "model.py"
        files.append(code.rename(tmp_path / f"model_{number}.py"))
    output, errors, status = api.run(["--strict", "--config-file", str(ROOT / "pyproject.toml"), *map(str, files)])
    assert status == 0, output + errors


def test_generated_tests_pass(tmp_path: Path) -> None:
    folders = []
    for name in ("several", "VideoRectangle with Labels"):
        (tmp_path / name).mkdir()
        folders.append(write_project(tmp_path / name, RECIPE_CONFIGS[name]))
    assert run_generated_tests(*folders).endswith("4 passed")


def test_generated_tests_train_a_model_that_learned_to_fit(tmp_path: Path) -> None:
    folder = write_project(tmp_path, RECIPE_CONFIGS["several"])
    code = (folder / "model.py").read_text("utf-8")
    (folder / "model.py").write_text(code.replace("    def forward(", f"{FIT}    def forward(", 1), "utf-8")
    tasks = json.loads((folder / "tasks.json").read_text())
    annotated = [task | {"annotations": [{"id": 1, "result": []}]} for task in tasks]
    (folder / "annotated.json").write_text(json.dumps(annotated))
    assert run_generated_tests(folder).endswith("2 passed")


def test_commands_of_readme_and_next_lines_work(lsml: Lsml, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(RECIPE_CONFIGS["several"])
    run = run_in_process("init", "parts", "-c", "config.xml", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    steps = re.findall(r"Next: (.*)", run.stderr)
    assert steps[0].startswith("cd parts && lsml predict")
    assert (tmp_path / steps[1].removeprefix("replace the rules in ")).is_file()
    checked = lsml(*steps[2].partition(" #")[0].split()[1:], cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    folder = tmp_path / "parts"
    (block,) = re.findall(r"^```sh\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = [command for command in block.splitlines() if command.startswith("lsml predict")]
    assert len(commands) == 2
    assert steps[0] == f"cd parts && {commands[1]}"
    for command in commands:
        run = lsml(*command.split()[1:], cwd=folder)
        assert run.returncode == 0, run.stderr
    assert len(json.loads((folder / "predictions.json").read_text())) == 8


def test_project_is_served(tmp_path: Path) -> None:
    folder = write_project(tmp_path, RECIPE_CONFIGS["Choices over text"])
    config = (folder / "label_config.xml").read_text()
    options = re.findall(r"^      - (--.*?)=", (folder / "compose.yml").read_text(), re.MULTILINE)
    assert options == ["--host", "--label-studio-url"]  # --versions would ask for a model that can be trained
    factory = ServerFactory(tmp_path)
    try:
        server = factory(folder, "--label-studio-url", "http://127.0.0.1:9", env={"LABEL_STUDIO_API_KEY": "x"})
        answer = server.request_ok("POST", "/setup", {"project": "1.1", "schema": config})
        assert answer["model_version"].startswith("parts@")
    finally:
        factory.close()


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (f'{TEXT}<Choices name="c" toName="t" value="$options"/>', "its labels come with each task"),
        (f'{IMAGE}<TextArea name="c" toName="i" perRegion="true"/>', "it describes regions of other controls"),
        (f'{IMAGE}<Labels name="c" toName="i">{LABELS}</Labels>', "there is no recipe for Labels over Image"),
        (f'{TEXT}<Labels name="c" toName="t"/>', "it has no labels"),
        (f'{IMAGE}<VectorLabels name="c" toName="i">{LABELS}</VectorLabels>', "there is no recipe for VectorLabels"),
        ('<Image name="i" valueList="$images"/><Rating name="c" toName="i"/>', "it is about a list of images"),
        ('<Text name="t" value="$u" valueType="url"/><Rating name="c" toName="t"/>', "what is behind a URL"),
        (f'<Image name="z" value="$z"/>{TEXT}<Pairwise name="c" toName="z,t"/>', "two objects of one kind"),
    ],
)
def test_control_without_a_recipe_is_named(tmp_path: Path, xml: str, reason: str) -> None:
    (tmp_path / "config.xml").write_text(f'<View>{xml}<Text name="q" value="$q"/><Rating name="r" toName="q"/></View>')
    run = run_in_process("init", "parts", "-c", "config.xml", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if "Left empty" in line]
    assert 'name="c"' in line
    assert reason in line
    run = run_in_process(
        "predict", "tasks.json", "--model", ".", "-c", "label_config.xml", "--check", cwd=tmp_path / "parts"
    )
    assert run.returncode == 0, run.stderr


def test_config_without_controls_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(f"<View>{TEXT}</View>")
    run = run_in_process("init", "parts", "-c", "config.xml", cwd=tmp_path)
    assert (run.returncode, "has no control" in run.stderr) == (2, True), run.stderr
    assert not (tmp_path / "parts").exists()


def test_class_name_is_no_name_that_the_code_uses(tmp_path: Path) -> None:
    defined = set()
    for number, xml in enumerate(RECIPE_CONFIGS.values()):
        (tmp_path / f"p{number}").mkdir()
        tree = ast.parse((write_project(tmp_path / f"p{number}", xml) / "model.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
    capitalized = {name for name in defined if re.fullmatch("[A-Z][a-z]+", name)} - {"Parts"}
    assert {"Prediction", "Controls", "Shape", "Counter"} <= capitalized
    assert not {choose_class_name(name.lower()) for name in ("none", *capitalized)} & {"None", *capitalized}
    assert choose_class_name("parcel-photos") == "ParcelPhotos"
    assert choose_class_name("3d") == "Model3d"


def test_names_of_controls_cannot_become_code(tmp_path: Path) -> None:
    name = "a&quot;]&#10;raise SystemExit(9)&#10;\\"
    folder = write_project(
        tmp_path,
        f'<View><Text name="t&quot;\\" value="$text"/><Rating name="{name}" toName="t&quot;\\"/></View>',
    )
    with load_model(f"{folder}/model.py:Parts", folder / "label_config.xml") as model:
        for _, outcome in model.predict([{"text": "x"}]):
            assert isinstance(outcome, Prediction), outcome
