"""`lsml check`: each clause with its result; what is not given is found beside the model."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.helpers import broken_models, models
from tests.helpers.cli import run_in_process as run

BROKEN = broken_models.__file__


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a label config for the broken models, tasks and annotated tasks."""
    (tmp_path / "size.xml").write_text(models.TEXT_CONFIG)
    texts = ["a" * n for n in (1, 12, 5, 30)]
    (tmp_path / "texts.json").write_text(
        json.dumps([{"id": n, "data": {"text": text}} for n, text in enumerate(texts)])
    )
    annotated = [
        {
            "data": {"text": text},
            "annotations": [
                {
                    "result": [
                        {
                            "from_name": "size",
                            "to_name": "text",
                            "type": "choices",
                            "value": {"choices": ["long" if len(text) > 10 else "short"]},
                        }
                    ]
                }
            ],
        }
        for text in texts * 3
    ]
    (tmp_path / "answers.json").write_text(json.dumps(annotated))
    return tmp_path


def check(work: Path, name: str, *options: str) -> CompletedProcess[str]:
    """Check a model of `broken_models` with the label config and the tasks of the folder."""
    return run("check", f"{BROKEN}:{name}", "-c", "size.xml", "--tasks", "texts.json", *options, cwd=work)


def results_of(checked: CompletedProcess[str]) -> dict[str, str]:
    """The result of each clause in a report."""
    return {line.split()[0]: line.split()[1] for line in checked.stdout.splitlines()[1:]}


def test_model_that_keeps_the_contract_passes(work: Path) -> None:
    checked = check(work, "Lengths")
    assert checked.returncode == 0, checked.stdout
    results = results_of(checked)
    assert results["process"] == results["order"] == "passed"
    assert results["fit"] == "skipped"
    assert "The model does not override fit." in checked.stdout
    assert "with the label config size.xml, 4 tasks of texts.json" in checked.stderr
    assert "broken_models:Lengths keeps the contract: 19 clauses passed; 5 skipped." in checked.stderr


def test_broken_clause_is_named_with_the_line_of_the_model(work: Path) -> None:
    checked = check(work, "DecodeFails")
    assert checked.returncode == 1
    results = results_of(checked)
    assert (results["forward"], results["decode"], results["order"]) == ("passed", "failed", "skipped")
    assert "raised KeyError: 12 (broken_models.py, line " in checked.stdout
    assert "The contract: `decode` makes a Prediction of every output." in checked.stdout
    assert "It needs what the clause decode requires." in checked.stdout
    assert "breaks 1 clause of the contract: decode; 9 passed; 14 skipped." in checked.stderr


def test_label_config_that_the_model_cannot_fill_is_reported_once(work: Path) -> None:
    (work / "size.xml").write_text(models.OCR_CONFIG)
    checked = check(work, "Learner", "--annotated", "answers.json")
    assert checked.returncode == 1
    assert "Bind refuses the label config that it is checked with" in checked.stdout
    assert [name for name, result in results_of(checked).items() if result == "failed"] == ["bind"]


def test_training_is_checked_with_annotated_tasks(work: Path) -> None:
    checked = check(work, "WrongOnceTrained", "--annotated", "answers.json")
    assert checked.returncode == 1
    assert results_of(checked)["valid"] == "failed"
    assert "Once trained, the prediction for task 0 (id 0) would not be imported" in checked.stdout


def test_results_as_json(work: Path) -> None:
    checked = check(work, "EncodeFails", "--json", "--quiet")
    clauses = {entry["clause"]: entry for entry in json.loads(checked.stdout)}
    assert clauses["encode"]["result"] == "failed"
    assert "raised IndexError" in clauses["encode"]["violations"][0]
    assert clauses["decode"]["skipped"] == "it needs what the clause encode requires"
    assert checked.stderr == ""


def test_project_is_checked_without_options(work: Path) -> None:
    assert run("init", "moods", "--quiet", cwd=work).returncode == 0
    checked = run("check", "moods", cwd=work)
    assert checked.returncode == 0, checked.stdout
    assert set(results_of(checked).values()) == {"passed"}
    assert "tasks of moods/tasks.json, 40 annotated tasks of moods/annotated.json" in checked.stderr
    assert not (work / "moods" / "models").exists()


