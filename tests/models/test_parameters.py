"""Parameters of models: declared once, checked on the command line, and listed by `lsml models`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lsml_cli import Parameter, load_model
from lsml_cli.errors import ModelError, UsageError
from lsml_cli.models.parameters import require_valid
from lsml_cli.registry import catalog
from lsml_cli.registry.model_location import BUILT_IN
from lsml_cli.registry.resolve import find_model
from tests.helpers import models
from tests.helpers.cli import Lsml, run_in_process

KEYWORDS = '''
from lsml_cli import Model, Parameter, Prediction


class Keywords(Model):
    """Call a text long from `words` words on."""

    params = {
        "words": 3,
        "share": Parameter(0.5, "share of the words that count", above=0, maximum=1),
        "language": Parameter("en", "language of the texts", choices=("en", "de")),
        "limit": Parameter(None, "words to read at most", kind="int", minimum=1),
        "stop": [],
    }

    def load(self, device):
        print("loaded", flush=True)

    def forward(self, inputs, binding):
        return [len(task.data["text"].split()) >= self.param("words") for task in inputs]

    def decode(self, output, task, binding):
        region = binding.config.only("Choices").region(task, {"choices": ["long" if output else "short"]}, score=0.9)
        return Prediction.of((region,), self.version)

    def fit(self, train, validation, binding, out_dir, progress):
        return {}
'''


@pytest.fixture
def keywords(tmp_path: Path) -> str:
    """Write a file with a model of one's own; return the name of the model."""
    (tmp_path / "config.xml").write_text(models.TEXT_CONFIG)
    (tmp_path / "keywords.py").write_text(KEYWORDS)
    return f"{tmp_path / 'keywords.py'}:Keywords"


@pytest.mark.parametrize(
    ("parameter", "allowed", "refused", "description"),
    [
        (Parameter(3), [3, 0, -1, 10**30], [3.0, "3", "abc", True, None, [3]], "a whole number"),
        (Parameter(0.5), [0.5, 1, -2], ["0.5", False, None, float("inf"), float("nan")], "a number"),
        (Parameter(True), [True, False], [1, 0, "true", None], "true or false"),
        (Parameter("en"), ["en", ""], [1, True, None, ["en"]], "a text"),
        (Parameter(["a"]), [[], ["b"], (1, 2)], ["a", {}, None], "a list"),
        (Parameter({}), [{}, {"a": 1}], [[], "a", None], "an object"),
        (Parameter(), [None, 1, "a", [], {}, True], [], "any JSON value"),
        (Parameter(None, kind="int"), [None, 3], ["3", 0.5, True], "a whole number, or null"),
        (Parameter(3, nullable=True), [None, 3], ["3"], "a whole number, or null"),
        (Parameter(None, above=0), [None, 1e-9, 3], [0, -1, "x", True], "a number above 0, or null"),
        (Parameter(3, minimum=1), [1, 2], [0, -3], "a whole number from 1"),
        (Parameter(3, minimum=1, maximum=5), [1, 5], [0, 6], "a whole number from 1 to 5"),
        (Parameter(3, maximum=5), [5, -5], [6], "a whole number of at most 5"),
        (Parameter(0.5, above=0, maximum=1), [0.1, 1], [0, 1.5], "a number above 0 and at most 1"),
        (Parameter(1234567, minimum=1234567), [1234567], [1234566], "a whole number from 1234567"),
        (Parameter("a", choices=("a", "b", "c")), ["b"], ["d", None, 1], '"a", "b" or "c"'),
        (Parameter(None, choices=("balanced",)), [None, "balanced"], ["x", False], '"balanced" or null'),
        (Parameter(1, choices=(1, 2)), [1, 2.0], [True, 3, "1"], "1 or 2"),
        (Parameter(32, check=lambda value: value % 32 == 0), [64], [33, "64"], "a whole number"),
        (
            Parameter(32, check=lambda value: value % 32 == 0, expected="a multiple of 32"),
            [64],
            [33],
            "a multiple of 32",
        ),
    ],
)
def test_parameter_accepts_exactly_what_it_describes(
    parameter: Parameter, allowed: list[Any], refused: list[Any], description: str
) -> None:
    assert parameter.describe() == description
    assert [value for value in allowed if not parameter.accepts(value)] == []
    assert [value for value in refused if parameter.accepts(value)] == []


def test_error_names_the_parameter_the_rule_and_the_value() -> None:
    with pytest.raises(UsageError) as caught:
        require_valid("words", Parameter(3, minimum=1), "abc")
    assert (caught.value.message, caught.value.hint) == ("words must be a whole number from 1, not 'abc'.", None)


@pytest.mark.parametrize(("value", "written"), [(5, "5"), (True, "true"), ([1], "[1]")])
def test_text_that_looks_like_json_gets_a_hint_that_works(value: Any, written: str, keywords: str) -> None:
    with pytest.raises(UsageError) as caught:
        require_valid("name", Parameter("en"), value)
    assert caught.value.hint == f"""A text that looks like JSON needs quotes: --with name='"{written}"'"""
    assert json.loads(f'"{written}"') == written


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("words=abc", "words must be a whole number, not 'abc'."),
        ("words=2.5", "words must be a whole number, not 2.5."),
        ("words=null", "words must be a whole number, not None."),
        ("share=0", "share must be a number above 0 and at most 1, not 0."),
        ("language=fr", """language must be "en" or "de", not 'fr'."""),
        ("limit=0", "limit must be a whole number from 1, or null, not 0."),
        ("stop=the", "stop must be a list, not 'the'."),
        ("word=3", "Keywords has no parameter 'word'."),
    ],
)
@pytest.mark.parametrize("command", ["predict", "fit", "evaluate"])
def test_wrong_value_is_a_usage_error_before_any_task_is_read(
    command: str, pair: str, sentence: str, keywords: str, tmp_path: Path
) -> None:
    """The tasks do not exist, so whoever reads them first complains about that."""
    output = ("--output", tmp_path / "out") if command != "evaluate" else ()
    options = ("--model", keywords, "--label-config", tmp_path / "config.xml", "--with", pair, *output)
    run = run_in_process(command, tmp_path / "no-tasks.json", *options)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"lsml: {sentence}\n")
    assert not (tmp_path / "out").exists()


