"""Scripts for older SDKs, unmodified: tests/helpers/backends has one for each way in which people wrote them."""

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
from lsml_cli.models.legacy_backends.model import wrap_script
from lsml_cli.models.legacy_backends.sdk_detection import ScriptSource, detect_generation, find_model_class_name
from lsml_cli.registry.code_digest import source_files
from lsml_cli.registry.resolve import find_model
from tests.helpers.cli import ROOT, Lsml
from tests.helpers.serve_process import ServerFactory, wait_until
from tests.helpers.studio_server import KEY, run_export_server

BACKENDS = ROOT / "tests" / "helpers" / "backends"
TEXT = """<View><Text name="message" value="$text"/>
  <Choices name="kind" toName="message"><Choice value="ham"/><Choice value="spam"/></Choices></View>"""
LEARNING = {
    "v0_text.py": ("v0", "SimpleTextClassifier"),
    "v1_text.py": ("v1", "SimpleTextClassifier"),
    "v2_text.py": ("v2", "TextClassifier"),
    "v2_button.py": ("v2", "NaiveBayes"),
    "v2_functions.py": ("v2", "predict_by_words"),
    "htx_text.py": ("htx", "TextClassifier"),
    "htx_sklearn.py": ("htx", "serve"),
}
# A server and a training each take their time.
SERVED_LATE = [pytest.param(f"{each}.py", marks=pytest.mark.slow) for each in ("v0_text", "v2_functions", "htx_text")]
MESSAGES = {"ham": "see you at the station at eight", "spam": "you win a free prize, call now"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with 60 annotated messages (`export.json`), 7 fresh ones (`tasks.json`) and `config.xml`."""
    (tmp_path / "config.xml").write_text(TEXT)
    kinds = ["ham", "spam"] * 30
    (tmp_path / "export.json").write_text(json.dumps([exported(n, kind) for n, kind in enumerate(kinds)]))
    fresh = [{"id": 100 + n, "data": {"text": f"{MESSAGES[kinds[n]]} {n}"}} for n in range(7)]
    (tmp_path / "tasks.json").write_text(json.dumps(fresh))
    return tmp_path


def exported(number: int, kind: str) -> dict[str, Any]:
    region = {"id": "r", "from_name": "kind", "to_name": "message", "type": "choices", "value": {"choices": [kind]}}
    annotation = {"id": number, "result": [region], "was_cancelled": False}
    return {"id": number, "project": 3, "data": {"text": f"{MESSAGES[kind]} {number}"}, "annotations": [annotation]}


def answers(path: Path) -> list[str]:
    tasks = json.loads(path.read_text())
    return [task["predictions"][0]["result"][0]["value"]["choices"][0] for task in tasks]


# ---- recognised without running anything


@pytest.mark.parametrize(
    ("script", "generation", "name"),
    [
        *((script, *known) for script, known in LEARNING.items()),
        ("v0_image.py", "v0", "ImageClassifierAPI"),
        ("v1_image.py", "v1", "ImageClassifierAPI"),
        ("v2_detector.py", "v2", "Detector"),
        ("v1_folder/model.py", "v1", None),
    ],
)
def test_generations_are_told_apart(script: str, generation: str, name: str | None) -> None:
    path = BACKENDS / script
    assert detect_generation(ScriptSource(path)) == generation
    if name is not None:
        assert find_model_class_name(path) == name
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
def test_the_two_of_one_name_are_told_apart_by_what_they_do(tmp_path: Path, code: str, generation: str) -> None:
    script = tmp_path / "model.py"
    script.write_text(f"from label_studio_ml.model import LabelStudioMLBase\nclass M(LabelStudioMLBase):\n    {code}\n")
    assert detect_generation(ScriptSource(script)) == generation


def test_lsmls_own_models_are_none_of_them() -> None:
    assert wrap_script(ROOT / "tests" / "helpers" / "models.py", "Words") is None


# ---- predict, fit, evaluate


@pytest.mark.parametrize("script", LEARNING)
def test_a_script_learns_and_predicts(lsml: Lsml, place: Path, script: str) -> None:
    """The model is named by its file alone, and stays what it is when its version moves elsewhere."""
    shutil.copy(BACKENDS / script, place)
    run = lsml("fit", "export.json", "--model", script, "-c", "config.xml", "-o", "first", cwd=place)
    assert run.returncode == 0, run.stderr
    name = LEARNING[script][1]
    (place / "first").rename(place / "models")
    for batch_size in ("1", "512"):
        asked = ("tasks.json", "--model", f"{script}:{name}@models", "-o", f"{batch_size}.json")
        run = lsml("predict", *asked, "--batch-size", batch_size, cwd=place)
        assert run.returncode == 0, run.stderr
    assert answers(place / "1.json") == answers(place / "512.json") == ["ham", "spam"] * 3 + ["ham"]
    task = json.loads((place / "1.json").read_text())[0]
    assert task["predictions"][0]["model_version"].startswith("first@")
    run = lsml("evaluate", "export.json", "--model", f"{script}:{name}@models", cwd=place)
    assert "accuracy 1.0000" in run.stdout, run.stderr
    bare = lsml("predict", "tasks.json", "--model", "models", "-o", "no.json", cwd=place)
    assert (bare.returncode, "Name the class together with the folder" in bare.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["v0_text.py", "v2_text.py"])
def test_five_thousand_messages(lsml: Lsml, shared_data: Path, tmp_path: Path, script: str) -> None:
    exports, named = shared_data / "exports", f"{BACKENDS / script}:{LEARNING[script][1]}"
    learned = ("--model", named, "-c", exports / "sms-spam.xml", "-o", "sms")
    run = lsml("fit", exports / "sms-spam-annotated.json", *learned, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    asked = ("--model", f"{named}@sms", "--batch-size", "512", "-o", "out.json")
    run = lsml("predict", exports / "sms-spam-all-tasks.json", *asked, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    tasks = json.loads((exports / "sms-spam-all-tasks.json").read_text())
    written = json.loads((tmp_path / "out.json").read_text())
    assert [task["id"] for task in written] == [task["id"] for task in tasks]
    said = answers(tmp_path / "out.json")
    assert (len(said), set(said)) == (5574, {"ham", "spam"})
    assert 0.08 < said.count("spam") / len(said) < 0.18


@pytest.mark.parametrize("number", [0, 1])
def test_both_sides_of_the_page_on_migrating_are_real(lsml: Lsml, place: Path, number: int) -> None:
    """Before: a script for label_studio_ml 1.0. After: a model of lsml."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "migrate.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    sklearn = (
        "import os\nimport pickle\nfrom sklearn.feature_extraction.text import TfidfVectorizer\n"
        "from sklearn.linear_model import LogisticRegression\nfrom sklearn.pipeline import make_pipeline\n"
    )
    sdk = (
        "from label_studio_ml.model import LabelStudioMLBase\n"
        "from label_studio_ml.utils import get_choice, is_skipped\n",
        "from lsml_cli import Model, Prediction\n",
    )[number]
    (place / "mine.py").write_text(f"{sklearn}{sdk}\n\n{blocks[number]}")
    run = lsml("fit", "export.json", "--model", "mine.py", "-c", "config.xml", "-o", "models", cwd=place)
    assert run.returncode == 0, run.stderr
    run = lsml("predict", "tasks.json", "--model", "mine.py:TextClassifier@models", "-o", "o.json", cwd=place)
    assert run.returncode == 0, run.stderr
    assert answers(place / "o.json") == ["ham", "spam"] * 3 + ["ham"]


@pytest.mark.parametrize("module", ["label_studio.ml.helpers", "label_studio_ml.helpers"])
def test_helpers_that_say_how_tasks_become_rows(lsml: Lsml, place: Path, module: str) -> None:
    (place / "model.py").write_text(
        f"from {module} import LabelStudioMLChoices\n\n\nclass Longest(LabelStudioMLChoices):\n"
        "    def fit2(self, X, y, **kwargs):\n"
        "        return {'spam': min(len(x) for x, [label] in zip(X, y) if label == 'spam')}\n\n"
        "    def predict2(self, X, y=None, **kwargs):\n"
        "        limit = self.train_output.get('spam', 0)\n"
        "        return [['spam' if len(x) >= limit else 'ham'] for x in X], [0.5 for _ in X]\n"
    )
    run = lsml("fit", "export.json", "--model", "model.py", "-c", "config.xml", "-o", "models", cwd=place)
    assert run.returncode == 0, run.stderr
    run = lsml("predict", "tasks.json", "--model", "model.py:Longest@models", "-o", "o.json", cwd=place)
    assert run.returncode == 0, run.stderr
    assert set(answers(place / "o.json")) == {"spam"}  # both kinds are about as long


def test_without_any_sdk(place: Path) -> None:
    """Not even label_studio_sdk: what a script asks Label Studio for while it learns comes from the export."""
    shutil.copy(BACKENDS / "v2_text.py", place)
    hidden = "import sys; sys.modules.update(dict.fromkeys(['label_studio_sdk', 'label_studio_ml']))"
    code = f"{hidden}\nfrom lsml_cli.cli import main\nsys.argv[0] = 'lsml'\nsys.exit(main())"
    command = ("fit", "export.json", "--model", "v2_text.py", "-c", "config.xml", "-o", "models", "--quiet")
    run = subprocess.run([sys.executable, "-c", code, *command], cwd=place, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "accuracy 1.0000" in run.stdout
    (version,) = (path for path in (place / "models").iterdir() if path.is_dir())
    kept = json.loads((version / "model.json").read_text())
    assert kept["state"]["values"] == {"model_version": "0.0.2", "examples": str(kept["counts"]["train"])}


def test_a_folder_with_siblings_and_a_config(lsml: Lsml, place: Path) -> None:
    """`_wsgi.py` says which class it is; parameters come from config.json, and from the command line."""
    shutil.copytree(BACKENDS / "v1_folder", place / "backend")
    asked = ("predict", "tasks.json", "-c", "config.xml", "--model", "backend")
    run = lsml(*asked, "-o", "out.json", cwd=place)
    assert run.returncode == 0, run.stderr
    assert answers(place / "out.json") == ["ham", "spam"] * 3 + ["ham"]
    run = lsml(*asked, "-o", "other.json", "--with", "otherwise=spam", cwd=place)
    assert run.returncode == 0, run.stderr
    assert answers(place / "other.json") == ["spam"] * 7


def test_pictures_are_files_for_a_script(lsml: Lsml, shared_data: Path, tmp_path: Path) -> None:
    exports = shared_data / "exports"
    config = (exports / "coco128.xml").read_text().replace("<Label ", '<Label predicted_values="spot" ', 1)
    (tmp_path / "config.xml").write_text(config)
    script = BACKENDS / "v2_detector.py"
    command = ("predict", exports / "coco128-all-tasks.json", "--model", script, "-c", "config.xml")
    run = lsml(*command, "--document-root", shared_data, "-o", "o.json", "--limit", "9", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found = [task["predictions"][0]["result"] for task in json.loads((tmp_path / "o.json").read_text())]
    assert len(found) == 9
    assert all(region["original_width"] > 100 and region["score"] == 0.9 for regions in found for region in regions)
    assert sum(map(len, found)) > 5
    run = lsml(*command, "-o", "no.json", "--limit", "2", cwd=tmp_path)
    assert (run.returncode, "2 failed" in run.stderr) == (3, True)


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["v0", "v1"])
def test_transfer_learning_with_a_resnet(lsml: Lsml, shared_data: Path, tmp_path: Path, generation: str) -> None:
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
    assert set(answers(tmp_path / "o.json")) <= {"ant", "bee"}


@pytest.mark.parametrize(
    ("fit", "told"),
    [
        ("tasks, workdir=None, **kwargs", "{'n': len(list(tasks))}"),
        ("completions, workdir, rounds=1", "{'n': len(list(completions)) * rounds}"),
        ("tasks, workdir=None, **kwargs", "{'n': kwargs['data']['project']['id'], 'event': kwargs['event']}"),
        ("event, data, job_id, workdir", "{'n': len(data['annotation']['result'])}"),
        ("event, data, **kwargs", "{'n': data['annotation']['project'] == 3 and data['annotation']['task'] + 1}"),
        ("**kwargs", "{'n': len(kwargs['data']['annotation']['result']), 'event': kwargs['event']}"),
    ],
)
def test_every_way_to_call_fit(lsml: Lsml, place: Path, fit: str, told: str) -> None:
    (place / "model.py").write_text(
        "from label_studio_ml.model import LabelStudioMLBase\n\n\nclass M(LabelStudioMLBase):\n"
        "    def predict(self, tasks, **kwargs):\n"
        "        region = {'from_name': 'kind', 'to_name': 'message', 'type': 'choices'}\n"
        "        label = 'spam' if self.train_output.get('n') else 'ham'\n"
        "        return [{'result': [{**region, 'value': {'choices': [label]}}]} for _ in tasks]\n\n"
        f"    def fit(self, {fit}):\n        return {told}\n"
    )
    run = lsml("fit", "export.json", "--model", "model.py", "-c", "config.xml", "-o", "models", cwd=place)
    assert run.returncode == 0, run.stderr
    run = lsml("predict", "tasks.json", "--model", "model.py:M@models", "-o", "o.json", cwd=place)
    assert answers(place / "o.json") == ["spam"] * 7


# ---- the promises of predict


PREDICTING = """
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
def test_one_bad_task_costs_one_task(lsml: Lsml, place: Path, body: str, failed: list[int]) -> None:
    (place / "model.py").write_text(PREDICTING.replace("BODY", body))
    command = ("predict", "tasks.json", "--model", "model.py", "-c", "config.xml", "-o", "o.json")
    run = lsml(*command, "--errors", "e.jsonl", cwd=place)
    assert run.returncode == (3 if failed else 0), run.stderr
    written = json.loads((place / "o.json").read_text())
    assert [n for n, task in enumerate(written) if not task["predictions"]] == failed
    for task in written:
        for prediction in task["predictions"]:
            assert prediction["score"] == pytest.approx(task["id"] / 1000)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("from label_studio_ml.model import Nowhere", "cannot import name 'Nowhere'"),
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_script_that_cannot_be_imported_is_a_sentence(lsml: Lsml, place: Path, code: str, sentence: str) -> None:
    sdk = "from label_studio_ml.model import LabelStudioMLBase"
    (place / "model.py").write_text(f"{sdk}\n{code}\nclass M(LabelStudioMLBase):\n    def setup(self): pass\n")
    run = lsml("predict", "tasks.json", "--model", "model.py", "-c", "config.xml", "-o", "o.json", cwd=place)
    assert run.returncode == 1
    assert "was recognised as a script for label_studio_ml 2.0, and cannot be imported" in run.stderr
    assert sentence in run.stderr
    assert "line " in run.stderr
    assert "Traceback" not in run.stderr


def test_what_an_export_cannot_answer_is_a_sentence(lsml: Lsml, place: Path) -> None:
    (place / "model.py").write_text(
        "from label_studio_ml.model import LabelStudioMLBase\nfrom label_studio_sdk import Client\n\n\n"
        "class M(LabelStudioMLBase):\n    def setup(self):\n        pass\n\n    def fit(self, event, data, **kwargs):\n"
        "        Client(url='http://nowhere', api_key='x').get_project(1).create_prediction(5, [])\n"
    )
    run = lsml("fit", "export.json", "--model", "model.py", "-c", "config.xml", "-o", "models", cwd=place)
    assert run.returncode == 1
    assert "asks Label Studio for Project.create_prediction, which an export cannot answer" in run.stderr
    assert not (place / "models").exists()


def test_old_names_are_lent_and_not_given(place: Path) -> None:
    shutil.copy(BACKENDS / "v1_text.py", place)
    find_model(f"{place / 'v1_text.py'}")
    assert not [name for name in sys.modules if name.split(".")[0] in ("label_studio_ml", "label_studio_tools", "htx")]
    with pytest.raises(ModelError, match="has no Nobody"):
        find_model(f"{place / 'v1_text.py'}:Nobody")


# ---- what lies beside a script


SAYING = """
from label_studio_ml.model import LabelStudioMLBase
IMPORTS


class M(LabelStudioMLBase):
    def predict(self, tasks, **kwargs):
        region = {"from_name": "kind", "to_name": "message", "type": "choices"}
        return [{"result": [{**region, "value": {"choices": [ANSWER]}}]} for _ in tasks]
"""


def saying(folder: Path, imports: str, answer: str, more: str = "", **beside: str) -> str:
    """A script that gives the same answer to every task, what lies beside it, and its name."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(SAYING.replace("IMPORTS", imports).replace("ANSWER", answer) + more)
    for name, content in beside.items():
        (folder / f"{name}.py").write_text(content)
    return f"{folder / 'model.py'}:M"


@pytest.mark.parametrize(
    ("imports", "answer"),
    [("from rules import LABEL", "LABEL"), ("", "__import__('rules').LABEL"), ("import rules", "rules.LABEL")],
)
def test_two_scripts_have_each_its_own_siblings(lsml: Lsml, place: Path, imports: str, answer: str) -> None:
    """Also where they are imported only while it predicts. What is in them is part of what a model is."""
    ham = saying(place / "a", imports, answer, rules="LABEL = 'ham'")
    spam = saying(place / "b", imports, answer, rules="LABEL = 'spam'")
    (place / "export.json").write_text(json.dumps([exported(n, "ham") for n in range(20)]))
    run = lsml("evaluate", "export.json", "--model", ham, "--compare", spam, "-c", "config.xml", cwd=place)
    assert run.returncode == 0, run.stderr
    assert re.search(r"kind accuracy +1\.0000 +0\.0000 ", run.stdout), run.stdout
    if imports:
        assert find_model(ham).digest != find_model(spam).digest


def test_a_script_and_its_successor_have_each_its_own_siblings(lsml: Lsml, place: Path) -> None:
    old = saying(place / "old", "from rules import LABEL", "LABEL", rules="LABEL = 'spam'")
    (place / "new").mkdir()
    (place / "new" / "rules.py").write_text("LABEL = 'ham'")
    (place / "new" / "model.py").write_text(
        "from lsml_cli import Model, Prediction\nfrom rules import LABEL\n\n\nclass New(Model):\n"
        "    def forward(self, inputs, binding):\n        return inputs\n\n"
        "    def decode(self, output, task, binding):\n"
        "        region = binding.config.only('Choices').region(task, {'choices': [LABEL]})\n"
        "        return Prediction.of((region,), self.version)\n"
    )
    (place / "export.json").write_text(json.dumps([exported(n, "ham") for n in range(20)]))
    asked = ("evaluate", "export.json", "--model", "new/model.py", "--compare", old, "-c", "config.xml")
    run = lsml(*asked, cwd=place)
    assert run.returncode == 0, run.stderr
    assert re.search(r"kind accuracy +1\.0000 +0\.0000 ", run.stdout), run.stdout


def test_a_sibling_learns_from_the_export_and_reaches_no_network(lsml: Lsml, place: Path) -> None:
    """label_studio_sdk is installed here: what the sibling has imported before training is the real one."""
    pytest.importorskip("label_studio_sdk")
    data = (
        "from label_studio_sdk import Client\n\n\ndef labelled(project):\n"
        "    return Client(url='http://127.0.0.1:9', api_key='x').get_project(project).get_labeled_tasks()\n"
    )
    learns = (
        "\n    def fit(self, event, data, **kwargs):\n"
        "        assert event == 'START_TRAINING'\n"
        "        self.set('examples', str(len(labelled(data['project']['id']))))\n"
    )
    script = saying(place, "from data import labelled", "self.get('examples') and 'spam'", learns, data=data)
    run = lsml("fit", "export.json", "--model", script, "-c", "config.xml", "-o", "models", cwd=place)
    assert run.returncode == 0, run.stderr
    run = lsml("predict", "tasks.json", "--model", f"{script}@models", "-o", "o.json", cwd=place)
    assert answers(place / "o.json") == ["spam"] * 7


def test_a_sibling_finds_the_folder_of_the_version(lsml: Lsml, place: Path) -> None:
    """It asks for it when it is imported. Two versions keep apart what it remembers."""
    core = (
        "import os\n\nMODEL_DIR = os.getenv('MODEL_DIR', '.')\nknown = []\n\n\n"
        "def label():\n    if not known:\n        known.append(open(os.path.join(MODEL_DIR, 'label.txt')).read())\n"
        "    return known[0]\n\n\n"
        "def keep(label):\n    open(os.path.join(MODEL_DIR, 'label.txt'), 'w').write(label)\n"
    )
    learns = (
        "\n    def setup(self):\n        pass\n\n    def fit(self, event, data, **kwargs):\n"
        "        core.keep(data['annotation']['result'][0]['value']['choices'][0])\n"
    )
    script = saying(place, "import core", "core.label()", learns, core=core)
    for kind in ("ham", "spam"):
        (place / "export.json").write_text(json.dumps([exported(n, kind) for n in range(20)]))
        run = lsml("fit", "export.json", "--model", script, "-c", "config.xml", "-o", kind, cwd=place)
        assert run.returncode == 0, run.stderr
    assert not (place / "label.txt").exists()
    asked = ("evaluate", "export.json", "--model", f"{script}@spam", "--compare", f"{script}@ham")
    run = lsml(*asked, cwd=place)
    assert re.search(r"kind accuracy +1\.0000 +0\.0000 ", run.stdout), run.stdout + run.stderr


def test_a_class_of_its_own_is_pickled_and_found_again(lsml: Lsml, place: Path) -> None:
    learns = (
        "\n    def setup(self):\n        self.words = None\n        if os.path.exists(path()):\n"
        "            with open(path(), 'rb') as file:\n                self.words = pickle.load(file)\n\n"
        "    def fit(self, event, data, **kwargs):\n"
        "        with open(path(), 'wb') as file:\n            pickle.dump(Words('spam'), file)\n\n\n"
        "class Words:\n    def __init__(self, label):\n        self.label = label\n\n\n"
        "def path():\n    return os.path.join(os.getenv('MODEL_DIR', '.'), 'words.pkl')\n"
    )
    script = saying(place, "import os\nimport pickle", "self.words.label", learns)
    run = lsml("fit", "export.json", "--model", script, "-c", "config.xml", "-o", "models", cwd=place)
    assert run.returncode == 0, run.stderr
    run = lsml("predict", "tasks.json", "--model", f"{script}@models", "-o", "o.json", cwd=place)
    assert run.returncode == 0, run.stderr
    assert answers(place / "o.json") == ["spam"] * 7


def test_a_script_is_no_module_of_pythons_own(place: Path) -> None:
    saying(place, "", "'ham'")
    (place / "model.py").rename(place / "antigravity.py")
    find_model(f"{place / 'antigravity.py'}:M")
    assert not sys.modules.keys() & {"antigravity", "model"}


def test_siblings_are_lent_and_not_given(place: Path) -> None:
    script = saying(place / "a", "import rules_of_mine, colorsys, sub.deeper", "'ham'", rules_of_mine="import shades_")
    (place / "a" / "shades_.py").write_text("")
    (place / "a" / "sub").mkdir()
    (place / "a" / "sub" / "deeper.py").write_text("from . import deepest")
    (place / "a" / "sub" / "deepest.py").write_text("")
    before = find_model(script)
    assert not sys.modules.keys() & {"rules_of_mine", "shades_", "sub", "sub.deeper", "sub.deepest"}
    assert "colorsys" in sys.modules
    assert str(place / "a") not in sys.path
    family = before.model_class()
    assert list(source_files(family)) == ["", "rules_of_mine.py", "shades_.py", "sub/deeper.py", "sub/deepest.py"]
    (place / "a" / "sub" / "deepest.py").write_text("BLACK = 0")
    (place / "a" / "nobodys.py").write_text("")
    assert find_model(script).digest != before.digest
    assert "nobodys.py" not in source_files(family)


# ---- serve


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ServerFactory]:
    started = ServerFactory(tmp_path)
    yield started
    started.close()


@pytest.mark.parametrize("script", ["v1_text.py", "v2_text.py", *SERVED_LATE])
def test_a_script_is_served_and_trained_there(serve: ServerFactory, place: Path, script: str) -> None:
    with run_export_server() as studio:
        studio.config = TEXT
        studio.tasks = {3: json.loads((place / "export.json").read_text())}
        versions = place / "versions"
        server = serve(
            *("--model", BACKENDS / script, "--versions", versions, "--label-studio-url", studio.url),
            env={"LABEL_STUDIO_API_KEY": KEY},
        )
        setup = server.request_ok("POST", "/setup", {"project": "3.1", "schema": TEXT})
        server.request_ok("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": 3, "label_config": TEXT}})

        def trained() -> str | None:
            found = server.request_ok("POST", "/setup", {"project": "3.1", "schema": TEXT})["model_version"]
            return str(found) if found != setup["model_version"] else None

        version = wait_until("the project has a version of its own", trained)
        tasks = json.loads((place / "tasks.json").read_text())
        params = {"login": None, "password": None, "context": None}
        body = {"tasks": tasks, "project": "3.1", "label_config": TEXT, "params": params}
        results = server.request_ok("POST", "/predict", body)["results"]
    assert [each["result"][0]["value"]["choices"][0] for each in results] == ["ham", "spam"] * 3 + ["ham"]
    assert {each["model_version"] for each in results} == {version}


