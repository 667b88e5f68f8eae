"""Models of other packages: installed into a temporary folder, and found by their entry points."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import lsml_cli.models
from lsml_cli.registry.code_digest import code_digest, source_files
from lsml_cli.registry.model_location import BUILT_IN
from lsml_cli.registry.resolve import find_model
from tests.helpers.cli import Lsml

PYPROJECT = """
[project]
name = "acme-models"
version = "1.2"

[project.entry-points."lsml.models"]
wordy = "acme_models:Wordy"
"""
PACKAGE = "from acme_models.wordy import Wordy\n"
MODEL = '''
import json
from lsml_cli import Model, Prediction
from lsml_cli.errors import ModelError


class Wordy(Model):
    """Call a text with more words than the mean of the training texts long."""

    supported_controls = {"Choices": ("Text",)}
    required_modules = ("json", "no_such_module")
    install_extra = "fast"

    def load(self, device):
        self.mean = json.loads((self.spec.path / "mean.json").read_text()) if self.spec.path else 5

    def forward(self, inputs, binding):
        return [len(task.data["text"].split()) > self.mean for task in inputs]

    def decode(self, output, task, binding):
        region = binding.config.only("Choices").region(task, {"choices": ["long" if output else "short"]}, score=0.9)
        return Prediction.of((region,), self.version)

    def fit(self, train, validation, binding, out_dir, progress):
        counts = [len(example.task.data["text"].split()) for example in train]
        (out_dir / "mean.json").write_text(json.dumps(sum(counts) / len(counts)))
        return {}
'''
TEXT_CLASSIFIER = "lsml_cli.models.text_classifier.model:TextClassifier"
CONFIG = """<View><Text name="text" value="$text"/>
  <Choices name="size" toName="text"><Choice value="short"/><Choice value="long"/></Choices></View>"""


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def install(site: Path, pyproject: str, files: Mapping[str, str]) -> Path:
    """Install a pure Python project as pip does, without a network: its modules and a .dist-info beside them."""
    project = tomllib.loads(pyproject)["project"]
    write(site, files)
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = ["[lsml.models]", *(f"{n} = {value}" for n, value in project["entry-points"]["lsml.models"].items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return install(tmp_path / "site", PYPROJECT, {"acme_models/__init__.py": PACKAGE, "acme_models/wordy.py": MODEL})


@pytest.fixture
def with_plugins(lsml_process: Lsml, site: Path, tmp_path: Path) -> Any:
    """Run `lsml` where the packages in `site` are installed."""

    def run(*args: str | Path, **options: Any) -> CompletedProcess[str]:
        return lsml_process(*args, env={"PYTHONPATH": str(site)}, cwd=tmp_path, **options)

    return run


def listed(run: CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Return the entries of `lsml models --json` by target."""
    assert run.returncode == 0, run.stderr
    return {entry["target"]: entry for entry in json.loads(run.stdout)}


def test_models_lists_built_in_models(lsml: Lsml) -> None:
    run = lsml("models")
    assert run.returncode == 0, run.stderr
    table, _, commands = run.stdout.partition("\n\n")
    heading, *models, last = table.splitlines()
    assert heading.split() == ["model", "fills", "from", "remarks"]
    assert [line.split("  ")[0] for line in models] == ["image-classifier", "object-detector", "ocr"]
    assert last.split("  ")[0] == "text-classifier"
    assert re.search("Choices over Text, HyperText, Paragraphs +lsml 0[.]", last)
    assert commands == "" or commands.startswith("To use object-detector, ocr, run:\n  ")
    assert not run.stderr


def test_plugin_is_listed_with_missing_modules(with_plugins: Any) -> None:
    assert "To use wordy, run:\n  pip install 'acme-models[fast]'\n" in with_plugins("models").stdout
    [line] = [line for line in with_plugins("models").stdout.splitlines() if line.startswith("wordy")]
    assert "Choices over Text" in line
    assert "acme-models 1.2" in line
    assert line.endswith("needs more, see below")
    entry = listed(with_plugins("models", "--json"))["acme_models:Wordy"]
    assert (entry["name"], entry["needs"], entry["trainable"]) == ("wordy", ["no_such_module"], True)


