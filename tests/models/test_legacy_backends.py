"""Scripts for older SDKs run unmodified; tests/helpers/backends has one for each style of script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import ModelError, UnknownModel
from lsml_cli.models.legacy_backends import labels
from lsml_cli.models.legacy_backends.brush import decode_rle, mask_to_rle
from lsml_cli.models.legacy_backends.import_sandbox import ScriptSandbox
from lsml_cli.models.legacy_backends.model import wrap_script
from lsml_cli.models.legacy_backends.sdk_detection import ScriptSource, detect_generation, find_model_class_name
from lsml_cli.models.legacy_backends.v0_v1 import V1Adapter
from lsml_cli.registry.code_digest import source_files
from lsml_cli.registry.resolve import find_model
from tests.helpers.cli import ROOT, Lsml
from tests.helpers.serve_process import ServerFactory, wait_until
from tests.helpers.studio_server import KEY, run_export_server

BACKENDS = ROOT / "tests" / "helpers" / "backends"
CONFIG = """<View><Text name="message" value="$text"/>
  <Choices name="kind" toName="message"><Choice value="ham"/><Choice value="spam"/></Choices></View>"""
TRAINABLE_SCRIPTS = {
    "v0_text.py": ("v0", "SimpleTextClassifier"),
    "v1_text.py": ("v1", "SimpleTextClassifier"),
    "v2_text.py": ("v2", "TextClassifier"),
    "v2_button.py": ("v2", "NaiveBayes"),
    "v2_functions.py": ("v2", "predict_by_words"),
    "htx_text.py": ("htx", "TextClassifier"),
    "htx_sklearn.py": ("htx", "serve"),
}
# Serving and training take long.
SLOW_SCRIPTS = [pytest.param(f"{stem}.py", marks=pytest.mark.slow) for stem in ("v0_text", "v2_functions", "htx_text")]
MESSAGES = {"ham": "see you at the station at eight", "spam": "you win a free prize, call now"}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A folder with 60 annotated messages (`export.json`), 7 unlabelled ones (`tasks.json`) and `config.xml`."""
    (tmp_path / "config.xml").write_text(CONFIG)
    kinds = ["ham", "spam"] * 30
    (tmp_path / "export.json").write_text(json.dumps([make_annotated_task(n, kind) for n, kind in enumerate(kinds)]))
    unlabelled = [{"id": 100 + n, "data": {"text": f"{MESSAGES[kinds[n]]} {n}"}} for n in range(7)]
    (tmp_path / "tasks.json").write_text(json.dumps(unlabelled))
    return tmp_path


def make_annotated_task(number: int, kind: str) -> dict[str, Any]:
    region = {"id": "r", "from_name": "kind", "to_name": "message", "type": "choices", "value": {"choices": [kind]}}
    annotation = {"id": number, "result": [region], "was_cancelled": False}
    return {"id": number, "project": 3, "data": {"text": f"{MESSAGES[kind]} {number}"}, "annotations": [annotation]}


def predicted_choices(path: Path) -> list[str]:
    tasks = json.loads(path.read_text())
    return [task["predictions"][0]["result"][0]["value"]["choices"][0] for task in tasks]


# ---- detection of the SDK


@pytest.mark.parametrize(
    ("script", "generation", "class_name"),
    [
        *((script, *expected) for script, expected in TRAINABLE_SCRIPTS.items()),
        ("v0_image.py", "v0", "ImageClassifierAPI"),
        ("v1_image.py", "v1", "ImageClassifierAPI"),
        ("v2_detector.py", "v2", "Detector"),
        ("v1_folder/model.py", "v1", None),
    ],
)
def test_generation_and_class_are_detected(script: str, generation: str, class_name: str | None) -> None:
    path = BACKENDS / script
    assert detect_generation(ScriptSource(path)) == generation
    if class_name is not None:
        assert find_model_class_name(path) == class_name
    else:
        with pytest.raises(UnknownModel, match=r"which class in it is the model\? It has .*, "):
            find_model_class_name(path)