def test_value_reaches_the_model(keywords: str, lsml: Lsml, tmp_path: Path) -> None:
    options = ("--model", keywords, "--label-config", tmp_path / "config.xml", "--with", "words=5", "--with", "share=1")
    run = lsml("predict", "-", *options, input='{"text": "a b c d"}\n{"text": "a b c d e"}\n')
    assert run.returncode == 0, run.stderr
    labels = [json.loads(line)["predictions"][0]["result"][0]["value"]["choices"] for line in run.stdout.splitlines()]
    assert labels == [["short"], ["long"]]


def test_wrong_value_is_refused_from_python(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pause must be a number, not 'x'"):
        load_model(models.Words, models.TEXT_CONFIG, params={"pause": "x"})


def test_stored_value_that_is_not_allowed_is_refused(keywords: str, tmp_path: Path) -> None:
    """A version may come from anywhere: a value out of its range could take all of the memory."""
    tasks = [
        {
            "data": {"text": text},
            "annotations": [
                {
                    "id": number,
                    "result": [
                        {"from_name": "size", "to_name": "text", "type": "choices", "value": {"choices": ["long"]}}
                    ],
                }
            ],
        }
        for number, text in enumerate(("a b c", "a b", "b c"))
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    options = ("--label-config", tmp_path / "config.xml", "--holdout", "0", "--output", tmp_path / "m")
    run = run_in_process("fit", tmp_path / "tasks.json", "--model", keywords, "--with", "words=2", *options)
    assert run.returncode == 0, run.stderr
    [metadata] = tmp_path.glob("m/*/model.json")
    stored = json.loads(metadata.read_bytes())
    assert stored["params"] == {"words": 2, "share": 0.5, "language": "en", "limit": None, "stop": []}
    metadata.write_text(json.dumps(stored | {"params": stored["params"] | {"language": "fr", "limit": 0}}))
    with pytest.raises(ModelError, match=r'model.json is damaged, .*: language must be "en" or "de", not "fr"'):
        find_model(f"{keywords}@{tmp_path / 'm'}")


def test_params_that_are_no_mapping_are_reported_by_name() -> None:
    class Listed(models.Words):
        params: ClassVar[Any] = ["words"]

    with pytest.raises(ModelError, match=r"Listed\.params is a list; it has to map each name to its default"):
        Listed.declared_params()


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_models_allow_their_defaults(name: str) -> None:
    declared = find_model(name).model_class().declared_params()
    assert declared
    assert [key for key, parameter in declared.items() if not parameter.accepts(parameter.default)] == []


# --- lsml models


def test_models_lists_parameters_of_a_model(keywords: str) -> None:
    run = run_in_process("models", keywords)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [
        "parameter  default  meaning",
        "words      3        a whole number",
        "share      0.5      share of the words that count (a number above 0 and at most 1)",
        'language   "en"     language of the texts ("en" or "de")',
        "limit      null     words to read at most (a whole number from 1, or null)",
        "stop       []       a list",
    ]


def test_models_json_has_the_parameters_of_all() -> None:
    run = run_in_process("models", "--json")
    entries = {entry["name"]: entry for entry in json.loads(run.stdout)}
    assert entries.keys() == BUILT_IN.keys()
    assert entries["text-classifier"]["params"][1] == {
        "name": "ngrams",
        "default": 2,
        "allowed": "a whole number from 1 to 5",
        "help": "longest run of tokens that is a feature",
    }
    for name, entry in entries.items():
        assert {parameter["name"] for parameter in entry["params"]} == set(find_model(name).model_class().params or ())
    [alone] = json.loads(run_in_process("models", "text-classifier", "--json").stdout)
    assert alone == entries["text-classifier"]


def test_models_shows_what_a_version_was_trained_with(ticket_model: Path) -> None:
    assert "C             30.0     " in run_in_process("models", ticket_model).stdout


def test_models_says_when_there_is_nothing_to_list(tmp_path: Path) -> None:
    source = "import tests.helpers.models as models\nclass Plain(models.Script):\n    params = {}\n"
    (tmp_path / "plain.py").write_text(source)
    assert run_in_process("models", f"{models.__file__}:Script").stdout.endswith(":Script takes any parameter.\n")
    assert run_in_process("models", f"{tmp_path}/plain.py:Plain").stdout.endswith(":Plain has no parameters.\n")


def test_models_refuses_an_unknown_name() -> None:
    run = run_in_process("models", "text-clasifier")
    assert run.returncode == 2
    assert "There is no model 'text-clasifier'." in run.stderr
    assert "Known models: text-classifier" in run.stderr


def test_model_that_cannot_be_described_says_why(tmp_path: Path) -> None:
    source = "import tests.helpers.models as models\nclass Odd(models.Words):\n    supported_controls = 3\n"
    (tmp_path / "odd.py").write_text(source)
    with pytest.raises(ModelError, match="It cannot be listed: AttributeError"):
        catalog.get_model(f"{tmp_path}/odd.py:Odd")


@pytest.mark.parametrize("name", BUILT_IN)
def test_parameters_of_built_in_model_have_help(name: str) -> None:
    parameters = catalog.get_model(name).params
    assert parameters
    assert [parameter.name for parameter in parameters if not parameter.help] == []
