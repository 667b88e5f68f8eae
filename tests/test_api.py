"""What `import lsml_cli` offers: every name is there, documented, cheap, and does in a notebook what a command does."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lsml_cli
from lsml_cli import Failure, Prediction, UnreadableRecord, find_model, load_model, read_tasks
from lsml_cli.errors import LabelMismatch, UsageError
from tests.helpers import models

if TYPE_CHECKING:
    from conftest import Lsml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLE = ROOT / "examples" / "support-tickets"
WORDS = f"{models.__file__}:Words"


def test_every_name_is_there_documented_and_in_the_readme() -> None:
    for name in lsml_cli.__all__:
        found = getattr(lsml_cli, name)
        assert name == "__version__" or found.__doc__, name
        assert f"`{name}`" in README, name
    assert lsml_cli.__all__ == sorted(lsml_cli.__all__)
    assert set(lsml_cli.__all__) <= set(dir(lsml_cli))
    with pytest.raises(AttributeError, match="has no attribute 'predict_all'"):
        _ = lsml_cli.predict_all


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(lsml_cli.__file__).read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    homes = {name: f"lsml_cli.{module}" for module, names in lsml_cli._EXPORTS.items() for name in names}
    assert seen == homes
    assert seen.keys() == set(lsml_cli.__all__) - {"__version__"}


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys, lsml_cli; print(*(name for name in sys.modules if name.startswith('lsml_cli')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {"lsml_cli", "lsml_cli._version"}


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_notebook_in_the_readme_works(ticket_model: Path, tmp_path: Path) -> None:
    [snippet] = [each for each in snippets() if "load_model" in each]
    assert len(snippet.splitlines()) <= 10
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tickets").symlink_to(ticket_model)
    (tmp_path / "tasks.json").symlink_to(EXAMPLE / "tasks.json")
    run = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 158
    assert re.match(r"3401 0\.\d+ \[\{'choices': \['\w+'\]\}", run.stdout)


def test_the_test_in_the_readme_passes(tmp_path: Path) -> None:
    [model] = [each for each in snippets() if "class Shouting" in each]
    [test] = [each for each in snippets() if "def test_" in each]
    (tmp_path / "shouting.py").write_text(model)
    (tmp_path / "test_shouting.py").write_text(test)
    (tmp_path / "config.xml").write_text(
        '<View><Text name="t" value="$text"/><Choices name="c" toName="t">'
        '<Choice value="loud"/><Choice value="quiet"/></Choices></View>'
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout


def labels(outcomes: Any) -> list[Any]:
    return [outcome.result[0].value["choices"][0] for _, outcome in outcomes]


def test_a_notebook_says_what_the_command_says(ticket_model: Path, lsml: Lsml) -> None:
    run = lsml("predict", EXAMPLE / "tasks.json", "--model", ticket_model)
    written = [json.loads(line)["predictions"][0] for line in run.stdout.splitlines()]
    with load_model(str(ticket_model)) as model:
        found = list(model.predict(read_tasks(str(EXAMPLE / "tasks.json"))))
    assert [outcome.to_json() for _, outcome in found if isinstance(outcome, Prediction)] == written


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_may_be_dicts_and_bad_ones_keep_their_place(workers: int) -> None:
    given = [
        {"text": "a"},
        {"id": 7, "data": {"text": "b " * 9}},
        3,
        {"text": {1}},
        UnreadableRecord(4, "line 5", "torn"),
    ]
    with load_model(WORDS, models.TEXT_CONFIG, workers=workers) as model:
        (one, short), (two, long), *bad = model.predict(given)  # type: ignore[arg-type]
    assert labels([(one, short), (two, long)]) == ["short", "long"]
    assert (one.id, two.id, two.data) == (None, 7, {"text": "b " * 9})
    assert [outcome for _, outcome in bad] == [
        Failure("read", "expected a task, found a number (3)"),
        Failure("read", "not JSON: Type is not JSON serializable: set"),
        Failure("read", "line 5: torn"),
    ]
    assert [task.index for task, _ in bad] == [2, 3, 4]


def test_predicting_is_lazy_and_goes_on() -> None:
    def endless() -> Any:
        while True:
            yield {"text": "a"}

    model = load_model(WORDS, models.TEXT_CONFIG)
    stream = model.predict(endless(), batch_size=3)
    assert labels([next(stream)]) == ["short"]
    assert labels(model.predict([{"text": "a " * 9}])) == ["long"]  # a single item is a batch of one
    assert labels([next(stream)]) == ["short"]
    model.close()
    with pytest.raises(UsageError, match="was closed"):
        model.predict([])


def test_a_model_may_be_a_class_or_a_spec(tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(models.TEXT_CONFIG)
    for model in (models.Words, find_model(WORDS)):
        for config in (models.TEXT_CONFIG, tmp_path / "config.xml", str(tmp_path / "config.xml")):
            with load_model(model, config) as loaded:
                assert labels(loaded.predict([{"text": "a"}])) == ["short"]
    assert repr(loaded).endswith('for <Choices name="size">>')


def test_what_goes_wrong_is_said_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="needs a label config"):
        load_model(WORDS)
    with pytest.raises(LabelMismatch, match="text classifier fills <Choices>"):
        load_model("text-classifier", models.OCR_CONFIG)
    with pytest.raises(UsageError, match="has no parameter"):
        load_model(WORDS, models.TEXT_CONFIG, params={"paus": 1})
    with pytest.raises(UsageError, match="has its parameters already"):
        load_model(find_model(WORDS), models.TEXT_CONFIG, params={"pause": 0})
    with pytest.raises(UsageError, match="cannot run on 'cuda'"):
        load_model(WORDS, models.TEXT_CONFIG, device="cuda")
    with (
        load_model("text-classifier", EXAMPLE / "label_config.xml") as model,
        pytest.raises(UsageError, match="predict takes an iterable of tasks, not a string"),
    ):
        model.predict("tasks.json")
    assert "untrained" in model.notes[0]