def test_plugin_predicts_trains_and_predicts_again(with_plugins: Any, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(CONFIG)
    tasks = [{"id": n, "data": {"text": "word " * n}} for n in range(1, 30)]
    region = {"from_name": "size", "to_name": "text", "type": "choices", "value": {"choices": ["short"]}}
    annotated = [task | {"annotations": [{"id": 1, "result": [region]}]} for task in tasks]
    (tmp_path / "tasks.json").write_text(json.dumps(annotated))

    def long_ones(model: str, *more: str) -> list[int]:
        run = with_plugins("predict", "tasks.json", "--model", model, *more)
        assert run.returncode == 0, run.stderr
        tasks = map(json.loads, run.stdout.splitlines())
        return [task["id"] for task in tasks if "long" in str(task["predictions"][0]["result"])]

    assert long_ones("wordy", "--label-config", "config.xml") == list(range(6, 30))
    assert long_ones("wordy", "--label-config", "config.xml", "--workers", "2") == list(range(6, 30))
    fitted = with_plugins(
        "fit", "tasks.json", "--model", "wordy", "--label-config", "config.xml", "--output", "models/w"
    )
    assert fitted.returncode == 0, fitted.stderr
    long_ids = long_ones("models/w")
    assert long_ids
    assert 6 not in long_ids
    assert long_ids == list(range(long_ids[0], 30))


def test_version_of_uninstalled_plugin_names_the_plugin(
    with_plugins: Any, lsml: Lsml, tmp_path: Path, site: Path
) -> None:
    test_plugin_predicts_trains_and_predicts_again(with_plugins, tmp_path)
    run = lsml("predict", "tasks.json", "--model", "models/w", cwd=tmp_path)
    assert run.returncode == 1
    assert "models/w is a version of wordy, and no installed package has a model of that name." in run.stderr
    for name in ("acme_models:Wordy", "acme_models.wordy:Wordy"):  # any name of the class works with the package
        assert with_plugins("predict", "tasks.json", "--model", f"{name}@models/w").returncode == 0


def test_plugin_passes_check_model(site: Path, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(CONFIG)
    (tmp_path / "test_wordy.py").write_text(
        "from lsml_cli import check_model\n"
        "def test_model_keeps_the_contract():\n"
        "    region = {'from_name': 'size', 'to_name': 'text', 'type': 'choices', 'value': {'choices': ['short']}}\n"
        "    annotations = [{'id': 1, 'result': [region]}]\n"
        "    tasks = [{'data': {'text': 'word ' * n}, 'annotations': annotations} for n in range(9)]\n"
        "    check_model('wordy', label_config='config.xml', tasks=tasks)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    env = os.environ | {"PYTHONPATH": str(site)}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout


def test_broken_plugins_are_listed_with_their_problem(with_plugins: Any, site: Path, tmp_path: Path) -> None:
    pyproject = """
        [project]
        name = "rotten"
        version = "0.1"
        [project.entry-points."lsml.models"]
        raises = "rotten_raises:Model"
        lacks = "rotten_lacks:Model"
        missing = "rotten_missing:Model"
        nothing = "rotten_empty:Model"
        classless = "rotten_empty"
        odd = "rotten_odd:Odd"
    """
    odd = "import lsml_cli\nclass Odd(lsml_cli.Model):\n    supported_controls = 3\n"
    odd += "    forward = decode = lambda *args: None\n"
    files = {"raises": "1 / 0", "lacks": "import no_such_thing", "empty": "", "odd": odd}
    install(site, pyproject, {f"rotten_{name}.py": source for name, source in files.items()})
    problems = {entry["name"]: entry["problem"] for entry in listed(with_plugins("models", "--json")).values()}
    assert problems == {
        "image-classifier": None,
        "object-detector": None,
        "ocr": None,
        "text-classifier": None,
        "wordy": None,
        "raises": "rotten_raises cannot be imported: ZeroDivisionError: division by zero "
        f"({site / 'rotten_raises.py'}, line 1).",
        "lacks": "rotten_lacks cannot be imported: ModuleNotFoundError: No module named 'no_such_thing' "
        f"({site / 'rotten_lacks.py'}, line 1).",
        "missing": "rotten_missing cannot be imported: ModuleNotFoundError: No module named 'rotten_missing'.",
        "nothing": "rotten_empty has no Model.",
        "classless": "'rotten_empty' names no class.",
        "odd": "It cannot be listed: AttributeError: 'int' object has no attribute 'items'.",
    }
    (tmp_path / "config.xml").write_text(CONFIG)
    predict = ("predict", "-", "--label-config", "config.xml", "--model")
    assert with_plugins(*predict, "wordy", input='{"text": "a"}\n').returncode == 0
    run = with_plugins(*predict, "raises", input='{"text": "a"}\n')
    assert run.returncode == 1
    assert "lsml: rotten_raises cannot be imported: ZeroDivisionError" in run.stderr


def test_name_conflict_is_resolved_and_reported(with_plugins: Any, site: Path) -> None:
    pyproject = """
        [project]
        name = "{name}"
        version = "3"
        [project.entry-points."lsml.models"]
        {model} = "acme_models.wordy:Wordy"
    """
    install(site, pyproject.format(name="bold", model="text-classifier"), {})
    install(site, pyproject.format(name="zealous", model="wordy"), {})
    run = with_plugins("models", "--json")
    entries = json.loads(run.stdout)
    bold, zealous = (next(entry for entry in entries if entry["package"] == name) for name in ("bold", "zealous"))
    assert bold["problem"] == (
        "Not used: text-classifier is the one that comes with lsml; call this one acme_models.wordy:Wordy."
    )
    # The file system decides which of the two packages Python finds first.
    problems = [
        zealous["problem"],
        next(entry["problem"] for entry in entries if entry["target"] == "acme_models:Wordy"),
    ]
    [problem] = filter(None, problems)
    assert problem.startswith("Not used: wordy is the one of ")
    find = (
        "from lsml_cli.registry.resolve import *; print(known_models()['text-classifier'], find_model('wordy').target)"
    )
    env = os.environ | {"PYTHONPATH": str(site)}
    known = subprocess.run([sys.executable, "-c", find], env=env, capture_output=True, text=True, check=True).stdout
    used = "acme_models.wordy:Wordy" if zealous["problem"] is None else "acme_models:Wordy"
    assert known.split() == [TEXT_CLASSIFIER, used]


# --- identity


def test_identity_covers_the_package_that_exports_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "offering"
    write(folder, {"wordy.py": MODEL, "text/__init__.py": "", "text/words.py": "", "data/stray.py": ""})
    monkeypatch.syspath_prepend(tmp_path)
    for init, target in (("from offering.wordy import Wordy", "offering:Wordy"), ("", "offering.wordy:Wordy")):
        (folder / "__init__.py").write_text(init)
        importlib.invalidate_caches()
        for module in [name for name in sys.modules if name.startswith("offering")]:
            del sys.modules[module]
        model_class = find_model(target).model_class()
        before = code_digest(model_class)
        (folder / "data" / "stray.py").write_text(target)  # data is no subpackage
        assert code_digest(model_class) == before
        (folder / "text" / "words.py").write_text(target)
        assert code_digest(model_class) != before


@pytest.mark.parametrize("name", BUILT_IN)
def test_identity_of_built_in_family_covers_exactly_its_package(name: str) -> None:
    model_class = find_model(name).model_class()
    folder = Path(sys.modules[model_class.__module__].__file__ or "").parent
    assert folder.parent == Path(lsml_cli.models.__file__).parent
    files = source_files(model_class)
    assert files == {path.name: path for path in sorted(folder.glob("*.py"))}
    assert {"__init__.py", "model.py"} <= files.keys()


def test_identity_of_built_in_family_changes_with_each_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is copied, because its files belong to the running process."""
    model_class = find_model("text-classifier").model_class()
    digests = {code_digest(model_class)}
    shutil.copytree(Path(sys.modules[model_class.__module__].__file__ or "").parent, tmp_path / "text_classifier")
    copies = {path.name: path for path in sorted((tmp_path / "text_classifier").glob("*.py"))}
    monkeypatch.setattr("lsml_cli.registry.code_digest.source_files", lambda model_class: copies)
    assert {code_digest(model_class)} == digests
    for path in copies.values():
        path.write_bytes(path.read_bytes() + b"# changed")
        digests.add(code_digest(model_class))
    assert len(digests) == 1 + len(copies)
