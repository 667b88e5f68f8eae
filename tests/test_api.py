"""The public API of `lsml_cli`: every name is documented, cheap to import, and does in Python what a command does."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lsml_cli
from lsml_cli import Failure, Prediction, UnreadableRecord, find_model, load_model, read_tasks
from lsml_cli.errors import LabelMismatch, UsageError
from tests.helpers import models
from tests.helpers.cli import Lsml

ROOT = Path(__file__).parents[1]
PAGES = ("reference/python.md", "guides/own-model.md", "guides/check.md")
DOCUMENTATION = "\n".join((ROOT / "docs" / page).read_text("utf-8") for page in PAGES)
EXAMPLE = ROOT / "examples" / "support-tickets"
WORDS = f"{models.__file__}:Words"


# Records that `lsml` makes and users only read need no example.
WITHOUT_EXAMPLE = {"Annotation", "Failure", "Region", "UnreadableRecord"}
DOCUMENTED = [name for name in lsml_cli.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", lsml_cli.__all__)
def test_every_name_exists_and_is_in_the_documentation_and_the_overview(name: str) -> None:
    assert getattr(lsml_cli, name)
    assert f"`{name}`" in DOCUMENTATION
    assert name == "__version__" or re.search(rf"\b{name}s?\b", lsml_cli.__doc__ or "")


def test_all_is_sorted_and_listed_by_dir() -> None:
    assert lsml_cli.__all__ == sorted(lsml_cli.__all__)
    assert set(lsml_cli.__all__) <= set(dir(lsml_cli))
    with pytest.raises(AttributeError, match="has no attribute 'predict_all'"):
        _ = lsml_cli.predict_all


def docstring_sections(value: Any) -> dict[str, str]:
    """Split a Google-style docstring: its summary under "", then each section by name."""
    sections: dict[str, str] = {"": ""}
    name = ""
    for line in inspect.cleandoc(value.__doc__ or "").splitlines():
        if heading := re.fullmatch("(Args|Attributes|Returns|Yields|Raises|Examples?):", line):
            name = heading[1]
            sections[name] = ""
        else:
            sections[name] += f"{line}\n"
    return sections


def documented_names(section: str) -> set[str]:
    """Return the names before the colons of a section; one line may document several."""
    return {name for line in re.findall(r"^    (\w[\w, ]*):", section, re.MULTILINE) for name in line.split(", ")}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_has_a_summary_line_and_an_example(name: str) -> None:
    sections = docstring_sections(getattr(lsml_cli, name))
    summary, _, rest = sections[""].partition("\n")
    assert summary.endswith((".", "`."))
    assert not rest or rest.startswith("\n"), "the first line is a sentence of its own"
    assert name in WITHOUT_EXAMPLE or "Example" in sections


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if inspect.isroutine(getattr(lsml_cli, name))])
def test_docstring_of_function_names_arguments_result_and_errors(name: str) -> None:
    function = getattr(lsml_cli, name)
    sections = docstring_sections(function)
    signature = inspect.signature(function)
    assert documented_names(sections["Args"]) == set(signature.parameters)
    assert sections["Raises"]
    assert ("Returns" in sections or "Yields" in sections) == (signature.return_annotation != "None")


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if inspect.isclass(getattr(lsml_cli, name))])
def test_docstring_of_class_names_its_fields(name: str) -> None:
    cls = getattr(lsml_cli, name)
    sections = docstring_sections(cls)
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    fields |= set(getattr(cls, "_fields", ()))
    if cls is lsml_cli.Model:
        fields = {key for key in vars(cls)["__annotations__"] if not key.startswith("_")}
    assert documented_names(sections.get("Attributes", sections.get("Args", ""))) >= fields


@pytest.mark.parametrize("name", [key for key, value in vars(lsml_cli.Model).items() if inspect.isfunction(value)])
def test_docstring_of_model_method_names_its_arguments(name: str) -> None:
    """Where a method has Args at all, it has all of them."""
    sections = docstring_sections(getattr(lsml_cli.Model, name))
    assert name == "__init__" or sections[""]
    if "Args" in sections:
        assert documented_names(sections["Args"]) == set(inspect.signature(vars(lsml_cli.Model)[name]).parameters) - {
            "self"
        }


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(lsml_cli.__file__).read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == {name: f"lsml_cli.{module}" for module, names in lsml_cli._EXPORTS.items() for name in names}
    assert imported.keys() == set(DOCUMENTED)


def test_import_of_the_package_imports_no_other_module() -> None:
    code = "import sys, lsml_cli; print(*(name for name in sys.modules if name.startswith('lsml_cli')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - {"lsml_cli._build_version"} == {"lsml_cli", "lsml_cli._version"}


def labels(outcomes: Any) -> list[Any]:
    return [outcome.result[0].value["choices"][0] for _, outcome in outcomes]


def test_load_model_predicts_what_the_command_predicts(ticket_model: Path, lsml: Lsml) -> None:
    run = lsml("predict", EXAMPLE / "tasks.json", "--model", ticket_model)
    written = [json.loads(line)["predictions"][0] for line in run.stdout.splitlines()]
    with load_model(str(ticket_model)) as model:
        outcomes = list(model.predict(read_tasks(str(EXAMPLE / "tasks.json"))))
    assert [outcome.to_json() for _, outcome in outcomes if isinstance(outcome, Prediction)] == written


@pytest.mark.parametrize("workers", [1, 2])
def test_dicts_are_tasks_and_invalid_ones_keep_their_place(workers: int) -> None:
    items = [
        {"text": "a"},
        {"id": 7, "data": {"text": "b " * 9}},
        3,
        {"text": {1}},
        UnreadableRecord(4, "line 5", "truncated"),
    ]
    with load_model(WORDS, models.TEXT_CONFIG, workers=workers) as model:
        (first, short), (second, long), *invalid = model.predict(items)  # type: ignore[arg-type]
    assert labels([(first, short), (second, long)]) == ["short", "long"]
    assert (first.id, second.id, second.data) == (None, 7, {"text": "b " * 9})
    assert [outcome for _, outcome in invalid] == [
        Failure("read", "expected a task, found a number (3)"),
        Failure("read", "not JSON: Type is not JSON serializable: set"),
        Failure("read", "line 5: truncated"),
    ]
    assert [task.index for task, _ in invalid] == [2, 3, 4]


def test_predict_is_lazy_and_can_be_called_again_meanwhile() -> None:
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


def test_load_model_takes_a_class_or_a_spec(tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(models.TEXT_CONFIG)
    for model in (models.Words, find_model(WORDS)):
        for config in (models.TEXT_CONFIG, tmp_path / "config.xml", str(tmp_path / "config.xml")):
            with load_model(model, config) as loaded:
                assert labels(loaded.predict([{"text": "a"}])) == ["short"]
    assert repr(loaded).endswith('for <Choices name="size">>')


def test_misuse_of_load_model_raises_one_sentence() -> None:
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
        model.predict("tasks.json")  # type: ignore[arg-type]
    assert "untrained" in model.notes[0]