def test_files_beside_a_class_in_a_file_are_found(work: Path) -> None:
    assert run("init", "moods", "--quiet", cwd=work).returncode == 0
    checked = run("check", "moods/model.py:Moods", "--no-training", cwd=work)
    assert checked.returncode == 0, checked.stdout
    assert results_of(checked)["fit"] == "skipped"
    assert "--no-training leaves it out." in checked.stdout


def test_backend_of_an_older_sdk_keeps_the_contract(work: Path) -> None:
    (work / "model.py").write_text(
        "from label_studio_ml.model import LabelStudioMLBase\n\n\nclass Old(LabelStudioMLBase):\n"
        "    def predict(self, tasks, **kwargs):\n"
        "        value = {'choices': ['short']}\n"
        "        region = {'from_name': 'size', 'to_name': 'text', 'type': 'choices', 'value': value}\n"
        "        return [{'result': [region]} for task in tasks]\n"
    )
    (work / "answers.json").rename(work / "annotated.json")
    checked = run("check", ".", "-c", "size.xml", "--tasks", "texts.json", cwd=work)
    assert checked.returncode == 0, checked.stdout
    assert "The model does not override fit." in checked.stdout
    fitted = run("fit", "annotated.json", "--model", "model.py", "-c", "size.xml", "-o", "models", cwd=work)
    assert fitted.returncode == 2
    assert "cannot be trained" in fitted.stderr


def test_samples_are_made_where_there_are_no_tasks(work: Path) -> None:
    checked = run("check", f"{BROKEN}:LosesOne", "-c", "size.xml", cwd=work)
    assert "8 sample tasks" in checked.stderr
    assert results_of(checked)["forward"] == "failed"


def test_built_in_model_is_checked_with_the_samples_of_its_project(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lsml_cli.testing.check_model")
    monkeypatch.setattr(module, "run_check", lambda subject, why_untrained: iter(()))  # tests/testing checks the model
    checked = run("check", "text-classifier", cwd=work)
    assert checked.returncode == 0, checked.stderr
    assert "with its label config, 16 sample tasks, 40 annotated tasks." in checked.stderr


def test_wrong_usage_says_what_to_give(work: Path) -> None:
    missing = run("check", f"{BROKEN}:Lengths", cwd=work)
    assert missing.returncode == 2
    assert "needs a label config" in missing.stderr
    assert "--label-config FILE, or put it beside the model as label_config.xml" in missing.stderr
    untrained = check(work, "Learner")
    assert untrained.returncode == 2
    assert results_of(untrained)["class"] == "passed"
    assert "Give annotated tasks to train it on: --annotated FILE" in untrained.stderr
    useless = check(work, "Lengths", "--annotated", "answers.json")
    assert useless.returncode == 2
    assert "Leave out --annotated." in useless.stderr
    assert check(work, "Lengths", "--no-training", "--annotated", "answers.json").returncode == 2
    assert check(work, "Lengths", "--limit", "1").returncode == 2
    assert run("check", "no-such-model", cwd=work).returncode == 2


def test_missing_modules_are_named_before_anything_else(work: Path) -> None:
    model = "class Needy(Lengths):\n    required_modules = ('nosuchmodule',)\n"
    (work / "needy.py").write_text(f"from tests.helpers.broken_models import Lengths\n\n\n{model}")
    checked = run("check", "needy.py:Needy", "-c", "size.xml", cwd=work)
    assert (checked.returncode, checked.stdout) == (1, "")
    assert "cannot be checked without nosuchmodule. pip install nosuchmodule" in " ".join(checked.stderr.split())


def test_settings_file_beside_the_data_is_not_read(work: Path) -> None:
    (work / "evil.py").write_text("open('was-here', 'w').close()\n")
    (work / "lsml.toml").write_text('[check]\nmodel = "evil.py"\ntasks = "evil.json"\n[check.with]\nlimit = 3\n')
    assert check(work, "DecodeFails").returncode == 1
    assert not (work / "was-here").exists()


def test_parameters_reach_the_model(work: Path) -> None:
    refused = check(work, "Lengths", "--with", "limits=3")
    assert refused.returncode == 2
    assert "has no parameter 'limits'" in refused.stderr