@pytest.mark.parametrize(
    ("code", "generation"),
    [
        ("def __init__(self, **kwargs): super().__init__(**kwargs); self.out = self.train_output", "v1"),
        ("def fit(self, tasks, workdir=None, **kwargs): return {}", "v1"),
        ("def fit(self, event, data, job_id, workdir): return {}", "v1"),
        ("def fit(self, event, data, **kwargs): pass", "v2"),
        ("def setup(self): pass", "v2"),
        ("def predict(self, tasks, context=None, **kwargs): return []", "v2"),
        ("def predict(self, tasks, **kwargs): return []", "v1"),
        ("def __init__(self, project_id, **kwargs): super().__init__(project_id, **kwargs)", "v2"),
    ],
)
def test_v1_and_v2_are_distinguished_by_their_methods(tmp_path: Path, code: str, generation: str) -> None:
    script = tmp_path / "model.py"
    script.write_text(f"from label_studio_ml.model import LabelStudioMLBase\nclass M(LabelStudioMLBase):\n    {code}\n")
    assert detect_generation(ScriptSource(script)) == generation


def test_lsml_models_are_not_wrapped() -> None:
    assert wrap_script(ROOT / "tests" / "helpers" / "models.py", "Words") is None


# ---- predict, fit, evaluate


@pytest.mark.parametrize("script", TRAINABLE_SCRIPTS)
def test_script_trains_predicts_and_evaluates(lsml: Lsml, workdir: Path, script: str) -> None:
    """The model is named by its file alone, and the version is moved to another folder after training."""
    shutil.copy(BACKENDS / script, workdir)
    run = lsml("fit", "export.json", "--model", script, "-c", "config.xml", "-o", "first", cwd=workdir)
    assert run.returncode == 0, run.stderr
    name = TRAINABLE_SCRIPTS[script][1]
    (workdir / "first").rename(workdir / "models")
    for batch_size in ("1", "512"):
        options = ("tasks.json", "--model", f"{script}:{name}@models", "-o", f"{batch_size}.json")
        run = lsml("predict", *options, "--batch-size", batch_size, cwd=workdir)
        assert run.returncode == 0, run.stderr
    assert (
        predicted_choices(workdir / "1.json")
        == predicted_choices(workdir / "512.json")
        == ["ham", "spam"] * 3 + ["ham"]
    )
    task = json.loads((workdir / "1.json").read_text())[0]
    assert task["predictions"][0]["model_version"].startswith("first@")
    run = lsml("evaluate", "export.json", "--model", f"{script}:{name}@models", cwd=workdir)
    assert "accuracy 1.0000" in run.stdout, run.stderr
    run = lsml("predict", "tasks.json", "--model", "models", "-o", "no.json", cwd=workdir)
    assert (run.returncode, "Name the class together with the folder" in run.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["v0_text.py", "v2_text.py"])