READS_FILES = """
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


def test_a_script_gets_no_file_that_a_request_names(serve: ServerFactory, place: Path) -> None:
    (place / "model.py").write_text(READS_FILES)
    (place / "secret.txt").write_text("for nobody")
    (place / "shown").mkdir()
    (place / "shown" / "a.txt").write_text("for everybody")
    config = '<View><Image name="image" value="$image"/><TextArea name="t" toName="image"/></View>'
    server = serve("--model", place / "model.py", "--document-root", place / "shown")
    named = [
        str(place / "secret.txt"), "secret.txt", "/data/local-files/?d=../secret.txt", "/data/local-files/?d=a.txt",
        "data:text/plain,in%20the%20task",
    ]  # fmt: skip
    tasks = [{"id": number, "data": {"image": each}} for number, each in enumerate(named)]
    body = {"tasks": tasks, "project": "3.1", "label_config": config, "params": {}}
    results = server.request_ok("POST", "/predict", body)["results"]
    assert results[:3] == [{}] * 3
    assert [each["result"][0]["value"]["text"] for each in results[3:]] == [["for everybody"], ["in the task"]]
    assert any("plain paths are not read here" in line for line in server.lines())


# ---- what the SDKs had in their utils


def test_label_configs_are_parsed_as_the_sdk_does(shared_data: Path) -> None:
    sdk = pytest.importorskip("label_studio_sdk._extensions.label_studio_tools.core.label_config")
    for path in sorted((shared_data / "exports").glob("*.xml")):
        xml = path.read_text()
        theirs = sdk.parse_config(xml)
        mine = labels.parse_config(xml)
        assert mine.keys() == theirs.keys()
        for name, control in theirs.items():
            for key in ("type", "to_name", "labels", "labels_attrs"):
                assert mine[name][key] == (list(control[key]) if key == "labels" else control[key]), (path, name, key)
            assert [(each["type"], each["value"]) for each in mine[name]["inputs"]] == [
                (each["type"], each["value"]) for each in control["inputs"]
            ]


def test_without_the_sdk_scripts_have_its_label_interface(place: Path) -> None:
    (place / "model.py").write_text(
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
    run = subprocess.run([sys.executable, "-c", code, *command], cwd=place, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert answers(place / "o.json") == ["spam"] * 7


def test_a_mask_survives_its_code() -> None:
    np = pytest.importorskip("numpy")
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    for seed, size in ((0, (5, 7)), (1, (300, 200))):
        mask = (np.random.default_rng(seed).random(size) > 0.5).astype(np.uint8) * 255
        mask[: size[0] // 2] = 255
        flat = np.repeat(mask.ravel(), 4)
        assert (np.array(brush.decode_rle(mask_to_rle(mask))) == flat).all()
        assert (decode_rle(mask_to_rle(mask)) == flat).all()