def test_script_predicts_five_thousand_messages_in_order(
    lsml: Lsml, shared_data: Path, tmp_path: Path, script: str
) -> None:
    exports, model = shared_data / "exports", f"{BACKENDS / script}:{TRAINABLE_SCRIPTS[script][1]}"
    fit_options = ("--model", model, "-c", exports / "sms-spam.xml", "-o", "sms")
    run = lsml("fit", exports / "sms-spam-annotated.json", *fit_options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    options = ("--model", f"{model}@sms", "--batch-size", "512", "-o", "out.json")
    run = lsml("predict", exports / "sms-spam-all-tasks.json", *options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    tasks = json.loads((exports / "sms-spam-all-tasks.json").read_text())
    written = json.loads((tmp_path / "out.json").read_text())
    assert [task["id"] for task in written] == [task["id"] for task in tasks]
    choices = predicted_choices(tmp_path / "out.json")
    assert (len(choices), set(choices)) == (5574, {"ham", "spam"})
    assert 0.08 < choices.count("spam") / len(choices) < 0.18


@pytest.mark.parametrize("module", ["label_studio.ml.helpers", "label_studio_ml.helpers"])
def test_choices_helper_converts_tasks(lsml: Lsml, workdir: Path, module: str) -> None:
    (workdir / "model.py").write_text(
        f"from {module} import LabelStudioMLChoices\n\n\nclass Longest(LabelStudioMLChoices):\n"
        "    def fit2(self, X, y, **kwargs):\n"
        "        return {'spam': min(len(x) for x, [label] in zip(X, y) if label == 'spam')}\n\n"
        "    def predict2(self, X, y=None, **kwargs):\n"
        "        limit = self.train_output.get('spam', 0)\n"
        "        return [['spam' if len(x) >= limit else 'ham'] for x in X], [0.5 for _ in X]\n"
    )
    run = lsml("fit", "export.json", "--model", "model.py", "-c", "config.xml", "-o", "models", cwd=workdir)
    assert run.returncode == 0, run.stderr
    run = lsml("predict", "tasks.json", "--model", "model.py:Longest@models", "-o", "o.json", cwd=workdir)
    assert run.returncode == 0, run.stderr
    assert set(predicted_choices(workdir / "o.json")) == {"spam"}  # the messages of both kinds are equally long


def test_fit_needs_no_sdk(workdir: Path) -> None:
    """Calls of label_studio_sdk in `fit` are answered from the export."""
    shutil.copy(BACKENDS / "v2_text.py", workdir)
    hide_sdks = "import sys; sys.modules.update(dict.fromkeys(['label_studio_sdk', 'label_studio_ml']))"
    code = f"{hide_sdks}\nfrom lsml_cli.cli import main\nsys.argv[0] = 'lsml'\nsys.exit(main())"
    command = ("fit", "export.json", "--model", "v2_text.py", "-c", "config.xml", "-o", "models", "--quiet")
    run = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=workdir, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "accuracy 1.0000" in run.stdout
    (version,) = (path for path in (workdir / "models").iterdir() if path.is_dir())
    stored = json.loads((version / "model.json").read_text())
    assert stored["state"]["values"] == {"model_version": "0.0.2", "examples": str(stored["counts"]["train"])}


def test_folder_with_wsgi_siblings_and_config_json(lsml: Lsml, workdir: Path) -> None:
    """`_wsgi.py` names the class; parameters come from config.json and from --with."""
    shutil.copytree(BACKENDS / "v1_folder", workdir / "backend")
    command = ("predict", "tasks.json", "-c", "config.xml", "--model", "backend")
    run = lsml(*command, "-o", "out.json", cwd=workdir)
    assert run.returncode == 0, run.stderr
    assert predicted_choices(workdir / "out.json") == ["ham", "spam"] * 3 + ["ham"]
    run = lsml(*command, "-o", "other.json", "--with", "otherwise=spam", cwd=workdir)
    assert run.returncode == 0, run.stderr
    assert predicted_choices(workdir / "other.json") == ["spam"] * 7


def test_script_gets_images_as_files(lsml: Lsml, shared_data: Path, tmp_path: Path) -> None:
    exports = shared_data / "exports"
    config = (exports / "coco128.xml").read_text().replace("<Label ", '<Label predicted_values="spot" ', 1)
    (tmp_path / "config.xml").write_text(config)
    script = BACKENDS / "v2_detector.py"
    command = ("predict", exports / "coco128-all-tasks.json", "--model", script, "-c", "config.xml")
    run = lsml(*command, "--document-root", shared_data, "-o", "o.json", "--limit", "9", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    results = [task["predictions"][0]["result"] for task in json.loads((tmp_path / "o.json").read_text())]
    assert len(results) == 9
    assert all(region["original_width"] > 100 and region["score"] == 0.9 for regions in results for region in regions)
    assert sum(map(len, results)) > 5
    run = lsml(*command, "-o", "no.json", "--limit", "2", cwd=tmp_path)
    assert (run.returncode, "2 failed" in run.stderr) == (3, True)


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["v0", "v1"])
def test_resnet_script_trains_and_predicts(lsml: Lsml, shared_data: Path, tmp_path: Path, generation: str) -> None:
    exports = shared_data / "exports"
    tasks = json.loads((exports / "ants-bees-annotated.json").read_text())[::12]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    script = f"{BACKENDS / generation}_image.py:ImageClassifierAPI"
    options = ("-c", exports / "ants-bees.xml", "--document-root", shared_data)
    run = lsml("fit", "export.json", "--model", script, *options, "-o", "models", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    run = lsml(
        *("predict", "export.json", "--model", f"{script}@models", "--document-root", shared_data, "-o", "o.json"),
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert set(predicted_choices(tmp_path / "o.json")) <= {"ant", "bee"}


@pytest.mark.parametrize(
    ("parameters", "output"),
    [
        ("tasks, workdir=None, **kwargs", "{'n': len(list(tasks))}"),
        ("completions, workdir, rounds=1", "{'n': len(list(completions)) * rounds}"),
        ("tasks, workdir=None, **kwargs", "{'n': kwargs['data']['project']['id'], 'event': kwargs['event']}"),
        ("event, data, job_id, workdir", "{'n': len(data['annotation']['result'])}"),
        ("event, data, **kwargs", "{'n': data['annotation']['project'] == 3 and data['annotation']['task'] + 1}"),
        ("**kwargs", "{'n': len(kwargs['data']['annotation']['result']), 'event': kwargs['event']}"),
    ],
)
def test_fit_is_called_in_the_style_of_its_signature(lsml: Lsml, workdir: Path, parameters: str, output: str) -> None:
    (workdir / "model.py").write_text(
        "from label_studio_ml.model import LabelStudioMLBase\n\n\nclass M(LabelStudioMLBase):\n"
        "    def predict(self, tasks, **kwargs):\n"
        "        region = {'from_name': 'kind', 'to_name': 'message', 'type': 'choices'}\n"
        "        label = 'spam' if self.train_output.get('n') else 'ham'\n"
        "        return [{'result': [{**region, 'value': {'choices': [label]}}]} for _ in tasks]\n\n"
        f"    def fit(self, {parameters}):\n        return {output}\n"
    )
    run = lsml("fit", "export.json", "--model", "model.py", "-c", "config.xml", "-o", "models", cwd=workdir)
    assert run.returncode == 0, run.stderr
    run = lsml("predict", "tasks.json", "--model", "model.py:M@models", "-o", "o.json", cwd=workdir)
    assert predicted_choices(workdir / "o.json") == ["spam"] * 7


# ---- failures


SCORING_SCRIPT = """
from label_studio_ml.model import LabelStudioMLBase


class M(LabelStudioMLBase):
    def predict(self, tasks, **kwargs):
        def one(task):
            region = {"from_name": "kind", "to_name": "message", "type": "choices"}
            return {"result": [{**region, "value": {"choices": ["ham"]}}], "score": task["id"] / 1000}

        BODY
"""


@pytest.mark.parametrize(
    ("body", "failed"),
    [
        ("assert all(task['id'] != 103 for task in tasks)\n        return [one(t) for t in tasks]", [3]),
        ("return [one(t) for t in tasks if t['id'] != 103]", [3]),
        ("return [{**one(t), 'task': t['id']} for t in reversed(tasks)]", []),
        ("return [{**one(t), 'task': t['id']} for t in reversed(tasks) if t['id'] != 103]", [3]),
        ("return [one(t) if t['id'] != 103 else None for t in tasks]", [3]),
        ("return [one(t) if t['id'] != 103 else {} for t in tasks]", [3]),
        ("return [one(t) if t['id'] != 103 else {'result': [{'value': 5}]} for t in tasks]", [3]),
        ("return [[one(t)] for t in tasks]", []),
        ("return {'result': []}", list(range(7))),
    ],
)
def test_bad_task_fails_alone(lsml: Lsml, workdir: Path, body: str, failed: list[int]) -> None:
    (workdir / "model.py").write_text(SCORING_SCRIPT.replace("BODY", body))
    command = ("predict", "tasks.json", "--model", "model.py", "-c", "config.xml", "-o", "o.json")
    run = lsml(*command, "--errors", "e.jsonl", cwd=workdir)
    assert run.returncode == (3 if failed else 0), run.stderr
    written = json.loads((workdir / "o.json").read_text())
    assert [n for n, task in enumerate(written) if not task["predictions"]] == failed
    for task in written:
        for prediction in task["predictions"]:
            assert prediction["score"] == pytest.approx(task["id"] / 1000)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from label_studio_ml.model import Nowhere", "cannot import name 'Nowhere'"),
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_import_error_is_reported_with_its_line(lsml: Lsml, workdir: Path, code: str, message: str) -> None:
    sdk = "from label_studio_ml.model import LabelStudioMLBase"
    (workdir / "model.py").write_text(f"{sdk}\n{code}\nclass M(LabelStudioMLBase):\n    def setup(self): pass\n")
    run = lsml("predict", "tasks.json", "--model", "model.py", "-c", "config.xml", "-o", "o.json", cwd=workdir)
    assert run.returncode == 1
    assert "was recognised as a script for label_studio_ml 2.0, and cannot be imported" in run.stderr
    assert message in run.stderr
    assert "line " in run.stderr
    assert "Traceback" not in run.stderr


def test_sdk_call_without_an_answer_in_the_export_is_reported(lsml: Lsml, workdir: Path) -> None:
    (workdir / "model.py").write_text(
        "from label_studio_ml.model import LabelStudioMLBase\nfrom label_studio_sdk import Client\n\n\n"
        "class M(LabelStudioMLBase):\n    def setup(self):\n        pass\n\n    def fit(self, event, data, **kwargs):\n"
        "        Client(url='http://nowhere', api_key='x').get_project(1).create_prediction(5, [])\n"
    )
    run = lsml("fit", "export.json", "--model", "model.py", "-c", "config.xml", "-o", "models", cwd=workdir)
    assert run.returncode == 1
    assert "asks Label Studio for Project.create_prediction, which an export cannot answer" in run.stderr
    assert not (workdir / "models").exists()


def test_sdk_stubs_are_removed_after_import(workdir: Path) -> None:
    shutil.copy(BACKENDS / "v1_text.py", workdir)
    find_model(f"{workdir / 'v1_text.py'}")
    assert not [name for name in sys.modules if name.split(".")[0] in ("label_studio_ml", "label_studio_tools", "htx")]
    with pytest.raises(ModelError, match="has no Nobody"):
        find_model(f"{workdir / 'v1_text.py'}:Nobody")


def test_base_classes_of_a_sandbox_derive_from_each_other() -> None:
    source = ScriptSource(BACKENDS / "v1_text.py")
    first, second = (ScriptSandbox(source, "v1", name, V1Adapter().build_stubs) for name in ("first", "second"))
    classes = vars(first.stubs["label_studio_ml.helpers"])
    base = vars(first.stubs["label_studio_ml.model"])["LabelStudioMLBase"]
    assert issubclass(classes["LabelStudioMLChoices"], classes["LabelStudioMLBaseHelper"])
    assert issubclass(classes["LabelStudioMLBaseHelper"], base)
    assert not issubclass(base, vars(second.stubs["label_studio_ml.model"])["LabelStudioMLBase"])
    with pytest.raises(ValueError, match="cannot be fetched before there are tasks"):
        base("<View/>").get_local_path("/data/upload/1/a.png")


# ---- modules beside a script


CONSTANT_SCRIPT = """
from label_studio_ml.model import LabelStudioMLBase
IMPORTS


class M(LabelStudioMLBase):
    def predict(self, tasks, **kwargs):
        region = {"from_name": "kind", "to_name": "message", "type": "choices"}
        return [{"result": [{**region, "value": {"choices": [ANSWER]}}]} for _ in tasks]
"""


def write_constant_script(folder: Path, imports: str, answer: str, more: str = "", **siblings: str) -> str:
    """Write a script with the same prediction for every task, and its siblings; return its model name."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(CONSTANT_SCRIPT.replace("IMPORTS", imports).replace("ANSWER", answer) + more)
    for name, content in siblings.items():
        (folder / f"{name}.py").write_text(content)
    return f"{folder / 'model.py'}:M"


@pytest.mark.parametrize(
    ("imports", "answer"),
    [("from rules import LABEL", "LABEL"), ("", "__import__('rules').LABEL"), ("import rules", "rules.LABEL")],
)
def test_scripts_with_equally_named_siblings_are_isolated(lsml: Lsml, workdir: Path, imports: str, answer: str) -> None:
    """Siblings may be imported while the script predicts; imported ones are part of the model's digest."""
    ham = write_constant_script(workdir / "a", imports, answer, rules="LABEL = 'ham'")
    spam = write_constant_script(workdir / "b", imports, answer, rules="LABEL = 'spam'")
    (workdir / "export.json").write_text(json.dumps([make_annotated_task(n, "ham") for n in range(20)]))
    run = lsml("evaluate", "export.json", "--model", ham, "--compare", spam, "-c", "config.xml", cwd=workdir)
    assert run.returncode == 0, run.stderr
    assert re.search(r"kind accuracy +1\.0000 +0\.0000 ", run.stdout), run.stdout
    if imports:
        assert find_model(ham).digest != find_model(spam).digest


def test_script_and_lsml_model_with_equally_named_siblings_are_isolated(lsml: Lsml, workdir: Path) -> None:
    old = write_constant_script(workdir / "old", "from rules import LABEL", "LABEL", rules="LABEL = 'spam'")
    (workdir / "new").mkdir()
    (workdir / "new" / "rules.py").write_text("LABEL = 'ham'")
    (workdir / "new" / "model.py").write_text(
        "from lsml_cli import Model, Prediction\nfrom rules import LABEL\n\n\nclass New(Model):\n"
        "    def forward(self, inputs, binding):\n        return inputs\n\n"
        "    def decode(self, output, task, binding):\n"
        "        region = binding.config.only('Choices').region(task, {'choices': [LABEL]})\n"
        "        return Prediction.of((region,), self.version)\n"
    )
    (workdir / "export.json").write_text(json.dumps([make_annotated_task(n, "ham") for n in range(20)]))
    command = ("evaluate", "export.json", "--model", "new/model.py", "--compare", old, "-c", "config.xml")
    run = lsml(*command, cwd=workdir)
    assert run.returncode == 0, run.stderr
    assert re.search(r"kind accuracy +1\.0000 +0\.0000 ", run.stdout), run.stdout


def test_sdk_calls_of_a_sibling_are_answered_from_the_export(lsml: Lsml, workdir: Path) -> None:
    """The installed label_studio_sdk is patched, which the sibling has imported before training."""
    pytest.importorskip("label_studio_sdk")
    data = (
        "from label_studio_sdk import Client\n\n\ndef labelled(project):\n"
        "    return Client(url='http://127.0.0.1:9', api_key='x').get_project(project).get_labeled_tasks()\n"
    )
    fit_method = (
        "\n    def fit(self, event, data, **kwargs):\n"
        "        assert event == 'START_TRAINING'\n"
        "        self.set('examples', str(len(labelled(data['project']['id']))))\n"
    )
    script = write_constant_script(
        workdir, "from data import labelled", "self.get('examples') and 'spam'", fit_method, data=data
    )
    run = lsml("fit", "export.json", "--model", script, "-c", "config.xml", "-o", "models", cwd=workdir)
    assert run.returncode == 0, run.stderr
    run = lsml("predict", "tasks.json", "--model", f"{script}@models", "-o", "o.json", cwd=workdir)
    assert predicted_choices(workdir / "o.json") == ["spam"] * 7


def test_sibling_reads_the_version_folder_from_model_dir(lsml: Lsml, workdir: Path) -> None:
    """It reads MODEL_DIR when it is imported, and keeps state in globals: two versions must not share it."""
    core = (
        "import os\nfrom pathlib import Path\n\nMODEL_DIR = os.getenv('MODEL_DIR', '.')\nknown = []\n\n\n"
        "def label():\n    if not known:\n        known.append(Path(MODEL_DIR, 'label.txt').read_text())\n"
        "    return known[0]\n\n\n"
        "def keep(label):\n    Path(MODEL_DIR, 'label.txt').write_text(label)\n"
    )
    fit_method = (
        "\n    def setup(self):\n        pass\n\n    def fit(self, event, data, **kwargs):\n"
        "        core.keep(data['annotation']['result'][0]['value']['choices'][0])\n"
    )
    script = write_constant_script(workdir, "import core", "core.label()", fit_method, core=core)
    for kind in ("ham", "spam"):
        (workdir / "export.json").write_text(json.dumps([make_annotated_task(n, kind) for n in range(20)]))
        run = lsml("fit", "export.json", "--model", script, "-c", "config.xml", "-o", kind, cwd=workdir)
        assert run.returncode == 0, run.stderr
    assert not (workdir / "label.txt").exists()
    command = ("evaluate", "export.json", "--model", f"{script}@spam", "--compare", f"{script}@ham")
    run = lsml(*command, cwd=workdir)
    assert re.search(r"kind accuracy +1\.0000 +0\.0000 ", run.stdout), run.stdout + run.stderr


def test_pickled_class_of_the_script_can_be_loaded(lsml: Lsml, workdir: Path) -> None:
    fit_method = (
        "\n    def setup(self):\n        self.words = None\n        if os.path.exists(path()):\n"
        "            with open(path(), 'rb') as file:\n                self.words = pickle.load(file)\n\n"
        "    def fit(self, event, data, **kwargs):\n"
        "        with open(path(), 'wb') as file:\n            pickle.dump(Words('spam'), file)\n\n\n"
        "class Words:\n    def __init__(self, label):\n        self.label = label\n\n\n"
        "def path():\n    return os.path.join(os.getenv('MODEL_DIR', '.'), 'words.pkl')\n"
    )
    script = write_constant_script(workdir, "import os\nimport pickle", "self.words.label", fit_method)
    run = lsml("fit", "export.json", "--model", script, "-c", "config.xml", "-o", "models", cwd=workdir)
    assert run.returncode == 0, run.stderr
    run = lsml("predict", "tasks.json", "--model", f"{script}@models", "-o", "o.json", cwd=workdir)
    assert run.returncode == 0, run.stderr
    assert predicted_choices(workdir / "o.json") == ["spam"] * 7


def test_script_does_not_shadow_a_standard_library_module(workdir: Path) -> None:
    write_constant_script(workdir, "", "'ham'")
    (workdir / "model.py").rename(workdir / "antigravity.py")
    find_model(f"{workdir / 'antigravity.py'}:M")
    assert not sys.modules.keys() & {"antigravity", "model"}


def test_siblings_are_removed_after_import_and_part_of_the_digest(workdir: Path) -> None:
    script = write_constant_script(
        workdir / "a", "import own_rules, colorsys, sub.deeper", "'ham'", own_rules="import shades_"
    )
    (workdir / "a" / "shades_.py").write_text("")
    (workdir / "a" / "sub").mkdir()
    (workdir / "a" / "sub" / "deeper.py").write_text("from . import deepest")
    (workdir / "a" / "sub" / "deepest.py").write_text("")
    before = find_model(script)
    assert not sys.modules.keys() & {"own_rules", "shades_", "sub", "sub.deeper", "sub.deepest"}
    assert "colorsys" in sys.modules
    assert str(workdir / "a") not in sys.path
    model_class = before.model_class()
    assert list(source_files(model_class)) == ["", "own_rules.py", "shades_.py", "sub/deeper.py", "sub/deepest.py"]
    (workdir / "a" / "sub" / "deepest.py").write_text("BLACK = 0")
    (workdir / "a" / "unrelated.py").write_text("")
    assert find_model(script).digest != before.digest
    assert "unrelated.py" not in source_files(model_class)


# ---- serve


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ServerFactory]:
    factory = ServerFactory(tmp_path)
    yield factory
    factory.close()


@pytest.mark.parametrize("script", ["v1_text.py", "v2_text.py", *SLOW_SCRIPTS])
def test_script_is_served_and_trained_by_the_server(serve: ServerFactory, workdir: Path, script: str) -> None:
    with run_export_server() as studio:
        studio.config = CONFIG
        studio.tasks = {3: json.loads((workdir / "export.json").read_text())}
        versions = workdir / "versions"
        server = serve(
            *("--model", BACKENDS / script, "--versions", versions, "--label-studio-url", studio.url),
            env={"LABEL_STUDIO_API_KEY": KEY},
        )
        setup = server.request_ok("POST", "/setup", {"project": "3.1", "schema": CONFIG})
        server.request_ok(
            "POST", "/webhook", {"action": "START_TRAINING", "project": {"id": 3, "label_config": CONFIG}}
        )

        def trained_version() -> str | None:
            version = server.request_ok("POST", "/setup", {"project": "3.1", "schema": CONFIG})["model_version"]
            return str(version) if version != setup["model_version"] else None

        version = wait_until("the project has a version of its own", trained_version)
        tasks = json.loads((workdir / "tasks.json").read_text())
        params = {"login": None, "password": None, "context": None}
        body = {"tasks": tasks, "project": "3.1", "label_config": CONFIG, "params": params}
        results = server.request_ok("POST", "/predict", body)["results"]
    assert [prediction["result"][0]["value"]["choices"][0] for prediction in results] == ["ham", "spam"] * 3 + ["ham"]
    assert {prediction["model_version"] for prediction in results} == {version}


READER_SCRIPT = """
from label_studio_ml.model import LabelStudioMLBase

class Reader(LabelStudioMLBase):
    def predict(self, tasks, context=None, **kwargs):
        return [self.one(task) for task in tasks]

    def one(self, task):
        path = self.get_local_path(self.get_local_path(task["data"]["image"], task_id=task["id"]))
        with open(path) as file:
            value = {"text": [file.read()]}
        return {"result": [{"from_name": "t", "to_name": "image", "type": "textarea", "value": value}], "score": 1.0}
"""


def test_served_script_reads_no_file_outside_the_document_root(serve: ServerFactory, workdir: Path) -> None:
    (workdir / "model.py").write_text(READER_SCRIPT)
    (workdir / "secret.txt").write_text("secret")
    (workdir / "public").mkdir()
    (workdir / "public" / "a.txt").write_text("public")
    config = '<View><Image name="image" value="$image"/><TextArea name="t" toName="image"/></View>'
    server = serve("--model", workdir / "model.py", "--document-root", workdir / "public")
    paths = [
        str(workdir / "secret.txt"),
        "secret.txt",
        "/data/local-files/?d=../secret.txt",
        "/data/local-files/?d=a.txt",
        "data:text/plain,in%20the%20task",
    ]
    tasks = [{"id": index, "data": {"image": path}} for index, path in enumerate(paths)]
    body = {"tasks": tasks, "project": "3.1", "label_config": config, "params": {}}
    results = server.request_ok("POST", "/predict", body)["results"]
    assert results[:3] == [{}] * 3
    assert [prediction["result"][0]["value"]["text"] for prediction in results[3:]] == [["public"], ["in the task"]]
    assert any("plain paths are not read here" in line for line in server.lines())


# ---- functions of the SDKs


def test_parse_config_equals_the_sdk(shared_data: Path) -> None:
    sdk = pytest.importorskip("label_studio_sdk._extensions.label_studio_tools.core.label_config")
    for path in sorted((shared_data / "exports").glob("*.xml")):
        xml = path.read_text()
        expected = sdk.parse_config(xml)
        parsed = labels.parse_config(xml)
        assert parsed.keys() == expected.keys()
        for name, control in expected.items():
            for key in ("type", "to_name", "labels", "labels_attrs"):
                assert parsed[name][key] == (list(control[key]) if key == "labels" else control[key]), (path, name, key)
            assert [(tag["type"], tag["value"]) for tag in parsed[name]["inputs"]] == [
                (tag["type"], tag["value"]) for tag in control["inputs"]
            ]


def test_label_interface_without_the_sdk(workdir: Path) -> None:
    (workdir / "model.py").write_text(
        "from label_studio_ml.model import LabelStudioMLBase\nfrom label_studio_ml.response import ModelResponse\n"
        "from label_studio_sdk.converter import brush\n\n\nclass M(LabelStudioMLBase):\n"
        "    def predict(self, tasks, context=None, **kwargs):\n"
        "        names = self.label_interface.get_first_tag_occurence('Choices', 'Text')\n"
        "        control = self.label_interface.get_control()\n"
        "        assert names == (control.name, control.to_name[0], self.label_interface.get_object().value_name)\n"
        "        assert brush.decode_rle(brush.mask2rle([[0, 255]])).tolist() == [0] * 4 + [255] * 4\n"
        "        value = {'choices': [control.labels[-1]]}\n"
        "        region = {'from_name': names[0], 'to_name': names[1], 'type': 'choices', 'value': value}\n"
        "        return ModelResponse(predictions=[{'result': [region]} for _ in tasks])\n"
    )
    code = (
        "import sys; sys.modules['label_studio_sdk'] = None\nfrom lsml_cli.cli import main\n"
        "sys.argv[0] = 'lsml'\nsys.exit(main())"
    )
    command = ("predict", "tasks.json", "--model", "model.py", "-c", "config.xml", "-o", "o.json")
    run = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=workdir, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert predicted_choices(workdir / "o.json") == ["spam"] * 7


def test_mask_round_trips_through_rle() -> None:
    np = pytest.importorskip("numpy")
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    for seed, size in ((0, (5, 7)), (1, (300, 200))):
        mask = (np.random.default_rng(seed).random(size) > 0.5).astype(np.uint8) * 255
        mask[: size[0] // 2] = 255
        flat = np.repeat(mask.ravel(), 4)
        assert (np.array(brush.decode_rle(mask_to_rle(mask))) == flat).all()
        assert (decode_rle(mask_to_rle(mask)) == flat).all()
